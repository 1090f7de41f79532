// Who may do what at the control plane: which resources a stream gets, which identity the CA grants,
// whose reports count. Pure decisions on the caller's token and the pods that the configuration knows;
// never on source addresses, nor on what a caller says of itself without proof.
#pragma once

#include <set>
#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/control/account_index.h"
#include "userspace/control/pod_index.h"
#include "userspace/model/identity.h"
#include "userspace/xds/server.h"

namespace meltemi::control {

struct AccessRules {
  std::string trust_domain = "cluster.local";
  std::set<std::string, std::less<>> node_accounts = {"istio-system/ztunnel"};
  std::set<std::string, std::less<>> agent_accounts = {"istio-system/meltemi-agent"};
};

class Access {
 public:
  Access(AccessRules rules, const PodIndex* pods, const AccountIndex* accounts)
      : rules_(std::move(rules)), pods_(*pods), accounts_(*accounts) {}

  // Scope of a type for a caller, as xds::ServerHooks::scope_of. ztunnel: addresses and
  // authorizations; agent: its node's enrolments; waypoint pod: its Gateway's proxy configuration and
  // addresses. Error kPermission says what is missing; kUnsupported: the type is not for this caller.
  Result<std::string> scope_of(const xds::Caller& caller, const xds::Node& node,
                               std::string_view type_url) const;
  // The identity that is granted: the caller's own, or for a node proxy that of a pod which is enrolled
  // on its node.
  Result<model::Identity> grant(const xds::Caller& caller, std::string_view impersonate) const;
  Status may_report(const xds::Caller& caller, std::string_view node) const;
  // Whether what the token is bound to is still there: its service account, and its pod with that
  // uid, account and node, not ended. Only components of a node may come without a pod. Everything above
  // asks this first.
  Status still_there(const xds::Caller& caller) const;
  // Whether a stream with these rights would still be let in; the error says what is gone.
  Status still_welcome(const xds::Caller& caller, const xds::Node& node) const;

 private:
  Result<std::string> waypoint_scope(const xds::Caller& caller, const xds::Node& node) const;
  AccessRules rules_;
  const PodIndex& pods_;
  const AccountIndex& accounts_;
};

}  // namespace meltemi::control
