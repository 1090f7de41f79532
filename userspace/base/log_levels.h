// What the levels of the log are at run time, for the page that shows and changes them. Apart from log.h,
// which everybody includes.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"

namespace meltemi::log {

// In the syntax of set_levels(): "info,access=debug".
std::string current_levels();
// As set_levels(), but what was set for single scopes before is forgotten.
Status reset_levels(std::string_view levels);

}  // namespace meltemi::log
