// See svid.h.
#include "userspace/pki/svid.h"

#include <fmt/format.h>

#include "userspace/pki/ossl.h"

namespace meltemi::pki {
namespace {

constexpr uint32_t kAbsent = UINT32_MAX;  // OpenSSL's word for "no such extension"
constexpr std::string_view kScheme = "spiffe://";

std::unexpected<Error> broken(std::string rule) {
  return fail(Reason::kPeerIdentityMismatch, Fault::kDownstream, "certificate: " + std::move(rule));
}

// OpenSSL keeps what it derives from the extensions in the certificate itself, under its own lock.
X509* parsed(const x509_st* cert) { return const_cast<X509*>(cert); }

Status check_form(const x509_st* cert) {
  if (X509_get_version(cert) != X509_VERSION_3) return broken("it is not version 3");
  if ((X509_get_extension_flags(parsed(cert)) & EXFLAG_INVALID) != 0) {
    return broken("an extension is malformed or there twice");
  }
  return {};
}

// All URI names. Which of two subjectAltName extensions counts is a matter of taste, so none does.
Result<std::vector<std::string>> uri_names(const x509_st* cert) {
  const int first = X509_get_ext_by_NID(cert, NID_subject_alt_name, -1);
  if (first < 0) return std::vector<std::string>{};
  if (X509_get_ext_by_NID(cert, NID_subject_alt_name, first) >= 0) {
    return broken("subjectAltName is there twice");
  }
  const ossl::Names names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(cert, NID_subject_alt_name, nullptr, nullptr)));
  ERR_clear_error();
  if (!names) return broken("subjectAltName is unreadable");
  return ossl::uris_of(names.get());
}

Status check_leaf_usage(const x509_st* leaf, SvidRole role) {
  if ((X509_get_extension_flags(parsed(leaf)) & EXFLAG_CA) != 0) {
    return broken("a CA's is no workload's");
  }
  const uint32_t usage = X509_get_key_usage(parsed(leaf));
  if (usage == kAbsent) return broken("no keyUsage");
  if ((usage & KU_DIGITAL_SIGNATURE) == 0) return broken("keyUsage lacks digitalSignature");
  if ((usage & KU_KEY_CERT_SIGN) != 0) return broken("keyUsage has keyCertSign");
  if ((usage & KU_CRL_SIGN) != 0) return broken("keyUsage has cRLSign");
  const uint32_t extended = X509_get_extended_key_usage(parsed(leaf));
  if (extended == kAbsent) return {};
  if (role != SvidRole::kServer && (extended & XKU_SSL_CLIENT) == 0) {
    return broken("extendedKeyUsage lacks clientAuth");
  }
  if (role != SvidRole::kClient && (extended & XKU_SSL_SERVER) == 0) {
    return broken("extendedKeyUsage lacks serverAuth");
  }
  return {};
}

}  // namespace

Result<model::Identity> svid_identity(const x509_st* leaf, SvidRole role) {
  MELTEMI_TRY(check_form(leaf));
  const auto uris = MELTEMI_TRY(uri_names(leaf));
  if (uris.size() != 1) {
    return broken(fmt::format("{} URI names; an SVID has exactly one", uris.size()));
  }
  auto identity = model::Identity::parse(uris.front());
  if (!identity) return broken(identity.error().detail);
  MELTEMI_TRY(check_leaf_usage(leaf, role));
  return *identity;
}

WallTime not_before_of(const x509_st* cert) { return ossl::to_wall(X509_get0_notBefore(cert)); }
WallTime not_after_of(const x509_st* cert) { return ossl::to_wall(X509_get0_notAfter(cert)); }

Status check_svid_signer(const x509_st* signer) {
  MELTEMI_TRY(check_form(signer));
  if ((X509_get_extension_flags(parsed(signer)) & EXFLAG_CA) == 0) {
    return broken("an intermediate is no CA");
  }
  const uint32_t usage = X509_get_key_usage(parsed(signer));
  if (usage == kAbsent || (usage & KU_KEY_CERT_SIGN) == 0) {
    return broken("an intermediate's keyUsage lacks keyCertSign");
  }
  const auto uris = MELTEMI_TRY(uri_names(signer));
  if (uris.size() > 1) return broken("an intermediate has more than one URI name");
  if (!uris.empty()) {
    const std::string_view uri = uris.front();
    if (!uri.starts_with(kScheme) || uri.substr(kScheme.size()).find('/') != uri.npos) {
      return broken("an intermediate's URI name is no SPIFFE ID of a trust domain");
    }
  }
  return {};
}

}  // namespace meltemi::pki
