// Where a waypoint dials a Service's port: at the pods, or at the waypoint that the pods or the Service
// have besides it. Must never name a pod whose traffic another waypoint is there to judge: a missing
// or unready waypoint leaves no endpoint, never the pod itself. Internal to translation.
#pragma once

#include <string>

#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "userspace/base/error.h"
#include "userspace/config/units.h"

namespace meltemi::config {

struct Endpoints {
  ::envoy::config::endpoint::v3::ClusterLoadAssignment assignment;  // without its name
  // "ns/name" of the waypoint that traffic has to pass and cannot, if there is no healthy endpoint.
  std::string waypoint;
  // Not kOk: nothing may be dialled, with the sentence for people. kWaypointUnknown, kUnsupported.
  Reason refused = Reason::kOk;
  std::string message;
};

// Each pod behind a waypoint of its own is reached by so many of that waypoint's pods, taken in turn.
inline constexpr size_t kWaysPerPod = 2;

Endpoints endpoints_of(View& view, const ClusterRequest& request, const Object& service,
                       const kube::ServicePort& port, const Labels& subset_labels);

}  // namespace meltemi::config
