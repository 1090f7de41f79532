// Bytes of untrusted callers of the CA and of TLS peers: requests, tokens, certificates. Nothing that
// was not signed by the key below may come out as somebody's claims.
#include <cstdlib>

#include "userspace/base/bytes.h"
#include "userspace/pki/certificate.h"
#include "userspace/pki/csr.h"
#include "userspace/pki/token.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace meltemi;
  using namespace meltemi::pki;
  static const PrivateKey key = *PrivateKey::generate();
  if (size == 0) return 0;
  const std::string_view text = as_text({data + 1, size - 1});
  static const TokenKeys keys = *TokenKeys::of(PublicKey::of(key));
  switch (data[0] % 5) {
    case 0:
      if (const auto request = CertificateRequest::parse(text); request && request->uris().size() > kMaxCsrNames) {
        std::abort();
      }
      break;
    case 1:
      if (verify_token(keys, text, WallTime())) std::abort();
      break;
    case 2:
      if (const auto certs = parse_bundle(text)) {
        for (const Certificate& cert : *certs) {
          const auto identity = cert.identity();
          if (identity && cert.uris().size() != 1) std::abort();
          static_cast<void>(cert.dns_names());
          static_cast<void>(cert.serial());
        }
      }
      break;
    case 4:
      // Keys come from an operator's file; whatever they are, a token is judged, never misread.
      if (const auto read = TokenKeys::parse(text)) {
        if (read->keys().size() > kMaxTokenKeys) std::abort();
        static_cast<void>(verify_token(*read, "e30.e30.AAAA", WallTime()));
      }
      break;
    default:
      if (const auto cert = Certificate::from_der(as_bytes(text))) {
        if (cert->to_der() != text) std::abort();
        static_cast<void>(cert->ip_addresses());
      }
  }
  return 0;
}
