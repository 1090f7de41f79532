// What one worker thread of the waypoint owns: its view of the configuration, its upstream
// connections, its tunnels. Nothing here is shared with another worker but through the process-wide
// parts, which are thread safe or never change. Must never be used from another thread, save post().
#pragma once

#include <array>
#include <memory>
#include <unordered_map>

#include "userspace/model/store.h"
#include "userspace/net/hbone_server.h"
#include "userspace/net/tunnel_pool.h"
#include "userspace/rt/admission.h"
#include "userspace/rt/worker.h"
#include "userspace/telemetry/connection_report.h"
#include "userspace/telemetry/request_report.h"
#include "waypoint/proxy/forwarders.h"
#include "waypoint/xds/snapshot.h"

namespace meltemi::waypoint {

class UpstreamSet;

// Limits of the proxy itself; each has a row in the config table.
struct ProxyLimits {
  size_t retry_buffer = 64 * 1024;        // bytes of a request body that are kept for a retry
  size_t stream_buffer = 64 * 1024;       // bytes of one HTTP/2 stream that wait for its reader
  size_t pipeline_buffer = 64 * 1024;     // bytes of pipelined requests that wait for their turn
  Duration detect_timeout = std::chrono::seconds(1);   // first bytes of an unknown protocol
  Duration drain_timeout = std::chrono::seconds(30);
  // How long a request waits for room at an endpoint: longer than a connection takes to be made, and
  // than a client has patience.
  Duration queue_timeout = std::chrono::seconds(60);
  Duration destination_wait{};  // of a CONNECT, for a listener that names its destination; 0: none
};

// Counters of one worker, read by any thread.
struct ProxyStats {
  std::atomic<uint64_t> requests{0}, connections{0}, upstream_connections{0}, retries{0},
      retry_budget_exhausted{0}, limit_hits{0}, shadow_denied{0}, sent_again{0};
};

// Who is let in: tunnels at the HBONE port, their CONNECT requests, and what bound listeners accept.
// Each of the latter two may cost a connection to an endpoint.
struct Doors {
  explicit Doors(const rt::AdmissionOptions& options)
      : admission(options),
        hbone(admission.add_class({.name = "hbone"})),
        streams(admission.add_class({.name = "stream", .starts_silent = false})),
        bound(admission.add_class({.name = "bound", .descriptors = 2, .starts_silent = false})),
        idle_tunnels(admission.add_class({.name = "idle_tunnel", .starts_silent = false})) {}
  rt::Admission admission;
  const rt::Admission::ClassId hbone, streams, bound;
  const rt::Admission::ClassId idle_tunnels;  // ours to endpoints, while they carry nothing
};

// Shared by all workers.
struct ProxyShared {
  Doors* doors = nullptr;
  const model::MeshStore* mesh = nullptr;
  telemetry::HttpMetrics* http_metrics = nullptr;
  telemetry::TcpMetrics* tcp_metrics = nullptr;
  model::Symbol network;
  std::string name = "default/waypoint";  // namespace and Gateway of this waypoint
  ProxyLimits limits;
  net::HboneOptions hbone;
  std::vector<model::Identity> believed;  // besides the mesh's own waypoints, see Forwarders
  bool access_log = true;
};

// A snapshot that a worker's requests hold on to, counted without atomics.
class SnapshotHold {
 public:
  explicit SnapshotHold(SnapshotPtr snapshot) : snapshot_(std::move(snapshot)) {}
  const Snapshot& operator*() const { return *snapshot_; }

 private:
  friend class SnapshotRef;
  SnapshotPtr snapshot_;
  uint32_t users_ = 0;
};

class SnapshotRef {
 public:
  SnapshotRef() = default;
  explicit SnapshotRef(SnapshotHold* hold) : hold_(hold) {
    if (hold_) ++hold_->users_;
  }
  SnapshotRef(const SnapshotRef& o) : SnapshotRef(o.hold_) {}
  SnapshotRef(SnapshotRef&& o) noexcept : hold_(std::exchange(o.hold_, nullptr)) {}
  SnapshotRef& operator=(SnapshotRef o) noexcept {
    std::swap(hold_, o.hold_);
    return *this;
  }
  ~SnapshotRef() {
    if (hold_ && --hold_->users_ == 0) delete hold_;
  }
  explicit operator bool() const { return hold_ != nullptr; }
  const Snapshot& operator*() const { return *hold_->snapshot_; }
  const Snapshot* operator->() const { return hold_->snapshot_.get(); }

 private:
  SnapshotHold* hold_ = nullptr;
};

// A timer whose deadline moves with every request: later deadlines only write a number, the kernel's
// view catches up when the old one passes.
class LazyTimer final : private rt::Timer {
 public:
  class Owner {
   public:
    virtual void on_deadline() = 0;

   protected:
    ~Owner() = default;
  };
  LazyTimer(rt::Loop& loop, Owner& owner) : loop_(loop), owner_(owner) {}
  void set(MonoTime deadline) {
    wanted_ = deadline;
    if (deadline == MonoTime::max()) return;
    if (!armed() || rt::Timer::deadline() > deadline) loop_.start(*this, deadline);
  }
  void clear() { wanted_ = MonoTime::max(); }
  MonoTime wanted() const { return wanted_; }

 private:
  void on_timer() override {
    if (wanted_ == MonoTime::max()) return;
    if (loop_.now() < wanted_) {
      loop_.start(*this, wanted_);
      return;
    }
    wanted_ = MonoTime::max();
    owner_.on_deadline();
  }
  rt::Loop& loop_;
  Owner& owner_;
  MonoTime wanted_ = MonoTime::max();
};

// Lets a stream end in order after its owner has gone.
class Farewell final : private net::StreamEvents {
 public:
  Farewell(class ProxyWorker& worker, net::StreamPtr stream);

 private:
  void on_data(const net::Slices&) override {}
  void on_read_end() override {}
  void on_writable() override {}
  void on_closed(const net::StreamEnd&) override;
  ProxyWorker& worker_;
  net::StreamPtr stream_;
};

class ProxyWorker {
 public:
  // All must outlive it. `loop` is the calling thread's.
  ProxyWorker(rt::Loop& loop, uint32_t shard, const ProxyShared& shared);
  ~ProxyWorker();
  ProxyWorker(const ProxyWorker&) = delete;
  ProxyWorker& operator=(const ProxyWorker&) = delete;

  rt::Loop& loop() { return loop_; }
  MonoTime now() const { return loop_.now(); }
  uint32_t shard() const { return shard_; }
  const ProxyShared& shared() const { return shared_; }
  ProxyStats& stats() { return stats_; }
  model::Random& random() { return random_; }
  UpstreamSet& upstreams() { return *upstreams_; }
  net::TunnelPool& tunnels() { return tunnels_; }
  net::HboneStats& hbone_stats() { return hbone_stats_; }
  telemetry::HttpSeriesCache& series_cache() { return series_cache_; }

  void set_snapshot(SnapshotPtr snapshot);
  const SnapshotRef& snapshot() const { return snapshot_; }
  // Null until the first certificate.
  void set_tls(std::shared_ptr<const net::TlsContext> tls);
  const std::shared_ptr<const net::TlsContext>& tls() const { return tls_; }
  // Changes with every certificate but the first: a connection of another epoch is not used again.
  uint32_t certificate_epoch() const { return certificate_epoch_; }
  const model::Snapshot& mesh() { return mesh_.get(); }
  bool has_mesh() const { return shared_.mesh != nullptr; }

  // Whether what this client says about where its requests came from goes on.
  bool believes(const model::Identity& client, const IpAddress& address) {
    return forwarders_.believes(mesh(), client, {shared_.network, address});
  }

  // The value of a Date field: now, to the second. Valid until the next call.
  std::string_view http_date();

  // 36 characters of a random UUID (RFC 9562 version 4).
  void make_request_id(std::array<char, 36>& out);

  // Sends what is held, then ends the stream in order, while its owner goes away.
  void farewell(net::StreamPtr stream);

  // Draining: connections are told to come no more.
  void drain();
  bool draining() const { return draining_; }

 private:
  friend class Farewell;
  rt::Loop& loop_;
  uint32_t shard_;
  const ProxyShared& shared_;
  ProxyStats stats_;
  model::Random random_;
  net::HboneStats hbone_stats_;
  telemetry::HttpSeriesCache series_cache_;
  model::SnapshotReader mesh_;
  Forwarders forwarders_;
  SnapshotRef snapshot_;
  std::shared_ptr<const net::TlsContext> tls_;
  net::TunnelPool tunnels_;
  std::unordered_map<Farewell*, std::unique_ptr<Farewell>> farewells_;
  std::unique_ptr<UpstreamSet> upstreams_;
  std::string date_;
  MonoTime date_until_{};
  uint32_t certificate_epoch_ = 0;
  bool draining_ = false;
};

}  // namespace meltemi::waypoint
