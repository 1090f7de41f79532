// See key.h.
#include "userspace/pki/key.h"

#include <algorithm>

#include "userspace/pki/ossl.h"

namespace meltemi::pki {
namespace {

constexpr size_t kMaxKeyPem = 64 * 1024;  // bytes

// Encrypted keys would otherwise make OpenSSL ask on the terminal.
int no_password(char*, int, int, void*) { return -1; }

std::shared_ptr<evp_pkey_st> share(EVP_PKEY* key) { return {key, EVP_PKEY_free}; }

}  // namespace

Result<PrivateKey> PrivateKey::generate() {
  use_locked_memory_for_keys();
  EVP_PKEY* key = EVP_EC_gen("P-256");
  if (key == nullptr) {
    return fail(Reason::kInternal, Fault::kInternal, ossl::last_error("generating a P-256 key"));
  }
  return PrivateKey(share(key));
}

Result<PrivateKey> PrivateKey::from_pem(std::string_view pem) {
  if (pem.size() > kMaxKeyPem) {
    return fail(Reason::kBadConfig, Fault::kConfig, "private key: larger than 64 KiB");
  }
  const ossl::Bio bio = ossl::read_bio(pem);
  use_locked_memory_for_keys();
  EVP_PKEY* key = PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr);
  if (key == nullptr) {
    return fail(Reason::kBadConfig, Fault::kConfig, ossl::last_error("private key"));
  }
  return PrivateKey(share(key));
}

Secret PrivateKey::to_pem() const {
  const ossl::Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_PKCS8PrivateKey(bio.get(), key_.get(), nullptr, nullptr, 0, nullptr, nullptr);
  char* data = nullptr;  // the BIO's; overwritten when it ends
  const long size = BIO_get_mem_data(bio.get(), &data);
  return Secret(std::string_view(data, static_cast<size_t>(std::max(size, 0L))));
}

std::string PrivateKey::public_key_pem() const {
  const ossl::Bio bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_PUBKEY(bio.get(), key_.get());
  return ossl::take(bio);
}

PublicKey PublicKey::adopt(evp_pkey_st* key) { return PublicKey(share(key)); }

Result<PublicKey> PublicKey::from_pem(std::string_view pem) {
  if (pem.size() > kMaxKeyPem) {
    return fail(Reason::kBadConfig, Fault::kConfig, "public key: larger than 64 KiB");
  }
  const ossl::Bio bio = ossl::read_bio(pem);
  if (EVP_PKEY* key = PEM_read_bio_PUBKEY(bio.get(), nullptr, no_password, nullptr)) {
    return PublicKey(share(key));
  }
  ERR_clear_error();
  const ossl::Bio again = ossl::read_bio(pem);
  const ossl::Cert cert(PEM_read_bio_X509(again.get(), nullptr, no_password, nullptr));
  EVP_PKEY* key = cert ? X509_get_pubkey(cert.get()) : nullptr;
  if (key == nullptr) {
    return fail(Reason::kBadConfig, Fault::kConfig, ossl::last_error("public key"));
  }
  return PublicKey(share(key));
}

}  // namespace meltemi::pki
