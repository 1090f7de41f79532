// See csr.h.
#include "userspace/pki/csr.h"

#include <fmt/format.h>

#include "userspace/pki/ossl.h"

namespace meltemi::pki {
namespace {

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadRequest, Fault::kDownstream, "certificate request: " + std::move(detail));
}

// Which keys we are willing to certify.
Status check_key(EVP_PKEY* key) {
  const int bits = EVP_PKEY_get_bits(key);
  if (EVP_PKEY_is_a(key, "EC") == 1) {
    char group[32] = {};
    if (EVP_PKEY_get_group_name(key, group, sizeof group, nullptr) != 1) group[0] = 0;
    const std::string_view name = group;
    if (name == "prime256v1" || name == "secp384r1") return {};
    return bad(fmt::format("elliptic curve {} is not P-256 or P-384", name));
  }
  if (EVP_PKEY_is_a(key, "RSA") == 1) {
    if (bits >= 2048 && bits <= 8192) return {};
    return bad(fmt::format("RSA key of {} bits; 2048 to 8192 are accepted", bits));
  }
  return bad("the key is neither EC nor RSA");
}

Result<std::vector<std::string>> requested_uris(X509_REQ* request) {
  STACK_OF(X509_EXTENSION)* extensions = X509_REQ_get_extensions(request);
  if (extensions == nullptr) return std::vector<std::string>{};
  int critical = 0;
  const ossl::Names names(static_cast<GENERAL_NAMES*>(
      X509V3_get_d2i(extensions, NID_subject_alt_name, &critical, nullptr)));
  sk_X509_EXTENSION_pop_free(extensions, X509_EXTENSION_free);
  if (!names) {
    if (critical == -1) return std::vector<std::string>{};
    return bad("unreadable subjectAltName");
  }
  if (static_cast<size_t>(sk_GENERAL_NAME_num(names.get())) > kMaxCsrNames) {
    return bad(fmt::format("more than {} names", kMaxCsrNames));
  }
  return ossl::uris_of(names.get());
}

}  // namespace

Result<std::string> make_csr(const PrivateKey& key, const model::Identity& identity) {
  if (!identity.present()) return bad("no identity");
  const ossl::Request request(X509_REQ_new());
  const ossl::Names names = ossl::uri_name(identity.uri());
  const ossl::Extension extension(X509V3_EXT_i2d(NID_subject_alt_name, /*crit=*/1, names.get()));
  STACK_OF(X509_EXTENSION)* extensions = sk_X509_EXTENSION_new_null();
  sk_X509_EXTENSION_push(extensions, extension.get());
  const bool built = X509_REQ_set_version(request.get(), X509_REQ_VERSION_1) == 1 &&
                     X509_REQ_set_pubkey(request.get(), key.native()) == 1 &&
                     X509_REQ_add_extensions(request.get(), extensions) == 1 &&
                     X509_REQ_sign(request.get(), key.native(), EVP_sha256()) > 0;
  sk_X509_EXTENSION_free(extensions);
  if (!built) {
    return fail(Reason::kInternal, Fault::kInternal, ossl::last_error("making a CSR"));
  }
  const ossl::Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509_REQ(bio.get(), request.get());
  return ossl::take(bio);
}

Result<CertificateRequest> CertificateRequest::parse(std::string_view pem) {
  if (pem.size() > kMaxCsrBytes) return bad("larger than 64 KiB");
  const ossl::Bio bio = ossl::read_bio(pem);
  const ossl::Request request(PEM_read_bio_X509_REQ(bio.get(), nullptr, nullptr, nullptr));
  if (!request) return bad(ossl::last_error("not PEM of PKCS#10"));
  EVP_PKEY* key = X509_REQ_get0_pubkey(request.get());
  if (key == nullptr) return bad(ossl::last_error("unreadable public key"));
  MELTEMI_TRY(check_key(key));
  if (X509_REQ_verify(request.get(), key) != 1) {
    return bad(ossl::last_error("not signed by its own key"));
  }
  CertificateRequest out;
  out.uris_ = MELTEMI_TRY(requested_uris(request.get()));
  EVP_PKEY_up_ref(key);
  out.key_ = {key, EVP_PKEY_free};
  return out;
}

}  // namespace meltemi::pki
