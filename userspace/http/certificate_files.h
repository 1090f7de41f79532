// The certificate with which a port of the server speaks TLS, from PEM files that somebody else
// renews (a mounted Secret, cert-manager). It must never go without a certificate that it once had:
// files that do not fit together, as in the middle of a renewal, are named and read again later.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/net/tls_server_stream.h"

namespace meltemi::http {

struct CertificatePaths {
  std::string certificate;   // chain, leaf first
  std::string key;           // unencrypted
  std::string client_roots;  // "": clients need no certificate
  bool empty() const { return certificate.empty() && key.empty() && client_roots.empty(); }
};

class CertificateFiles {
 public:
  // How often the files are looked at, when somebody connects: a renewal comes long before the end.
  static constexpr Duration kLook = std::chrono::seconds(1);

  // Reads them. Error: kBadConfig naming the file or the part, and what to do.
  static Result<std::unique_ptr<CertificateFiles>> open(CertificatePaths paths);

  // What to serve with now. On one thread.
  std::shared_ptr<const net::ServerTls> current(MonoTime now);
  // Of any thread: looks at changed files that could not be used.
  uint64_t failures() const { return failures_.load(std::memory_order_relaxed); }

 private:
  explicit CertificateFiles(CertificatePaths paths) : paths_(std::move(paths)) {}
  std::string stamp() const;  // differs when a file was exchanged or written
  Status read();

  const CertificatePaths paths_;
  std::shared_ptr<const net::ServerTls> tls_;
  std::string read_stamp_;  // of what is served
  std::string told_stamp_;  // of what could not be read, once that was logged
  MonoTime next_look_{};
  std::atomic<uint64_t> failures_{0};
};

}  // namespace meltemi::http
