// The authorization phase: Envoy's RBAC filters, compiled into the policy engine that ztunnel uses
// (userspace/model/policy.h), so that one rule cannot mean two things in two proxies. What the engine
// cannot express is refused when the resource arrives. Must never decide on anything but the verified
// identity and the addresses of the connection.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "userspace/model/policy.h"

namespace envoy::config::rbac::v3 {
class RBAC;
}

namespace meltemi::waypoint {

// One RBAC filter. Filters of a chain are evaluated in order; each must let the request through.
class RbacFilter {
 public:
  // `rules`: enforced; `shadow`: evaluated for the log only (dry run). Either may be null.
  // Errors: kUnsupported, kBadConfig, with the policy's name and the place in it.
  static Result<RbacFilter> compile(const envoy::config::rbac::v3::RBAC* rules,
                                    const envoy::config::rbac::v3::RBAC* shadow);

  // reason kOk or kPolicyDeny / kPolicyNoAllowMatch.
  model::PolicyVerdict check(const model::PolicyInput& input) const;
  // What the shadow rules would say; allowed when there are none.
  model::PolicyVerdict check_shadow(const model::PolicyInput& input) const;
  bool has_shadow() const { return !shadow_.empty(); }

 private:
  std::vector<model::PolicyPtr> rules_, shadow_;
};

// Runs the filters in order; the first that denies decides.
model::PolicyVerdict authorize(const std::vector<RbacFilter>& filters,
                               const model::PolicyInput& input);

}  // namespace meltemi::waypoint
