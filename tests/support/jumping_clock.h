// Lets the monotonic clock of a test binary jump: takes the place of clock_gettime(2), which
// MonoClock and the loop's waits ask, so that an hour passes in no time and the code under test stays
// as it is. Include it in exactly one file of a binary. Only CLOCK_BOOTTIME jumps, and only forward;
// what the kernel itself waits for does not, so loops under it are epoll's.
#pragma once

#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "userspace/base/clock.h"

namespace meltemi::test {

inline std::atomic<int64_t> clock_offset_ns{0};

inline void jump(Duration by) { clock_offset_ns.fetch_add(by.count()); }

}  // namespace meltemi::test

extern "C" int clock_gettime(clockid_t clock, timespec* out) noexcept {
  const auto failed = static_cast<int>(syscall(SYS_clock_gettime, clock, out));
  if (failed != 0 || clock != CLOCK_BOOTTIME) return failed;
  const int64_t ns = out->tv_nsec + meltemi::test::clock_offset_ns.load();
  out->tv_sec += ns / 1'000'000'000;
  out->tv_nsec = ns % 1'000'000'000;
  return 0;
}
