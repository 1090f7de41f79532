// See ossl.h.
#include "userspace/pki/ossl.h"

#include <fmt/format.h>

#include <algorithm>

namespace meltemi::pki::ossl {
namespace {

// With room on both sides for adding a lifetime or a grace.
constexpr auto kLatest = WallTime::max().time_since_epoch() - std::chrono::hours(24 * 3650);
constexpr auto kEarliest = WallTime::min().time_since_epoch() + std::chrono::hours(24 * 3650);

}  // namespace

std::string last_error(std::string_view what) {
  const unsigned long code = ERR_peek_last_error();
  const char* reason = code != 0 ? ERR_reason_error_string(code) : nullptr;
  ERR_clear_error();
  return reason != nullptr ? fmt::format("{}: {}", what, reason) : std::string(what);
}

std::string take(const Bio& bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return size > 0 ? std::string(data, static_cast<size_t>(size)) : std::string();
}

Names uri_name(std::string_view uri) {
  Names names(GENERAL_NAMES_new());
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_IA5STRING* text = ASN1_IA5STRING_new();
  ASN1_STRING_set(text, uri.data(), static_cast<int>(uri.size()));
  GENERAL_NAME_set0_value(name, GEN_URI, text);
  sk_GENERAL_NAME_push(names.get(), name);
  return names;
}

std::vector<std::string> uris_of(const GENERAL_NAMES* names) {
  std::vector<std::string> out;
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* text = name->d.uniformResourceIdentifier;
    out.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                     static_cast<size_t>(ASN1_STRING_length(text)));
  }
  return out;
}

WallTime to_wall(const ASN1_TIME* time) {
  tm broken{};
  if (ASN1_TIME_to_tm(time, &broken) != 1) return {};
  // "No end" is written as the year 9999 (RFC 5280 section 4.1.2.5), which WallTime does not reach.
  const std::chrono::seconds at(timegm(&broken));
  return WallTime(std::clamp(at, std::chrono::ceil<std::chrono::seconds>(kEarliest),
                             std::chrono::floor<std::chrono::seconds>(kLatest)));
}

}  // namespace meltemi::pki::ossl
