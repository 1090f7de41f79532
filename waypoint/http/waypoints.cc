#include "waypoint/http/waypoints.h"

#include <fmt/format.h>

#include "waypoint/http/field.h"

namespace meltemi::waypoint {

Result<std::string> waypoints_for(std::string_view passed, std::string_view own,
                                  std::string_view next) {
  std::string_view again = next == own ? own : std::string_view();
  std::string out;
  size_t count = 0;
  each_token(passed, [&](std::string_view name) {
    if (name == own || name == next) again = name;
    if (++count > kMaxWaypoints) return false;
    out += name;
    out += ", ";
    return true;
  });
  if (!again.empty()) {
    return fail(Reason::kSelfCall, Fault::kConfig,
                fmt::format("routes go round: waypoint {} would send to waypoint {}, and the request "
                            "has been at {} already; change the VirtualService there or here",
                            own, next, again));
  }
  if (count >= kMaxWaypoints) return fail(Reason::kLimitExceeded, Fault::kConfig, "max_waypoints");
  out += own;
  return out;
}

}  // namespace meltemi::waypoint
