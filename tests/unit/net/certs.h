// Certificates for tests, made on the spot with libcrypto: CAs, and leaves with any SPIFFE ID,
// validity and usage, good or bad.
#pragma once

#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <atomic>
#include <memory>
#include <string>

#include "userspace/net/tls_context.h"

namespace meltemi::net::test {

inline std::string pem_of(X509* cert) {
  BIO* bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, cert);
  char* data = nullptr;
  const long n = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(n));
  BIO_free(bio);
  return out;
}

inline std::string pem_of(EVP_PKEY* key) {
  BIO* bio = BIO_new(BIO_s_mem());
  PEM_write_bio_PKCS8PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  char* data = nullptr;
  const long n = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(n));
  BIO_free(bio);
  return out;
}

struct LeafOptions {
  long from_seconds = -3600;  // relative to now
  long to_seconds = 86400;
  std::string extra_san;      // e.g. "DNS:localhost"
  const char* key_usage = "critical,digitalSignature";
  const char* extended_key_usage = "serverAuth,clientAuth";
  const char* basic_constraints = "critical,CA:FALSE";
};

class TestCa {
 public:
  explicit TestCa(const char* name = "test root", long to_seconds = 86400)
      : key_(EVP_EC_gen("P-256")) {
    cert_ = make(name, key_, nullptr, -3600, to_seconds);
    add(cert_, cert_, NID_basic_constraints, "critical,CA:TRUE");
    add(cert_, cert_, NID_key_usage, "critical,keyCertSign,cRLSign");
    X509_sign(cert_, key_, EVP_sha256());
  }
  ~TestCa() {
    X509_free(cert_);
    EVP_PKEY_free(key_);
  }
  TestCa(const TestCa&) = delete;
  TestCa& operator=(const TestCa&) = delete;
  std::string root_pem() const { return pem_of(cert_); }

  // `spiffe` empty: no URI name.
  TlsContext::Material issue(const std::string& spiffe, const LeafOptions& o = {}) const {
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* leaf = make("leaf", key, cert_, o.from_seconds, o.to_seconds);
    add(leaf, cert_, NID_basic_constraints, o.basic_constraints);
    add(leaf, cert_, NID_key_usage, o.key_usage);
    add(leaf, cert_, NID_ext_key_usage, o.extended_key_usage);
    std::string san = spiffe.empty() ? "" : "URI:" + spiffe;
    if (!o.extra_san.empty()) san += (san.empty() ? "" : ",") + o.extra_san;
    if (!san.empty()) add(leaf, cert_, NID_subject_alt_name, san.c_str());
    X509_sign(leaf, key_, EVP_sha256());
    TlsContext::Material m{pem_of(leaf), pem_of(key), root_pem()};
    X509_free(leaf);
    EVP_PKEY_free(key);
    return m;
  }
  std::shared_ptr<const TlsContext> context(const std::string& spiffe, const LeafOptions& o = {}) const {
    auto made = TlsContext::create(issue(spiffe, o));
    if (!made) fprintf(stderr, "context: %s\n", made.error().to_string().c_str());
    return made ? *made : nullptr;
  }

 private:
  static X509* make(const char* name, EVP_PKEY* key, X509* issuer, long from, long to) {
    static std::atomic<long> serial = 1;  // workers make certificates of their own
    X509* x = X509_new();
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(x), from);
    X509_gmtime_adj(X509_getm_notAfter(x), to);
    X509_set_pubkey(x, key);
    X509_NAME* subject = X509_get_subject_name(x);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
    X509_set_issuer_name(x, issuer ? X509_get_subject_name(issuer) : subject);
    return x;
  }
  static void add(X509* cert, X509* issuer, int nid, const char* value) {
    X509V3_CTX ctx;
    X509V3_set_ctx(&ctx, issuer, cert, nullptr, nullptr, 0);
    X509_EXTENSION* e = X509V3_EXT_conf_nid(nullptr, &ctx, nid, value);
    X509_add_ext(cert, e, -1);
    X509_EXTENSION_free(e);
  }
  EVP_PKEY* key_;
  X509* cert_;
};

inline model::Identity id(const std::string& uri) { return *model::Identity::parse(uri); }

}  // namespace meltemi::net::test
