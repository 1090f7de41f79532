// Which DestinationRules hold for a service as seen from a namespace, merged. Internal to
// translation and analysis.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "networking/v1alpha3/destination_rule.pb.h"
#include "userspace/config/mesh.h"

namespace meltemi::config {

struct DestinationPolicy {
  ObjectPtr rule;  // that it comes from: the oldest, or the one with the subset; null: none
  ::istio::networking::v1alpha3::TrafficPolicy
      policy;  // portLevelSettings and subset already applied
  bool subset_found = false;
  Labels subset_labels;
};

// The rules of the first namespace that has one for the host (client's, service's, root), those
// with the longest matching host, oldest first. Not ones with a workloadSelector (they are for
// sidecars).
std::vector<ObjectPtr> destination_rules_for(View& view, const Object& service,
                                             std::string_view client_ns);
DestinationPolicy destination_policy(View& view, const Object& service, uint32_t port,
                                     std::string_view subset, std::string_view client_ns);

}  // namespace meltemi::config
