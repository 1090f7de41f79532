// VirtualServices as the routes of one service port at its waypoint. Internal to translation.
#pragma once

#include <string>
#include <vector>

#include "envoy/config/route/v3/route.pb.h"
#include "userspace/config/mesh.h"
#include "userspace/config/units.h"

namespace meltemi::config {

struct RouteTarget {
  const Object& service;
  uint32_t port;
  const WaypointBinding& waypoint;
};

// The VirtualServices that a waypoint applies to a service, in the order in which their routes
// count.
std::vector<ObjectPtr> virtual_services_for(View& view, const RouteTarget& target);

// Fills the one virtual host of the route configuration; asks `out` for the clusters it names.
void build_http_routes(View& view, const RouteTarget& target, Protocol protocol,
                       ::envoy::config::route::v3::RouteConfiguration* config, Outputs* out);

struct WeightedTcpCluster {
  std::string cluster;
  uint32_t weight;
};
// Where the service port's TCP connections go; never empty.
std::vector<WeightedTcpCluster> build_tcp_route(View& view, const RouteTarget& target,
                                                Outputs* out);

}  // namespace meltemi::config
