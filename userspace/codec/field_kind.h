// Internal to codec: what RFC 9113 section 8 says about one field by itself. Decided once for each
// field that comes in or enters an HPACK table, so that a field that repeats costs a table lookup.
// It must never look at more than one field: what a whole list must hold is h2_message.h.
#pragma once

#include <cstdint>
#include <string_view>

namespace meltemi::codec {

enum class FieldKind : uint8_t {
  kPlain,
  kMethod,
  kScheme,
  kAuthority,
  kPath,
  kProtocol,
  kStatus,
  kContentLength,
  kHost,
  kCookie,
  kConnectionSpecific,  // may not be in HTTP/2 (RFC 9113 section 8.2.2)
  kMalformed,           // name or value that no message may have
};

// Names are in lower case, or malformed.
FieldKind classify_field(std::string_view name, std::string_view value);

}  // namespace meltemi::codec
