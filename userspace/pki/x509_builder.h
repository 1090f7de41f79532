// Makes the certificates that the authority signs. Private to pki.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/pki/certificate.h"

namespace meltemi::pki {

enum class CertificateKind { kRoot, kIssuer, kWorkload, kServer };

struct CertificatePlan {
  CertificateKind kind = CertificateKind::kWorkload;
  std::string organization, common_name;  // subject; both empty: empty subject
  std::string uri;                        // workload: the SPIFFE ID
  std::vector<std::string> dns_names;     // server
  std::vector<IpAddress> addresses;       // server
  WallTime not_before, not_after;
};

// Signs with `issuer_key`; `issuer` null means self-signed by the same key. Error: kInternal.
Result<Certificate> build_certificate(const CertificatePlan& plan, evp_pkey_st* subject_key,
                                      const Certificate* issuer, const PrivateKey& issuer_key);

}  // namespace meltemi::pki
