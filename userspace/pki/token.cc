// See token.h.
#include "userspace/pki/token.h"

#include <fmt/format.h>
#include <openssl/ecdsa.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "userspace/base/bytes.h"
#include "userspace/pki/ossl.h"

namespace meltemi::pki {
namespace {

using nlohmann::json;
using std::chrono::seconds;

constexpr std::string_view kAlphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
constexpr size_t kHalf = 32;  // bytes of r and of s (RFC 7518 section 3.4)
constexpr seconds kSkew{60};

std::string encode64(std::string_view bytes) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : bytes) {
    bits = bits << 8 | static_cast<uint8_t>(c);
    for (count += 8; count >= 6; count -= 6) out += kAlphabet[bits >> (count - 6) & 63];
  }
  if (count > 0) out += kAlphabet[bits << (6 - count) & 63];
  return out;
}

// Base64url without padding (RFC 7515 section 2). Left-over bits must be zero.
std::optional<std::string> decode64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t value = kAlphabet.find(c);
    if (value == std::string_view::npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xff);
    }
  }
  if (count == 6 || (bits & ((1u << count) - 1)) != 0) return std::nullopt;
  return out;
}

std::unexpected<Error> refused(std::string detail) {
  return fail(Reason::kPermission, Fault::kDownstream, "token: " + std::move(detail));
}

Result<std::string> sign_es256(EVP_PKEY* key, std::string_view text) {
  const ossl::DigestContext context(EVP_MD_CTX_new());
  std::string der(256, '\0');
  size_t size = der.size();
  if (EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key) != 1 ||
      EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(der.data()), &size,
                     as_bytes(text).data(), text.size()) != 1) {
    return fail(Reason::kInternal, Fault::kInternal, ossl::last_error("signing a token"));
  }
  const auto* p = reinterpret_cast<const unsigned char*>(der.data());
  const ossl::Owned<ECDSA_SIG, ECDSA_SIG_free> pair(
      d2i_ECDSA_SIG(nullptr, &p, static_cast<long>(size)));
  std::string raw(2 * kHalf, '\0');
  auto* out = reinterpret_cast<unsigned char*>(raw.data());
  if (!pair || BN_bn2binpad(ECDSA_SIG_get0_r(pair.get()), out, kHalf) < 0 ||
      BN_bn2binpad(ECDSA_SIG_get0_s(pair.get()), out + kHalf, kHalf) < 0) {
    return fail(Reason::kBadConfig, Fault::kConfig, "token key is not P-256");
  }
  return raw;
}

bool verify_es256(EVP_PKEY* key, std::string_view text, std::string_view raw) {
  if (raw.size() != 2 * kHalf) return false;
  const auto* bytes = as_bytes(raw).data();
  const ossl::Owned<ECDSA_SIG, ECDSA_SIG_free> pair(ECDSA_SIG_new());
  ECDSA_SIG_set0(pair.get(), BN_bin2bn(bytes, kHalf, nullptr),
                 BN_bin2bn(bytes + kHalf, kHalf, nullptr));
  unsigned char* der = nullptr;
  const int size = i2d_ECDSA_SIG(pair.get(), &der);
  const ossl::DigestContext context(EVP_MD_CTX_new());
  const bool good =
      size > 0 && EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr, key) == 1 &&
      EVP_DigestVerify(context.get(), der, static_cast<size_t>(size), as_bytes(text).data(),
                       text.size()) == 1;
  OPENSSL_free(der);
  ERR_clear_error();
  return good;
}

std::optional<json> parse_part(std::string_view part) {
  const auto bytes = decode64(part);
  if (!bytes) return std::nullopt;
  json value = json::parse(*bytes, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return std::nullopt;
  return value;
}

// Member of nested objects as text; "" if absent or of another type.
std::string text_at(const json& object, std::initializer_list<const char*> path) {
  const json* at = &object;
  for (const char* key : path) {
    if (!at->is_object()) return {};
    const auto found = at->find(key);
    if (found == at->end()) return {};
    at = &*found;
  }
  return at->is_string() ? at->get<std::string>() : std::string();
}

std::optional<WallTime> time_at(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return std::nullopt;
  const double value = found->get<double>();
  // Beyond year 9999 no clock of ours reaches; also keeps the conversion defined.
  if (!(value >= 0 && value < 253402300800.0)) return std::nullopt;
  return WallTime(seconds(static_cast<int64_t>(value)));
}

bool has_audience(const json& claims, std::string_view audience) {
  const auto found = claims.find("aud");
  if (found == claims.end()) return false;
  if (found->is_string()) return found->get_ref<const std::string&>() == audience;
  if (!found->is_array()) return false;
  for (const json& entry : *found) {
    if (entry.is_string() && entry.get_ref<const std::string&>() == audience) return true;
  }
  return false;
}

}  // namespace

Result<std::string> sign_token(const PrivateKey& key, const TokenClaims& claims) {
  if (claims.ns.empty() || claims.service_account.empty() || claims.audience.empty()) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                "a token needs a namespace, a service account and an audience");
  }
  const auto unix_seconds = [](WallTime t) {
    return std::chrono::duration_cast<seconds>(t.time_since_epoch()).count();
  };
  json bound = {{"namespace", claims.ns}, {"serviceaccount", {{"name", claims.service_account}}}};
  if (!claims.pod_name.empty()) {
    bound["pod"] = {{"name", claims.pod_name}, {"uid", claims.pod_uid}};
  }
  if (!claims.node_name.empty()) bound["node"] = {{"name", claims.node_name}};
  const json payload = {
      {"iss", claims.issuer},
      {"aud", json::array({claims.audience})},
      {"sub", fmt::format("system:serviceaccount:{}:{}", claims.ns, claims.service_account)},
      {"iat", unix_seconds(claims.issued_at)},
      {"nbf", unix_seconds(claims.issued_at)},
      {"exp", unix_seconds(claims.expires_at)},
      {"kubernetes.io", std::move(bound)}};
  const auto dump = [](const json& value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
  };
  const json header = {{"alg", "ES256"}, {"typ", "JWT"}};
  const std::string text = encode64(dump(header)) + "." + encode64(dump(payload));
  return text + "." + encode64(MELTEMI_TRY(sign_es256(key.native(), text)));
}

Result<TokenClaims> verify_token(const PublicKey& key, std::string_view token, WallTime now,
                                 std::string_view audience) {
  if (token.size() > kMaxTokenBytes) return refused("larger than 16 KiB");
  const size_t first = token.find('.');
  const size_t second = first == token.npos ? token.npos : token.find('.', first + 1);
  if (second == token.npos) return refused("not a compact JWS");
  // The header chooses nothing: one algorithm is accepted, and checked before the signature.
  const auto header = parse_part(token.substr(0, first));
  if (!header || text_at(*header, {"alg"}) != "ES256") return refused("algorithm is not ES256");
  const auto signature = decode64(token.substr(second + 1));
  if (!signature || !verify_es256(key.native(), token.substr(0, second), *signature)) {
    return refused("the signature does not verify");
  }
  const auto claims = parse_part(token.substr(first + 1, second - first - 1));
  if (!claims) return refused("claims are not a JSON object");
  if (!has_audience(*claims, audience)) {
    return refused(fmt::format("audience is not {}", audience));
  }
  const auto expires = time_at(*claims, "exp");
  if (!expires) return refused("no exp");
  if (*expires + kSkew <= now) return refused("expired at " + format_rfc3339(*expires));
  const auto not_before = time_at(*claims, "nbf");
  if (not_before && *not_before > now + kSkew) {
    return refused("not valid before " + format_rfc3339(*not_before));
  }
  TokenClaims out;
  out.ns = text_at(*claims, {"kubernetes.io", "namespace"});
  out.service_account = text_at(*claims, {"kubernetes.io", "serviceaccount", "name"});
  out.pod_name = text_at(*claims, {"kubernetes.io", "pod", "name"});
  out.pod_uid = text_at(*claims, {"kubernetes.io", "pod", "uid"});
  out.node_name = text_at(*claims, {"kubernetes.io", "node", "name"});
  out.issuer = text_at(*claims, {"iss"});
  out.audience = audience;
  out.expires_at = *expires;
  out.issued_at = time_at(*claims, "iat").value_or(WallTime());
  if (out.ns.empty() || out.service_account.empty()) return refused("names no service account");
  if (text_at(*claims, {"sub"}) !=
      fmt::format("system:serviceaccount:{}:{}", out.ns, out.service_account)) {
    return refused("sub and kubernetes.io disagree");
  }
  return out;
}

}  // namespace meltemi::pki
