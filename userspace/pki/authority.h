// The certificate authority of a mesh: a self-signed root, an issuer below it, and the rules of
// what a workload certificate looks like. Who may have which identity is not decided here: callers
// pass the granted identity. Keys on disk are 0600 and written atomically.
#pragma once

#include <atomic>
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

inline constexpr int kBackdateShare = 10;

struct AuthorityOptions {
  std::string directory;  // holds the files below
  std::string trust_domain = "cluster.local";
  std::chrono::seconds default_ttl = std::chrono::hours(24);
  std::chrono::seconds max_ttl = std::chrono::hours(24 * 90);
  std::chrono::seconds root_ttl = std::chrono::hours(24 * 3650);
  std::chrono::seconds issuer_ttl = std::chrono::hours(24 * 365);
  // Clocks of nodes differ: certificates are valid from this long before they were made, but from
  // at most a kBackdateShare-th of their lifetime, or a short one would be past its half at birth and
  // whoever renews at half-life would never stop asking.
  std::chrono::seconds backdate = std::chrono::minutes(5);
};

// Files: root-key.pem, root-cert.pem (bundle of all trusted roots), ca-key.pem, ca-cert.pem (issuer),
// cert-chain.pem (further intermediates of a plugged-in CA), and while a root rotation is under way
// next-root-key.pem, next-root-cert.pem, retired-root-cert.pem. A directory with ca-key.pem and ca-cert.pem but without
// root-key.pem is a plugged-in CA: it is read again by rotate(), and never written.
class CertificateAuthority {
 public:
  // Loads, or creates what is missing. Error kBadConfig: unreadable, expired or not belonging
  // together, naming the file.
  static Result<std::unique_ptr<CertificateAuthority>> open(AuthorityOptions options, WallTime now);

  // A leaf for exactly `identity` with the request's key; both key usages; at most `ttl` (0:
  // default), never longer than max_ttl nor beyond the end of any certificate above it. Returns PEM: leaf, intermediates..., root bundle last. Error
  // kPermission: identity of another trust domain; kIdentityUnavailable: the CA itself has expired.
  Result<std::vector<std::string>> issue(const CertificateRequest& request,
                                         const model::Identity& identity, std::chrono::seconds ttl,
                                         WallTime now);

  struct ServerCertificate {
    std::string chain_pem;  // leaf + intermediates
    WallTime not_before, not_after;
  };
  // For the control plane's own TLS port. Names go to subjectAltName, serverAuth only.
  Result<ServerCertificate> issue_server(const PrivateKey& key,
                                         const std::vector<std::string>& dns_names,
                                         const std::vector<IpAddress>& addresses, WallTime now);

  // Takes the next step that is due, if any: renews the issuer past half of its life, begins a root
  // rotation past 80 % of the root's, makes the next root the signing one when it has been trusted for
  // max_ttl, and drops the old one when no leaf below it can be valid. Returns true if the issuer or
  // root-cert.pem changed. Call hourly.
  Result<bool> rotate(WallTime now);
  // Begins a root rotation now: a new root joins the bundle, the old one keeps signing. Error
  // kUnsupported: plugged-in CA, or a rotation is under way.
  Status begin_root_rotation(WallTime now);

  std::string root_bundle_pem() const;
  std::string trust_domain() const { return options_.trust_domain; }
  std::vector<Certificate> roots() const;
  uint64_t issued() const;

 private:
  struct Material;
  explicit CertificateAuthority(AuthorityOptions options);
  std::shared_ptr<const Material> material() const;
  void adopt(std::shared_ptr<const Material> material);
  Result<Material> load(WallTime now) const;
  Result<Material> load_plugged() const;
  Status make_issuer(Material& m, WallTime now) const;
  struct Validity {
    WallTime from, to;
  };
  // Of a leaf that is made now. Error kIdentityUnavailable: the CA itself has expired.
  Result<Validity> leaf_validity(const Material& m, std::chrono::seconds ttl, WallTime now) const;
  Status start_next_root(Material& m, WallTime now) const;
  Status activate_next_root(Material& m) const;
  Status drop_retired_root(Material& m) const;
  Status write_bundle(const Material& m) const;
  Result<Certificate> new_root(const PrivateKey& key, WallTime now) const;
  std::string path(std::string_view file) const;

  AuthorityOptions options_;
  mutable std::mutex mutex_;       // of material_
  std::mutex rotation_mutex_;      // one rotation step at a time
  std::shared_ptr<const Material> material_;
  std::atomic<uint64_t> issued_{0};
};

}  // namespace meltemi::pki
