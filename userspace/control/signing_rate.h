// How often one caller may have one identity signed. A proxy whose clock or configuration makes it ask
// in a loop costs the CA one signature every few seconds then, not a core. Thread safe.
#pragma once

#include <map>
#include <mutex>
#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::control {

// At once, and then one every kSigningInterval: a proxy that crashes in a loop gets its certificates,
// one that renews at the half of the shortest lifetime (10 s) as well.
inline constexpr int kSigningBurst = 10;
inline constexpr Duration kSigningInterval = std::chrono::seconds(3);
// What is remembered; one entry lives for kSigningBurst * kSigningInterval.
inline constexpr size_t kMaxSigningKeys = 100'000;

class SigningRate {
 public:
  // Counts one. `who` is the caller and the identity. Error kLimitExceeded with when it may ask again.
  Status take(const std::string& who, MonoTime now);
  size_t size() const;

 private:
  void forget_rested(MonoTime now);
  mutable std::mutex mutex_;
  std::map<std::string, MonoTime> full_at_;  // when the bucket will be full again
};

}  // namespace meltemi::control
