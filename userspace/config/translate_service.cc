// A Service as ztunnel sees it (istio.workload.Address), and its WaypointBound condition.
#include <fmt/format.h>

#include "userspace/config/mesh.h"
#include "userspace/config/names.h"
#include "userspace/config/units.h"

namespace meltemi::config {
namespace {

namespace wl = ::istio::workload;

void fill_load_balancing(View& view, const Object& service, wl::Service* out) {
  const auto& spec = service.as<kube::Service>().spec();
  wl::LoadBalancing balancing;
  std::string distribution = spec.traffic_distribution();
  constexpr std::string_view kAnnotation = "networking.istio.io/traffic-distribution";
  if (distribution.empty()) distribution = service.annotation(kAnnotation);
  if (distribution.empty()) {
    if (ObjectPtr ns = view.object(Kind::kNamespace, "", service.ns())) {
      distribution = ns->annotation(kAnnotation);
    }
  }
  if (spec.internal_traffic_policy() == "Local") {
    balancing.set_mode(wl::LoadBalancing::STRICT);
    balancing.add_routing_preference(wl::LoadBalancing::NODE);
  } else if (distribution == "PreferClose" || distribution == "PreferSameZone" ||
             distribution == "PreferSameNode") {
    balancing.set_mode(wl::LoadBalancing::FAILOVER);
    for (auto scope :
         {wl::LoadBalancing::NETWORK, wl::LoadBalancing::REGION, wl::LoadBalancing::ZONE}) {
      balancing.add_routing_preference(scope);
    }
    if (distribution == "PreferSameNode") {
      balancing.add_routing_preference(wl::LoadBalancing::SUBZONE);
      balancing.add_routing_preference(wl::LoadBalancing::NODE);
    }
  }
  if (spec.publish_not_ready_addresses()) {
    balancing.set_health_policy(wl::LoadBalancing::ALLOW_ALL);
  }
  if (balancing.ByteSizeLong() > 0) *out->mutable_load_balancing() = std::move(balancing);
}

wl::IPFamilies families_of(const Object& service) {
  bool v4 = false;
  bool v6 = false;
  for (const std::string& family : service.as<kube::Service>().spec().ip_families()) {
    (family == "IPv6" ? v6 : v4) = true;
  }
  if (v4 && v6) return wl::DUAL;
  if (v4) return wl::IPV4_ONLY;
  return v6 ? wl::IPV6_ONLY : wl::AUTOMATIC;
}

}  // namespace

void translate_service(View& view, const Object& service, Outputs* out) {
  const auto& spec = service.as<kube::Service>().spec();
  if (spec.type() == "ExternalName") return;
  const MeshNames& names = view.names();
  wl::Address address;
  wl::Service* s = address.mutable_service();
  s->set_name(service.name());
  s->set_namespace_(service.ns());
  s->set_hostname(service_host(service.name(), service.ns(), names.cluster_domain));
  for (const IpAddress& ip : service_vips(service)) {
    wl::NetworkAddress* vip = s->add_addresses();
    vip->set_network(names.network);
    vip->set_address(ip.wire());
  }
  for (const auto& port : spec.ports()) {
    if (!is_tcp(port)) continue;
    wl::Port* entry = s->add_ports();
    entry->set_service_port(static_cast<uint32_t>(port.port()));
    bool named = port.target_port().value_case() == kube::IntOrString::kText;
    if (!named) {
      entry->set_target_port(static_cast<uint32_t>(
          port.has_target_port() ? port.target_port().number() : port.port()));
    }
    entry->set_app_protocol(wire_protocol(protocol_of(port)));
  }
  s->set_canonical(true);
  s->set_ip_families(families_of(service));
  fill_load_balancing(view, service, s);
  WaypointBinding waypoint = resolve_waypoint(view, service, Traffic::kService);
  if (waypoint.bound) fill_gateway_address(waypoint, s->mutable_waypoint());
  if (!waypoint.reason.empty()) {
    out->condition(service.key(), {"istio.io/WaypointBound", waypoint.reason == "WaypointAccepted",
                                   waypoint.reason, waypoint.message});
  }
  std::string name = fmt::format("{}/{}", service.ns(), s->hostname());
  out->add(ResourceType::kAddress, kEveryone, std::move(name), address);
}

}  // namespace meltemi::config
