// What a waypoint listens on: a virtual listener per port of each Service that it serves and per
// pod behind it, with its RBAC filters and routes.
#include <fmt/format.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/extensions/filters/http/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/http/router/v3/router.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/filters/network/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.pb.h"
#include "userspace/config/istio_defaults.h"
#include "userspace/config/mesh.h"
#include "userspace/config/names.h"
#include "userspace/config/rbac.h"
#include "userspace/config/routes.h"
#include "userspace/config/units.h"

namespace meltemi::config {
namespace {

namespace lst = ::envoy::config::listener::v3;
namespace hcm = ::envoy::extensions::filters::network::http_connection_manager::v3;
namespace tcp = ::envoy::extensions::filters::network::tcp_proxy::v3;

constexpr std::string_view kEncap = "encap";  // the endpoint is the authority that the client named

void fill_address(const IpAddress& ip, uint32_t port, ::envoy::config::core::v3::Address* out) {
  out->mutable_socket_address()->set_address(ip.to_string());
  out->mutable_socket_address()->set_port_value(port);
}

void fill_addresses(const std::vector<IpAddress>& ips, uint32_t port, lst::Listener* out) {
  fill_address(ips[0], port, out->mutable_address());
  for (size_t i = 1; i < ips.size(); ++i) {
    fill_address(ips[i], port, out->add_additional_addresses()->mutable_address());
  }
}

hcm::HttpConnectionManager manager(View& view, const std::string& name,
                                   const std::vector<RbacFilter>& rbac) {
  hcm::HttpConnectionManager out;
  out.set_stat_prefix(name);
  set_istio_defaults(mesh_config(view).paths, &out);
  for (const RbacFilter& filter : rbac) {
    auto* entry = out.add_http_filters();
    entry->set_name("envoy.filters.http.rbac");
    pack_any(rbac_message<::envoy::extensions::filters::http::rbac::v3::RBAC>(filter),
             entry->mutable_typed_config());
  }
  auto* router = out.add_http_filters();
  router->set_name("envoy.filters.http.router");
  pack_any(::envoy::extensions::filters::http::router::v3::Router(),
           router->mutable_typed_config());
  return out;
}

void add_http(const hcm::HttpConnectionManager& manager, lst::FilterChain* chain) {
  lst::Filter* filter = chain->add_filters();
  filter->set_name("envoy.filters.network.http_connection_manager");
  pack_any(manager, filter->mutable_typed_config());
}

void add_tcp(const std::string& name, const std::vector<RbacFilter>& rbac,
             const std::vector<WeightedTcpCluster>& clusters, lst::FilterChain* chain) {
  for (const RbacFilter& filter : rbac) {
    lst::Filter* entry = chain->add_filters();
    entry->set_name("envoy.filters.network.rbac");
    auto message = rbac_message<::envoy::extensions::filters::network::rbac::v3::RBAC>(filter);
    message.set_stat_prefix("tcp.");
    pack_any(message, entry->mutable_typed_config());
  }
  tcp::TcpProxy proxy;
  proxy.set_stat_prefix(name);
  if (clusters.size() == 1) {
    proxy.set_cluster(clusters[0].cluster);
  } else {
    for (const WeightedTcpCluster& one : clusters) {
      auto* choice = proxy.mutable_weighted_clusters()->add_clusters();
      choice->set_name(one.cluster);
      choice->set_weight(one.weight);
    }
  }
  lst::Filter* filter = chain->add_filters();
  filter->set_name("envoy.filters.network.tcp_proxy");
  pack_any(proxy, filter->mutable_typed_config());
}

// Chains of a port whose protocol is not declared: HTTP if it looks like HTTP, else bytes.
lst::FilterChain* add_sniffed_http(lst::Listener* listener) {
  lst::FilterChain* chain = listener->add_filter_chains();
  chain->mutable_filter_chain_match()->add_application_protocols("http/1.1");
  chain->mutable_filter_chain_match()->add_application_protocols("h2c");
  return chain;
}

lst::Listener virtual_listener(const std::string& name) {
  lst::Listener out;
  out.set_name(name);
  out.mutable_bind_to_port()->set_value(false);
  out.set_traffic_direction(::envoy::config::core::v3::INBOUND);
  return out;
}

void translate_port(View& view, const RouteTarget& target, Protocol protocol,
                    const std::vector<IpAddress>& vips, const std::vector<RbacFilter>& rbac,
                    Outputs* out) {
  std::string host =
      service_host(target.service.name(), target.service.ns(), view.names().cluster_domain);
  Scope scope = waypoint_scope(target.waypoint.ns, target.waypoint.gateway);
  bool bytes = protocol == Protocol::kTcp || protocol == Protocol::kTls;
  std::string name = fmt::format("inbound-vip|{}|{}|{}", target.port, bytes ? "tcp" : "http", host);
  std::string tcp_name = fmt::format("inbound-vip|{}|tcp|{}", target.port, host);
  lst::Listener listener = virtual_listener(name);
  fill_addresses(vips, target.port, &listener);
  if (bytes) {
    lst::FilterChain* chain = listener.add_filter_chains();
    chain->set_name(name);
    add_tcp(name, rbac, build_tcp_route(view, target, out), chain);
  } else {
    bool sniff = protocol == Protocol::kUnknown;
    lst::FilterChain* chain = sniff ? add_sniffed_http(&listener) : listener.add_filter_chains();
    chain->set_name(name);
    hcm::HttpConnectionManager http = manager(view, name, rbac);
    http.mutable_rds()->mutable_config_source()->mutable_ads();
    http.mutable_rds()->set_route_config_name(name);
    add_http(http, chain);
    if (sniff) {
      listener.mutable_default_filter_chain()->set_name(tcp_name);
      add_tcp(tcp_name, rbac, build_tcp_route(view, target, out),
              listener.mutable_default_filter_chain());
    }
    ::envoy::config::route::v3::RouteConfiguration routes;
    routes.set_name(name);
    routes.mutable_validate_clusters()->set_value(false);
    build_http_routes(view, target, protocol, &routes, out);
    out->add(ResourceType::kRoute, scope, name, routes);
  }
  out->add(ResourceType::kListener, scope, name, listener);
}

}  // namespace

void translate_service_proxy(View& view, const Object& service, Outputs* out) {
  WaypointBinding waypoint = resolve_waypoint(view, service, Traffic::kService);
  if (!waypoint.bound || waypoint.reason == "WaypointMissing") return;
  std::vector<IpAddress> vips = service_vips(service);
  if (vips.empty()) return;  // headless: traffic goes to the pods' own addresses
  std::vector<RbacFilter> rbac =
      rbac_filters(view, service.ns(), service.name(), waypoint.ns, waypoint.gateway);
  for (const auto& port : service.as<kube::Service>().spec().ports()) {
    if (!is_tcp(port)) continue;
    RouteTarget target{service, static_cast<uint32_t>(port.port()), waypoint};
    translate_port(view, target, protocol_of(port), vips, rbac, out);
  }
}

void translate_pod_proxy(View& view, const Object& pod, Outputs* out) {
  std::vector<IpAddress> ips = pod_ips(pod);
  if (ips.empty() || pod_ended(pod) || pod.as<kube::Pod>().spec().host_network()) return;
  WaypointBinding waypoint = resolve_waypoint(view, pod, Traffic::kWorkload);
  if (!waypoint.bound || waypoint.reason == "WaypointMissing") return;
  std::vector<RbacFilter> rbac = rbac_filters(view, pod.ns(), "", waypoint.ns, waypoint.gateway);
  std::string name = fmt::format("direct|{}", pod_workload_uid(pod, view.names()));
  lst::Listener listener = virtual_listener(name);
  fill_addresses(ips, 0, &listener);
  lst::FilterChain* chain = add_sniffed_http(&listener);
  chain->set_name("direct-http");
  hcm::HttpConnectionManager http = manager(view, name, rbac);
  auto* host = http.mutable_route_config()->add_virtual_hosts();
  http.mutable_route_config()->set_name(name);
  host->set_name("inbound|http|0");
  host->add_domains("*");
  auto* route = host->add_routes();
  route->set_name("default");
  route->mutable_match()->set_prefix("/");
  route->mutable_route()->set_cluster(std::string(kEncap));
  route->mutable_route()->mutable_timeout();
  route->mutable_route()->mutable_max_grpc_timeout();
  set_safe_retries(route->mutable_route()->mutable_retry_policy());
  add_http(http, chain);
  listener.mutable_default_filter_chain()->set_name("direct-tcp");
  add_tcp(name, rbac, {{std::string(kEncap), 1}}, listener.mutable_default_filter_chain());
  out->add(ResourceType::kListener, waypoint_scope(waypoint.ns, waypoint.gateway), name, listener);
}

void translate_waypoint(View& view, const Object& gateway, Outputs* out) {
  if (!is_waypoint_class(gateway.as<kube::Gateway>().spec().gateway_class_name())) return;
  ::envoy::config::cluster::v3::Cluster encap;
  encap.set_name(std::string(kEncap));
  encap.set_type(::envoy::config::cluster::v3::Cluster::ORIGINAL_DST);
  encap.set_lb_policy(::envoy::config::cluster::v3::Cluster::CLUSTER_PROVIDED);
  set_cluster_defaults(&encap);
  speak_like_the_client(&encap);  // what the pod speaks nobody has declared
  out->add(ResourceType::kCluster, waypoint_scope(gateway.ns(), gateway.name()),
           std::string(kEncap), encap);
}

}  // namespace meltemi::config
