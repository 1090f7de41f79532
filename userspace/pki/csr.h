// Certificate signing requests (RFC 2986) as Istio's peers make them: empty subject, ECDSA P-256
// with SHA-256, one critical subjectAltName with one SPIFFE URI. Parses bytes of untrusted callers.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/model/identity.h"
#include "userspace/pki/key.h"

namespace meltemi::pki {

inline constexpr size_t kMaxCsrBytes = 64 * 1024;  // PEM
inline constexpr size_t kMaxCsrNames = 16;         // subjectAltName entries

// PEM. The identity must be present.
Result<std::string> make_csr(const PrivateKey& key, const model::Identity& identity);

// A request whose self-signature was verified.
class CertificateRequest {
 public:
  // Error kBadRequest: not PEM, larger than the limits, not signed by its own key, or a key that is
  // neither EC P-256/P-384 nor RSA of 2048..8192 bits.
  static Result<CertificateRequest> parse(std::string_view pem);
  // URI names asked for. What is granted is the CA's decision, never these.
  const std::vector<std::string>& uris() const { return uris_; }
  evp_pkey_st* public_key() const { return key_.get(); }

 private:
  CertificateRequest() = default;
  std::vector<std::string> uris_;
  std::shared_ptr<evp_pkey_st> key_;
};

}  // namespace meltemi::pki
