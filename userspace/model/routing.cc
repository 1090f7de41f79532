#include "userspace/model/routing.h"

#include <fmt/format.h>

#include <algorithm>

namespace meltemi::model {
namespace {

// Weighted draws that may hit an endpoint which cannot serve the port (a named target port that it
// lacks); after this many the choice scans instead.
constexpr int kDraws = 4;

bool is_proxy_port(uint16_t port) {
  return port == kHbonePort || port == kOutboundPort || port == kInboundPlaintextPort;
}

// The port at which `e` serves the query; 0 if it does not. Facts: endpoint's map, then the
// service's target port, then (waypoints with an application tunnel) the service port itself.
uint16_t target_port(const Service& service, const Endpoint& e, const EndpointQuery& q) {
  for (const Port& p : e.ports()) {
    if (p.service == q.service_port && p.target != 0) return p.target;
  }
  if (const Port* p = service.port(q.service_port); p && p->target != 0) return p->target;
  return q.waypoint && e.workload->application_tunnel ? q.service_port : 0;
}

std::optional<IpAddress> endpoint_ip(const Service& service, const Workload& w,
                                     const IpAddress& prefer) {
  const auto usable = [&](const IpAddress& ip) {
    if (service.ip_families == IpFamilies::kV4Only) return ip.is_v4();
    if (service.ip_families == IpFamilies::kV6Only) return !ip.is_v4();
    return true;
  };
  const IpAddress* first = nullptr;
  const IpAddress* same_family = nullptr;
  for (const IpAddress& ip : w.addresses) {
    if (ip == prefer) return ip;
    if (!usable(ip)) continue;
    if (!first) first = &ip;
    if (!same_family && ip.is_v4() == prefer.is_v4()) same_family = &ip;
  }
  if (same_family) return *same_family;
  if (first) return *first;
  return std::nullopt;
}

bool can_serve(const Service& service, const Endpoint& e, const EndpointQuery& q) {
  if (e.weight == 0 || target_port(service, e, q) == 0) return false;
  const auto ip = endpoint_ip(service, *e.workload, q.prefer);
  return ip && std::none_of(q.avoid.begin(), q.avoid.end(),
                            [&](const SocketAddress& failed) { return failed.ip == *ip; });
}

bool same_scope(Scope scope, const Workload& a, const Workload& b) {
  switch (scope) {
    case Scope::kRegion: return a.locality.region == b.locality.region;
    case Scope::kZone: return a.locality.zone == b.locality.zone;
    case Scope::kSubzone: return a.locality.subzone == b.locality.subzone;
    case Scope::kNode: return a.node == b.node;
    case Scope::kCluster: return a.cluster == b.cluster;
    case Scope::kNetwork: return a.network == b.network;
  }
  return false;
}

// How many leading scopes agree. NETWORK in first place outweighs all others and does not end the
// count (facts: ztunnel §6, "Modes").
int locality_rank(const std::vector<Scope>& preference, const Workload& source, const Workload& w) {
  int rank = 0;
  size_t i = 0;
  if (!preference.empty() && preference[0] == Scope::kNetwork) {
    if (same_scope(Scope::kNetwork, source, w)) rank += static_cast<int>(preference.size());
    i = 1;
  }
  for (; i < preference.size() && same_scope(preference[i], source, w); ++i) ++rank;
  return rank;
}

int full_rank(const std::vector<Scope>& preference) {
  const int n = static_cast<int>(preference.size());
  return n > 0 && preference[0] == Scope::kNetwork ? 2 * n - 1 : n;
}

Result<EndpointChoice> chosen(const Service& service, const Endpoint& e, const EndpointQuery& q) {
  return EndpointChoice{e.workload, target_port(service, e, q),
                        *endpoint_ip(service, *e.workload, q.prefer)};
}

// One endpoint among those of `rank` or better (rank < 0: all), weighted. Two passes, no list.
const Endpoint* pick_ranked(const ServiceEntry& entry, const EndpointQuery& q, int rank,
                            Random& random) {
  const auto& preference = entry.service->load_balancing.preference;
  const auto takes_part = [&](const Endpoint& e) {
    return can_serve(*entry.service, e, q) &&
           (rank < 0 || locality_rank(preference, *q.source, *e.workload) == rank);
  };
  uint64_t total = 0;
  entry.endpoints.for_each([&](const Symbol&, const Endpoint& e) {
    if (takes_part(e)) total += e.weight;
  });
  uint64_t at = random.below(total);
  const Endpoint* found = nullptr;
  entry.endpoints.for_each([&](const Symbol&, const Endpoint& e) {
    if (found || !takes_part(e)) return;
    if (at < e.weight) {
      found = &e;
    } else {
      at -= e.weight;
    }
  });
  return found;
}

int best_rank(const ServiceEntry& entry, const EndpointQuery& q) {
  int best = -1;
  entry.endpoints.for_each([&](const Symbol&, const Endpoint& e) {
    if (!can_serve(*entry.service, e, q)) return;
    best = std::max(best,
                    locality_rank(entry.service->load_balancing.preference, *q.source, *e.workload));
  });
  return best;
}

std::unexpected<Error> nobody(const ServiceEntry& entry, const EndpointQuery& q) {
  const Service& s = *entry.service;
  const auto say = [&](Reason reason, std::string_view why) {
    return fail(reason, Fault::kUpstream,
                fmt::format("service {} port {}: {}", s.key.view(), q.service_port, why),
                Retry::kSafe);
  };
  if (entry.endpoints.empty()) return say(Reason::kNoEndpoint, "no endpoint");
  if (entry.endpoints.weight() == 0) {
    return say(Reason::kNoHealthyEndpoint,
               fmt::format("none of {} endpoints is healthy", entry.endpoints.size()));
  }
  return say(Reason::kNoHealthyEndpoint, "no endpoint serves the port in reach of this client");
}

bool owns_port(const Service& service, const EndpointQuery& q) {
  return service.port(q.service_port) != nullptr || q.waypoint;
}

// One choice among those that the query allows.
Result<EndpointChoice> choose(const ServiceEntry& entry, const EndpointQuery& q, Random& random) {
  const Service& service = *entry.service;
  if (!owns_port(service, q)) {
    return fail(Reason::kNoTargetPort, Fault::kDownstream,
                fmt::format("service {} has no port {}", service.key.view(), q.service_port));
  }
  const LbMode mode = service.load_balancing.mode;
  if (!q.source || service.load_balancing.preference.empty() ||
      (mode != LbMode::kFailover && mode != LbMode::kStrict)) {
    for (int i = 0; i < kDraws; ++i) {
      const auto* drawn = entry.endpoints.pick(random.below(entry.endpoints.weight()));
      if (!drawn) break;
      if (can_serve(service, drawn->value, q)) return chosen(service, drawn->value, q);
    }
    const Endpoint* e = pick_ranked(entry, q, -1, random);
    return e ? chosen(service, *e, q) : nobody(entry, q);
  }
  const int rank = mode == LbMode::kStrict ? full_rank(service.load_balancing.preference)
                                           : best_rank(entry, q);
  if (rank < 0) return nobody(entry, q);
  const Endpoint* e = pick_ranked(entry, q, rank, random);
  return e ? chosen(service, *e, q) : nobody(entry, q);
}

}  // namespace

Result<EndpointChoice> choose_endpoint(const ServiceEntry& entry, const EndpointQuery& query,
                                       Random& random) {
  if (!query.avoid.empty()) {
    if (auto fresh = choose(entry, query, random)) return fresh;
  }
  EndpointQuery anybody = query;
  anybody.avoid = {};
  return choose(entry, anybody, random);
}

// --- gateways -------------------------------------------------------------------------------

namespace {

// What a GatewayAddress names: one of the two is set.
struct GatewayTarget {
  const ServiceEntry* service = nullptr;
  WorkloadPtr workload;
};

GatewayTarget find_gateway(const Snapshot& s, const GatewayAddress& g, std::string_view client_ns) {
  if (!g.address) {
    if (const ServiceEntry* entry = s.service(g.hostname)) return {entry, nullptr};
    return {nullptr, s.workload_by_hostname(g.hostname)};
  }
  if (WorkloadPtr w = s.workload_by_ip(*g.address)) return {nullptr, std::move(w)};
  return {s.service_by_vip(*g.address, client_ns), nullptr};
}

std::unexpected<Error> gateway_error(Reason reason, const GatewayAddress& g, std::string_view why) {
  return fail(reason, Fault::kConfig, fmt::format("waypoint {}: {}", g.to_string(), why),
              reason == Reason::kWaypointUnready ? Retry::kSafe : Retry::kNo);
}

}  // namespace

Result<ResolvedGateway> resolve_gateway(const Snapshot& snapshot, const GatewayAddress& gateway,
                                        const Workload& source, Random& random,
                                        std::span<const SocketAddress> avoid) {
  GatewayTarget target = find_gateway(snapshot, gateway, source.ns);
  if (target.service) {
    EndpointQuery query{&source, gateway.hbone_port, true,
                        gateway.address ? gateway.address->ip
                        : source.addresses.empty() ? IpAddress() : source.addresses.front(),
                        avoid};
    auto choice = choose_endpoint(*target.service, query, random);
    if (!choice) return gateway_error(Reason::kWaypointUnready, gateway, choice.error().detail);
    return ResolvedGateway{*std::move(choice), target.service->service};
  }
  if (!target.workload) {
    return gateway_error(Reason::kWaypointUnknown, gateway, "no such service or workload");
  }
  const Workload& w = *target.workload;
  if (!gateway.address && w.addresses.empty()) {
    return gateway_error(Reason::kWaypointUnready, gateway, "it has no address");
  }
  const IpAddress ip = gateway.address ? gateway.address->ip : w.addresses.front();
  return ResolvedGateway{EndpointChoice{target.workload, gateway.hbone_port, ip}, nullptr};
}

// --- outbound -------------------------------------------------------------------------------

namespace {

std::unexpected<Error> other_network(const Workload& upstream) {
  return fail(Reason::kUnsupported, Fault::kConfig,
              fmt::format("workload {} is in network \"{}\": traffic across networks is not "
                          "supported yet",
                          upstream.uid.view(), upstream.network.view()));
}

const GatewayAddress* sample_waypoint(const Service& service, Random& random) {
  uint64_t total = 0;
  for (const WeightedWaypoint& w : service.weighted_waypoints) total += w.weight;
  uint64_t at = random.below(total);
  for (const WeightedWaypoint& w : service.weighted_waypoints) {
    if (at < w.weight) return &w.destination;
    at -= w.weight;
  }
  return service.waypoint ? &*service.waypoint : nullptr;
}

Result<OutboundDecision> through_waypoint(const Snapshot& snapshot, const GatewayAddress& gateway,
                                          const Workload& source, const SocketAddress& destination,
                                          OutboundDecision::Via via, Random& random,
                                          std::span<const SocketAddress> avoid) {
  auto resolved = MELTEMI_TRY(resolve_gateway(snapshot, gateway, source, random, avoid));
  if (resolved.endpoint.workload->network != source.network) {
    return other_network(*resolved.endpoint.workload);
  }
  OutboundDecision d;
  d.kind = OutboundDecision::Kind::kHbone;
  d.via = via;
  d.target = {resolved.endpoint.ip, resolved.endpoint.port};
  d.authority = destination;
  d.upstream = std::move(resolved.endpoint.workload);
  d.gateway = std::move(resolved.service);
  return d;
}

OutboundDecision straight_to(EndpointChoice choice, ServicePtr service) {
  OutboundDecision d;
  const SocketAddress app{choice.ip, choice.port};
  d.upstream = std::move(choice.workload);
  d.service = std::move(service);
  if (d.upstream->protocol == TunnelProtocol::kHbone) {
    d.kind = OutboundDecision::Kind::kHbone;
    d.target = {app.ip, kHbonePort};
    d.authority = app;
  } else {
    d.kind = OutboundDecision::Kind::kDirect;
    d.target = app;
  }
  return d;
}

// Plaintext to what nobody knows, but never to what was reached by HBONE and has vanished.
Result<OutboundDecision> passthrough(const Snapshot& snapshot, const NetworkAddress& address,
                                     const SocketAddress& destination) {
  if (snapshot.departed(address)) {
    return fail(Reason::kNoEndpoint, Fault::kUpstream,
                fmt::format("{} was in the mesh and is known no longer: it is gone, or the control "
                            "plane has lost it; not tried in plaintext",
                            destination.ip.to_string()),
                Retry::kSafe);
  }
  OutboundDecision d;
  d.target = destination;
  return d;
}

// A waypoint that calls a workload behind it must not be sent back to itself.
bool is_own_waypoint(const Snapshot& snapshot, const Workload& source, const GatewayAddress& g,
                     Random& random) {
  const GatewayTarget target = find_gateway(snapshot, g, source.ns);
  if (target.workload) return target.workload->uid == source.uid;
  return target.service && target.service->endpoints.find(source.uid);
}

Result<OutboundDecision> to_service(const Snapshot& snapshot, const Workload& source,
                                    const ServiceEntry& entry, const SocketAddress& destination,
                                    Random& random, std::span<const SocketAddress> avoid) {
  if (entry.service->load_balancing.mode == LbMode::kPassthrough) {
    return passthrough(snapshot, {source.network, destination.ip}, destination);
  }
  EndpointQuery query{&source, destination.port, false, destination.ip, avoid};
  EndpointChoice choice = MELTEMI_TRY(choose_endpoint(entry, query, random));
  if (choice.workload->network != source.network) return other_network(*choice.workload);
  return straight_to(std::move(choice), entry.service);
}

Result<OutboundDecision> to_workload(const Snapshot& snapshot, const Workload& source,
                                     WorkloadPtr workload, const SocketAddress& destination,
                                     Random& random, std::span<const SocketAddress> avoid) {
  const auto& waypoint = workload->waypoint;
  if (waypoint && !is_own_waypoint(snapshot, source, *waypoint, random)) {
    return through_waypoint(snapshot, *waypoint, source, destination,
                            OutboundDecision::Via::kWorkloadWaypoint, random, avoid);
  }
  return straight_to(EndpointChoice{std::move(workload), destination.port, destination.ip}, nullptr);
}

}  // namespace

bool OutboundDecision::expects(const Identity& peer) const {
  if (upstream && peer == upstream->identity && peer.present()) return true;
  const ServicePtr& balanced = via == Via::kEndpoint ? service : gateway;
  return balanced && peer.present() &&
         std::find(balanced->subject_alt_names.begin(), balanced->subject_alt_names.end(), peer) !=
             balanced->subject_alt_names.end();
}

std::vector<Identity> OutboundDecision::expected() const {
  std::vector<Identity> out;
  if (upstream && upstream->identity.present()) out.push_back(upstream->identity);
  const ServicePtr& balanced = via == Via::kEndpoint ? service : gateway;
  if (balanced) {
    out.insert(out.end(), balanced->subject_alt_names.begin(), balanced->subject_alt_names.end());
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

Result<OutboundDecision> decide_outbound(const Snapshot& snapshot, const Workload& source,
                                         const SocketAddress& destination, Random& random,
                                         std::span<const SocketAddress> avoid) {
  if (destination.ip.is_loopback() && is_proxy_port(destination.port)) {
    return fail(Reason::kSelfCall, Fault::kDownstream,
                fmt::format("{} is a port of the proxy", destination.to_string()));
  }
  const NetworkAddress address{source.network, destination.ip};
  WorkloadPtr workload = snapshot.workload_by_ip(address);
  const ServiceEntry* entry = snapshot.service_by_vip(address, source.ns);
  if (entry && !workload) {
    if (const GatewayAddress* waypoint = sample_waypoint(*entry->service, random)) {
      auto d = MELTEMI_TRY(through_waypoint(snapshot, *waypoint, source, destination,
                                            OutboundDecision::Via::kServiceWaypoint, random, avoid));
      d.service = entry->service;
      return d;
    }
  }
  if (entry) return to_service(snapshot, source, *entry, destination, random, avoid);
  if (!workload) return passthrough(snapshot, address, destination);
  return to_workload(snapshot, source, std::move(workload), destination, random, avoid);
}

// --- inbound --------------------------------------------------------------------------------

namespace {

auto bad(std::string_view authority, std::string_view why) {
  return fail(Reason::kBadRequest, Fault::kDownstream,
              fmt::format("authority \"{}\": {}", authority, why));
}

// Is `local` (an address of it) what the waypoint reference of some object resolves to?
bool resolves_to(const Snapshot& s, const std::optional<GatewayAddress>& gateway,
                 const Workload& local) {
  if (!gateway) return false;
  const GatewayTarget target = find_gateway(s, *gateway, local.ns);
  if (target.workload) return target.workload->uid == local.uid;
  return target.service && target.service->endpoints.find(local.uid);
}

bool is_waypoint_of(const Snapshot& s, const Workload& local, const IpAddress& ip) {
  const NetworkAddress address{local.network, ip};
  if (const ServiceEntry* entry = s.service_by_vip(address, local.ns)) {
    if (resolves_to(s, entry->service->waypoint, local)) return true;
    for (const WeightedWaypoint& w : entry->service->weighted_waypoints) {
      if (resolves_to(s, w.destination, local)) return true;
    }
  }
  const WorkloadPtr w = s.workload_by_ip(address);
  return w && resolves_to(s, w->waypoint, local);
}

Result<InboundTarget> by_ip(const Snapshot& s, const Workload& local, const IpAddress& local_ip,
                            const SocketAddress& to, std::string_view authority) {
  if (to.ip != local_ip && !local.application_tunnel && !is_waypoint_of(s, local, to.ip)) {
    return bad(authority, "no address of this workload, nor of anything it is the waypoint of");
  }
  InboundTarget target;
  target.port = to.port;
  return target;
}

Result<InboundTarget> by_hostname(const Snapshot& s, const Workload& local, std::string_view host,
                                  uint16_t port) {
  const ServiceEntry* entry = s.service_by_hostname(host, local.ns);
  if (!entry) {
    return fail(Reason::kNoService, Fault::kDownstream, fmt::format("hostname \"{}\"", host));
  }
  const Endpoint* endpoint = entry->endpoints.find(local.uid);
  if (!endpoint) {
    return fail(Reason::kUnknownDestination, Fault::kDownstream,
                fmt::format("workload {} is no endpoint of {}", local.uid.view(), host));
  }
  InboundTarget target;
  target.service = entry->service;
  target.port = target_port(*entry->service, *endpoint, EndpointQuery{nullptr, port, false, {}, {}});
  if (target.port == 0) {
    return fail(Reason::kNoTargetPort, Fault::kDownstream,
                fmt::format("service {} port {}", entry->service->key.view(), port));
  }
  return target;
}

}  // namespace

Result<InboundTarget> validate_inbound(const Snapshot& snapshot, const Workload& local,
                                       const IpAddress& local_ip, std::string_view authority) {
  const auto parts = split_host_port(authority);
  if (!parts || parts->port == 0) return bad(authority, "not host:port");
  Result<InboundTarget> target = bad(authority, "not host:port");
  if (const auto ip = IpAddress::parse(parts->host)) {
    target = by_ip(snapshot, local, local_ip, SocketAddress{*ip, parts->port}, authority);
  } else if (!parts->host.empty() && authority.front() != '[') {
    target = by_hostname(snapshot, local, parts->host, parts->port);
  }
  if (!target) return target;
  if (const auto& tunnel = local.application_tunnel) {
    if (tunnel->port != 0) target->port = tunnel->port;
    target->proxy_protocol = tunnel->protocol == AppTunnelProtocol::kProxy;
  }
  if (is_proxy_port(target->port)) {
    return fail(Reason::kSelfCall, Fault::kDownstream,
                fmt::format("port {} belongs to the proxy", target->port));
  }
  return target;
}

int connect_status(Reason reason) {
  switch (reason) {
    case Reason::kBadRequest: return 400;
    case Reason::kPolicyDeny:
    case Reason::kPolicyNoAllowMatch:
    case Reason::kPolicyUnknown:
    case Reason::kPolicyChanged:
    case Reason::kStrictPlaintext: return 401;
    default: return 503;
  }
}

}  // namespace meltemi::model
