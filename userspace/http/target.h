// The path and query of a request target (RFC 9112 section 3.2: origin and absolute form). Sans-io.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/http/message.h"

namespace meltemi::http {

struct Target {
  std::string path;  // decoded, begins with '/'
  Pairs query;       // decoded; '+' is a space
};
// Error: kBadRequest for a broken escape, a NUL, or another form.
Result<Target> parse_target(std::string_view target);

}  // namespace meltemi::http
