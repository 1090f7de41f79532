// What the mesh knows: workloads, services and how to reach them, in the form that decisions need.
// Plain values, filled in by whoever speaks xDS or YAML (conversion from protobuf is not here) and
// immutable once shared. Field meanings follow istio.workload (userspace/api/workload). Must never
// hold a socket, a clock or a parsed protobuf.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/model/identity.h"
#include "userspace/model/symbol.h"

namespace meltemi::model {

inline constexpr uint16_t kHbonePort = 15008;
inline constexpr uint16_t kOutboundPort = 15001;
inline constexpr uint16_t kInboundPlaintextPort = 15006;

enum class TunnelProtocol : uint8_t { kTcp, kHbone };
enum class NetworkMode : uint8_t { kStandard, kHostNetwork };
enum class WorkloadType : uint8_t { kDeployment, kCronJob, kPod, kJob };
enum class AppProtocol : uint8_t { kUnknown, kHttp11, kHttp2, kGrpc, kTcp, kTls };
enum class IpFamilies : uint8_t { kAutomatic, kV4Only, kV6Only, kDual };
enum class Visibility : uint8_t { kPublic, kNamespace };
enum class Scope : uint8_t { kRegion, kZone, kSubzone, kNode, kCluster, kNetwork };
enum class LbMode : uint8_t { kStandard, kStrict, kFailover, kPassthrough };
enum class HealthPolicy : uint8_t { kOnlyHealthy, kAllowAll };
enum class AppTunnelProtocol : uint8_t { kNone, kProxy };

std::string_view to_string(WorkloadType type);       // "deployment", as in baggage keys
std::string_view to_string(TunnelProtocol protocol);  // "TCP", "HBONE"

// An address is only meaningful inside a network ("" is the default one).
struct NetworkAddress {
  Symbol network;
  IpAddress ip;
  bool operator==(const NetworkAddress&) const = default;
};
struct NetworkCidr {
  Symbol network;
  Cidr cidr;
  bool operator==(const NetworkCidr&) const = default;
};

struct Locality {
  Symbol region, zone, subzone;
  bool operator==(const Locality&) const = default;
};

// Where a waypoint or network gateway is. Exactly one of hostname ("namespace/hostname") and
// address is set. The port is a service port if the destination is a Service, else literal.
struct GatewayAddress {
  Symbol hostname;
  std::optional<NetworkAddress> address;
  uint16_t hbone_port = kHbonePort;
  std::string to_string() const;
  bool operator==(const GatewayAddress&) const = default;
};

struct WeightedWaypoint {
  GatewayAddress destination;
  uint32_t weight = 0;
  bool operator==(const WeightedWaypoint&) const = default;
};

struct Port {
  uint16_t service = 0;
  uint16_t target = 0;  // 0: named, only the endpoints know it
  AppProtocol app_protocol = AppProtocol::kUnknown;
  bool operator==(const Port&) const = default;
};

// A workload's membership of one service.
struct ServiceMembership {
  Symbol service;           // namespace/hostname
  std::vector<Port> ports;  // may be empty: the service's own target ports hold
  bool operator==(const ServiceMembership&) const = default;
};

struct ApplicationTunnel {
  AppTunnelProtocol protocol = AppTunnelProtocol::kNone;
  uint16_t port = 0;  // 0: unchanged
  bool operator==(const ApplicationTunnel&) const = default;
};

struct Workload {
  Symbol uid;  // e.g. Kubernetes//Pod/ns/name
  Symbol name, ns;
  Symbol service_account;  // never empty after conversion
  Symbol trust_domain;
  Symbol network, node, cluster;
  Symbol canonical_name, canonical_revision;
  Symbol workload_name;
  Symbol hostname;
  Locality locality;
  WorkloadType type = WorkloadType::kDeployment;
  TunnelProtocol protocol = TunnelProtocol::kTcp;
  NetworkMode network_mode = NetworkMode::kStandard;
  bool healthy = true;
  bool native_tunnel = false;
  uint32_t capacity = 1;
  std::vector<IpAddress> addresses;
  std::vector<Symbol> authorization_policies;  // namespace/name
  std::vector<ServiceMembership> services;
  std::optional<ApplicationTunnel> application_tunnel;
  std::optional<GatewayAddress> waypoint;
  std::optional<GatewayAddress> network_gateway;
  Identity identity;  // of trust_domain, ns, service_account; set by seal()

  // Derives `identity`. Call once, before sharing. Error: a name that no SPIFFE ID can carry.
  Status seal();
  bool operator==(const Workload&) const = default;
};
using WorkloadPtr = std::shared_ptr<const Workload>;

struct LoadBalancing {
  std::vector<Scope> preference;
  LbMode mode = LbMode::kStandard;
  HealthPolicy health = HealthPolicy::kOnlyHealthy;
  bool operator==(const LoadBalancing&) const = default;
};

struct Service {
  Symbol key;  // namespace/hostname; the xDS resource name
  Symbol name, ns, hostname;
  std::vector<NetworkAddress> vips;
  std::vector<NetworkCidr> cidr_vips;
  std::vector<Port> ports;
  std::vector<Identity> subject_alt_names;  // the parseable ones
  std::optional<GatewayAddress> waypoint;
  std::vector<WeightedWaypoint> weighted_waypoints;
  LoadBalancing load_balancing;
  IpFamilies ip_families = IpFamilies::kAutomatic;
  bool canonical = false;
  bool ingress_use_waypoint = false;
  Visibility visibility = Visibility::kPublic;

  void seal();  // derives `key`; call once, before sharing
  const Port* port(uint16_t service_port) const;
  bool visible_to(std::string_view client_ns) const {
    return visibility == Visibility::kPublic || ns == client_ns;
  }
  bool operator==(const Service&) const = default;
};
using ServicePtr = std::shared_ptr<const Service>;

// Deterministic randomness for pure decisions (splitmix64); seed it from the kernel once a worker.
struct Random {
  uint64_t state = 0x9E3779B97F4A7C15ull;
  uint64_t next();
  uint64_t below(uint64_t bound);  // [0, bound); 0 if bound is 0
};

}  // namespace meltemi::model
