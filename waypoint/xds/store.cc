#include "waypoint/xds/store.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "waypoint/xds/strict.h"

namespace meltemi::waypoint {
namespace {

struct TypeRow {
  XdsType type;
  std::string_view url;
  std::string_view dump;  // Envoy's config dump section
  std::string_view item;  // and its key for one resource
};
constexpr TypeRow kTypes[] = {
    {XdsType::kListener, "type.googleapis.com/envoy.config.listener.v3.Listener",
     "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners"},
    {XdsType::kRoute, "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
     "type.googleapis.com/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs"},
    {XdsType::kCluster, "type.googleapis.com/envoy.config.cluster.v3.Cluster",
     "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters"},
    {XdsType::kEndpoints, "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
     "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump", "dynamic_endpoint_configs"},
};

Status parse(std::string_view body, google::protobuf::Message& out) {
  if (!out.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return fail(Reason::kBadConfig, Fault::kConfig, "malformed bytes");
  }
  return check_supported(out);
}

Status prefixed(const std::string& name, Error error) {
  error.detail = fmt::format("{}: {}", name, error.detail);
  return fail(std::move(error));
}

}  // namespace

std::string_view type_url(XdsType type) { return kTypes[static_cast<size_t>(type)].url; }

std::optional<XdsType> xds_type(std::string_view url) {
  for (const TypeRow& row : kTypes) {
    if (row.url == url) return row.type;
  }
  return std::nullopt;
}

namespace {

// One compile step: parse, check, compile, keep.
template <typename Proto, typename Ptr, typename F>
Status put_one(std::map<std::string, Ptr>& into, const std::string& name, std::string_view body,
               F&& compile) {
  Proto proto;
  if (const Status ok = parse(body, proto); !ok) return prefixed(name, ok.error());
  auto compiled = compile(proto);
  if (!compiled) return prefixed(name, compiled.error());
  into[name] = std::move(*compiled);
  return {};
}

}  // namespace

Status ConfigStore::put(XdsType type, const std::string& name, std::string_view body) {
  switch (type) {
    case XdsType::kListener:
      MELTEMI_TRY(put_one<envoy::config::listener::v3::Listener>(listeners_, name, body,
                                                                 &compile_listener));
      break;
    case XdsType::kRoute:
      MELTEMI_TRY(put_one<envoy::config::route::v3::RouteConfiguration>(routes_, name, body,
                                                                        &RouteTable::compile));
      break;
    case XdsType::kCluster:
      MELTEMI_TRY(put_one<envoy::config::cluster::v3::Cluster>(clusters_, name, body,
                                                               &Cluster::compile));
      break;
    case XdsType::kEndpoints:
      MELTEMI_TRY(put_one<envoy::config::endpoint::v3::ClusterLoadAssignment>(
          endpoints_, name, body, &EndpointSet::compile));
      break;
  }
  bodies_[{type, name}] = Stored{std::string(body)};
  if (type == XdsType::kListener) leaving_.erase(name);
  return {};
}

void ConfigStore::leave(XdsType type, const std::string& name) {
  if (type == XdsType::kListener && listeners_.contains(name)) leaving_.insert(name);
}

void ConfigStore::remove(XdsType type, const std::string& name) {
  switch (type) {
    case XdsType::kListener:
      listeners_.erase(name);
      leaving_.erase(name);
      break;
    case XdsType::kRoute: routes_.erase(name); break;
    case XdsType::kCluster: clusters_.erase(name); break;
    case XdsType::kEndpoints: endpoints_.erase(name); break;
  }
  bodies_.erase({type, name});
}

namespace {

// A chain that names its routes gets the table; the listener itself stays shared and unchanged
// unless there is something to fill in.
void link(FilterChain& chain, const std::map<std::string, RouteTablePtr>& routes) {
  auto* http = std::get_if<HttpChain>(&chain.filters);
  if (!http || http->route_name.empty()) return;
  const auto it = routes.find(http->route_name);
  http->routes = it == routes.end() ? nullptr : it->second;
}

std::shared_ptr<Listener> linked(const ListenerPtr& listener,
                                 const std::map<std::string, RouteTablePtr>& routes) {
  auto copy = std::make_shared<Listener>(*listener);
  for (FilterChain& chain : copy->chains) link(chain, routes);
  if (copy->default_chain) link(*copy->default_chain, routes);
  return copy;
}

template <typename F>
void each_chain(const Listener& listener, F&& fn) {
  for (const FilterChain& chain : listener.chains) fn(chain);
  if (listener.default_chain) fn(*listener.default_chain);
}

}  // namespace

SnapshotPtr ConfigStore::build() {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->version = ++version_;
  for (const auto& [name, listener] : listeners_) {
    if (leaving_.contains(name)) continue;
    const ListenerPtr ready = linked(listener, routes_);
    if (ready->bound) {
      snapshot->bound_listeners.push_back(ready);
      continue;
    }
    for (const SocketAddress& address : ready->addresses) {
      snapshot->virtual_listeners.emplace(address, ready);
    }
  }
  // After the others: whose address another one has taken over is not asked any more. A port of our
  // own closes at once.
  for (const std::string& name : leaving_) {
    const auto ready = linked(listeners_.at(name), routes_);
    if (ready->bound) continue;
    ready->leaving = true;
    for (const SocketAddress& address : ready->addresses) {
      snapshot->virtual_listeners.emplace(address, ready);
    }
  }
  for (const auto& [name, cluster] : clusters_) {
    ClusterEntry entry{cluster, cluster->inline_endpoints};
    if (!cluster->eds_name.empty()) {
      const auto it = endpoints_.find(cluster->eds_name);
      if (it != endpoints_.end()) entry.endpoints = it->second;
    }
    snapshot->clusters.emplace(cluster->name, std::move(entry));
  }
  return snapshot;
}

std::set<std::string> ConfigStore::wanted_routes() const {
  std::set<std::string> names;
  for (const auto& [name, listener] : listeners_) {
    each_chain(*listener, [&names](const FilterChain& chain) {
      if (chain.http() && !chain.http()->route_name.empty()) names.insert(chain.http()->route_name);
    });
  }
  return names;
}

std::set<std::string> ConfigStore::wanted_endpoints() const {
  std::set<std::string> names;
  for (const auto& [name, cluster] : clusters_) {
    if (!cluster->eds_name.empty()) names.insert(cluster->eds_name);
  }
  return names;
}

std::vector<std::string> ConfigStore::missing() const {
  std::vector<std::string> out;
  for (const std::string& name : wanted_routes()) {
    if (!routes_.contains(name)) out.push_back("route configuration " + name);
  }
  for (const std::string& name : wanted_endpoints()) {
    if (!endpoints_.contains(name)) out.push_back("endpoints " + name);
  }
  return out;
}

namespace {

std::string resource_json(XdsType type, const std::string& body) {
  const auto print = [&body](auto proto) {
    std::string json;
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    if (!proto.ParseFromString(body) ||
        !google::protobuf::util::MessageToJsonString(proto, &json, options).ok()) {
      return std::string("{}");
    }
    return json;
  };
  std::string json;
  switch (type) {
    case XdsType::kListener: json = print(envoy::config::listener::v3::Listener()); break;
    case XdsType::kRoute: json = print(envoy::config::route::v3::RouteConfiguration()); break;
    case XdsType::kCluster: json = print(envoy::config::cluster::v3::Cluster()); break;
    case XdsType::kEndpoints:
      json = print(envoy::config::endpoint::v3::ClusterLoadAssignment());
      break;
  }
  // Envoy prints the resource as an Any: its type goes first.
  return fmt::format("{{\"@type\":\"{}\"{}{}", type_url(type), json == "{}" ? "" : ",",
                     json.substr(1));
}

}  // namespace

std::string ConfigStore::dump_json() const {
  std::string out = "{\"configs\":[";
  for (const TypeRow& row : kTypes) {
    if (&row != kTypes) out += ',';
    out += fmt::format("{{\"@type\":\"{}\",\"{}\":[", row.dump, row.item);
    bool first = true;
    for (const auto& [key, stored] : bodies_) {
      if (key.first != row.type) continue;
      if (!first) out += ',';
      first = false;
      const std::string json = resource_json(row.type, stored.body);
      switch (row.type) {
        case XdsType::kListener:
          out += fmt::format("{{\"name\":\"{}\",\"active_state\":{{\"listener\":{}}}}}", key.second,
                             json);
          break;
        case XdsType::kRoute: out += fmt::format("{{\"route_config\":{}}}", json); break;
        case XdsType::kCluster: out += fmt::format("{{\"cluster\":{}}}", json); break;
        case XdsType::kEndpoints: out += fmt::format("{{\"endpoint_config\":{}}}", json); break;
      }
    }
    out += "]}";
  }
  return out + "]}";
}

bool Listener::needs_detection() const {
  if (default_chain) return true;
  for (const FilterChain& chain : chains) {
    if (!chain.any_protocol) return true;
  }
  return false;
}

const FilterChain* Listener::chain_for(Detected protocol) const {
  for (const FilterChain& chain : chains) {
    if (chain.any_protocol) return &chain;
    if (protocol == Detected::kHttp1 && chain.http1) return &chain;
    if (protocol == Detected::kH2 && chain.h2) return &chain;
  }
  return default_chain ? &*default_chain : nullptr;
}

const ListenerPtr* Snapshot::find_virtual(const SocketAddress& authority) const {
  auto it = virtual_listeners.find(authority);
  if (it == virtual_listeners.end()) {
    it = virtual_listeners.find(SocketAddress{authority.ip, 0});
  }
  return it == virtual_listeners.end() ? nullptr : &it->second;
}

const ClusterEntry* Snapshot::find_cluster(const model::Symbol& name) const {
  const auto it = clusters.find(name);
  return it == clusters.end() ? nullptr : &it->second;
}

const ClusterChoice& TcpChain::choose(uint64_t random) const {
  if (clusters.size() == 1) return clusters.front();
  const uint64_t point = static_cast<uint64_t>(
      (static_cast<unsigned __int128>(random) * clusters.back().up_to) >> 64);
  for (const ClusterChoice& c : clusters) {
    if (point < c.up_to) return c;
  }
  return clusters.back();
}

}  // namespace meltemi::waypoint
