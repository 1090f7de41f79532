// See access.h.
#include "userspace/control/access.h"

#include <fmt/format.h>

#include "userspace/config/translate.h"

namespace meltemi::control {
namespace {

using config::ResourceType;

std::unexpected<Error> denied(std::string detail) {
  return fail(Reason::kPermission, Fault::kDownstream, std::move(detail));
}

std::string account_of(const xds::Caller& caller) {
  return fmt::format("{}/{}", caller.ns, caller.service_account);
}

std::string_view metadata_of(const xds::Node& node, const std::string& key) {
  const auto it = node.metadata.find(key);
  return it == node.metadata.end() ? std::string_view() : std::string_view(it->second);
}

bool for_ztunnel(ResourceType type) {
  return type == ResourceType::kAddress || type == ResourceType::kAuthorization;
}

}  // namespace

Status Access::still_there(const xds::Caller& caller) const {
  MELTEMI_TRY(accounts_.still_there(caller.ns, caller.service_account, caller.account_uid));
  if (caller.pod_name.empty() && caller.pod_uid.empty()) {
    const std::string account = account_of(caller);
    if (rules_.agent_accounts.contains(account) || rules_.node_accounts.contains(account)) return {};
    return denied(fmt::format("the token of {} is not bound to a pod", account));
  }
  const auto pod = pods_.find(caller.ns, caller.pod_name);
  if (!pod || pod->uid != caller.pod_uid || pod->service_account != caller.service_account ||
      pod->ended || (!caller.node_name.empty() && pod->node != caller.node_name)) {
    return denied(fmt::format("no pod {}/{} as the token describes it", caller.ns, caller.pod_name));
  }
  return {};
}

// A waypoint proves its Gateway by its pod: the token names the pod, the pod's label the Gateway.
Result<std::string> Access::waypoint_scope(const xds::Caller& caller, const xds::Node& node) const {
  const std::string_view gateway = metadata_of(node, "GATEWAY_NAME");
  if (caller.pod_name.empty()) return denied("the token is not bound to a pod");
  const auto pod = pods_.find(caller.ns, caller.pod_name);
  if (!pod || pod->gateway.empty() || (!gateway.empty() && gateway != pod->gateway)) {
    return denied(fmt::format("pod {}/{} does not belong to Gateway \"{}\"", caller.ns,
                              caller.pod_name, gateway));
  }
  return config::waypoint_scope(caller.ns, pod->gateway);
}

Result<std::string> Access::scope_of(const xds::Caller& caller, const xds::Node& node,
                                     std::string_view type_url) const {
  MELTEMI_TRY(still_there(caller));
  const std::string account = account_of(caller);
  const auto type = config::resource_type(type_url);
  const auto not_for = [&] {
    return fail(Reason::kUnsupported, Fault::kDownstream,
                fmt::format("{} is not for {}", type_url, account));
  };
  if (rules_.agent_accounts.contains(account)) {
    if (type != ResourceType::kPodEnrolment) return not_for();
    if (caller.node_name.empty()) return denied("an agent's token must name its node");
    return config::node_scope(caller.node_name);
  }
  if (rules_.node_accounts.contains(account)) {
    if (!type || !for_ztunnel(*type)) return not_for();
    return config::kEveryone;
  }
  // Who is nobody is told so, whatever he asks for.
  const std::string scope = MELTEMI_TRY(waypoint_scope(caller, node));
  if (!type || *type == ResourceType::kPodEnrolment || *type == ResourceType::kAuthorization) {
    return not_for();
  }
  return *type == ResourceType::kAddress ? config::kEveryone : scope;
}

Result<model::Identity> Access::grant(const xds::Caller& caller,
                                      std::string_view impersonate) const {
  MELTEMI_TRY(still_there(caller));
  const auto own = MELTEMI_TRY(
      model::Identity::make(rules_.trust_domain, caller.ns, caller.service_account));
  if (impersonate.empty() || impersonate == own.uri()) return own;
  const auto wanted = model::Identity::parse(impersonate);
  if (!wanted) return denied(wanted.error().detail);
  if (!rules_.node_accounts.contains(account_of(caller))) {
    return denied(fmt::format("{} is no node proxy and asked for {}", own.uri(), wanted->uri()));
  }
  if (caller.node_name.empty()) return denied("a node proxy's token must name its node");
  MELTEMI_TRY(accounts_.still_there(wanted->ns(), wanted->service_account(), ""));
  if (wanted->trust_domain() != rules_.trust_domain ||
      !pods_.enrolled_on(caller.node_name, wanted->ns(), wanted->service_account())) {
    return denied(fmt::format("no pod of {} is enrolled on node {}", wanted->uri(), caller.node_name));
  }
  return *wanted;
}

Status Access::may_report(const xds::Caller& caller, std::string_view node) const {
  MELTEMI_TRY(still_there(caller));
  if (!rules_.agent_accounts.contains(account_of(caller))) {
    return denied(fmt::format("{} is no agent", account_of(caller)));
  }
  if (caller.node_name.empty() || caller.node_name != node) {
    return denied(fmt::format("an agent of node \"{}\" reported for node \"{}\"", caller.node_name,
                              node));
  }
  return {};
}

Status Access::still_welcome(const xds::Caller& caller, const xds::Node& node) const {
  MELTEMI_TRY(still_there(caller));
  const std::string account = account_of(caller);
  if (rules_.agent_accounts.contains(account) || rules_.node_accounts.contains(account)) return {};
  const auto scope = waypoint_scope(caller, node);
  return scope ? Status() : Status(fail(scope.error()));
}

}  // namespace meltemi::control
