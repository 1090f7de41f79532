#include "userspace/codec/field_kind.h"

#include <algorithm>
#include <array>

#include "userspace/codec/header_list.h"

namespace meltemi::codec {
namespace {

using ByteSet = std::array<bool, 256>;

constexpr ByteSet set_of(std::string_view characters) {
  ByteSet s{};
  for (int c = '0'; c <= '9'; ++c) s[c] = true;
  for (int c = 'a'; c <= 'z'; ++c) s[c] = s[c - 32] = true;
  for (const char c : characters) s[static_cast<uint8_t>(c)] = true;
  return s;
}
// RFC 3986 section 3.2.2 without userinfo, which RFC 9113 section 8.3.1 forbids.
constexpr ByteSet kAuthorityBytes = set_of("-._~%!$&'()*+,;=:[]");
constexpr ByteSet kSchemeBytes = set_of("+-.");

constexpr ByteSet path_bytes() {
  ByteSet s{};
  // Bytes above 0x7f are not RFC 3986, but are seen. White space and controls could become another
  // request where the request goes on as HTTP/1; a fragment is never sent.
  for (int c = 0x21; c < 256; ++c) s[c] = c != 0x7f && c != '#';
  return s;
}
constexpr ByteSet kPathBytes = path_bytes();

bool all_in(const ByteSet& set, std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return set[static_cast<uint8_t>(c)]; });
}

bool only_digits(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

FieldKind when(bool good, FieldKind kind) {
  return good ? kind : FieldKind::kMalformed;
}

FieldKind classify_pseudo(std::string_view name, std::string_view value) {
  if (name == ":method") return when(valid_header_name(value), FieldKind::kMethod);
  if (name == ":path") return when(!value.empty() && all_in(kPathBytes, value), FieldKind::kPath);
  if (name == ":scheme")
    return when(!value.empty() && all_in(kSchemeBytes, value), FieldKind::kScheme);
  if (name == ":authority")
    return when(!value.empty() && all_in(kAuthorityBytes, value), FieldKind::kAuthority);
  if (name == ":status")
    return when(value.size() == 3 && only_digits(value) && value[0] >= '1', FieldKind::kStatus);
  if (name == ":protocol") return when(valid_header_name(value), FieldKind::kProtocol);
  return FieldKind::kMalformed;
}

}  // namespace

FieldKind classify_field(std::string_view name, std::string_view value) {
  if (name.starts_with(':')) return classify_pseudo(name, value);
  if (!valid_header_name(name) || !valid_header_value(value)) return FieldKind::kMalformed;
  for (const char c : name)
    if (c >= 'A' && c <= 'Z') return FieldKind::kMalformed;
  switch (name.size()) {
    case 2:
      if (name == "te" && !equal_ignoring_case(value, "trailers"))
        return FieldKind::kConnectionSpecific;
      break;
    case 4:
      if (name == "host")
        return when(!value.empty() && all_in(kAuthorityBytes, value), FieldKind::kHost);
      break;
    case 6:
      if (name == "cookie") return FieldKind::kCookie;
      break;
    case 7:
      if (name == "upgrade") return FieldKind::kConnectionSpecific;
      break;
    case 10:
      if (name == "connection" || name == "keep-alive") return FieldKind::kConnectionSpecific;
      break;
    case 14:
      // 19 digits always fit 64 bits.
      if (name == "content-length")
        return when(!value.empty() && value.size() <= 19 && only_digits(value),
                    FieldKind::kContentLength);
      break;
    case 16:
      if (name == "proxy-connection") return FieldKind::kConnectionSpecific;
      break;
    case 17:
      if (name == "transfer-encoding") return FieldKind::kConnectionSpecific;
      break;
    default:
      break;
  }
  return FieldKind::kPlain;
}

}  // namespace meltemi::codec
