// See rotation.h.
#include "userspace/pki/rotation.h"

#include <algorithm>
#include <cmath>

namespace meltemi::pki {

WallTime rotation_due(WallTime not_before, WallTime not_after, double random) {
  if (not_after <= not_before) return not_before;
  const double share = 0.45 + 0.1 * random;
  const auto lifetime = std::chrono::duration<double>(not_after - not_before);
  return not_before + std::chrono::duration_cast<WallTime::duration>(lifetime * share);
}

Duration retry_delay(unsigned failures, double random, Duration longest) {
  const unsigned doublings = std::min(failures > 0 ? failures - 1 : 0u, 16u);
  const auto base = std::min<Duration>(kRetryFirst * (1ll << doublings), longest);
  return Duration(std::llround(static_cast<double>(base.count()) * (0.8 + 0.4 * random)));
}

}  // namespace meltemi::pki
