// Time. Durations and deadlines use the monotonic clock that keeps counting in suspend
// (CLOCK_BOOTTIME), certificates the wall clock. Sans-io code takes time as an argument and must
// never call these functions itself.
#pragma once

#include <time.h>

#include <chrono>
#include <string>

namespace meltemi {

using Duration = std::chrono::nanoseconds;

struct MonoClock {
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<MonoClock>;
  static constexpr bool is_steady = true;
  static time_point now() {
    timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return time_point(Duration(int64_t{ts.tv_sec} * 1'000'000'000 + ts.tv_nsec));
  }
};
using MonoTime = MonoClock::time_point;
using WallTime = std::chrono::system_clock::time_point;

// RFC 3339 in UTC with microseconds: 2026-08-20T10:00:00.123456Z.
std::string format_rfc3339(WallTime time);

}  // namespace meltemi
