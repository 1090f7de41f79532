// When a certificate is to be renewed, and how long to wait after a failure. Pure functions.
#pragma once

#include "userspace/base/clock.h"

namespace meltemi::pki {

// not_before + lifetime × (0.5 ± 0.05), by `random` in [0, 1). In the past if the certificate is
// older. A certificate without lifetime is due at once.
WallTime rotation_due(WallTime not_before, WallTime not_after, double random);

inline constexpr Duration kRetryFirst = std::chrono::seconds(1);
inline constexpr Duration kRetryMax = std::chrono::seconds(150);
// Of an identity without a certificate whose CA cannot be reached: its pods wait. With the jitter less
// than 5 s.
inline constexpr Duration kRetryMissing = std::chrono::seconds(4);
// Delay before attempt number `failures` + 1 (failures ≥ 1): 1 s doubling to `longest`, ×(1 ± 0.2) by
// `random` in [0, 1).
Duration retry_delay(unsigned failures, double random, Duration longest = kRetryMax);

}  // namespace meltemi::pki
