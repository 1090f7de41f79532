// Bearer tokens shaped like Kubernetes' bound service account tokens: a JWT (RFC 7519) signed
// ES256. Only ES256 is accepted, whatever the header says; a token names its service account, and
// for node components its pod and node. Parses bytes of untrusted callers.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/key.h"

namespace meltemi::pki {

inline constexpr size_t kMaxTokenBytes = 16 * 1024;
inline constexpr std::string_view kTokenAudience = "istio-ca";
inline constexpr std::string_view kTokenIssuer = "https://kubernetes.default.svc.cluster.local";

struct TokenClaims {
  std::string ns, service_account;
  std::string pod_name, pod_uid;  // "" if not bound to a pod
  std::string node_name;          // "" if not bound to a node
  std::string audience{kTokenAudience};
  std::string issuer{kTokenIssuer};
  WallTime issued_at, expires_at;
};

// Compact JWS. Fields must not be empty except pod and node.
Result<std::string> sign_token(const PrivateKey& key, const TokenClaims& claims);

// Checks signature, algorithm, audience, exp, nbf (1 minute of skew) and that sub and the
// kubernetes.io claims agree. Error kPermission with what failed, never the token.
Result<TokenClaims> verify_token(const PublicKey& key, std::string_view token, WallTime now,
                                 std::string_view audience = kTokenAudience);

}  // namespace meltemi::pki
