// Listener resources to compiled listeners. Everything that can be wrong in one is found here.
#include <fmt/format.h>

#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/extensions/filters/http/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/http/router/v3/router.pb.h"
#include "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.pb.h"
#include "envoy/extensions/filters/network/rbac/v3/rbac.pb.h"
#include "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.pb.h"
#include "waypoint/xds/convert.h"
#include "waypoint/xds/store.h"
#include "waypoint/xds/strict.h"

namespace meltemi::waypoint {
namespace {

namespace pb = envoy::config::listener::v3;
namespace hcm = envoy::extensions::filters::network::http_connection_manager::v3;
namespace tcp = envoy::extensions::filters::network::tcp_proxy::v3;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}
std::unexpected<Error> unsupported(std::string detail) {
  return fail(Reason::kUnsupported, Fault::kConfig, std::move(detail));
}
std::unexpected<Error> at(std::string place, Error error) {
  error.detail = place + ": " + error.detail;
  return fail(std::move(error));
}

// Both RBAC filter messages, HTTP and network, carry the same two rule sets.
Result<RbacFilter> rbac_of(const auto& proto) {
  return RbacFilter::compile(proto.has_rules() ? &proto.rules() : nullptr,
                             proto.has_shadow_rules() ? &proto.shadow_rules() : nullptr);
}

Status read_http_filters(HttpChain& chain, const hcm::HttpConnectionManager& proto) {
  bool router = false;
  for (const auto& filter : proto.http_filters()) {
    if (router) return bad("http_filters: a filter after the router");
    if (filter.name() == "envoy.filters.http.rbac") {
      envoy::extensions::filters::http::rbac::v3::RBAC rbac;
      MELTEMI_TRY(unpack(filter.typed_config(), rbac));
      chain.rbac.push_back(MELTEMI_TRY(rbac_of(rbac)));
    } else if (filter.name() == "envoy.filters.http.router") {
      if (filter.has_typed_config()) {
        envoy::extensions::filters::http::router::v3::Router options;
        MELTEMI_TRY(unpack(filter.typed_config(), options));
      }
      router = true;
    } else {
      return unsupported(fmt::format("http_filters: \"{}\" is not supported", filter.name()));
    }
  }
  if (!router) return bad("http_filters: does not end in envoy.filters.http.router");
  return {};
}

Status read_protocols(HttpOptions& o, const hcm::HttpConnectionManager& proto) {
  switch (proto.codec_type()) {
    case hcm::HttpConnectionManager::HTTP1: o.codec = CodecType::kHttp1; break;
    case hcm::HttpConnectionManager::HTTP2: o.codec = CodecType::kHttp2; break;
    case hcm::HttpConnectionManager::HTTP3: return unsupported("codec_type HTTP3 is not supported");
    default: o.codec = CodecType::kAuto; break;
  }
  const auto& h2 = proto.http2_protocol_options();
  if (h2.has_max_concurrent_streams()) o.max_concurrent_streams = h2.max_concurrent_streams().value();
  if (h2.has_initial_stream_window_size()) o.stream_window = h2.initial_stream_window_size().value();
  if (h2.has_initial_connection_window_size()) {
    o.connection_window = h2.initial_connection_window_size().value();
  }
  if (o.max_concurrent_streams == 0 || o.stream_window < 65535 || o.connection_window < 65535) {
    return bad("http2_protocol_options: max_concurrent_streams must be > 0 and windows >= 65535");
  }
  const auto& common = proto.common_http_protocol_options();
  if (common.has_idle_timeout()) {
    o.connection_idle = MELTEMI_TRY(duration_of(common.idle_timeout(), "idle_timeout"));
  }
  if (common.has_max_headers_count()) o.max_header_count = common.max_headers_count().value();
  if (common.has_max_requests_per_connection()) {
    o.max_requests_per_connection = common.max_requests_per_connection().value();
  }
  if (common.has_max_stream_duration()) {
    return unsupported("common_http_protocol_options.max_stream_duration: set it on the routes");
  }
  return {};
}

Status read_path_rules(HttpOptions& o, const hcm::HttpConnectionManager& proto) {
  o.path.normalize = !proto.has_normalize_path() || proto.normalize_path().value();
  o.path.merge_slashes = proto.merge_slashes();
  switch (proto.path_with_escaped_slashes_action()) {
    case hcm::HttpConnectionManager::KEEP_UNCHANGED:
      o.path.escaped_slashes = EscapedSlashes::kKeep;
      return {};
    case hcm::HttpConnectionManager::UNESCAPE_AND_FORWARD:
      o.path.escaped_slashes = EscapedSlashes::kUnescape;
      return {};
    case hcm::HttpConnectionManager::UNESCAPE_AND_REDIRECT:
      return unsupported("path_with_escaped_slashes_action UNESCAPE_AND_REDIRECT is not supported");
    case hcm::HttpConnectionManager::REJECT_REQUEST:
      o.path.escaped_slashes = EscapedSlashes::kReject;
      return {};
    default: return {};
  }
}

Status read_http_options(HttpOptions& o, const hcm::HttpConnectionManager& proto) {
  MELTEMI_TRY(read_protocols(o, proto));
  MELTEMI_TRY(read_path_rules(o, proto));
  o.edge = proto.use_remote_address().value();
  if (proto.has_generate_request_id()) o.generate_request_id = proto.generate_request_id().value();
  if (proto.has_max_request_headers_kb()) {
    const uint32_t kb = proto.max_request_headers_kb().value();
    if (kb < 1 || kb > 8192) return bad("max_request_headers_kb: not in 1..8192");
    o.max_head_bytes = kb * 1024;
  }
  if (proto.has_stream_idle_timeout()) {
    o.stream_idle = MELTEMI_TRY(duration_of(proto.stream_idle_timeout(), "stream_idle_timeout"));
  }
  if (proto.has_request_timeout()) {
    o.request_timeout = MELTEMI_TRY(duration_of(proto.request_timeout(), "request_timeout"));
  }
  if (proto.has_request_headers_timeout()) {
    o.headers_timeout =
        MELTEMI_TRY(duration_of(proto.request_headers_timeout(), "request_headers_timeout"));
  }
  for (const auto& u : proto.upgrade_configs()) {
    if (!name_is(u.upgrade_type(), "websocket")) {
      return unsupported(fmt::format("upgrade \"{}\" is not supported", u.upgrade_type()));
    }
    o.websocket = !u.has_enabled() || u.enabled().value();
  }
  return {};
}

Result<HttpChain> http_chain(const google::protobuf::Any& any, std::vector<RbacFilter> rbac) {
  hcm::HttpConnectionManager proto;
  MELTEMI_TRY(unpack(any, proto));
  HttpChain chain;
  chain.rbac = std::move(rbac);
  MELTEMI_TRY(read_http_options(chain.options, proto));
  MELTEMI_TRY(read_http_filters(chain, proto));
  if (proto.has_rds()) {
    chain.route_name = proto.rds().route_config_name();
    if (chain.route_name.empty()) return bad("rds: route_config_name is empty");
  } else if (proto.has_route_config()) {
    auto table = RouteTable::compile(proto.route_config());
    if (!table) return at("route_config", table.error());
    chain.routes = std::move(*table);
  } else {
    return bad("one of rds and route_config must be set");
  }
  return chain;
}

Result<TcpChain> tcp_chain(const google::protobuf::Any& any, std::vector<RbacFilter> rbac) {
  tcp::TcpProxy proto;
  MELTEMI_TRY(unpack(any, proto));
  TcpChain chain;
  chain.rbac = std::move(rbac);
  uint64_t sum = 0;
  const auto add = [&](const std::string& name, uint32_t weight) {
    sum += weight;
    if (weight == 0) return;
    ClusterChoice& c = chain.clusters.emplace_back();
    c.cluster = model::Symbol(name);
    c.up_to = sum;
  };
  if (proto.cluster_specifier_case() == tcp::TcpProxy::kCluster) {
    add(proto.cluster(), 1);
  } else {
    for (const auto& c : proto.weighted_clusters().clusters()) add(c.name(), c.weight());
  }
  if (sum == 0) return bad("tcp_proxy: no cluster, or the sum of the weights is 0");
  if (proto.has_idle_timeout()) {
    chain.idle_timeout = MELTEMI_TRY(duration_of(proto.idle_timeout(), "idle_timeout"));
  }
  if (proto.has_max_connect_attempts()) {
    chain.connect_attempts = std::clamp(proto.max_connect_attempts().value(), 1u, 10u);
  }
  return chain;
}

Status read_match(FilterChain& chain, const pb::FilterChainMatch& proto) {
  if (proto.application_protocols().empty()) return {};
  chain.any_protocol = false;
  chain.http1 = chain.h2 = false;
  for (const std::string& p : proto.application_protocols()) {
    if (p == "http/1.1" || p == "http/1.0") {
      chain.http1 = true;
    } else if (p == "h2c") {
      chain.h2 = true;
    } else {
      return unsupported(fmt::format("application_protocols: \"{}\" is not supported", p));
    }
  }
  return {};
}

Result<FilterChain> filter_chain(const pb::FilterChain& proto) {
  FilterChain chain;
  chain.name = proto.name();
  MELTEMI_TRY(read_match(chain, proto.filter_chain_match()));
  std::vector<RbacFilter> rbac;
  bool done = false;
  for (const auto& filter : proto.filters()) {
    if (done) return bad("filters: a filter after the terminal one");
    if (filter.name() == "envoy.filters.network.rbac") {
      envoy::extensions::filters::network::rbac::v3::RBAC config;
      MELTEMI_TRY(unpack(filter.typed_config(), config));
      rbac.push_back(MELTEMI_TRY(rbac_of(config)));
    } else if (filter.name() == "envoy.filters.network.http_connection_manager") {
      chain.filters = MELTEMI_TRY(http_chain(filter.typed_config(), std::move(rbac)));
      done = true;
    } else if (filter.name() == "envoy.filters.network.tcp_proxy") {
      chain.filters = MELTEMI_TRY(tcp_chain(filter.typed_config(), std::move(rbac)));
      done = true;
    } else {
      return unsupported(fmt::format("filters: \"{}\" is not supported", filter.name()));
    }
  }
  if (!done) return bad("filters: no http_connection_manager or tcp_proxy");
  return chain;
}

Status add_address(Listener& listener, const envoy::config::core::v3::Address& proto) {
  if (!proto.has_socket_address()) return bad("address: only socket_address is supported");
  const SocketAddress address = MELTEMI_TRY(address_of(proto.socket_address(), "address"));
  listener.addresses.push_back(address);
  return {};
}

}  // namespace

Result<ListenerPtr> compile_listener(const pb::Listener& proto) {
  auto listener = std::make_shared<Listener>();
  listener->name = proto.name();
  listener->bound = !proto.has_bind_to_port() || proto.bind_to_port().value();
  if (!proto.has_address()) return bad("address is not set");
  MELTEMI_TRY(add_address(*listener, proto.address()));
  for (const auto& more : proto.additional_addresses()) {
    MELTEMI_TRY(add_address(*listener, more.address()));
  }
  for (int i = 0; i < proto.filter_chains_size(); ++i) {
    auto chain = filter_chain(proto.filter_chains(i));
    if (!chain) return at(fmt::format("filter_chains[{}]", i), chain.error());
    listener->chains.push_back(std::move(*chain));
  }
  if (proto.has_default_filter_chain()) {
    auto chain = filter_chain(proto.default_filter_chain());
    if (!chain) return at("default_filter_chain", chain.error());
    listener->default_chain = std::move(*chain);
  }
  if (listener->chains.empty() && !listener->default_chain) return bad("no filter chain");
  return listener;
}

}  // namespace meltemi::waypoint
