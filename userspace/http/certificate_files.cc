// See certificate_files.h.
#include "userspace/http/certificate_files.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include "userspace/base/log.h"
#include "userspace/pki/secret.h"
#include "userspace/sys/files.h"

namespace meltemi::http {
namespace {

log::Scope scope("http");

constexpr size_t kMaxFile = 1 << 20;

}  // namespace

Result<std::unique_ptr<CertificateFiles>> CertificateFiles::open(CertificatePaths paths) {
  if (paths.certificate.empty() || paths.key.empty()) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                "a port with TLS needs a certificate file and a key file: give both, or neither");
  }
  std::unique_ptr<CertificateFiles> out(new CertificateFiles(std::move(paths)));
  out->read_stamp_ = out->stamp();
  MELTEMI_TRY(out->read());
  return out;
}

std::string CertificateFiles::stamp() const {
  std::string out;
  for (const std::string* path : {&paths_.certificate, &paths_.key, &paths_.client_roots}) {
    struct stat s{};
    if (path->empty() || ::stat(path->c_str(), &s) != 0) {
      out += "-;";
      continue;
    }
    out += fmt::format("{}:{}:{}.{}:{};", s.st_dev, s.st_ino, s.st_mtim.tv_sec, s.st_mtim.tv_nsec,
                       s.st_size);
  }
  return out;
}

Status CertificateFiles::read() {
  const std::string chain = MELTEMI_TRY(sys::read_file(paths_.certificate, kMaxFile));
  std::string roots;
  if (!paths_.client_roots.empty()) {
    roots = MELTEMI_TRY(sys::read_file(paths_.client_roots, kMaxFile));
  }
  std::string text = MELTEMI_TRY(sys::read_file(paths_.key, kMaxFile));
  const pki::Secret key(text);
  pki::wipe(text);
  auto tls = net::ServerTls::create({.cert_chain_pem = chain,
                                     .private_key_pem = key.view(),
                                     .client_roots_pem = roots,
                                     .protocols = {"h2", "http/1.1"}});
  if (!tls) {
    return fail(tls.error().reason, Fault::kConfig,
                fmt::format("{} and {}: {}", paths_.certificate, paths_.key, tls.error().detail));
  }
  tls_ = *std::move(tls);
  return {};
}

std::shared_ptr<const net::ServerTls> CertificateFiles::current(MonoTime now) {
  if (now < next_look_) return tls_;
  next_look_ = now + kLook;
  std::string found = stamp();
  if (found == read_stamp_) return tls_;
  // What could not be read is read again, though it looks the same: the reason may have been ours.
  if (const Status status = read(); !status) {
    failures_.fetch_add(1, std::memory_order_relaxed);
    if (std::exchange(told_stamp_, found) != found) {
      scope.warn("{}; the certificate of before is served on", status.error().to_string());
    }
    return tls_;
  }
  read_stamp_ = std::move(found);
  told_stamp_.clear();
  scope.info("{} was renewed", paths_.certificate);
  return tls_;
}

}  // namespace meltemi::http
