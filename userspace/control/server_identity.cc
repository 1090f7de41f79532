// See server_identity.h.
#include "userspace/control/server_identity.h"

#include <fmt/format.h>
#include <ifaddrs.h>

#include <algorithm>
#include <cerrno>

#include "userspace/base/log.h"
#include "userspace/pki/rotation.h"
#include "userspace/sys/files.h"

namespace meltemi::control {
namespace {

log::Scope scope("identity");

constexpr size_t kMaxAddresses = 256;  // in one certificate

bool is_link_local(const IpAddress& ip) {
  const auto& b = ip.bytes();
  return !ip.is_v4() && b[0] == 0xfe && (b[1] & 0xc0) == 0x80;
}

}  // namespace

Result<std::vector<IpAddress>> local_addresses() {
  std::vector<IpAddress> out = {*IpAddress::parse("127.0.0.1"), *IpAddress::parse("::1")};
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return fail_errno(errno, "getifaddrs");
  for (const ifaddrs* at = all; at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr == nullptr) continue;
    const int family = at->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    const auto address = SocketAddress::from_sockaddr(at->ifa_addr, size);
    if (address && !is_link_local(address->ip)) out.push_back(address->ip);
  }
  freeifaddrs(all);
  std::ranges::sort(out);
  const auto repeated = std::ranges::unique(out);
  out.erase(repeated.begin(), repeated.end());
  if (out.size() > kMaxAddresses) out.resize(kMaxAddresses);
  return out;
}

std::vector<std::string> control_plane_names(const std::string& root_namespace) {
  std::vector<std::string> out = {"localhost"};
  for (const char* name : {"meltemid", "istiod"}) {
    out.push_back(fmt::format("{}.{}", name, root_namespace));
    out.push_back(fmt::format("{}.{}.svc", name, root_namespace));
    out.push_back(fmt::format("{}.{}.svc.cluster.local", name, root_namespace));
  }
  return out;
}

Status ServerIdentity::issue(WallTime now) {
  auto addresses = MELTEMI_TRY(local_addresses());
  const auto made = MELTEMI_TRY(ca_->issue_server(key_, names_, addresses, now));
  MELTEMI_TRY(sys::write_file_atomically(certificate_file(), made.chain_pem, 0644));
  addresses_ = std::move(addresses);  // only now: what was not written is tried again
  due_ = pki::rotation_due(made.not_before, made.not_after, 0.5);
  scope.info("server certificate for {} names and {} addresses, valid until {}", names_.size(),
             addresses_.size(), format_rfc3339(made.not_after));
  return {};
}

Result<ServerIdentity> ServerIdentity::create(pki::CertificateAuthority* ca, std::string directory,
                                              std::vector<std::string> names, WallTime now) {
  ServerIdentity out(ca, std::move(directory), std::move(names),
                     MELTEMI_TRY(pki::PrivateKey::generate()));
  MELTEMI_TRY(sys::write_file_atomically(out.key_file(), out.key_.to_pem().view(), 0600));
  MELTEMI_TRY(out.issue(now));
  return out;
}

Status ServerIdentity::refresh(WallTime now, bool issuer_changed) {
  issuer_changed_ |= issuer_changed;
  if (!issuer_changed_ && now < due_ && MELTEMI_TRY(local_addresses()) == addresses_) return {};
  MELTEMI_TRY(issue(now));
  issuer_changed_ = false;
  return {};
}

}  // namespace meltemi::control
