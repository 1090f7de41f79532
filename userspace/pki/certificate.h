// Reading X.509 certificates (RFC 5280), the SPIFFE ID in them, and checking chains. Names are
// taken from the certificate's bytes exactly: a NUL or a second URI makes an identity invalid,
// never shorter.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/model/identity.h"
#include "userspace/pki/key.h"

struct x509_st;

namespace meltemi::pki {

inline constexpr size_t kMaxPemBytes = 1 << 20;    // of one bundle
inline constexpr size_t kMaxPemCertificates = 64;  // in one bundle

class Certificate {
 public:
  // One DER certificate, nothing after it. Error: kBadRequest.
  static Result<Certificate> from_der(ByteView der);
  static Certificate adopt(std::shared_ptr<x509_st> cert);  // REQUIRES: not null

  // As a workload's own certificate, by the whole profile of svid.h. Error kPeerIdentityMismatch.
  Result<model::Identity> identity() const;
  std::vector<std::string> uris() const;  // exact bytes
  std::vector<std::string> dns_names() const;
  std::vector<IpAddress> ip_addresses() const;
  std::string subject() const;  // RFC 2253
  std::string issuer() const;
  std::string serial() const;  // decimal, as Istio's config dump shows it
  WallTime not_before() const;
  WallTime not_after() const;
  bool is_ca() const;
  std::string to_pem() const;
  std::string to_der() const;
  x509_st* native() const { return cert_.get(); }

 private:
  explicit Certificate(std::shared_ptr<x509_st> cert) : cert_(std::move(cert)) {}
  std::shared_ptr<x509_st> cert_;
};

// All certificates of a PEM bundle, in order. Error kBadConfig: none, malformed, or beyond the
// limits.
Result<std::vector<Certificate>> parse_bundle(std::string_view pem);

enum class Usage { kAny, kServer, kClient };

// Verifies `chain` (leaf first) up to one of `roots` at `now`, purpose included. Error
// kCertExpired, kCertNotYetValid, else kTlsHandshake, with the certificate's subject and OpenSSL's
// reason.
Status verify_chain(const std::vector<Certificate>& chain, const std::vector<Certificate>& roots,
                    WallTime now, Usage usage = Usage::kAny);

// What a workload presents and trusts. Immutable once made.
struct WorkloadCertificate {
  model::Identity identity;
  PrivateKey key;
  std::vector<Certificate> chain;  // leaf, then intermediates; no root
  std::vector<Certificate> roots;  // what peers are verified against; at least one
  WallTime not_before, not_after;  // of the leaf
  std::string chain_pem, roots_pem;  // for config dumps
};
using WorkloadCertificatePtr = std::shared_ptr<const WorkloadCertificate>;

// Puts a CA's answer (leaf first, root bundle last) and its key together. Error
// kIdentityUnavailable: fewer than two elements, the leaf names another identity or another key, or
// it does not verify against the roots that came with it at `now`.
Result<WorkloadCertificatePtr> assemble(const PrivateKey& key, const model::Identity& identity,
                                        const std::vector<std::string>& chain_pem, WallTime now);

}  // namespace meltemi::pki
