// Bearer tokens shaped like Kubernetes' bound service account tokens: a JWT (RFC 7519) in JWS compact
// form (RFC 7515) that names its service account, and its pod and node where it is bound to them. What
// may have signed it is decided by the keys (token_keys.h), never by the token. Parses bytes of
// untrusted callers; must never put a token into an error.
#pragma once

#include <set>
#include <string>
#include <string_view>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/key.h"
#include "userspace/pki/token_keys.h"

namespace meltemi::pki {

inline constexpr size_t kMaxTokenBytes = 16 * 1024;
inline constexpr std::string_view kTokenAudience = "istio-ca";
inline constexpr std::string_view kTokenIssuer = "https://kubernetes.default.svc.cluster.local";
// Clocks of who signs and who verifies differ by up to this.
inline constexpr std::chrono::seconds kTokenSkew{60};

struct TokenClaims {
  std::string ns, service_account;
  std::string pod_name, pod_uid;  // "" if not bound to a pod
  std::string node_name;          // "" if not bound to a node
  std::string account_uid = {};   // of the service account's object; "" if the token says nothing
  std::string audience{kTokenAudience};  // verified: the one that was accepted
  std::string issuer{kTokenIssuer};
  WallTime issued_at, expires_at;
};

// Whose tokens are taken. A token needs one of the issuers and one of the audiences.
struct TokenPolicy {
  std::set<std::string, std::less<>> issuers{std::string(kTokenIssuer)};
  std::set<std::string, std::less<>> audiences{std::string(kTokenAudience)};
};

// ES256, with the key's kid. Fields must not be empty except pod, node and account_uid.
Result<std::string> sign_token(const PrivateKey& key, const TokenClaims& claims);

// Checks form, algorithm, signature, iss, aud, exp (needed), nbf and iat (kTokenSkew each), and that sub
// and the kubernetes.io claims agree. JSON members that come twice, a `crit` header and base64url that
// is not canonical are refused. Error kPermission with what failed.
Result<TokenClaims> verify_token(const TokenKeys& keys, std::string_view token, WallTime now,
                                 const TokenPolicy& policy = {});
// Until when a token with that exp is taken for valid, and with it what was opened on it.
inline WallTime token_end(const TokenClaims& claims) { return claims.expires_at + kTokenSkew; }

}  // namespace meltemi::pki
