// Which waypoints a request or connection has passed, so that it never goes round. A waypoint that
// forwards to another one tells it in a header: of the request for HTTP, of the CONNECT for bytes. The
// header goes to waypoints only; what a client claims can only get its own request refused.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"

namespace meltemi::waypoint {

// "shop/waypoint, team-b/waypoint": namespace and Gateway of each, in the order that it was passed.
inline constexpr std::string_view kWaypointsHeader = "x-meltemi-waypoints";
inline constexpr size_t kMaxWaypoints = 8;  // on one way; each is a hop of mTLS

// The header's value for waypoint `next`, sent by `own`, for a request that came with `passed` ("" if it
// came from a client). Errors: kSelfCall if `next` is `own`, or one of the two was passed before;
// kLimitExceeded "max_waypoints".
Result<std::string> waypoints_for(std::string_view passed, std::string_view own,
                                  std::string_view next);

}  // namespace meltemi::waypoint
