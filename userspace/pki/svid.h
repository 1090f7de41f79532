// The X.509-SVID profile, whole and in this one place: what a certificate must be like before the
// name in it is anybody's identity (SPIFFE X509-SVID sections 2 to 5, SPIFFE-ID section 2, RFC 5280
// section 4.2.1). Whoever takes or makes a workload certificate asks here: both ends of a tunnel, a
// proxy of what it shows itself, the CA of what it signs. Must never look at signatures, validity or
// names of issuers: that is chain verification's part, and both are needed.
#pragma once

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/model/identity.h"

struct x509_st;

namespace meltemi::pki {

// What the certificate is shown as. kBoth: a workload's own, which serves for either.
enum class SvidRole : uint8_t { kClient, kServer, kBoth };

// The identity that `leaf` stands for: exactly one URI name and that a SPIFFE ID in Istio's form, no
// CA, keyUsage with digitalSignature and without keyCertSign and cRLSign, extendedKeyUsage (if it is
// there) with the role's purpose. Further names that are no URIs are allowed and mean nothing. Error
// kPeerIdentityMismatch, naming the rule that is broken.
Result<model::Identity> svid_identity(const x509_st* leaf, SvidRole role);

// Its validity, clamped to what WallTime holds with room for adding years.
WallTime not_before_of(const x509_st* cert);
WallTime not_after_of(const x509_st* cert);

// Whether `signer` may stand between a leaf and a root: a CA with keyCertSign, and with at most one
// URI name, a SPIFFE ID without a path (section 3.2). Roots are not asked: who configured them as
// anchors decided already. Error kPeerIdentityMismatch.
Status check_svid_signer(const x509_st* signer);

}  // namespace meltemi::pki
