// See x509_builder.h.
#include "userspace/pki/x509_builder.h"

#include <openssl/rand.h>

#include "userspace/base/bytes.h"
#include "userspace/pki/ossl.h"

namespace meltemi::pki {
namespace {

constexpr int kSerialBytes = 16;

bool set_serial(X509* cert) {
  unsigned char bytes[kSerialBytes];
  if (RAND_bytes(bytes, sizeof bytes) != 1) return false;
  bytes[0] = static_cast<unsigned char>((bytes[0] & 0x7f) | 0x40);  // positive, full length
  const ossl::Number number(BN_bin2bn(bytes, sizeof bytes, nullptr));
  return BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(cert)) != nullptr;
}

bool set_time(ASN1_TIME* target, WallTime time) {
  return ASN1_TIME_set(target, std::chrono::system_clock::to_time_t(time)) != nullptr;
}

bool set_subject(X509* cert, const CertificatePlan& plan) {
  X509_NAME* name = X509_get_subject_name(cert);
  const auto add = [&](const char* field, const std::string& value) {
    return value.empty() ||
           X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8, as_bytes(value).data(),
                                      static_cast<int>(value.size()), -1, 0) == 1;
  };
  return add("O", plan.organization) && add("CN", plan.common_name);
}

bool add_text_extension(X509* cert, X509V3_CTX* context, int nid, const char* value) {
  const ossl::Extension extension(X509V3_EXT_conf_nid(nullptr, context, nid, value));
  return extension && X509_add_ext(cert, extension.get(), -1) == 1;
}

void push_dns(GENERAL_NAMES* names, const std::string& dns) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_IA5STRING* text = ASN1_IA5STRING_new();
  ASN1_STRING_set(text, dns.data(), static_cast<int>(dns.size()));
  GENERAL_NAME_set0_value(name, GEN_DNS, text);
  sk_GENERAL_NAME_push(names, name);
}

void push_address(GENERAL_NAMES* names, const IpAddress& address) {
  const std::string wire = address.wire();
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_OCTET_STRING* bytes = ASN1_OCTET_STRING_new();
  ASN1_OCTET_STRING_set(bytes, as_bytes(wire).data(), static_cast<int>(wire.size()));
  GENERAL_NAME_set0_value(name, GEN_IPADD, bytes);
  sk_GENERAL_NAME_push(names, name);
}

bool add_names(X509* cert, const CertificatePlan& plan) {
  ossl::Names names = plan.uri.empty() ? ossl::Names(GENERAL_NAMES_new()) : ossl::uri_name(plan.uri);
  for (const std::string& dns : plan.dns_names) push_dns(names.get(), dns);
  for (const IpAddress& address : plan.addresses) push_address(names.get(), address);
  if (sk_GENERAL_NAME_num(names.get()) == 0) return true;
  // RFC 5280 section 4.2.1.6: critical when the subject is empty.
  const int critical = plan.common_name.empty() && plan.organization.empty() ? 1 : 0;
  return X509_add1_ext_i2d(cert, NID_subject_alt_name, names.get(), critical, 0) == 1;
}

bool add_extensions(X509* cert, X509V3_CTX* context, CertificateKind kind, bool self_signed) {
  const bool authority = kind == CertificateKind::kRoot || kind == CertificateKind::kIssuer;
  const char* constraints = kind == CertificateKind::kRoot     ? "critical,CA:TRUE"
                            : kind == CertificateKind::kIssuer ? "critical,CA:TRUE,pathlen:0"
                                                               : "critical,CA:FALSE";
  const char* usage =
      authority ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature";
  if (!add_text_extension(cert, context, NID_basic_constraints, constraints) ||
      !add_text_extension(cert, context, NID_key_usage, usage) ||
      !add_text_extension(cert, context, NID_subject_key_identifier, "hash")) {
    return false;
  }
  if (!self_signed &&
      !add_text_extension(cert, context, NID_authority_key_identifier, "keyid:always")) {
    return false;
  }
  if (authority) return true;
  const char* extended = kind == CertificateKind::kServer ? "serverAuth" : "serverAuth,clientAuth";
  return add_text_extension(cert, context, NID_ext_key_usage, extended);
}

}  // namespace

Result<Certificate> build_certificate(const CertificatePlan& plan, evp_pkey_st* subject_key,
                                      const Certificate* issuer, const PrivateKey& issuer_key) {
  std::shared_ptr<x509_st> owner(X509_new(), X509_free);
  X509* cert = owner.get();
  X509* signer = issuer != nullptr ? issuer->native() : cert;
  bool good = X509_set_version(cert, X509_VERSION_3) == 1 && set_serial(cert) &&
              set_time(X509_getm_notBefore(cert), plan.not_before) &&
              set_time(X509_getm_notAfter(cert), plan.not_after) && set_subject(cert, plan) &&
              X509_set_issuer_name(cert, X509_get_subject_name(signer)) == 1 &&
              X509_set_pubkey(cert, subject_key) == 1;
  X509V3_CTX context;
  X509V3_set_ctx(&context, signer, cert, nullptr, nullptr, 0);
  good = good && add_extensions(cert, &context, plan.kind, issuer == nullptr) &&
         add_names(cert, plan) && X509_sign(cert, issuer_key.native(), EVP_sha256()) > 0;
  if (!good) {
    return fail(Reason::kInternal, Fault::kInternal, ossl::last_error("signing a certificate"));
  }
  return Certificate::adopt(std::move(owner));
}

}  // namespace meltemi::pki
