#include "waypoint/cluster/cluster.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/extensions/filters/http/rbac/v3/rbac.pb.h"
#include "envoy/extensions/upstreams/http/v3/http_protocol_options.pb.h"
#include "waypoint/xds/convert.h"
#include "waypoint/xds/strict.h"

namespace meltemi::waypoint {
namespace {

namespace pb = envoy::config::cluster::v3;
namespace core = envoy::config::core::v3;
namespace ep = envoy::config::endpoint::v3;

constexpr uint16_t kHbonePort = 15008;
constexpr const char* kTunnelListener = "connect_originate";
constexpr const char* kTunnelMetadata = "envoy.filters.listener.original_dst";
constexpr const char* kOwnMetadata = "meltemi";
constexpr const char* kHttpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}
std::unexpected<Error> unsupported(std::string detail) {
  return fail(Reason::kUnsupported, Fault::kConfig, std::move(detail));
}

// The text value `filter`.`key` of the metadata, "" if there is none.
std::string metadata_text(const core::Metadata& metadata, const char* filter, const char* key) {
  const auto filter_it = metadata.filter_metadata().find(filter);
  if (filter_it == metadata.filter_metadata().end()) return {};
  const auto it = filter_it->second.fields().find(key);
  return it == filter_it->second.fields().end() ? std::string() : it->second.string_value();
}

Result<Health> health_of(core::HealthStatus status) {
  switch (status) {
    case core::UNKNOWN:
    case core::HEALTHY: return Health::kHealthy;
    case core::DEGRADED: return Health::kDegraded;
    default: return Health::kUnhealthy;
  }
}

Result<Endpoint> endpoint_of(const ep::LbEndpoint& proto) {
  Endpoint e;
  const core::Address& address = proto.endpoint().address();
  if (address.has_socket_address()) {
    e.address = MELTEMI_TRY(address_of(address.socket_address(), "address"));
  } else if (address.has_envoy_internal_address()) {
    const auto& internal = address.envoy_internal_address();
    if (internal.server_listener_name() != kTunnelListener) {
      return unsupported(fmt::format("internal listener \"{}\" is not supported, only \"{}\"",
                                     internal.server_listener_name(), kTunnelListener));
    }
    const std::string local = metadata_text(proto.metadata(), kTunnelMetadata, "local");
    const std::string& target = local.empty() ? internal.endpoint_id() : local;
    const auto parsed = SocketAddress::parse(target);
    if (!parsed) return bad(fmt::format("\"{}\" is no <ip>:<port>", target));
    e.address = *parsed;
    e.tunnel = SocketAddress{parsed->ip, kHbonePort};
    const std::string via = metadata_text(proto.metadata(), kTunnelMetadata, "waypoint");
    if (!via.empty()) {
      e.tunnel = SocketAddress::parse(via);
      if (!e.tunnel) return bad(fmt::format("waypoint \"{}\" is no <ip>:<port>", via));
      const std::string name = metadata_text(proto.metadata(), kOwnMetadata, "waypoint");
      e.waypoint = model::Symbol(name.empty() ? via : name);
    }
  } else {
    return bad("endpoint without an address");
  }
  if (e.address.port == 0) return bad("endpoint with port 0");
  e.health = MELTEMI_TRY(health_of(proto.health_status()));
  if (proto.has_load_balancing_weight()) {
    e.weight = proto.load_balancing_weight().value();
    if (e.weight == 0) return bad("load_balancing_weight must be > 0");
  }
  return e;
}

Status read_limits(Cluster& c, const pb::CircuitBreakers& proto) {
  if (proto.thresholds_size() > 1) return unsupported("circuit_breakers: only one threshold set");
  if (proto.thresholds_size() == 0) return {};
  const auto& t = proto.thresholds(0);
  if (t.has_max_connections()) c.max_connections = t.max_connections().value();
  if (t.has_max_pending_requests()) c.max_pending_requests = t.max_pending_requests().value();
  if (t.has_max_requests()) c.max_requests = t.max_requests().value();
  if (t.has_max_retries()) c.max_retries = t.max_retries().value();
  if (t.has_retry_budget()) {
    c.max_retries.reset();
    const auto& b = t.retry_budget();
    if (b.has_budget_percent()) c.retry_budget.percent = b.budget_percent().value();
    if (b.has_min_retry_concurrency()) c.retry_budget.minimum = b.min_retry_concurrency().value();
    if (!(c.retry_budget.percent >= 0 && c.retry_budget.percent <= 100)) {
      return bad("retry_budget: budget_percent is not in 0..100");
    }
  }
  return {};
}

Status read_http2_options(Cluster& c, const core::Http2ProtocolOptions& proto) {
  if (proto.has_max_concurrent_streams()) c.max_streams = proto.max_concurrent_streams().value();
  if (proto.has_initial_stream_window_size()) {
    c.stream_window = proto.initial_stream_window_size().value();
  }
  if (proto.has_initial_connection_window_size()) {
    c.connection_window = proto.initial_connection_window_size().value();
  }
  constexpr uint32_t kLeast = 65535, kMost = 0x7fffffff;  // as Envoy's rules
  const auto legal = [](uint32_t window) { return window >= kLeast && window <= kMost; };
  if (c.max_streams == 0 || !legal(c.stream_window) || !legal(c.connection_window)) {
    return bad("http2_protocol_options: max_concurrent_streams must be > 0, windows in "
               "65535..2147483647");
  }
  return {};
}

Status read_http_options(Cluster& c, const pb::Cluster& proto) {
  if (proto.has_http2_protocol_options()) {
    c.protocol = UpstreamProtocol::kHttp2;
    MELTEMI_TRY(read_http2_options(c, proto.http2_protocol_options()));
  }
  for (const auto& [name, any] : proto.typed_extension_protocol_options()) {
    if (name != kHttpOptions) {
      return unsupported(fmt::format("typed_extension_protocol_options[\"{}\"] is not supported",
                                     name));
    }
    envoy::extensions::upstreams::http::v3::HttpProtocolOptions options;
    MELTEMI_TRY(unpack(any, options));
    if (options.has_use_downstream_protocol_config()) {
      c.protocol = UpstreamProtocol::kLikeDownstream;
      MELTEMI_TRY(read_http2_options(
          c, options.use_downstream_protocol_config().http2_protocol_options()));
    } else if (options.has_explicit_http_config()) {
      c.protocol = options.explicit_http_config().has_http2_protocol_options()
                       ? UpstreamProtocol::kHttp2
                       : UpstreamProtocol::kHttp1;
      MELTEMI_TRY(read_http2_options(c, options.explicit_http_config().http2_protocol_options()));
    }
    const auto& common = options.common_http_protocol_options();
    if (common.has_idle_timeout()) {
      c.idle_timeout = MELTEMI_TRY(duration_of(common.idle_timeout(), "idle_timeout"));
    }
    if (common.has_max_requests_per_connection()) {
      c.max_requests_per_connection = common.max_requests_per_connection().value();
    }
    if (common.has_max_headers_count() || common.has_max_stream_duration()) {
      return unsupported("common_http_protocol_options of a cluster: only idle_timeout and "
                         "max_requests_per_connection");
    }
  }
  return {};
}

void read_service(Cluster& c, const core::Metadata& metadata) {
  const auto istio = metadata.filter_metadata().find("istio");
  if (istio == metadata.filter_metadata().end()) return;
  const auto services = istio->second.fields().find("services");
  if (services == istio->second.fields().end()) return;
  if (services->second.list_value().values_size() == 0) return;
  const auto& fields = services->second.list_value().values(0).struct_value().fields();
  const auto text = [&fields](const char* key) {
    const auto it = fields.find(key);
    return it == fields.end() ? model::Symbol() : model::Symbol(it->second.string_value());
  };
  c.service_name = text("name");
  c.service_namespace = text("namespace");
  c.service_host = text("host");
}

// The text of a Struct's value is JSON, and so is RBAC's: strict, as everything that decides.
Result<RbacFilter> rbac_of(const google::protobuf::Value& value) {
  envoy::extensions::filters::http::rbac::v3::RBAC rbac;
  std::string json;
  const auto read = google::protobuf::util::MessageToJsonString(value, &json);
  if (!read.ok() || !google::protobuf::util::JsonStringToMessage(json, &rbac).ok()) {
    return bad("metadata.meltemi.rbac: no RBAC filter");
  }
  MELTEMI_TRY(check_supported(rbac));
  return RbacFilter::compile(rbac.has_rules() ? &rbac.rules() : nullptr,
                             rbac.has_shadow_rules() ? &rbac.shadow_rules() : nullptr);
}

Status read_policies(Cluster& c, const core::Metadata& metadata) {
  const auto own = metadata.filter_metadata().find(kOwnMetadata);
  if (own == metadata.filter_metadata().end()) return {};
  const auto list = own->second.fields().find("rbac");
  if (list == own->second.fields().end()) return {};
  if (!list->second.has_list_value()) return bad("metadata.meltemi.rbac: no list");
  for (const auto& value : list->second.list_value().values()) {
    c.rbac.push_back(MELTEMI_TRY(rbac_of(value)));
  }
  const auto address = SocketAddress::parse(metadata_text(metadata, kOwnMetadata, "address"));
  if (!address) return bad("metadata.meltemi.address: no <ip>:<port>");
  c.service_address = *address;
  return {};
}

// A Service's sessionAffinity, which Envoy's cluster has no word for.
Status read_affinity(Cluster& c, const core::Metadata& metadata) {
  const std::string affinity = metadata_text(metadata, kOwnMetadata, "affinity");
  if (affinity.empty()) return {};
  if (affinity != "client_ip") {
    return bad(fmt::format("metadata.meltemi.affinity: \"{}\" is not client_ip", affinity));
  }
  c.client_affinity = true;
  return {};
}

// What the control plane says about a destination whose waypoint cannot be reached.
Status read_closed(Cluster& c, const core::Metadata& metadata) {
  const std::string waypoint = metadata_text(metadata, kOwnMetadata, "waypoint");
  if (waypoint.empty()) return {};
  const std::string refused = metadata_text(metadata, kOwnMetadata, "refused");
  if (refused.empty()) {
    c.closed = Reason::kWaypointUnready;
    c.closed_detail = fmt::format("waypoint {} of {} has no ready pod", waypoint,
                                  c.service_host.view());
    return {};
  }
  for (size_t i = 0; i < kReasonCount; ++i) {
    if (reason_name(static_cast<Reason>(i)) == refused) c.closed = static_cast<Reason>(i);
  }
  if (c.closed == Reason::kOk) return bad(fmt::format("\"{}\" is no reason", refused));
  c.closed_detail = metadata_text(metadata, kOwnMetadata, "message");
  return {};
}

}  // namespace

Result<std::shared_ptr<const EndpointSet>> EndpointSet::compile(
    const ep::ClusterLoadAssignment& proto) {
  auto set = std::make_shared<EndpointSet>();
  for (int l = 0; l < proto.endpoints_size(); ++l) {
    const auto& locality = proto.endpoints(l);
    for (int i = 0; i < locality.lb_endpoints_size(); ++i) {
      auto e = endpoint_of(locality.lb_endpoints(i));
      if (!e) {
        return bad(fmt::format("endpoints[{}].lb_endpoints[{}]: {}", l, i, e.error().detail));
      }
      e->priority = locality.priority();
      e->region = model::Symbol(locality.locality().region());
      e->zone = model::Symbol(locality.locality().zone());
      set->endpoints_.push_back(std::move(*e));
    }
  }
  return set;
}

Result<std::shared_ptr<const Cluster>> Cluster::compile(const pb::Cluster& proto) {
  auto c = std::make_shared<Cluster>();
  if (proto.name().empty()) return bad("cluster without a name");
  c->name = model::Symbol(proto.name());
  switch (proto.type()) {
    case pb::Cluster::EDS:
      c->eds_name = proto.eds_cluster_config().service_name().empty()
                        ? proto.name()
                        : proto.eds_cluster_config().service_name();
      break;
    case pb::Cluster::STATIC:
      c->inline_endpoints = MELTEMI_TRY(EndpointSet::compile(proto.load_assignment()));
      break;
    case pb::Cluster::ORIGINAL_DST: c->original_dst = true; break;
    default:
      return unsupported(fmt::format("type {} is not supported",
                                     pb::Cluster::DiscoveryType_Name(proto.type())));
  }
  switch (proto.lb_policy()) {
    case pb::Cluster::ROUND_ROBIN: c->lb = LbPolicy::kRoundRobin; break;
    case pb::Cluster::LEAST_REQUEST: c->lb = LbPolicy::kLeastRequest; break;
    case pb::Cluster::RANDOM: c->lb = LbPolicy::kRandom; break;
    case pb::Cluster::CLUSTER_PROVIDED:
      if (c->original_dst) break;
      [[fallthrough]];
    default:
      return unsupported(fmt::format("lb_policy {} is not supported",
                                     pb::Cluster::LbPolicy_Name(proto.lb_policy())));
  }
  if (proto.least_request_lb_config().has_choice_count()) {
    c->choice_count = proto.least_request_lb_config().choice_count().value();
    if (c->choice_count < 2) return bad("least_request_lb_config: choice_count must be >= 2");
  }
  if (proto.common_lb_config().healthy_panic_threshold().value() != 0) {
    return unsupported("common_lb_config.healthy_panic_threshold: only 0 is supported");
  }
  if (proto.has_connect_timeout()) {
    c->connect_timeout = MELTEMI_TRY(duration_of(proto.connect_timeout(), "connect_timeout"));
    if (c->connect_timeout <= Duration::zero()) return bad("connect_timeout must be > 0");
  }
  MELTEMI_TRY(read_limits(*c, proto.circuit_breakers()));
  MELTEMI_TRY(read_http_options(*c, proto));
  read_service(*c, proto.metadata());
  MELTEMI_TRY(read_affinity(*c, proto.metadata()));
  MELTEMI_TRY(read_policies(*c, proto.metadata()));
  MELTEMI_TRY(read_closed(*c, proto.metadata()));
  return c;
}

}  // namespace meltemi::waypoint
