// The service account tokens of a sandbox: what Kubernetes' TokenRequest API would hand out. The
// signing key lies in the sandbox's run directory, readable by root only, and goes away with it.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/key.h"
#include "userspace/sandbox/layout.h"

namespace meltemi::sandbox {

inline constexpr Duration kTokenLifetime = std::chrono::hours(24);
// A token file is written anew at this age; readers read it at every use.
inline constexpr Duration kTokenRefresh = std::chrono::hours(6);

class TokenIssuer {
 public:
  // Makes the key pair and writes both halves (the public one is meltemid's).
  static Result<TokenIssuer> create(const Layout& layout);
  static Result<TokenIssuer> load(const Layout& layout);

  struct Subject {
    std::string ns, service_account, pod_name, pod_uid, node;
    std::string account_uid = {};  // "" if the account was never declared
  };
  // `audience` "" is the mesh's.
  Result<std::string> sign(const Subject& subject, std::string_view audience = {}) const;
  // The token of a node's component, such as istio-system/ztunnel, into `path` (0600).
  Status write(const Subject& subject, const std::string& path) const;

 private:
  explicit TokenIssuer(pki::PrivateKey key) : key_(std::move(key)) {}
  pki::PrivateKey key_;
};

}  // namespace meltemi::sandbox
