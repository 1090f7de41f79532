// The data path of one worker thread: its flows, its tunnels in both directions, its view of the mesh.
// A flow lives and dies here; what other threads want they post. No locks, and no allocation once
// a flow relays.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "userspace/model/store.h"
#include "userspace/net/hbone_server.h"
#include "userspace/net/tunnel_pool.h"
#include "userspace/rt/admission.h"
#include "userspace/rt/listener.h"
#include "userspace/rt/worker.h"
#include "userspace/telemetry/connection_report.h"
#include "ztunnel/pod.h"
#include "ztunnel/port_watch.h"
#include "ztunnel/settings.h"

namespace meltemi::ztunnel {

class Flow;
class ProxyWorker;
using TlsContextPtr = std::shared_ptr<const net::TlsContext>;

// Who is let in: all connections that this process accepts, and the CONNECT requests of its tunnels,
// which cost a connection to the app each.
struct Doors {
  explicit Doors(const rt::AdmissionOptions& options)
      : admission(options),
        accepted{admission.add_class({.name = "outbound", .descriptors = 2, .starts_silent = false}),
                 admission.add_class({.name = "inbound", .descriptors = 2, .starts_silent = false}),
                 admission.add_class({.name = "hbone"})},
        streams(admission.add_class({.name = "stream", .starts_silent = false})),
        idle_tunnels(admission.add_class({.name = "idle_tunnel", .starts_silent = false})) {}
  rt::Admission admission;
  std::array<rt::Admission::ClassId, kListenerKinds> accepted;  // by ListenerKind
  rt::Admission::ClassId streams;
  rt::Admission::ClassId idle_tunnels;  // ours to other nodes, while they carry nothing
};

// What all workers share. Lives as long as they do.
struct Shared {
  const Settings* settings = nullptr;
  const model::MeshStore* store = nullptr;
  telemetry::TcpMetrics* metrics = nullptr;
  rt::WorkerPool* pool = nullptr;
  // Asks for a certificate that a connection waits for; any thread, does not block.
  std::function<void(const model::Identity&)> want_certificate;
  rt::Budget held{"held_bytes", 256 << 20};
  rt::Budget windows{"window_bytes", 1 << 30};
  Doors* doors = nullptr;
  PortWatch port_watch;
  std::atomic<int64_t> connections{0};   // flows and tunnels that wait, all workers
  std::vector<std::unique_ptr<ProxyWorker>> workers;  // by worker index
};

// A pod as one worker sees it.
struct PodLocal {
  PodPtr pod;
  model::WorkloadPtr workload;      // as of snapshot `version`; null: not known yet
  uint64_t version = ~uint64_t{0};
  std::string name;                 // namespace/name, whom connections are counted to
  std::string tunnel_source;        // pool key part: identity and pod
  std::string baggage;              // the header that describes the workload
  bool removed = false;
};
using PodLocalPtr = std::shared_ptr<PodLocal>;

// One flow, for /config_dump.
struct FlowRow {
  std::string pod_uid;
  bool inbound = false;
  SocketAddress src, original_dst, actual_dst;
  std::string protocol;  // "HBONE" or "TCP"
};

// Receive buffer of connections to apps, payload bytes. Their other end is in the same kernel, where
// the way is short: a larger one is not faster, but its bytes are out of the cache by the time they are
// read (measured: 8 bulk streams, 10 % of both ends' CPU), and every app that writes to a slow
// destination would fill it.
inline constexpr uint32_t kAppReceiveBuffer = 128 * 1024;

class ProxyWorker final : private net::HboneHandler {
 public:
  // On its own thread, also the destructor.
  ProxyWorker(Shared& shared, rt::Worker& worker);
  ~ProxyWorker();
  ProxyWorker(const ProxyWorker&) = delete;
  ProxyWorker& operator=(const ProxyWorker&) = delete;

  // --- from other threads: run these by post() ---
  // Home worker: accepts on the pod's listeners and spreads what comes over all workers.
  void listen(const PodPtr& pod, std::vector<std::pair<ListenerKind, UniqueFd>> listeners);
  void stop_listening(const std::string& uid);
  void accept(const PodPtr& pod, ListenerKind kind, UniqueFd fd, rt::Lease lease);
  // The pod is gone: its flows and tunnels end now.
  void remove_pod(const PodPtr& pod);
  void set_tls(const model::Identity& identity, TlsContextPtr tls);  // null: expired
  // The mesh changed: what waits tries again, what is no longer allowed ends.
  void mesh_changed();
  // No new flows; tunnels say goodbye.
  void drain();
  void cut(Reason reason);
  size_t flow_count() const { return flows_.size() + parked_.size(); }
  std::vector<FlowRow> rows() const;
  const net::HboneStats& hbone_stats() const { return stats_; }

  // --- for flows ---
  rt::Loop& loop() { return worker_.loop(); }
  Shared& shared() { return shared_; }
  const Settings& settings() const { return *shared_.settings; }
  size_t shard() const { return worker_.index(); }
  const model::Snapshot& mesh() { return reader_.get(); }
  model::Random& random() { return random_; }
  net::TunnelPool& tunnels() { return tunnels_; }
  // The pod's workload; null while it is not known.
  const model::WorkloadPtr& workload(PodLocal& pod);
  // The context of that identity; null (and asked for) while there is none.
  TlsContextPtr tls(const model::Identity& identity);
  void keep_alive(int fd) const;  // as the settings say
  void retire(Flow& flow);

 private:
  struct ParkedTunnel {
    PodLocalPtr pod;
    UniqueFd fd;
    rt::Lease lease;
    MonoTime deadline;
  };

  void on_connect(std::unique_ptr<net::ConnectRequest> request) override;
  void on_tunnel_failed(const net::TunnelPeer& peer, const Error& error,
                        const std::shared_ptr<void>& context) override;

  void prepare_listener(ListenerKind kind, int fd) const;
  void spread(const PodPtr& pod, ListenerKind kind, UniqueFd fd);
  Result<rt::Lease> admit(ListenerKind kind, std::string_view pod, int fd);
  Result<rt::Lease> admit_idle(const net::TunnelTarget& target);
  PodLocalPtr local(const PodPtr& pod);
  template <typename F, typename... A>
  void begin(rt::Lease lease, A&&... args);
  Flow& add(std::unique_ptr<Flow> flow);
  void serve_tunnel(PodLocalPtr pod, UniqueFd fd, rt::Lease lease);
  bool try_tunnel(const PodLocalPtr& pod, UniqueFd& fd, rt::Lease& lease);
  void retry_parked();
  void give_up_parked(ParkedTunnel& parked);
  void tick();

  Shared& shared_;
  rt::Worker& worker_;
  net::HboneOptions options_;
  net::HboneStats stats_;
  model::SnapshotReader reader_;
  model::Random random_;
  net::TunnelPool tunnels_;
  net::HboneServer server_;
  std::unordered_map<const Pod*, PodLocalPtr> pods_;
  std::unordered_map<std::string, std::vector<std::unique_ptr<rt::Listener>>> listeners_;  // by uid
  std::unordered_map<model::Identity, TlsContextPtr> tls_;
  std::list<std::unique_ptr<Flow>> flows_;
  std::vector<ParkedTunnel> parked_;
  uint64_t checked_policies_ = 0;
  bool draining_ = false;
  rt::FnTimer timer_;
};

}  // namespace meltemi::ztunnel
