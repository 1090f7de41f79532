// Private keys of workloads and of the CA: ECDSA P-256, PKCS#8, in memory. A key of a workload must
// never touch a disk or a log.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/pki/secret.h"

struct evp_pkey_st;

namespace meltemi::pki {

// Shared handle; copying copies a pointer. Thread safe.
class PrivateKey {
 public:
  // A fresh P-256 key. Error: kInternal (no entropy).
  static Result<PrivateKey> generate();
  // PKCS#8 or SEC1 PEM, unencrypted. Error: kBadConfig.
  static Result<PrivateKey> from_pem(std::string_view pem);

  Secret to_pem() const;                              // PKCS#8
  std::string public_key_pem() const;                 // SubjectPublicKeyInfo
  evp_pkey_st* native() const { return key_.get(); }  // never null

 private:
  friend class PublicKey;
  explicit PrivateKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}
  std::shared_ptr<evp_pkey_st> key_;
};

class PublicKey {
 public:
  // SubjectPublicKeyInfo PEM, or a certificate's PEM (its key is taken). Error: kBadConfig.
  static Result<PublicKey> from_pem(std::string_view pem);
  static PublicKey of(const PrivateKey& key) { return PublicKey(key.key_); }
  static PublicKey adopt(evp_pkey_st* key);  // takes it over. REQUIRES: not null
  evp_pkey_st* native() const { return key_.get(); }

 private:
  explicit PublicKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}
  std::shared_ptr<evp_pkey_st> key_;
};

}  // namespace meltemi::pki
