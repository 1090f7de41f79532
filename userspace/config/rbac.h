// AuthorizationPolicies with targetRefs as the RBAC filters of a waypoint's listener. What the
// waypoint cannot evaluate makes an ALLOW rule vanish (it allows nothing) and a DENY rule wider.
// Internal to translation.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "envoy/config/rbac/v3/rbac.pb.h"
#include "userspace/config/view.h"

namespace meltemi::config {

struct RbacFilter {
  bool has_rules = false;
  bool has_shadow = false;
  ::envoy::config::rbac::v3::RBAC rules;
  ::envoy::config::rbac::v3::RBAC shadow;  // dry-run policies
};

// In the order they run (DENY, ALLOW); empty if no policy is bound. `service` "" for traffic to
// pods.
std::vector<RbacFilter> rbac_filters(View& view, std::string_view service_ns,
                                     std::string_view service, std::string_view gateway_ns,
                                     std::string_view gateway);

// HTTP and network RBAC filters carry the same two rule sets.
template <typename Proto>
Proto rbac_message(const RbacFilter& filter) {
  Proto out;
  if (filter.has_rules) *out.mutable_rules() = filter.rules;
  if (filter.has_shadow) {
    *out.mutable_shadow_rules() = filter.shadow;
    bool deny = filter.shadow.action() == ::envoy::config::rbac::v3::RBAC::DENY;
    out.set_shadow_rules_stat_prefix(deny ? "istio_dry_run_deny_" : "istio_dry_run_allow_");
  }
  return out;
}

}  // namespace meltemi::config
