#include "userspace/config/endpoints.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "userspace/config/mesh.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

namespace ep = ::envoy::config::endpoint::v3;
namespace core = ::envoy::config::core::v3;

constexpr std::string_view kTunnelListener = "connect_originate";
constexpr std::string_view kTunnelMetadata = "envoy.filters.listener.original_dst";

core::HealthStatus health_of(const Object& pod, bool publish_not_ready) {
  if (!pod.meta().deletion_timestamp().empty()) return core::DRAINING;
  return publish_not_ready || pod_ready(pod) ? core::HEALTHY : core::UNHEALTHY;
}

// The pod's address of the family that the other end has. REQUIRES: ips is not empty.
IpAddress of_family(const std::vector<IpAddress>& ips, bool v4) {
  for (const IpAddress& ip : ips) {
    if (ip.is_v4() == v4) return ip;
  }
  return ips[0];
}

// --- one endpoint -------------------------------------------------------------------------------

// By HBONE: CONNECT to `target`, at the pod that has that address or at a waypoint's pod.
google::protobuf::Map<std::string, google::protobuf::Value>& tunnelled(const SocketAddress& target,
                                                                       ep::LbEndpoint* out) {
  const std::string text = target.to_string();
  auto* address = out->mutable_endpoint()->mutable_address()->mutable_envoy_internal_address();
  address->set_server_listener_name(std::string(kTunnelListener));
  address->set_endpoint_id(text);
  auto& fields = *(*out->mutable_metadata()->mutable_filter_metadata())[std::string(kTunnelMetadata)]
                      .mutable_fields();
  fields["local"].set_string_value(text);
  return fields;
}

void add_pod(View& view, const Object& pod, const SocketAddress& address, core::HealthStatus health,
             ep::LocalityLbEndpoints* out) {
  ep::LbEndpoint* endpoint = out->add_lb_endpoints();
  if (pod_speaks_hbone(view, pod)) {
    tunnelled(address, endpoint);
  } else {
    auto* wire = endpoint->mutable_endpoint()->mutable_address()->mutable_socket_address();
    wire->set_address(address.ip.to_string());
    wire->set_port_value(address.port);
  }
  endpoint->set_health_status(health);
}

// At a waypoint's pod. The metadata is what Istio gives its gateways, and the waypoint's name, by which
// ours keeps requests from going round.
void add_way(const SocketAddress& target, const std::string& waypoint, const SocketAddress& at,
             core::HealthStatus health, ep::LocalityLbEndpoints* out) {
  ep::LbEndpoint* endpoint = out->add_lb_endpoints();
  tunnelled(target, endpoint)["waypoint"].set_string_value(at.to_string());
  auto& own = *(*endpoint->mutable_metadata()->mutable_filter_metadata())["meltemi"].mutable_fields();
  own["waypoint"].set_string_value(waypoint);
  endpoint->set_health_status(health);
}

// --- the other waypoint -------------------------------------------------------------------------

struct WaypointPod {
  SocketAddress address;  // of its HBONE port
  core::HealthStatus health;
};

// The pods behind the Service that leads to a waypoint; none if there is no such Service or port.
std::vector<WaypointPod> waypoint_pods(View& view, const WaypointBinding& binding, bool v4) {
  const std::string_view name = std::string_view(binding.host).substr(0, binding.host.find('.'));
  if (service_host(name, binding.host_ns, view.names().cluster_domain) != binding.host) return {};
  const ObjectPtr service = view.object(Kind::kService, binding.host_ns, name);
  if (!service) return {};
  const kube::ServicePort* port = nullptr;
  for (const auto& candidate : service->as<kube::Service>().spec().ports()) {
    if (is_tcp(candidate) && candidate.port() == static_cast<int>(kHbonePort)) port = &candidate;
  }
  if (port == nullptr) return {};
  std::vector<WaypointPod> out;
  for (const ObjectPtr& pod : view.pods_selected(service->ns(), selector_of(*service))) {
    const std::vector<IpAddress> ips = pod_ips(*pod);
    const uint32_t target = target_port(*port, *pod);
    if (ips.empty() || pod_ended(*pod) || target == 0) continue;
    out.push_back({SocketAddress{of_family(ips, v4), static_cast<uint16_t>(target)},
                   health_of(*pod, false)});
  }
  return out;
}

std::string name_of(const WaypointBinding& binding) {
  return fmt::format("{}/{}", binding.ns, binding.gateway);
}

bool is_own(const WaypointBinding& binding, const ClusterRequest& request) {
  return waypoint_scope(binding.ns, binding.gateway) == request.scope;
}

Endpoints refused(const WaypointBinding& binding, Reason reason, std::string message) {
  Endpoints out;
  out.waypoint = name_of(binding);
  out.refused = reason;
  out.message = std::move(message);
  return out;
}

// The Service has a waypoint of its own: that one chooses the pod, as for any client of the Service.
Endpoints through_waypoint_of_service(View& view, const ClusterRequest& request,
                                      const Object& service, const WaypointBinding& binding) {
  const std::string host = service_host(service.name(), service.ns(), view.names().cluster_domain);
  if (binding.reason == "WaypointMissing") {
    return refused(binding, Reason::kWaypointUnknown, binding.message);
  }
  if (!request.subset.empty()) {
    return refused(binding, Reason::kUnsupported,
                   fmt::format("subset {} of {} cannot be chosen from here: its waypoint {} chooses "
                               "the pod; put the rule on {} itself, or bind both Services to one "
                               "waypoint",
                               request.subset, host, name_of(binding), host));
  }
  const std::vector<IpAddress> vips = service_vips(service);
  if (vips.empty()) {
    return refused(binding, Reason::kUnsupported,
                   fmt::format("{} is headless: its waypoint {} has no address to serve it at; give "
                               "it a clusterIP, or label it istio.io/use-waypoint=none",
                               host, name_of(binding)));
  }
  Endpoints out;
  out.waypoint = name_of(binding);
  const SocketAddress target{vips[0], static_cast<uint16_t>(request.port)};
  for (const WaypointPod& pod : waypoint_pods(view, binding, vips[0].is_v4())) {
    if (out.assignment.endpoints().empty()) out.assignment.add_endpoints();
    add_way(target, out.waypoint, pod.address, pod.health, out.assignment.mutable_endpoints(0));
  }
  return out;
}

// --- the pods of a service ----------------------------------------------------------------------

class PodEndpoints {
 public:
  PodEndpoints(View& view, const ClusterRequest& request, bool publish_not_ready)
      : view_(view), request_(request), publish_not_ready_(publish_not_ready) {}

  void add(const Object& pod, const SocketAddress& address) {
    const core::HealthStatus health = health_of(pod, publish_not_ready_);
    const WaypointBinding& binding = binding_of(pod);
    if (!binding.bound || is_own(binding, request_)) {
      return add_pod(view_, pod, address, health, locality());
    }
    add_ways(binding, address, health);
  }
  Endpoints take() { return std::move(out_); }

 private:
  // A Service has many pods and few answers: what decides is looked at once for all that share it.
  const WaypointBinding& binding_of(const Object& pod) {
    std::string key = fmt::format("{}|{}|{}|{}", pod.label("istio.io/use-waypoint"),
                                  pod.label("istio.io/use-waypoint-namespace"),
                                  pod_service_account(pod), is_waypoint_part(pod));
    const auto [it, is_new] = bindings_.try_emplace(std::move(key));
    if (is_new) it->second = resolve_waypoint(view_, pod, Traffic::kWorkload);
    return it->second;
  }

  ep::LocalityLbEndpoints* locality() {
    if (out_.assignment.endpoints().empty()) out_.assignment.add_endpoints();
    return out_.assignment.mutable_endpoints(0);
  }

  // A pod behind a waypoint for workloads: as a client that calls the pod's own address.
  void add_ways(const WaypointBinding& binding, const SocketAddress& address,
                core::HealthStatus health) {
    const std::string name = name_of(binding);
    Ways& ways = known_[name];
    if (!ways.asked) {
      ways.asked = true;
      if (binding.reason != "WaypointMissing") {
        for (WaypointPod& pod : waypoint_pods(view_, binding, address.ip.is_v4())) {
          if (pod.health == core::HEALTHY) ways.pods.push_back(std::move(pod));
        }
      }
    }
    if (ways.pods.empty()) out_.waypoint = name;
    for (size_t i = 0; i < std::min(kWaysPerPod, ways.pods.size()); ++i) {
      const WaypointPod& pod = ways.pods[ways.next++ % ways.pods.size()];
      add_way(address, name, pod.address, health, locality());
    }
  }

  struct Ways {
    bool asked = false;
    std::vector<WaypointPod> pods;
    size_t next = 0;
  };
  View& view_;
  const ClusterRequest& request_;
  bool publish_not_ready_;
  std::map<std::string, WaypointBinding> bindings_;
  std::map<std::string, Ways> known_;
  Endpoints out_;
};

}  // namespace

Endpoints endpoints_of(View& view, const ClusterRequest& request, const Object& service,
                       const kube::ServicePort& port, const Labels& subset_labels) {
  const WaypointBinding binding = resolve_waypoint(view, service, Traffic::kService);
  if (binding.bound && !is_own(binding, request)) {
    return through_waypoint_of_service(view, request, service, binding);
  }
  const std::vector<IpAddress> vips = service_vips(service);
  PodEndpoints out(view, request, service.as<kube::Service>().spec().publish_not_ready_addresses());
  for (const ObjectPtr& pod : view.pods_selected(service.ns(), selector_of(service))) {
    if (!labels_contain(pod->meta().labels(), subset_labels)) continue;
    const std::vector<IpAddress> ips = pod_ips(*pod);
    const uint32_t target = target_port(port, *pod);
    if (ips.empty() || pod_ended(*pod) || target == 0) continue;
    const bool v4 = vips.empty() ? ips[0].is_v4() : vips[0].is_v4();
    out.add(*pod, SocketAddress{of_family(ips, v4), static_cast<uint16_t>(target)});
  }
  return out.take();
}

}  // namespace meltemi::config
