// A cluster of a waypoint and its endpoints: a Service's port, perhaps narrowed to a
// DestinationRule's subset, with the rule's traffic policy.
#include <fmt/format.h>

#include <algorithm>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"
#include "userspace/config/destination_rules.h"
#include "userspace/config/names.h"
#include "userspace/config/units.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;
namespace cl = ::envoy::config::cluster::v3;
namespace ep = ::envoy::config::endpoint::v3;
namespace core = ::envoy::config::core::v3;

constexpr std::string_view kHttpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
constexpr int64_t kConnectTimeoutSeconds = 10;  // Istio's default

cl::Cluster::LbPolicy balancing(const net::TrafficPolicy& policy) {
  switch (policy.load_balancer().simple()) {
    case net::LoadBalancerSettings::ROUND_ROBIN:
      return cl::Cluster::ROUND_ROBIN;
    case net::LoadBalancerSettings::RANDOM:
      return cl::Cluster::RANDOM;
    default:
      return cl::Cluster::LEAST_REQUEST;
  }
}

void fill_limits(const net::TrafficPolicy& policy, cl::Cluster* out) {
  const auto& pool = policy.connection_pool();
  cl::CircuitBreakers::Thresholds limits;
  auto set = [](int32_t value, google::protobuf::UInt32Value* field) {
    field->set_value(static_cast<uint32_t>(value));
  };
  if (pool.tcp().max_connections() > 0)
    set(pool.tcp().max_connections(), limits.mutable_max_connections());
  if (pool.http().http1_max_pending_requests() > 0) {
    set(pool.http().http1_max_pending_requests(), limits.mutable_max_pending_requests());
  }
  if (pool.http().http2_max_requests() > 0)
    set(pool.http().http2_max_requests(), limits.mutable_max_requests());
  if (pool.http().max_retries() > 0) set(pool.http().max_retries(), limits.mutable_max_retries());
  if (policy.has_retry_budget()) {
    auto* budget = limits.mutable_retry_budget();
    const auto& asked = policy.retry_budget();
    budget->mutable_budget_percent()->set_value(asked.has_percent() ? asked.percent().value() : 20);
    budget->mutable_min_retry_concurrency()->set_value(
        asked.min_retry_concurrency() > 0 ? asked.min_retry_concurrency() : 3);
  }
  if (limits.ByteSizeLong() > 0)
    *out->mutable_circuit_breakers()->add_thresholds() = std::move(limits);
}

// HTTP/2 to the pods where the port or the rule says so; else the client's own protocol is used.
void fill_http(const net::TrafficPolicy& policy, Protocol protocol, cl::Cluster* out) {
  using Http = net::ConnectionPoolSettings::HTTPSettings;
  const Http& http = policy.connection_pool().http();
  ::envoy::extensions::upstreams::http::v3::HttpProtocolOptions options;
  bool h2 = protocol == Protocol::kHttp2 || protocol == Protocol::kGrpc ||
            http.h2_upgrade_policy() == Http::UPGRADE;
  if (h2) {
    auto* h2_options = options.mutable_explicit_http_config()->mutable_http2_protocol_options();
    if (http.max_concurrent_streams() > 0) {
      h2_options->mutable_max_concurrent_streams()->set_value(
          static_cast<uint32_t>(http.max_concurrent_streams()));
    }
  } else if (http.h2_upgrade_policy() == Http::DO_NOT_UPGRADE) {
    options.mutable_explicit_http_config()->mutable_http_protocol_options();
  }
  if (http.has_idle_timeout()) {
    *options.mutable_common_http_protocol_options()->mutable_idle_timeout() = http.idle_timeout();
  }
  if (http.max_requests_per_connection() > 0) {
    options.mutable_common_http_protocol_options()
        ->mutable_max_requests_per_connection()
        ->set_value(static_cast<uint32_t>(http.max_requests_per_connection()));
  }
  if (options.ByteSizeLong() == 0) return;
  if (options.upstream_protocol_options_case() == 0) {
    options.mutable_use_downstream_protocol_config();
  }
  pack_any(options, &(*out->mutable_typed_extension_protocol_options())[std::string(kHttpOptions)]);
}

void fill_metadata(const Object& service, const std::string& host, cl::Cluster* out) {
  auto& fields = *(*out->mutable_metadata()->mutable_filter_metadata())["istio"].mutable_fields();
  auto& entry = *fields["services"]
                     .mutable_list_value()
                     ->add_values()
                     ->mutable_struct_value()
                     ->mutable_fields();
  entry["name"].set_string_value(service.name());
  entry["namespace"].set_string_value(service.ns());
  entry["host"].set_string_value(host);
}

core::HealthStatus health_of(const Object& pod, bool publish_not_ready) {
  if (!pod.meta().deletion_timestamp().empty()) return core::DRAINING;
  return publish_not_ready || pod_ready(pod) ? core::HEALTHY : core::UNHEALTHY;
}

// The pod's address of the family that clients of the service use.
IpAddress endpoint_ip(const std::vector<IpAddress>& ips, const std::vector<IpAddress>& vips) {
  if (!vips.empty()) {
    for (const IpAddress& ip : ips) {
      if (ip.is_v4() == vips[0].is_v4()) return ip;
    }
  }
  return ips[0];
}

void add_endpoint(View& view, const Object& pod, const SocketAddress& address,
                  bool publish_not_ready, ep::LocalityLbEndpoints* out) {
  ep::LbEndpoint* endpoint = out->add_lb_endpoints();
  core::Address* wire = endpoint->mutable_endpoint()->mutable_address();
  std::string text = address.to_string();
  if (pod_speaks_hbone(view, pod)) {
    wire->mutable_envoy_internal_address()->set_server_listener_name("connect_originate");
    wire->mutable_envoy_internal_address()->set_endpoint_id(text);
    auto& fields = *(*endpoint->mutable_metadata()
                          ->mutable_filter_metadata())["envoy.filters.listener.original_dst"]
                        .mutable_fields();
    fields["local"].set_string_value(text);
  } else {
    wire->mutable_socket_address()->set_address(address.ip.to_string());
    wire->mutable_socket_address()->set_port_value(address.port);
  }
  endpoint->set_health_status(health_of(pod, publish_not_ready));
}

void translate_endpoints(View& view, const ClusterRequest& request, const Object& service,
                         const kube::ServicePort& port, const Labels& subset_labels, Outputs* out) {
  ep::ClusterLoadAssignment assignment;
  assignment.set_cluster_name(request.name(view.names()));
  std::vector<IpAddress> vips = service_vips(service);
  bool publish = service.as<kube::Service>().spec().publish_not_ready_addresses();
  for (const ObjectPtr& pod : view.pods_selected(service.ns(), selector_of(service))) {
    if (!labels_contain(pod->meta().labels(), subset_labels)) continue;
    std::vector<IpAddress> ips = pod_ips(*pod);
    uint32_t target = target_port(port, *pod);
    if (ips.empty() || pod_ended(*pod) || target == 0) continue;
    if (assignment.endpoints().empty()) assignment.add_endpoints();
    SocketAddress address{endpoint_ip(ips, vips), static_cast<uint16_t>(target)};
    add_endpoint(view, *pod, address, publish, assignment.mutable_endpoints(0));
  }
  std::string name = assignment.cluster_name();
  out->add(ResourceType::kEndpoints, request.scope, std::move(name), assignment);
}

}  // namespace

std::string ClusterRequest::name(const MeshNames& names) const {
  std::string host = service_host(service, service_ns, names.cluster_domain);
  if (!owned) return fmt::format("outbound|{}|{}|{}", port, subset, host);
  std::string protocol = http ? "http" : "tcp";
  if (!subset.empty()) protocol += "/" + subset;
  return fmt::format("inbound-vip|{}|{}|{}", port, protocol, host);
}

void translate_cluster(View& view, const ClusterRequest& request, Outputs* out) {
  ObjectPtr service = view.object(Kind::kService, request.service_ns, request.service);
  if (!service) return;
  const kube::ServicePort* port = nullptr;
  for (const auto& candidate : service->as<kube::Service>().spec().ports()) {
    if (is_tcp(candidate) && candidate.port() == static_cast<int>(request.port)) port = &candidate;
  }
  if (port == nullptr) return;
  DestinationPolicy rule =
      destination_policy(view, *service, request.port, request.subset, request.waypoint_ns);
  if (!request.subset.empty() && !rule.subset_found)
    return;  // 503 there, a finding of analysis here

  cl::Cluster cluster;
  cluster.set_name(request.name(view.names()));
  cluster.set_type(cl::Cluster::EDS);
  cluster.mutable_eds_cluster_config()->mutable_eds_config()->mutable_ads();
  cluster.set_lb_policy(balancing(rule.policy));
  const auto& tcp = rule.policy.connection_pool().tcp();
  if (tcp.has_connect_timeout()) {
    *cluster.mutable_connect_timeout() = tcp.connect_timeout();
  } else {
    cluster.mutable_connect_timeout()->set_seconds(kConnectTimeoutSeconds);
  }
  fill_limits(rule.policy, &cluster);
  if (request.http) fill_http(rule.policy, protocol_of(*port), &cluster);
  fill_metadata(*service, service_host(service->name(), service->ns(), view.names().cluster_domain),
                &cluster);
  std::string name = cluster.name();
  out->add(ResourceType::kCluster, request.scope, std::move(name), cluster);
  translate_endpoints(view, request, *service, *port, rule.subset_labels, out);
}

}  // namespace meltemi::config
