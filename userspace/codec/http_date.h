// The date of an HTTP message. Pure; must never ask a clock.
#pragma once

#include <string>

#include "userspace/base/clock.h"

namespace meltemi::codec {

// IMF-fixdate: "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110 section 5.6.7).
std::string http_date(WallTime time);

}  // namespace meltemi::codec
