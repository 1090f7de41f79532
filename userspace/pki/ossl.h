// OpenSSL handles with owners, and its error queue as text. Private to pki.
#pragma once

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::pki::ossl {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
template <typename T, auto Free>
using Owned = std::unique_ptr<T, Deleter<Free>>;

using Bio = Owned<BIO, BIO_free_all>;
using Key = Owned<EVP_PKEY, EVP_PKEY_free>;
using KeyContext = Owned<EVP_PKEY_CTX, EVP_PKEY_CTX_free>;
using DigestContext = Owned<EVP_MD_CTX, EVP_MD_CTX_free>;
using Cert = Owned<X509, X509_free>;
using Request = Owned<X509_REQ, X509_REQ_free>;
using Names = Owned<GENERAL_NAMES, GENERAL_NAMES_free>;
using Extension = Owned<X509_EXTENSION, X509_EXTENSION_free>;
using Number = Owned<BIGNUM, BN_free>;

// "what: reason of the newest error"; empties the queue. Never contains key material.
std::string last_error(std::string_view what);

inline Bio read_bio(std::string_view bytes) {
  return Bio(BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
}
// Everything that was written to a memory BIO.
std::string take(const Bio& bio);
// A GENERAL_NAMES of one URI entry.
Names uri_name(std::string_view uri);
// URI entries, exact bytes.
std::vector<std::string> uris_of(const GENERAL_NAMES* names);

WallTime to_wall(const ASN1_TIME* time);

}  // namespace meltemi::pki::ossl
