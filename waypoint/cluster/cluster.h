// Where requests go: a cluster of endpoints as configured, compiled once and immutable. What changes
// per request (active counts, connections, retries under way) belongs to a worker (cluster/balancer.h,
// proxy/upstream.h). Must never hold a socket.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/model/symbol.h"
#include "waypoint/route/authz.h"
#include "waypoint/route/retry.h"

namespace envoy::config::cluster::v3 {
class Cluster;
}
namespace envoy::config::endpoint::v3 {
class ClusterLoadAssignment;
}

namespace meltemi::waypoint {

enum class Health : uint8_t { kHealthy, kDegraded, kUnhealthy };

struct Endpoint {
  SocketAddress address;  // of the application; with `tunnel` also the CONNECT authority
  // HBONE: where to dial the tunnel. Unset: plaintext TCP to `address`.
  std::optional<SocketAddress> tunnel;
  // "ns/name" of the waypoint that `tunnel` leads to; empty: it leads to the application's pod.
  model::Symbol waypoint;
  uint32_t weight = 1;  // > 0
  uint32_t priority = 0;
  Health health = Health::kHealthy;
  model::Symbol region, zone;
  bool operator==(const Endpoint&) const = default;
};

class EndpointSet {
 public:
  // Errors name the place: "endpoints[0].lb_endpoints[3]: ...".
  static Result<std::shared_ptr<const EndpointSet>> compile(
      const envoy::config::endpoint::v3::ClusterLoadAssignment& proto);
  const std::vector<Endpoint>& endpoints() const { return endpoints_; }

 private:
  std::vector<Endpoint> endpoints_;
};
using EndpointSetPtr = std::shared_ptr<const EndpointSet>;

enum class LbPolicy : uint8_t { kRoundRobin, kLeastRequest, kRandom };
// kHttp1: what a cluster without options means. kLikeDownstream: HTTP/2 if the client spoke it, else
// HTTP/1.1.
enum class UpstreamProtocol : uint8_t { kLikeDownstream, kHttp1, kHttp2 };

struct Cluster {
  static constexpr Duration kDefaultConnectTimeout = std::chrono::seconds(10);  // facts: MeshConfig
  static constexpr Duration kDefaultIdleTimeout = std::chrono::hours(1);
  static constexpr uint32_t kUnlimited = 0xffffffff;

  model::Symbol name;
  std::string eds_name;      // empty: endpoints are in the cluster itself
  bool original_dst = false;  // the endpoint is the authority that the client named
  LbPolicy lb = LbPolicy::kLeastRequest;
  uint32_t choice_count = 2;
  // From metadata.meltemi: each client's requests go to one endpoint while that is healthy; `lb` is for
  // what has no client address.
  bool client_affinity = false;
  UpstreamProtocol protocol = UpstreamProtocol::kHttp1;
  Duration connect_timeout = kDefaultConnectTimeout;
  Duration idle_timeout = kDefaultIdleTimeout;  // of an unused connection; 0: none
  uint32_t max_requests_per_connection = 0;     // 0: unlimited
  uint32_t max_streams = kUnlimited;            // of one HTTP/2 connection; the endpoint's holds too
  uint32_t stream_window = 256 * 1024;          // bytes
  uint32_t connection_window = 1024 * 1024;     // bytes
  // Limits, each per worker.
  uint32_t max_connections = kUnlimited;
  uint32_t max_pending_requests = kUnlimited;
  uint32_t max_requests = kUnlimited;
  std::optional<uint32_t> max_retries;  // set: instead of the budget
  RetryBudget retry_budget;
  // From metadata.istio.services[0]: labels of metrics.
  model::Symbol service_name, service_namespace, service_host;
  // From metadata.meltemi: policies of the service itself, for requests that came for another one, and
  // the address that they know the service by.
  std::vector<RbacFilter> rbac;
  SocketAddress service_address;
  // From there too: why there is no endpoint that could be dialled. kOk: no such reason.
  Reason closed = Reason::kOk;
  std::string closed_detail;
  EndpointSetPtr inline_endpoints;  // STATIC

  // Errors: kBadConfig, kUnsupported.
  static Result<std::shared_ptr<const Cluster>> compile(
      const envoy::config::cluster::v3::Cluster& proto);
};
using ClusterPtr = std::shared_ptr<const Cluster>;

}  // namespace meltemi::waypoint
