// Upstream connections of one worker: a pool for every endpoint, plaintext or through an HBONE tunnel
// whose peer is pinned to the workload's identity. A request gets a ClientSide; who made the connection
// and for whom is not its business. Where no connection has room, requests wait in order until one has:
// another is made, or a request ends. Must never send to an endpoint whose identity it cannot pin.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "userspace/net/tcp_stream.h"
#include "userspace/net/tunnel_pool.h"
#include "waypoint/cluster/balancer.h"
#include "waypoint/proxy/sides.h"
#include "waypoint/proxy/worker.h"

namespace meltemi::waypoint {

class ClusterState;
class Host;
class Dial;
class H1Client;
class H2Client;

// One attempt as the exchange describes it; must live until the attempt ended or was cancelled.
struct AttemptPlan {
  const RequestHead* head = nullptr;
  ForwardInfo info;
  const HeaderOps* request_ops[2] = {};  // applied to the head in this order
  bool h2 = false;           // speak HTTP/2 to the endpoint
  UpstreamEvents* events = nullptr;
  bool waiting = false;      // for a connection with room
};

// Makes one connection to an endpoint. Owned by its Host.
class Dial final : public rt::Retirable, private net::TunnelConnect {
 public:
  Dial(Host& host, bool h2, MonoTime deadline);
  ~Dial() override;
  void start();
  bool h2() const { return h2_; }

 private:
  void on_connected(net::StreamPtr stream, const net::ConnectAnswer& answer) override;
  void on_connect_failed(const Error& error, const net::ConnectAnswer* answer) override;
  void fail_soon(Error error);
  void failed(const Error& error);
  void connected(net::StreamPtr stream);

  Host& host_;
  bool h2_;
  MonoTime deadline_;
  net::TcpDial tcp_;
  rt::FnTimer soon_;
  Error error_;
};

// An endpoint and its connections.
class Host final : public rt::Retirable, private rt::TurnHook {
 public:
  Host(ProxyWorker& worker, ClusterState& cluster, Endpoint endpoint);
  ~Host() override;
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  ProxyWorker& worker() { return worker_; }
  ClusterState& cluster() { return cluster_; }
  const Endpoint& endpoint() const { return endpoint_; }
  void set_endpoint(Endpoint endpoint) { endpoint_ = std::move(endpoint); }

  // Starts the attempt on a connection that has room (returns its side) or lets it wait for one
  // (returns null; the plan's events tell). Error: a limit, or no identity to pin.
  Result<ClientSide*> start(AttemptPlan& plan);
  // Takes a plan that waits out of the queue. No effect for others.
  void cancel(AttemptPlan& plan);

  // Requests in flight, for the balancer: the counter is the cluster's.
  void add_active(int n);
  // The workload that is dialled, for metrics; what the mesh knows now.
  const telemetry::Peer& peer();
  // For an endpoint that is a waypoint: the value of kWaypointsHeader for a request that came through
  // the waypoints `passed` from `client`. Errors: kSelfCall, kLimitExceeded.
  Result<std::string> way(std::string_view passed, const model::Identity& client);
  uint64_t id() const { return id_; }  // unique in this process, never used again
  int slot = -1;  // index among the cluster's endpoints; -1 when the endpoint is gone

  // From connections.
  void idle(H1Client& client);
  void no_longer_idle(H1Client& client);
  void gone(H1Client& client);
  void gone(H2Client& client);
  // A connection may have room now, or will have none any more: who waits is served at the turn's end.
  void room_changed() {
    if (waits()) worker_.loop().at_turn_end(*this);
  }

 private:
  friend class Dial;
  friend class ClusterState;
  void dial_done(Dial& dial, net::StreamPtr stream);
  void dial_failed(Dial& dial, const Error& error);
  std::unique_ptr<Dial> take(Dial& dial);
  void on_turn_end() override;
  // Null: no connection has room.
  Result<ClientSide*> start_now(AttemptPlan& plan);
  bool has_room(bool h2) const;
  void serve_waiting(bool h2);
  // Makes as many connections as those who wait need, within the limits.
  void dial_for_waiting(bool h2);
  AttemptPlan& next_waiting(bool h2);
  void fail_waiting(bool h2, size_t count, const AttemptFailure& failure);
  bool waits() const { return !waiting_[0].empty() || !waiting_[1].empty(); }
  size_t dials(bool h2) const;
  bool busy() const {
    return active_ > 0 || !h1_.empty() || !h2_.empty() || !dials_.empty() || waits();
  }
  void close_idle();
  void leave();      // the endpoint is gone: nothing new, and away when the last request ends
  void check_done();
  Result<model::Identity> identity();

  ProxyWorker& worker_;
  ClusterState& cluster_;
  Endpoint endpoint_;
  uint64_t id_;
  uint32_t active_ = 0;
  bool leaving_ = false;
  telemetry::Peer peer_;
  uint64_t peer_version_ = 0;
  std::vector<H1Client*> idle_;                    // last used last
  std::vector<std::unique_ptr<H1Client>> h1_;      // all
  std::vector<std::unique_ptr<H2Client>> h2_;
  std::vector<std::unique_ptr<Dial>> dials_;
  std::deque<AttemptPlan*> waiting_[2];            // for HTTP/1 and for HTTP/2, first come first
};

// A cluster as this worker sees it.
class ClusterState {
 public:
  static constexpr size_t kMaxOriginals = 1024;  // endpoints of ORIGINAL_DST that are kept unused

  ClusterState(ProxyWorker& worker, ClusterEntry entry);
  ~ClusterState();
  void update(ClusterEntry entry);
  const Cluster& config() const { return *entry_.cluster; }
  const ClusterPtr& shared_config() const { return entry_.cluster; }

  // The endpoint for the next attempt. `tried`: Host::id() of earlier attempts. `authority` is the
  // CONNECT's, for ORIGINAL_DST; `client` where the request comes from, for a cluster whose clients
  // keep to an endpoint. Errors: kNoEndpoint, kNoHealthyEndpoint. Never one that plaintext would go to
  // although the last that the mesh knew of its address is that it was reached by HBONE.
  // Or why nothing may be dialled: kWaypointUnready, kWaypointUnknown, kUnsupported.
  Result<Host*> pick(std::span<const uint64_t> tried, const SocketAddress& authority,
                     const IpAddress& client);
  // Whether a retry may start now; counts it if so. end_retry() gives it back.
  bool begin_retry();
  void end_retry() { --active_retries_; }
  // Counts a request. Error: kLimitExceeded "max_requests".
  Status begin_request();
  void end_request() { --active_requests_; }
  bool in_use() const;
  bool has_endpoints() const { return !hosts_.empty(); }
  void close_idle(bool only_tunnels = false);
  const model::ServicePtr& service() const { return service_; }

  uint32_t connections = 0;
  uint32_t pending = 0;

 private:
  friend class Host;
  Result<Host*> original(const SocketAddress& authority);
  std::unexpected<Error> closed() const;
  bool departed(const Endpoint& endpoint) const;
  void remove(Host& host);
  void fill_service();

  ProxyWorker& worker_;
  ClusterEntry entry_;
  Balancer balancer_;
  std::vector<std::unique_ptr<Host>> hosts_;   // index = Balancer's
  std::vector<uint32_t> active_;
  std::vector<std::unique_ptr<Host>> leaving_;  // endpoints that are gone, with requests under way
  std::unordered_map<SocketAddress, std::unique_ptr<Host>> originals_;
  uint32_t active_requests_ = 0, active_retries_ = 0;
  model::ServicePtr service_;
};

class UpstreamSet {
 public:
  explicit UpstreamSet(ProxyWorker& worker) : worker_(worker) {}
  ~UpstreamSet();
  void update(const Snapshot& snapshot);
  ClusterState* find(const model::Symbol& name);
  // Ends the connections that carry no request, in order.
  void close_idle();
  // The same for those inside of tunnels; the others end after their requests.
  void leave_tunnels();
  // Clusters that are gone from the configuration and still in use, as of the last update().
  size_t leaving() const { return leaving_.size(); }

 private:
  ProxyWorker& worker_;
  std::unordered_map<model::Symbol, std::unique_ptr<ClusterState>, SymbolHash> clusters_;
  std::vector<std::unique_ptr<ClusterState>> leaving_;
};

}  // namespace meltemi::waypoint
