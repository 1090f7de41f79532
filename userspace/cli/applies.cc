#include "userspace/cli/applies.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "userspace/cli/pods.h"
#include "userspace/config/names.h"
#include "userspace/config/policy_fields.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::MeshNames;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;
using istio::security::v1beta1::AuthorizationPolicy;
using istio::security::v1beta1::PeerAuthentication;

template <typename Map>
bool selects(const Map& wanted, const Object& pod) {
  return std::all_of(wanted.begin(), wanted.end(), [&](const auto& label) {
    const auto found = pod.meta().labels().find(label.first);
    return found != pod.meta().labels().end() && found->second == label.second;
  });
}

// The namespace's own objects, and those of the root namespace where it is another one.
std::vector<ObjectPtr> of_namespace_and_root(const ObjectStore& store, Kind kind, const Object& object,
                                             const MeshNames& names) {
  std::vector<ObjectPtr> out = store.list(kind, object.ns());
  if (object.ns() != names.root_namespace)
    for (ObjectPtr& each : store.list(kind, names.root_namespace)) out.push_back(std::move(each));
  return out;
}

std::string action_of(const Object& policy) {
  return AuthorizationPolicy::Action_Name(policy.as<kube::AuthorizationPolicy>().spec().action());
}

std::string ztunnel_of(const Object& pod) {
  const std::string& node = pod.as<kube::Pod>().spec().node_name();
  return node.empty() ? "ztunnel" : "ztunnel of " + node;
}

void of_pod(const ObjectStore& store, const Object& pod, const MeshNames& names,
            std::vector<Applied>* out) {
  for (const ObjectPtr& policy :
       of_namespace_and_root(store, Kind::kAuthorizationPolicy, pod, names)) {
    const auto& spec = policy->as<kube::AuthorizationPolicy>().spec();
    if (!config::binds_to_target(spec) && selects(spec.selector().match_labels(), pod))
      out->push_back({policy, action_of(*policy), ztunnel_of(pod)});
  }
  for (const ObjectPtr& peer : of_namespace_and_root(store, Kind::kPeerAuthentication, pod, names)) {
    const auto& spec = peer->as<kube::PeerAuthentication>().spec();
    if (selects(spec.selector().match_labels(), pod))
      out->push_back({peer, PeerAuthentication::MutualTLS::Mode_Name(spec.mtls().mode()),
                      ztunnel_of(pod)});
  }
}

bool names_target(const AuthorizationPolicy& spec, const Object& service, std::string_view waypoint) {
  const auto targets = config::targets_of(spec);
  return std::any_of(targets.begin(), targets.end(), [&](const auto* target) {
    if (target->kind() == "Service") return target->name() == service.name();
    if (target->kind() == "Gateway") return !waypoint.empty() && target->name() == waypoint;
    return target->kind() == "GatewayClass" && !waypoint.empty();
  });
}

void of_service(const ObjectStore& store, const Object& service, const MeshNames& names,
                std::vector<Applied>* out) {
  const std::string waypoint = waypoint_of(store, service);
  const std::string where = waypoint.empty()
                                ? "nobody: the Service has no waypoint"
                                : fmt::format("waypoint {}/{}", service.ns(), waypoint);
  for (const ObjectPtr& policy :
       of_namespace_and_root(store, Kind::kAuthorizationPolicy, service, names))
    if (names_target(policy->as<kube::AuthorizationPolicy>().spec(), service, waypoint))
      out->push_back({policy, action_of(*policy), where});
  const std::string host = config::service_host(service.name(), service.ns(), names.cluster_domain);
  const auto covers = [&](std::string_view pattern, const Object& of) {
    return config::host_matches(config::expand_host(pattern, of.ns(), names.cluster_domain), host);
  };
  for (const ObjectPtr& routes : store.list(Kind::kVirtualService)) {
    const auto& hosts = routes->as<kube::VirtualService>().spec().hosts();
    if (std::any_of(hosts.begin(), hosts.end(), [&](const auto& h) { return covers(h, *routes); }))
      out->push_back({routes, "routes", where});
  }
  for (const ObjectPtr& rule : store.list(Kind::kDestinationRule)) {
    const auto& spec = rule->as<kube::DestinationRule>().spec();
    if (!covers(spec.host(), *rule)) continue;
    std::vector<std::string> subsets;
    for (const auto& subset : spec.subsets()) subsets.push_back(subset.name());
    out->push_back({rule,
                    subsets.empty() ? "traffic policy"
                                    : fmt::format("subsets {}", fmt::join(subsets, ", ")),
                    where});
  }
}

}  // namespace

std::vector<Applied> what_applies(const ObjectStore& store, const Object& object,
                                  const MeshNames& names) {
  std::vector<Applied> out;
  if (object.kind() == Kind::kPod) of_pod(store, object, names, &out);
  if (object.kind() == Kind::kService) of_service(store, object, names, &out);
  return out;
}

}  // namespace meltemi::cli
