// How often one caller may have one identity signed. A proxy whose clock or configuration makes it ask
// in a loop costs the CA one signature every few seconds then, not a core. Thread safe.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::control {

// `burst` at once, and then one every `interval` (0: without a limit). With the defaults a proxy that
// crashes in a loop gets its certificates, and one that renews at the half of the shortest lifetime
// (10 s) as well.
struct SigningLimits {
  int burst = 10;
  Duration interval = std::chrono::seconds(3);
};
// What is remembered; one entry lives for burst * interval.
inline constexpr size_t kMaxSigningKeys = 100'000;

class SigningRate {
 public:
  explicit SigningRate(SigningLimits limits = {}) : limits_(limits) {}
  // Counts one. `who` is the caller and the identity. Error kLimitExceeded with when it may ask again.
  Status take(const std::string& who, MonoTime now);
  size_t size() const;
  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }

 private:
  void forget_rested(MonoTime now);
  const SigningLimits limits_;
  std::atomic<uint64_t> refused_{0};
  mutable std::mutex mutex_;
  std::map<std::string, MonoTime> full_at_;  // when the bucket will be full again
};

}  // namespace meltemi::control
