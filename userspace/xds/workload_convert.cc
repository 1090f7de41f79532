// See workload_convert.h.
#include "userspace/xds/workload_convert.h"

#include <fmt/format.h>

#include <algorithm>

#include "security/authorization.pb.h"
#include "userspace/base/bytes.h"
#include "workload/workload.pb.h"

namespace meltemi::xds {
namespace {

namespace wds = ::istio::workload;
namespace sec = ::istio::security;
using model::Symbol;

constexpr std::string_view kDefaultTrustDomain = "cluster.local";
constexpr std::string_view kDefaultServiceAccount = "default";
constexpr std::string_view kDefaultCluster = "Kubernetes";

std::unexpected<Error> refused(std::string_view field, std::string what) {
  return fail(Reason::kBadRequest, Fault::kUpstream, fmt::format("{}: {}", field, what));
}

std::string_view or_default(const std::string& value, std::string_view fallback) {
  return value.empty() ? fallback : std::string_view(value);
}

// Ports are 16 bits wide in TCP; the wire has 32. Larger ones are refused rather than cut.
Result<uint16_t> to_port(std::string_view field, uint32_t value) {
  if (value > 65535) return refused(field, fmt::format("{} is no port", value));
  return static_cast<uint16_t>(value);
}

Result<IpAddress> to_address(std::string_view field, const std::string& bytes) {
  const auto ip = IpAddress::from_bytes(as_bytes(bytes));
  if (!ip) return refused(field, fmt::format("an address has 4 or 16 bytes, not {}", bytes.size()));
  return *ip;
}

Result<model::AppProtocol> to_app_protocol(wds::AppProtocol protocol) {
  switch (protocol) {
    case wds::UNKNOWN: return model::AppProtocol::kUnknown;
    case wds::HTTP11: return model::AppProtocol::kHttp11;
    case wds::HTTP2: return model::AppProtocol::kHttp2;
    case wds::GRPC: return model::AppProtocol::kGrpc;
    case wds::TCP: return model::AppProtocol::kTcp;
    case wds::TLS: return model::AppProtocol::kTls;
    default: return model::AppProtocol::kUnknown;  // a hint only
  }
}

Result<std::vector<model::Port>> to_ports(std::string_view field,
                                          const google::protobuf::RepeatedPtrField<wds::Port>& ports) {
  std::vector<model::Port> out;
  for (const wds::Port& port : ports) {
    out.push_back({.service = MELTEMI_TRY(to_port(field, port.service_port())),
                   .target = MELTEMI_TRY(to_port(field, port.target_port())),
                   .app_protocol = MELTEMI_TRY(to_app_protocol(port.app_protocol()))});
  }
  return out;
}

Result<std::optional<model::GatewayAddress>> to_gateway(std::string_view field, bool present,
                                                        const wds::GatewayAddress& proto) {
  std::optional<model::GatewayAddress> none;
  if (!present) return none;
  model::GatewayAddress out;
  switch (proto.destination_case()) {
    case wds::GatewayAddress::kHostname:
      out.hostname = Symbol(
          fmt::format("{}/{}", proto.hostname().namespace_(), proto.hostname().hostname()));
      break;
    case wds::GatewayAddress::kAddress:
      out.address = model::NetworkAddress{
          Symbol(proto.address().network()),
          MELTEMI_TRY(to_address(field, proto.address().address()))};
      break;
    case wds::GatewayAddress::DESTINATION_NOT_SET:
      return refused(field, "has neither hostname nor address");
  }
  const uint16_t port = MELTEMI_TRY(to_port(field, proto.hbone_mtls_port()));
  if (port != 0) out.hbone_port = port;
  return std::optional(out);
}

Result<model::WorkloadType> to_type(wds::WorkloadType type) {
  switch (type) {
    case wds::DEPLOYMENT: return model::WorkloadType::kDeployment;
    case wds::CRONJOB: return model::WorkloadType::kCronJob;
    case wds::POD: return model::WorkloadType::kPod;
    case wds::JOB: return model::WorkloadType::kJob;
    default: return refused("workload_type", fmt::format("{} is unknown", static_cast<int>(type)));
  }
}

Result<model::TunnelProtocol> to_protocol(wds::TunnelProtocol protocol) {
  switch (protocol) {
    case wds::NONE: return model::TunnelProtocol::kTcp;
    case wds::HBONE: return model::TunnelProtocol::kHbone;
    default:
      return refused("tunnel_protocol", fmt::format("{} is not spoken", static_cast<int>(protocol)));
  }
}

Status fill_names(const wds::Workload& proto, model::Workload& out) {
  if (proto.uid().empty()) return refused("uid", "is empty");
  out.uid = Symbol(proto.uid());
  out.name = Symbol(proto.name());
  out.ns = Symbol(proto.namespace_());
  out.service_account = Symbol(or_default(proto.service_account(), kDefaultServiceAccount));
  out.trust_domain = Symbol(or_default(proto.trust_domain(), kDefaultTrustDomain));
  out.network = Symbol(proto.network());
  out.node = Symbol(proto.node());
  out.cluster = Symbol(or_default(proto.cluster_id(), kDefaultCluster));
  out.canonical_name = Symbol(proto.canonical_name());
  out.canonical_revision = Symbol(proto.canonical_revision());
  out.workload_name = Symbol(proto.workload_name());
  out.hostname = Symbol(proto.hostname());
  out.locality = {Symbol(proto.locality().region()), Symbol(proto.locality().zone()),
                  Symbol(proto.locality().subzone())};
  return {};
}

Status fill_memberships(const wds::Workload& proto, model::Workload& out) {
  for (const auto& [key, ports] : proto.services()) {
    if (key.find('/') == std::string::npos) {
      return refused("services", fmt::format("\"{}\" is not namespace/hostname", key));
    }
    out.services.push_back(
        {Symbol(key), MELTEMI_TRY(to_ports(fmt::format("services[{}]", key), ports.ports()))});
  }
  // The map's order is random; equal workloads must be equal.
  std::ranges::sort(out.services, {}, [](const model::ServiceMembership& m) { return m.service.view(); });
  return {};
}

Status fill_tunnels(const wds::Workload& proto, model::Workload& out) {
  out.waypoint = MELTEMI_TRY(to_gateway("waypoint", proto.has_waypoint(), proto.waypoint()));
  out.network_gateway = MELTEMI_TRY(
      to_gateway("network_gateway", proto.has_network_gateway(), proto.network_gateway()));
  if (!proto.has_application_tunnel()) return {};
  const auto& tunnel = proto.application_tunnel();
  const bool proxy = tunnel.protocol() == wds::ApplicationTunnel::PROXY;
  if (!proxy && tunnel.protocol() != wds::ApplicationTunnel::NONE) {
    return refused("application_tunnel", "unknown protocol");
  }
  out.application_tunnel = model::ApplicationTunnel{
      proxy ? model::AppTunnelProtocol::kProxy : model::AppTunnelProtocol::kNone,
      MELTEMI_TRY(to_port("application_tunnel.port", tunnel.port()))};
  return {};
}

Result<model::LoadBalancing> to_load_balancing(const wds::LoadBalancing& proto) {
  model::LoadBalancing out;
  for (const int preference : proto.routing_preference()) {
    switch (preference) {
      case wds::LoadBalancing::REGION: out.preference.push_back(model::Scope::kRegion); break;
      case wds::LoadBalancing::ZONE: out.preference.push_back(model::Scope::kZone); break;
      case wds::LoadBalancing::SUBZONE: out.preference.push_back(model::Scope::kSubzone); break;
      case wds::LoadBalancing::NODE: out.preference.push_back(model::Scope::kNode); break;
      case wds::LoadBalancing::CLUSTER: out.preference.push_back(model::Scope::kCluster); break;
      case wds::LoadBalancing::NETWORK: out.preference.push_back(model::Scope::kNetwork); break;
      default:
        return refused("load_balancing.routing_preference", fmt::format("{} is unknown", preference));
    }
  }
  switch (proto.mode()) {
    case wds::LoadBalancing::UNSPECIFIED_MODE: out.mode = model::LbMode::kStandard; break;
    case wds::LoadBalancing::STRICT: out.mode = model::LbMode::kStrict; break;
    case wds::LoadBalancing::FAILOVER: out.mode = model::LbMode::kFailover; break;
    case wds::LoadBalancing::PASSTHROUGH: out.mode = model::LbMode::kPassthrough; break;
    default:
      return refused("load_balancing.mode", fmt::format("{} is unknown", static_cast<int>(proto.mode())));
  }
  out.health = proto.health_policy() == wds::LoadBalancing::ALLOW_ALL
                   ? model::HealthPolicy::kAllowAll
                   : model::HealthPolicy::kOnlyHealthy;
  return out;
}

Status fill_vips(const wds::Service& proto, model::Service& out) {
  for (const wds::NetworkAddress& vip : proto.addresses()) {
    const IpAddress ip = MELTEMI_TRY(to_address("addresses", vip.address()));
    const Symbol network(vip.network());
    const uint32_t full = ip.is_v4() ? 32 : 128;
    if (!vip.has_length() || vip.length() == full) {
      out.vips.push_back({network, ip});
      continue;
    }
    const auto cidr = Cidr::make(ip, vip.length());
    if (!cidr) return refused("addresses", fmt::format("/{} is too long", vip.length()));
    out.cidr_vips.push_back({network, *cidr});
  }
  return {};
}

model::IpFamilies to_families(wds::IPFamilies families) {
  switch (families) {
    case wds::IPV4_ONLY: return model::IpFamilies::kV4Only;
    case wds::IPV6_ONLY: return model::IpFamilies::kV6Only;
    case wds::DUAL: return model::IpFamilies::kDual;
    default: return model::IpFamilies::kAutomatic;
  }
}

// --- policy --------------------------------------------------------------------------------------

using ProtoStrings = google::protobuf::RepeatedPtrField<sec::StringMatch>;
using ProtoAddresses = google::protobuf::RepeatedPtrField<sec::Address>;
using ProtoAccounts = google::protobuf::RepeatedPtrField<sec::ServiceAccountMatch>;
using ProtoPorts = google::protobuf::RepeatedField<uint32_t>;

void add_strings(const ProtoStrings& from, std::vector<model::StringMatch>& to, bool& invalid) {
  using Kind = model::StringMatch::Kind;
  for (const sec::StringMatch& match : from) {
    switch (match.match_type_case()) {
      case sec::StringMatch::kExact: to.push_back({Kind::kExact, match.exact()}); break;
      case sec::StringMatch::kPrefix: to.push_back({Kind::kPrefix, match.prefix()}); break;
      case sec::StringMatch::kSuffix: to.push_back({Kind::kSuffix, match.suffix()}); break;
      case sec::StringMatch::kPresence: to.push_back({Kind::kPresence, {}}); break;
      case sec::StringMatch::MATCH_TYPE_NOT_SET: invalid = true; break;
    }
  }
}

void add_addresses(const ProtoAddresses& from, std::vector<Cidr>& to, bool& invalid) {
  for (const sec::Address& address : from) {
    const auto ip = IpAddress::from_bytes(as_bytes(address.address()));
    const auto cidr = ip ? Cidr::make(*ip, address.length()) : std::nullopt;
    if (cidr) {
      to.push_back(*cidr);
    } else {
      invalid = true;
    }
  }
}

void add_accounts(const ProtoAccounts& from, std::vector<model::ServiceAccountMatch>& to) {
  for (const sec::ServiceAccountMatch& match : from) {
    to.push_back({match.namespace_(), match.serviceaccount()});
  }
}

void add_ports(const ProtoPorts& from, std::vector<uint16_t>& to, bool& invalid) {
  for (const uint32_t port : from) {
    if (port <= 65535) {
      to.push_back(static_cast<uint16_t>(port));
    } else {
      invalid = true;
    }
  }
}

model::PolicyMatch to_match(const sec::Match& proto) {
  model::PolicyMatch out;
  add_strings(proto.namespaces(), out.namespaces, out.invalid);
  add_strings(proto.not_namespaces(), out.not_namespaces, out.invalid);
  add_strings(proto.principals(), out.principals, out.invalid);
  add_strings(proto.not_principals(), out.not_principals, out.invalid);
  add_accounts(proto.service_accounts(), out.service_accounts);
  add_accounts(proto.not_service_accounts(), out.not_service_accounts);
  add_addresses(proto.source_ips(), out.source_ips, out.invalid);
  add_addresses(proto.not_source_ips(), out.not_source_ips, out.invalid);
  add_addresses(proto.destination_ips(), out.destination_ips, out.invalid);
  add_addresses(proto.not_destination_ips(), out.not_destination_ips, out.invalid);
  add_ports(proto.destination_ports(), out.destination_ports, out.invalid);
  add_ports(proto.not_destination_ports(), out.not_destination_ports, out.invalid);
  return out;
}

}  // namespace

Result<model::WorkloadPtr> to_workload(const wds::Workload& proto) {
  auto out = std::make_shared<model::Workload>();
  MELTEMI_TRY(fill_names(proto, *out));
  out->type = MELTEMI_TRY(to_type(proto.workload_type()));
  out->protocol = MELTEMI_TRY(to_protocol(proto.tunnel_protocol()));
  out->network_mode = proto.network_mode() == wds::HOST_NETWORK ? model::NetworkMode::kHostNetwork
                                                                : model::NetworkMode::kStandard;
  out->healthy = proto.status() == wds::HEALTHY;
  out->native_tunnel = proto.native_tunnel();
  if (proto.has_capacity()) out->capacity = proto.capacity().value();
  for (const std::string& bytes : proto.addresses()) {
    out->addresses.push_back(MELTEMI_TRY(to_address("addresses", bytes)));
  }
  for (const std::string& name : proto.authorization_policies()) {
    out->authorization_policies.emplace_back(name);
  }
  MELTEMI_TRY(fill_memberships(proto, *out));
  MELTEMI_TRY(fill_tunnels(proto, *out));
  MELTEMI_TRY(out->seal());
  return model::WorkloadPtr(std::move(out));
}

Result<model::ServicePtr> to_service(const wds::Service& proto) {
  if (proto.hostname().empty()) return refused("hostname", "is empty");
  auto out = std::make_shared<model::Service>();
  out->name = Symbol(proto.name());
  out->ns = Symbol(proto.namespace_());
  out->hostname = Symbol(proto.hostname());
  MELTEMI_TRY(fill_vips(proto, *out));
  out->ports = MELTEMI_TRY(to_ports("ports", proto.ports()));
  for (const std::string& name : proto.subject_alt_names()) {
    if (auto identity = model::Identity::parse(name)) out->subject_alt_names.push_back(*identity);
  }
  out->waypoint = MELTEMI_TRY(to_gateway("waypoint", proto.has_waypoint(), proto.waypoint()));
  for (const wds::WeightedWaypoint& weighted : proto.weighted_waypoints()) {
    const auto destination = MELTEMI_TRY(
        to_gateway("weighted_waypoints", weighted.has_destination(), weighted.destination()));
    if (!destination) return refused("weighted_waypoints", "has no destination");
    out->weighted_waypoints.push_back({*destination, weighted.weight()});
  }
  out->load_balancing = MELTEMI_TRY(to_load_balancing(proto.load_balancing()));
  out->ip_families = to_families(proto.ip_families());
  out->canonical = proto.canonical();
  out->ingress_use_waypoint = proto.ingress_use_waypoint();
  out->visibility = proto.visibility() == wds::NAMESPACE ? model::Visibility::kNamespace
                                                         : model::Visibility::kPublic;
  out->seal();
  return model::ServicePtr(std::move(out));
}

Result<model::PolicyPtr> to_policy(const sec::Authorization& proto) {
  auto out = std::make_shared<model::Policy>();
  out->name = Symbol(proto.name());
  out->ns = Symbol(proto.namespace_());
  out->dry_run = proto.dry_run();
  switch (proto.scope()) {
    case sec::GLOBAL: out->scope = model::PolicyScope::kGlobal; break;
    case sec::NAMESPACE: out->scope = model::PolicyScope::kNamespace; break;
    case sec::WORKLOAD_SELECTOR: out->scope = model::PolicyScope::kWorkloadSelector; break;
    default: return refused("scope", fmt::format("{} is unknown", static_cast<int>(proto.scope())));
  }
  switch (proto.action()) {
    case sec::ALLOW: out->action = model::PolicyAction::kAllow; break;
    case sec::DENY: out->action = model::PolicyAction::kDeny; break;
    default: return refused("action", fmt::format("{} is unknown", static_cast<int>(proto.action())));
  }
  for (const sec::Rule& rule : proto.rules()) {
    model::PolicyRule& to = out->rules.emplace_back();
    for (const sec::Clause& clause : rule.clauses()) {
      model::PolicyClause& clauses = to.clauses.emplace_back();
      for (const sec::Match& match : clause.matches()) clauses.matches.push_back(to_match(match));
    }
  }
  out->seal();
  return model::PolicyPtr(std::move(out));
}

Result<AddressResource> decode_address(std::string_view body) {
  wds::Address proto;
  if (!proto.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return refused("(body)", "is not an istio.workload.Address");
  }
  switch (proto.type_case()) {
    case wds::Address::kWorkload: return AddressResource(MELTEMI_TRY(to_workload(proto.workload())));
    case wds::Address::kService: return AddressResource(MELTEMI_TRY(to_service(proto.service())));
    default: return refused("type", "is neither workload nor service");
  }
}

Result<model::PolicyPtr> decode_policy(std::string_view body) {
  sec::Authorization proto;
  if (!proto.ParseFromArray(body.data(), static_cast<int>(body.size()))) {
    return refused("(body)", "is not an istio.security.Authorization");
  }
  return to_policy(proto);
}

model::Batch decode_addresses(const Update& update, std::vector<Rejection>* rejected) {
  model::Batch batch;
  for (const ReceivedResource& r : update.resources) {
    auto resource = decode_address(r.body);
    if (!resource) {
      rejected->push_back({std::string(r.name), resource.error().detail});
    } else if (auto* w = std::get_if<model::WorkloadPtr>(&*resource)) {
      batch.workloads.push_back(std::move(*w));
    } else {
      batch.services.push_back(std::move(std::get<model::ServicePtr>(*resource)));
    }
  }
  batch.removed_addresses.assign(update.removed.begin(), update.removed.end());
  return batch;
}

}  // namespace meltemi::xds
