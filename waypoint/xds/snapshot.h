// The whole configuration of a waypoint at one moment: immutable, shared by all workers, compiled.
// A worker keeps one pointer and changes it between two turns. Must never be half of an update.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "waypoint/cluster/cluster.h"
#include "waypoint/route/authz.h"
#include "waypoint/route/table.h"

namespace meltemi::waypoint {

using RouteTablePtr = std::shared_ptr<const RouteTable>;

enum class CodecType : uint8_t { kAuto, kHttp1, kHttp2 };

// Limits and times of the client's side. Defaults hold where the resource says nothing.
struct HttpOptions {
  CodecType codec = CodecType::kAuto;
  PathRules path;
  bool edge = false;  // use_remote_address: the client is outside, its X-Forwarded-* are not trusted
  bool generate_request_id = true;
  bool websocket = true;
  uint32_t max_head_bytes = 60 * 1024;
  uint32_t max_header_count = 100;
  uint32_t max_requests_per_connection = 0;  // 0: unlimited
  uint32_t max_concurrent_streams = 100;
  uint32_t stream_window = 256 * 1024;       // bytes
  uint32_t connection_window = 1024 * 1024;  // bytes
  Duration connection_idle = std::chrono::hours(1);      // without a request
  Duration stream_idle = std::chrono::minutes(5);        // 0: none
  Duration request_timeout{};                            // head and body; 0: none
  Duration headers_timeout = std::chrono::seconds(60);   // the head; slow senders
};

struct HttpChain {
  HttpOptions options;
  std::vector<RbacFilter> rbac;
  std::string route_name;   // of the RouteConfiguration, if by RDS
  RouteTablePtr routes;     // null: not received yet
};

struct TcpChain {
  std::vector<RbacFilter> rbac;
  std::vector<ClusterChoice> clusters;
  Duration idle_timeout = std::chrono::hours(1);  // 0: none
  uint32_t connect_attempts = 1;
  const ClusterChoice& choose(uint64_t random) const;
};

struct FilterChain {
  std::string name;
  bool http1 = true, h2 = true;  // which detected protocols it takes; both: whatever comes
  bool any_protocol = true;      // no filter_chain_match: also what is not HTTP
  std::variant<HttpChain, TcpChain> filters;

  const HttpChain* http() const { return std::get_if<HttpChain>(&filters); }
  const TcpChain* tcp() const { return std::get_if<TcpChain>(&filters); }
};

enum class Detected : uint8_t { kHttp1, kH2, kOther };

struct Listener {
  std::string name;
  std::vector<SocketAddress> addresses;  // port 0 on a virtual one: every port
  bool bound = false;
  bool leaving = false;  // the control plane has taken it away: served to who has not heard so yet
  std::vector<FilterChain> chains;
  std::optional<FilterChain> default_chain;

  // Whether a connection's first bytes have to be seen before a chain can be chosen.
  bool needs_detection() const;
  // nullptr: nothing takes it. The pointer is into this listener.
  const FilterChain* chain_for(Detected protocol) const;
};
using ListenerPtr = std::shared_ptr<const Listener>;

struct ClusterEntry {
  ClusterPtr cluster;
  EndpointSetPtr endpoints;  // null: not received yet
};

struct SymbolHash {
  size_t operator()(const model::Symbol& s) const noexcept { return s.hash(); }
};

struct Snapshot {
  uint64_t version = 0;
  std::unordered_map<SocketAddress, ListenerPtr> virtual_listeners;  // by VIP:port, or IP:0
  std::vector<ListenerPtr> bound_listeners;
  std::unordered_map<model::Symbol, ClusterEntry, SymbolHash> clusters;

  // The virtual listener for a CONNECT authority, or null: exact, then the address with every port.
  const ListenerPtr* find_virtual(const SocketAddress& authority) const;
  const ClusterEntry* find_cluster(const model::Symbol& name) const;
};
using SnapshotPtr = std::shared_ptr<const Snapshot>;

}  // namespace meltemi::waypoint
