// The certificate authority of a mesh: a self-signed root, an issuer below it, and the rules of
// what a workload certificate looks like. Who may have which identity is not decided here: callers
// pass the granted identity. Keys on disk are 0600 and written atomically.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/certificate.h"
#include "userspace/pki/csr.h"
#include "userspace/pki/key.h"

namespace meltemi::pki {

struct AuthorityOptions {
  std::string directory;  // holds the files below
  std::string trust_domain = "cluster.local";
  std::chrono::seconds default_ttl = std::chrono::hours(24);
  std::chrono::seconds max_ttl = std::chrono::hours(24 * 90);
  std::chrono::seconds root_ttl = std::chrono::hours(24 * 3650);
  std::chrono::seconds issuer_ttl = std::chrono::hours(24 * 365);
  // Clocks of nodes differ: certificates are valid from this long before they were made.
  std::chrono::seconds backdate = std::chrono::minutes(5);
};

// Files: root-key.pem, root-cert.pem (bundle of all trusted roots, the active one first),
// ca-key.pem, ca-cert.pem (issuer), cert-chain.pem (intermediates). A directory with ca-key.pem and
// ca-cert.pem but without root-key.pem is a plugged-in CA: it is used as it is and never rewritten.
class CertificateAuthority {
 public:
  // Loads, or creates what is missing. Error kBadConfig: unreadable, expired or not belonging
  // together, naming the file.
  static Result<std::unique_ptr<CertificateAuthority>> open(AuthorityOptions options, WallTime now);

  // A leaf for exactly `identity` with the request's key; both key usages; at most `ttl` (0:
  // default), never beyond the issuer. Returns PEM: leaf, intermediates..., root bundle last. Error
  // kPermission: identity of another trust domain; kBadRequest.
  Result<std::vector<std::string>> issue(const CertificateRequest& request,
                                         const model::Identity& identity, std::chrono::seconds ttl,
                                         WallTime now);

  struct ServerCertificate {
    std::string key_pem, chain_pem;  // leaf + intermediates
    WallTime not_before, not_after;
  };
  // For the control plane's own TLS port. Names go to subjectAltName, serverAuth only.
  Result<ServerCertificate> issue_server(const std::vector<std::string>& dns_names,
                                         const std::vector<IpAddress>& addresses, WallTime now);

  // Renews the issuer when past half of its life, and the root when past 80 %: a new root joins the
  // bundle first (step 1, trusted everywhere after one leaf lifetime), signs from step 2 on, and
  // the old one leaves when the last leaf below it is gone. Returns true if root-cert.pem changed.
  // Call hourly.
  Result<bool> rotate(WallTime now);
  // Starts a root rotation now: adds a new root to the bundle; the old one keeps signing until the
  // next call after max(default_ttl, `overlap`) of rotate().
  Status begin_root_rotation(WallTime now);

  std::string root_bundle_pem() const;
  std::string trust_domain() const { return options_.trust_domain; }
  std::vector<Certificate> roots() const;
  uint64_t issued() const;

 private:
  struct Material;
  CertificateAuthority(AuthorityOptions options, std::shared_ptr<const Material> material);
  Status create(WallTime now);
  std::shared_ptr<const Material> material() const;

  AuthorityOptions options_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Material> material_;
  uint64_t issued_ = 0;
};

}  // namespace meltemi::pki
