// What a plain (unquoted) YAML scalar means: the resolution that kubectl's YAML library does.
// Shared by the parser and by the writer, which must quote whatever would read back as something
// else.
#pragma once

#include <string_view>

#include "userspace/config/value.h"

namespace meltemi::config {

// kNull, kBool, kNumber (text normalised to a JSON number: 0644 is octal, 0x hex) or kString.
Value resolve_plain_scalar(std::string_view text);

}  // namespace meltemi::config
