// Where a connection goes: the outbound decision tree, the choice of an endpoint, and the check of
// an inbound CONNECT's authority (facts: ztunnel §6, §2.5). Pure functions over a Snapshot. Whatever
// cannot be resolved fails; nothing falls back to plaintext because something is missing.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/model/store.h"

namespace meltemi::model {

struct EndpointChoice {
  WorkloadPtr workload;
  uint16_t port = 0;
  IpAddress ip;
};

struct EndpointQuery {
  const Workload* source = nullptr;  // for localities and its network
  uint16_t service_port = 0;
  // Choosing a waypoint: the port may be missing from the service if the endpoint has an
  // application tunnel.
  bool waypoint = false;
  IpAddress prefer;                  // the pod IP asked for, or the VIP, whose family is preferred
  // Hosts that just failed: chosen only if nobody else is left. Ports are not looked at.
  std::span<const SocketAddress> avoid{};
};

// One endpoint of `entry`, weighted by capacity inside the best group that the service's
// load-balancing mode allows. O(log n) in standard mode, O(n) where localities matter; allocates
// nothing. Errors: kNoTargetPort, kNoEndpoint, kNoHealthyEndpoint.
Result<EndpointChoice> choose_endpoint(const ServiceEntry& entry, const EndpointQuery& query,
                                       Random& random);

struct OutboundDecision {
  enum class Kind : uint8_t {
    kPassthrough,  // not in the mesh: TCP to `target`, which is what the app asked for
    kDirect,       // a mesh workload without HBONE: TCP to `target`
    kHbone,        // CONNECT `authority` through a tunnel to `target`
  };
  enum class Via : uint8_t { kEndpoint, kServiceWaypoint, kWorkloadWaypoint };

  Kind kind = Kind::kPassthrough;
  Via via = Via::kEndpoint;
  SocketAddress target;
  SocketAddress authority;   // kHbone
  WorkloadPtr upstream;      // who answers at `target`; null for kPassthrough
  ServicePtr service;        // the addressed service; null if none
  ServicePtr gateway;        // the waypoint's own service; null if none

  // kHbone: may the peer that proved `peer` be talked to? Exact match with the upstream's identity or
  // one of the SANs of the service that was balanced over.
  bool expects(const Identity& peer) const;
  // The same set as a sorted list, e.g. for a pool key.
  std::vector<Identity> expected() const;
};

// `source` opens a connection to `destination`. Reasons: kWaypointUnknown, kWaypointUnready,
// kNoEndpoint, kNoHealthyEndpoint, kNoTargetPort, kUnknownGateway, kSelfCall (a loopback proxy
// port), kUnsupported (another network). `avoid`: targets of earlier attempts, see EndpointQuery.
Result<OutboundDecision> decide_outbound(const Snapshot& snapshot, const Workload& source,
                                         const SocketAddress& destination, Random& random,
                                         std::span<const SocketAddress> avoid = {});

// The waypoint or gateway behind an address. kWaypointUnknown, kWaypointUnready.
struct ResolvedGateway {
  EndpointChoice endpoint;
  ServicePtr service;  // null if it is a workload's address
};
Result<ResolvedGateway> resolve_gateway(const Snapshot& snapshot, const GatewayAddress& gateway,
                                        const Workload& source, Random& random,
                                        std::span<const SocketAddress> avoid = {});

struct InboundTarget {
  uint16_t port = 0;        // at the connection's local IP
  ServicePtr service;       // the service that was addressed, for labels; may be null
  bool proxy_protocol = false;
};

// CONNECT `authority` ("IP:port", "[v6]:port" or "host:port") arrived at `local_ip` of `local`.
// Errors: kBadRequest (400), kUnknownDestination, kNoService, kNoTargetPort, kSelfCall (503).
Result<InboundTarget> validate_inbound(const Snapshot& snapshot, const Workload& local,
                                       const IpAddress& local_ip, std::string_view authority);

// The HTTP status that answers a CONNECT which failed for `reason`: 400, 401 or 503.
int connect_status(Reason reason);

}  // namespace meltemi::model
