// See token.h.
#include "userspace/pki/token.h"

#include <fmt/format.h>
#include <openssl/ecdsa.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "userspace/base/bytes.h"
#include "userspace/pki/jose.h"
#include "userspace/pki/ossl.h"

namespace meltemi::pki {
namespace {

using nlohmann::json;
using std::chrono::seconds;

constexpr size_t kHalf = 32;  // bytes of r and of s in ES256 (RFC 7518 section 3.4)

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

std::optional<json> parse_part(std::string_view part) {
  const auto bytes = jose::decode64(part);
  return bytes ? jose::parse_object(*bytes) : std::nullopt;
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
  if (!(value >= 0)) return std::nullopt;
  // WallTime ends in 2262; whatever is later is as good as this.
  constexpr double kLatest = 9e9;
  return WallTime(seconds(static_cast<int64_t>(std::min(value, kLatest))));
}

// The first of `aud` (a string or a list of them) that is accepted; "" if none is.
std::string accepted_audience(const json& claims, const TokenPolicy& policy) {
  const auto found = claims.find("aud");
  if (found == claims.end()) return {};
  const json list = found->is_array() ? *found : json::array({*found});
  for (const json& entry : list) {
    if (!entry.is_string()) continue;
    auto audience = entry.get<std::string>();
    if (policy.audiences.contains(audience)) return audience;
  }
  return {};
}

// When the token holds. exp is needed; nbf and iat count if they are there.
Status check_times(const json& claims, WallTime now) {
  const auto expires = time_at(claims, "exp");
  if (!expires) return refused("no exp");
  if (*expires + kTokenSkew <= now) return refused("expired at " + format_rfc3339(*expires));
  for (const char* key : {"nbf", "iat"}) {
    if (!claims.contains(key)) continue;
    const auto from = time_at(claims, key);
    if (!from) return refused(fmt::format("{} is not a time", key));
    if (*from > now + kTokenSkew) {
      return refused(fmt::format("not valid before {} ({})", format_rfc3339(*from), key));
    }
  }
  return {};
}

Result<TokenClaims> claims_of(const json& claims) {
  TokenClaims out;
  out.ns = text_at(claims, {"kubernetes.io", "namespace"});
  out.service_account = text_at(claims, {"kubernetes.io", "serviceaccount", "name"});
  out.account_uid = text_at(claims, {"kubernetes.io", "serviceaccount", "uid"});
  out.pod_name = text_at(claims, {"kubernetes.io", "pod", "name"});
  out.pod_uid = text_at(claims, {"kubernetes.io", "pod", "uid"});
  out.node_name = text_at(claims, {"kubernetes.io", "node", "name"});
  out.issuer = text_at(claims, {"iss"});
  out.expires_at = time_at(claims, "exp").value_or(WallTime());
  out.issued_at = time_at(claims, "iat").value_or(WallTime());
  if (out.ns.empty() || out.service_account.empty()) return refused("names no service account");
  if (text_at(claims, {"sub"}) !=
      fmt::format("system:serviceaccount:{}:{}", out.ns, out.service_account)) {
    return refused("sub and kubernetes.io disagree");
  }
  return out;
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
  if (!claims.account_uid.empty()) bound["serviceaccount"]["uid"] = claims.account_uid;
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
  const json header = {{"alg", "ES256"}, {"kid", key_id(PublicKey::of(key))}, {"typ", "JWT"}};
  const std::string text = jose::encode64(dump(header)) + "." + jose::encode64(dump(payload));
  return text + "." + jose::encode64(MELTEMI_TRY(sign_es256(key.native(), text)));
}

Result<TokenClaims> verify_token(const TokenKeys& keys, std::string_view token, WallTime now,
                                 const TokenPolicy& policy) {
  if (token.size() > kMaxTokenBytes) return refused("larger than 16 KiB");
  const size_t first = token.find('.');
  const size_t second = first == token.npos ? token.npos : token.find('.', first + 1);
  if (second == token.npos) return refused("not a compact JWS");
  const auto header = parse_part(token.substr(0, first));
  if (!header) return refused("the header is not one JSON object");
  // An extension that must be understood (RFC 7515 section 4.1.11), and none is.
  if (header->contains("crit")) return refused("the header has crit");
  const auto signature = jose::decode64(token.substr(second + 1));
  if (!signature) return refused("the signature is not base64url");
  MELTEMI_TRY(keys.verify(text_at(*header, {"alg"}), text_at(*header, {"kid"}),
                          token.substr(0, second), *signature));
  const auto claims = parse_part(token.substr(first + 1, second - first - 1));
  if (!claims) return refused("the claims are not one JSON object");
  if (!policy.issuers.contains(text_at(*claims, {"iss"}))) return refused("issuer is not accepted");
  const std::string audience = accepted_audience(*claims, policy);
  if (audience.empty()) return refused("audience is not accepted");
  MELTEMI_TRY(check_times(*claims, now));
  TokenClaims out = MELTEMI_TRY(claims_of(*claims));
  out.audience = audience;
  return out;
}

}  // namespace meltemi::pki
