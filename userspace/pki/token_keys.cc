// See token_keys.h.
#include "userspace/pki/token_keys.h"

#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/param_build.h>
#include <sys/stat.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "userspace/base/bytes.h"
#include "userspace/base/log.h"
#include "userspace/pki/jose.h"
#include "userspace/pki/ossl.h"
#include "userspace/sys/files.h"

namespace meltemi::pki {
namespace {

log::Scope scope("tokens");

using nlohmann::json;
using ParamBuilder = ossl::Owned<OSSL_PARAM_BLD, OSSL_PARAM_BLD_free>;
using Params = ossl::Owned<OSSL_PARAM, OSSL_PARAM_free>;

struct Signature {
  TokenAlgorithm algorithm;
  std::string_view name;
  const EVP_MD* (*digest)();  // null: the algorithm has its own
  size_t half;                // ECDSA: bytes of r and of s (RFC 7518 section 3.4); else 0
};
constexpr Signature kSignatures[] = {
    {TokenAlgorithm::kRs256, "RS256", EVP_sha256, 0}, {TokenAlgorithm::kRs384, "RS384", EVP_sha384, 0},
    {TokenAlgorithm::kRs512, "RS512", EVP_sha512, 0}, {TokenAlgorithm::kEs256, "ES256", EVP_sha256, 32},
    {TokenAlgorithm::kEs384, "ES384", EVP_sha384, 48}, {TokenAlgorithm::kEdDsa, "EdDSA", nullptr, 0}};

const Signature& signature_of(TokenAlgorithm algorithm) {
  return kSignatures[static_cast<size_t>(algorithm)];
}

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, "token keys: " + std::move(detail));
}

// The one algorithm of a key. `rsa`: which of the three an RSA key is for.
Result<TokenAlgorithm> algorithm_of(const PublicKey& key,
                                    TokenAlgorithm rsa = TokenAlgorithm::kRs256) {
  EVP_PKEY* native = key.native();
  if (EVP_PKEY_is_a(native, "ED25519") == 1) return TokenAlgorithm::kEdDsa;
  if (EVP_PKEY_is_a(native, "RSA") == 1) {
    const int bits = EVP_PKEY_get_bits(native);
    if (bits >= kMinRsaBits && bits <= kMaxRsaBits) return rsa;
    return bad(fmt::format("an RSA key of {} bits; {} to {} are accepted", bits, kMinRsaBits,
                           kMaxRsaBits));
  }
  char group[32] = {};
  if (EVP_PKEY_is_a(native, "EC") == 1 &&
      EVP_PKEY_get_group_name(native, group, sizeof group, nullptr) == 1) {
    if (std::string_view(group) == "prime256v1") return TokenAlgorithm::kEs256;
    if (std::string_view(group) == "secp384r1") return TokenAlgorithm::kEs384;
  }
  return bad("a key is neither RSA, EC P-256, EC P-384 nor Ed25519");
}

std::string text_of(const json& jwk, const char* member) {
  const auto found = jwk.find(member);
  return found != jwk.end() && found->is_string() ? found->get<std::string>() : std::string();
}

Result<PublicKey> from_params(const char* kind, OSSL_PARAM_BLD* builder) {
  const Params params(OSSL_PARAM_BLD_to_param(builder));
  const ossl::KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, kind, nullptr));
  EVP_PKEY* made = nullptr;  // also there when its material was refused
  const bool good = params && context && EVP_PKEY_fromdata_init(context.get()) == 1 &&
                    EVP_PKEY_fromdata(context.get(), &made, EVP_PKEY_PUBLIC_KEY, params.get()) == 1;
  ossl::Key key(made);
  if (!good) return bad(ossl::last_error(fmt::format("an {} key is malformed", kind)));
  return PublicKey::adopt(key.release());
}

Result<PublicKey> rsa_key(const json& jwk) {
  const auto n = jose::decode64(text_of(jwk, "n"));
  const auto e = jose::decode64(text_of(jwk, "e"));
  if (!n || !e || n->empty() || e->empty()) return bad("an RSA key lacks n or e");
  const auto number = [](const std::string& bytes) {
    return ossl::Number(BN_bin2bn(as_bytes(bytes).data(), static_cast<int>(bytes.size()), nullptr));
  };
  const ossl::Number modulus = number(*n), exponent = number(*e);
  const ParamBuilder builder(OSSL_PARAM_BLD_new());
  OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_N, modulus.get());
  OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_E, exponent.get());
  return from_params("RSA", builder.get());
}

Result<PublicKey> ec_key(const json& jwk, const char* group, size_t half) {
  const auto x = jose::decode64(text_of(jwk, "x"));
  const auto y = jose::decode64(text_of(jwk, "y"));
  if (!x || !y || x->size() != half || y->size() != half) {
    return bad("an EC key's x or y has another size than its curve's");
  }
  const std::string point = "\x04" + *x + *y;  // uncompressed (SEC 1 section 2.3.3)
  const ParamBuilder builder(OSSL_PARAM_BLD_new());
  OSSL_PARAM_BLD_push_utf8_string(builder.get(), OSSL_PKEY_PARAM_GROUP_NAME, group, 0);
  OSSL_PARAM_BLD_push_octet_string(builder.get(), OSSL_PKEY_PARAM_PUB_KEY, point.data(), point.size());
  return from_params("EC", builder.get());
}

Result<PublicKey> ed25519_key(const json& jwk) {
  const auto x = jose::decode64(text_of(jwk, "x"));
  EVP_PKEY* key = x ? EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, as_bytes(*x).data(),
                                                  x->size())
                    : nullptr;
  if (key == nullptr) return bad(ossl::last_error("an Ed25519 key is malformed"));
  return PublicKey::adopt(key);
}

// None: of a kind or for a use that is not ours.
Result<std::optional<PublicKey>> key_of(const json& jwk) {
  const std::string type = text_of(jwk, "kty"), curve = text_of(jwk, "crv");
  if (type == "RSA") return std::optional(MELTEMI_TRY(rsa_key(jwk)));
  if (type == "EC" && curve == "P-256") return std::optional(MELTEMI_TRY(ec_key(jwk, "prime256v1", 32)));
  if (type == "EC" && curve == "P-384") return std::optional(MELTEMI_TRY(ec_key(jwk, "secp384r1", 48)));
  if (type == "OKP" && curve == "Ed25519") return std::optional(MELTEMI_TRY(ed25519_key(jwk)));
  return std::optional<PublicKey>();
}

// The DER form that OpenSSL verifies, of r and s side by side; "" if it cannot be.
std::string der_signature(std::string_view raw, size_t half) {
  if (raw.size() != 2 * half) return {};
  const auto* bytes = as_bytes(raw).data();
  const int size = static_cast<int>(half);
  const ossl::Owned<ECDSA_SIG, ECDSA_SIG_free> pair(ECDSA_SIG_new());
  ECDSA_SIG_set0(pair.get(), BN_bin2bn(bytes, size, nullptr), BN_bin2bn(bytes + half, size, nullptr));
  unsigned char* der = nullptr;
  const int length = i2d_ECDSA_SIG(pair.get(), &der);
  std::string out(reinterpret_cast<char*>(der), static_cast<size_t>(std::max(length, 0)));
  OPENSSL_free(der);
  return out;
}

bool verifies(const TokenKey& key, std::string_view text, std::string_view signature) {
  const Signature& how = signature_of(key.algorithm);
  const std::string der = how.half != 0 ? der_signature(signature, how.half) : std::string(signature);
  const ossl::DigestContext context(EVP_MD_CTX_new());
  const bool good =
      !der.empty() &&
      EVP_DigestVerifyInit(context.get(), nullptr, how.digest ? how.digest() : nullptr, nullptr,
                           key.key.native()) == 1 &&
      EVP_DigestVerify(context.get(), as_bytes(der).data(), der.size(), as_bytes(text).data(),
                       text.size()) == 1;
  ERR_clear_error();
  return good;
}

}  // namespace

std::string_view token_algorithm_name(TokenAlgorithm algorithm) {
  return signature_of(algorithm).name;
}

std::string key_id(const PublicKey& key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key.native(), &der);
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  const bool good = size > 0 && EVP_Digest(der, static_cast<size_t>(size), digest, &length,
                                           EVP_sha256(), nullptr) == 1;
  OPENSSL_free(der);
  return good ? jose::encode64({reinterpret_cast<char*>(digest), length}) : std::string();
}

Result<TokenKeys> TokenKeys::of(const PublicKey& key) {
  TokenKeys out;
  out.keys_.push_back({{}, MELTEMI_TRY(algorithm_of(key)), key});
  return out;
}

Status TokenKeys::merge(TokenKeys other) {
  std::ranges::move(other.keys_, std::back_inserter(keys_));
  if (keys_.size() > kMaxTokenKeys) return bad(fmt::format("more than {} keys", kMaxTokenKeys));
  return {};
}

Status TokenKeys::add_jwk_set(std::string_view text) {
  const auto set = jose::parse_object(text);
  const auto list = set ? set->find("keys") : json::const_iterator();
  if (!set || list == set->end() || !list->is_array()) return bad("not a JSON Web Key Set");
  for (const json& jwk : *list) {
    if (!jwk.is_object()) return bad("a member of keys is not an object");
    if (jwk.contains("d")) return bad("a private key is among them: publish public keys only");
    if (jwk.contains("use") && text_of(jwk, "use") != "sig") continue;
    const auto key = MELTEMI_TRY(key_of(jwk));
    if (!key) continue;
    const std::string named = text_of(jwk, "alg");
    TokenAlgorithm rsa = TokenAlgorithm::kRs256;
    if (named == "RS384") rsa = TokenAlgorithm::kRs384;
    if (named == "RS512") rsa = TokenAlgorithm::kRs512;
    const TokenAlgorithm algorithm = MELTEMI_TRY(algorithm_of(*key, rsa));
    // For an algorithm that is not ours (PS256), or that the key cannot do.
    if (!named.empty() && named != token_algorithm_name(algorithm)) continue;
    keys_.push_back({text_of(jwk, "kid"), algorithm, *key});
    if (keys_.size() > kMaxTokenKeys) return bad(fmt::format("more than {} keys", kMaxTokenKeys));
  }
  return {};
}

Status TokenKeys::add_pem(std::string_view text) {
  constexpr std::string_view kBegin = "-----BEGIN ";
  for (size_t at = text.find(kBegin); at != text.npos;) {
    const size_t next = text.find(kBegin, at + 1);
    const std::string_view block = text.substr(at, next - at);
    if (block.substr(0, block.find('\n')).find("PRIVATE KEY") != block.npos) {
      return bad("a private key is among them: public keys only");
    }
    const auto key = PublicKey::from_pem(block);
    if (!key) return bad(key.error().detail);
    MELTEMI_TRY(merge(MELTEMI_TRY(of(*key))));
    at = next;
  }
  return {};
}

Result<TokenKeys> TokenKeys::parse(std::string_view text) {
  if (text.size() > kMaxKeySetBytes) return bad("larger than 256 KiB");
  TokenKeys out;
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != text.npos && text[first] == '{') {
    MELTEMI_TRY(out.add_jwk_set(text));
  } else {
    MELTEMI_TRY(out.add_pem(text));
  }
  if (out.keys_.empty()) return bad("none for signatures that are known here");
  return out;
}

Status TokenKeys::verify(std::string_view algorithm, std::string_view kid, std::string_view text,
                         std::string_view signature) const {
  bool any = false;
  for (const TokenKey& key : keys_) {
    if (token_algorithm_name(key.algorithm) != algorithm) continue;
    if (!kid.empty() && !key.kid.empty() && kid != key.kid) continue;
    any = true;
    if (verifies(key, text, signature)) return {};
  }
  return fail(Reason::kPermission, Fault::kDownstream,
              any ? "token: the signature does not verify"
                  : "token: no key for its algorithm and kid");
}

Result<std::unique_ptr<TokenKeyFiles>> TokenKeyFiles::open(std::vector<std::string> files) {
  std::unique_ptr<TokenKeyFiles> out(new TokenKeyFiles(std::move(files)));
  out->stamp_ = out->stamp();
  out->keys_ = std::make_shared<const TokenKeys>(MELTEMI_TRY(out->read()));
  return out;
}

Result<TokenKeys> TokenKeyFiles::read() const {
  TokenKeys out;
  for (const std::string& file : files_) {
    auto keys = TokenKeys::parse(MELTEMI_TRY(sys::read_file(file)));
    if (!keys) return fail(Reason::kBadConfig, Fault::kConfig, file + ": " + keys.error().detail);
    MELTEMI_TRY(out.merge(std::move(*keys)));
  }
  return out;
}

std::string TokenKeyFiles::stamp() const {
  std::string out;
  for (const std::string& file : files_) {
    struct stat info {};
    if (::stat(file.c_str(), &info) != 0) info = {};
    out += fmt::format("{}:{}:{}.{};", info.st_ino, info.st_size, info.st_mtim.tv_sec,
                       info.st_mtim.tv_nsec);
  }
  return out;
}

std::shared_ptr<const TokenKeys> TokenKeyFiles::current(MonoTime now) {
  const std::lock_guard lock(mutex_);
  if (now < next_look_) return keys_;
  next_look_ = now + kLook;
  std::string seen = stamp();
  if (seen == stamp_) return keys_;
  auto keys = read();
  if (keys) {
    stamp_ = std::move(seen);
    keys_ = std::make_shared<const TokenKeys>(std::move(*keys));
    scope.info("token keys were exchanged: {} in {} files", keys_->keys().size(), files_.size());
  } else if (seen != refused_stamp_) {  // tried again at every look, said once
    refused_stamp_ = std::move(seen);
    scope.error("new token keys cannot be used, the old ones stay: {}", keys.error().to_string());
  }
  return keys_;
}

}  // namespace meltemi::pki
