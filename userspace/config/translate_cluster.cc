// A cluster of a waypoint: a Service's port, perhaps narrowed to a DestinationRule's subset, with the
// rule's traffic policy. Where it is dialled: endpoints.h.
#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/extensions/filters/http/rbac/v3/rbac.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"
#include "userspace/config/destination_rules.h"
#include "userspace/config/endpoints.h"
#include "userspace/config/istio_defaults.h"
#include "userspace/config/mesh.h"
#include "userspace/config/names.h"
#include "userspace/config/rbac.h"
#include "userspace/config/units.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;
namespace cl = ::envoy::config::cluster::v3;
using Fields = google::protobuf::Map<std::string, google::protobuf::Value>;

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

// REQUIRES: `out` has the defaults.
void fill_limits(const net::TrafficPolicy& policy, cl::Cluster* out) {
  const auto& pool = policy.connection_pool();
  cl::CircuitBreakers::Thresholds& limits = *out->mutable_circuit_breakers()->mutable_thresholds(0);
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
}

// What is spoken to the pods: what the port or the rule declares, else HTTP/1.1, whatever the client
// speaks. Only where nothing is declared, and bytes are told apart, is it the client's choice.
void fill_http(const net::TrafficPolicy& policy, Protocol protocol, cl::Cluster* out) {
  using Http = net::ConnectionPoolSettings::HTTPSettings;
  const Http& http = policy.connection_pool().http();
  ::envoy::extensions::upstreams::http::v3::HttpProtocolOptions options;
  const bool declared_h2 = protocol == Protocol::kHttp2 || protocol == Protocol::kGrpc;
  if (http.use_client_protocol() ||
      (protocol == Protocol::kUnknown && http.h2_upgrade_policy() == Http::DEFAULT)) {
    options.mutable_use_downstream_protocol_config()->mutable_http_protocol_options();
    options.mutable_use_downstream_protocol_config()->mutable_http2_protocol_options();
  } else if (declared_h2 || http.h2_upgrade_policy() == Http::UPGRADE) {
    auto* h2 = options.mutable_explicit_http_config()->mutable_http2_protocol_options();
    if (http.max_concurrent_streams() > 0) {
      h2->mutable_max_concurrent_streams()->set_value(
          static_cast<uint32_t>(http.max_concurrent_streams()));
    }
  } else {
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
  set_http_options(options, out);
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

Fields& own_metadata(cl::Cluster* out) {
  return *(*out->mutable_metadata()->mutable_filter_metadata())["meltemi"].mutable_fields();
}

// Why there may be no endpoint although pods are there. Not part of Envoy's schema: another proxy
// sees a cluster without endpoints, which is as closed.
void fill_way(const Endpoints& endpoints, cl::Cluster* out) {
  if (endpoints.waypoint.empty()) return;
  Fields& fields = own_metadata(out);
  fields["waypoint"].set_string_value(endpoints.waypoint);
  if (endpoints.refused == Reason::kOk) return;
  fields["refused"].set_string_value(std::string(reason_name(endpoints.refused)));
  fields["message"].set_string_value(endpoints.message);
}

// A Service whose clients keep to a pod (or to a pod of the waypoint that chooses it). Not part of
// Envoy's schema: another proxy balances such a cluster as any other.
void fill_affinity(const Object& service, cl::Cluster* out) {
  if (service.as<kube::Service>().spec().session_affinity() != "ClientIP") return;
  own_metadata(out)["affinity"].set_string_value("client_ip");
}

// The policies of a service that this very waypoint guards, for requests that came for another one:
// they have passed the other's listener. RBAC filters in their JSON form, in order.
void fill_policies(View& view, const ClusterRequest& request, const Object& service,
                   cl::Cluster* out) {
  const WaypointBinding binding = resolve_waypoint(view, service, Traffic::kService);
  if (request.owned || !binding.bound ||
      waypoint_scope(binding.ns, binding.gateway) != request.scope) {
    return;
  }
  const std::vector<RbacFilter> filters =
      rbac_filters(view, service.ns(), service.name(), binding.ns, binding.gateway);
  if (filters.empty()) return;
  Fields& fields = own_metadata(out);
  for (const RbacFilter& filter : filters) {
    using Proto = ::envoy::extensions::filters::http::rbac::v3::RBAC;
    std::string json;
    google::protobuf::Value value;
    // Neither can fail: a message of ours, and JSON that protobuf has made.
    (void)google::protobuf::util::MessageToJsonString(rbac_message<Proto>(filter), &json);
    (void)google::protobuf::util::JsonStringToMessage(json, &value);
    *fields["rbac"].mutable_list_value()->add_values() = std::move(value);
  }
  const std::vector<IpAddress> vips = service_vips(service);
  const SocketAddress address{vips.empty() ? IpAddress() : vips[0],
                              static_cast<uint16_t>(request.port)};
  fields["address"].set_string_value(address.to_string());
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
  set_cluster_defaults(&cluster);
  const auto& tcp = rule.policy.connection_pool().tcp();
  if (tcp.has_connect_timeout()) *cluster.mutable_connect_timeout() = tcp.connect_timeout();
  fill_limits(rule.policy, &cluster);
  if (request.http) fill_http(rule.policy, protocol_of(*port), &cluster);
  fill_metadata(*service, service_host(service->name(), service->ns(), view.names().cluster_domain),
                &cluster);
  if (rule.rule) name_config("destination-rule", *rule.rule, cluster.mutable_metadata());
  if (!request.subset.empty()) {
    (*(*cluster.mutable_metadata()->mutable_filter_metadata())["istio"].mutable_fields())["subset"]
        .set_string_value(request.subset);
  }
  Endpoints endpoints = endpoints_of(view, request, *service, *port, rule.subset_labels);
  fill_way(endpoints, &cluster);
  fill_affinity(*service, &cluster);
  fill_policies(view, request, *service, &cluster);
  const std::string name = cluster.name();
  endpoints.assignment.set_cluster_name(name);
  out->add(ResourceType::kCluster, request.scope, name, cluster);
  out->add(ResourceType::kEndpoints, request.scope, name, endpoints.assignment);
}

}  // namespace meltemi::config
