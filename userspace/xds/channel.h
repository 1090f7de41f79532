// How a process of the mesh reaches the control plane: TLS with the mesh root, a bearer token.
// Shared by the xDS, CA and node status clients. Root and token files are read again for every
// attempt, since both rotate. gRPC's types must never appear in a public header of this folder.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::xds {

struct ChannelOptions {
  std::string address;     // "https://10.0.0.1:15012", "istiod.istio-system.svc:15012" (https), or
                           // "http://127.0.0.1:15010" (plaintext)
  std::string root_ca;     // path of a PEM file, inline PEM, or "SYSTEM"; unused for http
  std::string token_file;  // path, re-read; "" or absent file: no token. Empty: an error
  std::string
      server_name;  // name expected in the server's certificate instead of the address's host
  std::string cluster_id = "Kubernetes";
  std::vector<std::pair<std::string, std::string>> headers;  // sent along; lower-case names
};

// Checks the syntax of `address`, naming it. Error: kBadConfig.
Status check_address(std::string_view address);

// Node as in envoy.config.core.v3.Node.
struct Node {
  std::string id;                               // ztunnel~IP~POD.NS~DOMAIN
  std::map<std::string, std::string> metadata;  // NODE_NAME, NAMESPACE, NAME, SERVICE_ACCOUNT, ...
};
Node make_node(std::string_view role, std::string_view ip, std::string_view pod,
               std::string_view ns, std::string_view domain);

inline constexpr Duration kBackoffFirst = std::chrono::milliseconds(10);
inline constexpr Duration kBackoffMax = std::chrono::seconds(4);
// Delay before the next attempt after `failures` ≥ 1 in a row: 10 ms doubling to 4 s, ×[0.5, 1) by
// `random` in [0, 1). Who comes back is found within 5 s.
Duration backoff(unsigned failures, double random);

inline constexpr std::string_view kTypeAddress = "type.googleapis.com/istio.workload.Address";
inline constexpr std::string_view kTypeAuthorization =
    "type.googleapis.com/istio.security.Authorization";
inline constexpr std::string_view kTypePodEnrolment =
    "type.googleapis.com/meltemi.node.v1.PodEnrolment";
inline constexpr std::string_view kTypeListener =
    "type.googleapis.com/envoy.config.listener.v3.Listener";
inline constexpr std::string_view kTypeRoute =
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
inline constexpr std::string_view kTypeCluster =
    "type.googleapis.com/envoy.config.cluster.v3.Cluster";
inline constexpr std::string_view kTypeEndpoints =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

}  // namespace meltemi::xds
