// The wall clock as something that is handed in, so that a test lets it jump instead of waiting. What
// ends with a certificate or a token asks this; deadlines of waiting use base/clock.h's MonoClock.
#pragma once

#include <functional>

#include "userspace/base/clock.h"

namespace meltemi {

// Thread safe where its users are.
using WallClock = std::function<WallTime()>;

inline WallTime system_wall_clock() { return std::chrono::system_clock::now(); }

}  // namespace meltemi
