// The gauge by which every subscriber of the control plane says how old its configuration may be. Must
// not know where the age comes from.
#pragma once

#include <chrono>

#include "userspace/base/clock.h"
#include "userspace/telemetry/exposition.h"

namespace meltemi::telemetry {

// `stale`: since the control plane's last word, 0 while its stream lives. `saved`: what is served comes
// from the disk, and nobody has confirmed it since the start.
inline void add_staleness(Exposition& out, Duration stale, bool saved) {
  out.family("meltemi_xds_staleness_seconds", MetricType::kGauge,
             "Time since the control plane's last word; 0 while its stream lives");
  out.sample("meltemi_xds_staleness_seconds",
             static_cast<uint64_t>(std::chrono::floor<std::chrono::seconds>(stale).count()));
  out.family("meltemi_xds_serving_saved_state", MetricType::kGauge,
             "1 while the configuration is the last good one from the disk");
  out.sample("meltemi_xds_serving_saved_state", static_cast<uint64_t>(saved));
}

}  // namespace meltemi::telemetry
