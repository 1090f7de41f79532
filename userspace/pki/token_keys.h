// The public keys that tokens are verified with, from PEM files and JSON Web Key Sets (RFC 7517). Each
// key has exactly one signature algorithm, known before any token is seen: a token's header can name a
// key and an algorithm, but never choose how a key is used. Symmetric keys do not exist here.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/pki/key.h"

namespace meltemi::pki {

inline constexpr size_t kMaxKeySetBytes = 256 * 1024;  // of one file
inline constexpr size_t kMaxTokenKeys = 64;            // in all files
inline constexpr int kMinRsaBits = 2048, kMaxRsaBits = 8192;

// JWS algorithms (RFC 7518 section 3, RFC 8037).
enum class TokenAlgorithm : uint8_t { kRs256, kRs384, kRs512, kEs256, kEs384, kEdDsa };
std::string_view token_algorithm_name(TokenAlgorithm algorithm);

struct TokenKey {
  std::string kid;  // "" if the source names none: it may be any token's
  TokenAlgorithm algorithm;
  PublicKey key;
};

class TokenKeys {
 public:
  // One JWKS, or PEM with public keys and certificates. EC P-256 is ES256, P-384 ES384, Ed25519 EdDSA;
  // an RSA key is RS256, as the Kubernetes API server uses it, unless its JWK says RS384 or RS512 by
  // `alg`. Of a set, keys for encryption and of kinds not listed here are left out (section 5). Error
  // kBadConfig: no usable key, a private one, RSA outside of 2048..8192 bits, or beyond the limits.
  static Result<TokenKeys> parse(std::string_view text);
  static Result<TokenKeys> of(const PublicKey& key);  // as from PEM

  Status merge(TokenKeys other);  // Error kBadConfig: too many
  const std::vector<TokenKey>& keys() const { return keys_; }
  // Does one of the keys that may have signed under this header verify `signature` over `text`?
  // `kid` "": the header has none. Error kPermission: no key of that algorithm and kid, or none fits.
  Status verify(std::string_view algorithm, std::string_view kid, std::string_view text,
                std::string_view signature) const;

 private:
  Status add_jwk_set(std::string_view text);
  Status add_pem(std::string_view text);
  std::vector<TokenKey> keys_;
};

// The name under which Kubernetes publishes a key: SHA-256 of its SubjectPublicKeyInfo, base64url.
std::string key_id(const PublicKey& key);

// The keys of several files, followed as they rotate. Thread safe.
class TokenKeyFiles {
 public:
  // Error kBadConfig naming the file.
  static Result<std::unique_ptr<TokenKeyFiles>> open(std::vector<std::string> files);

  // Looks at the files at most once in kLook and reads them again if one changed; a file that cannot
  // be used keeps the old keys, and is logged.
  std::shared_ptr<const TokenKeys> current(MonoTime now);

  static constexpr Duration kLook = std::chrono::seconds(1);

 private:
  explicit TokenKeyFiles(std::vector<std::string> files) : files_(std::move(files)) {}
  std::string stamp() const;  // differs when a file was exchanged or written
  Result<TokenKeys> read() const;

  const std::vector<std::string> files_;
  std::mutex mutex_;
  std::shared_ptr<const TokenKeys> keys_;
  std::string stamp_;          // of what keys_ was read from
  std::string refused_stamp_;  // of what could not be used
  MonoTime next_look_{};
};

}  // namespace meltemi::pki
