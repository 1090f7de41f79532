// The waypoint process: makes its parts in order, runs until it is told to stop, takes them down in
// reverse. Must never block a worker, nor end because a peer sent something bad.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "userspace/pki/certificate_manager.h"
#include "userspace/rt/listener.h"
#include "userspace/xds/status_page.h"
#include "waypoint/app/config_feed.h"
#include "waypoint/app/identity_file.h"
#include "waypoint/proxy/acceptor.h"

namespace meltemi::waypoint {

class App {
 public:
  // Both must outlive it; `table` is asked for what /config_dump shows.
  App(const Settings& settings, const ConfigTable& table);
  ~App();

  // Errors: bad settings or files, a port in use, no way to do I/O.
  Status start();
  // Work that waits for something; every 100 ms or so from the main thread.
  void poll();
  bool quit_requested() const { return quit_.load(); }
  // Drains, then stops. `urgent` is asked now and then: true ends the patience.
  void shutdown(const std::function<bool()>& urgent);

 private:
  // What one worker thread runs.
  struct Lane {
    Lane(rt::Worker& w, const ProxyShared& shared)
        : worker(w), proxy(w.loop(), w.index(), shared), acceptor(proxy) {}
    rt::Worker& worker;
    ProxyWorker proxy;
    Acceptor acceptor;
  };
  using Accept = std::function<void(Lane&, UniqueFd, rt::Lease)>;

  Status start_workers();
  Status start_certificate();
  Status start_operators();
  Status listen_hbone();
  // On worker 0.
  std::unique_ptr<rt::Listener> listen(UniqueFd fd, rt::Admission::ClassId id, Accept accept);
  void publish(const SnapshotPtr& snapshot);
  void follow_bound(const Snapshot& snapshot);  // on worker 0
  void restore_certificate(const model::Identity& identity);
  void keep_certificate(const pki::WorkloadCertificate& certificate);
  void publish_certificate(const pki::WorkloadCertificatePtr& certificate);
  void collect(telemetry::Exposition& out) const;
  size_t connections();
  xds::ProcessStatus status();

  const Settings& settings_;
  const ConfigTable& table_;
  telemetry::Registry registry_;
  telemetry::Readiness readiness_;
  std::atomic<uint64_t> hbone_accepted_{0};  // connections, also those that were refused then
  std::unique_ptr<telemetry::AcceptQueue> hbone_queue_;
  std::unique_ptr<telemetry::HttpMetrics> http_metrics_;
  std::unique_ptr<telemetry::TcpMetrics> tcp_metrics_;
  model::MeshStore mesh_;
  rt::Budget held_;
  ProxyShared shared_;
  std::unique_ptr<Doors> doors_;
  std::unique_ptr<rt::WorkerPool> pool_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  // Of worker 0: bound listeners by address.
  std::map<SocketAddress, std::pair<std::string, std::unique_ptr<rt::Listener>>> bound_;
  std::atomic<bool> unbound_{false};  // a bound listener failed and is tried again
  MonoTime bind_again_{};             // of the main thread
  std::unique_ptr<rt::Listener> hbone_;
  std::mutex latest_mutex_;
  SnapshotPtr latest_;  // what was published last, for the admin pages
  std::unique_ptr<ConfigFeed> feed_;
  std::optional<MonoTime> restore_again_;  // the kept certificate could not be read
  std::mutex identity_mutex_;
  std::optional<IdentityFile> identity_file_;  // guarded by identity_mutex_; none: the key is not kept
  std::unique_ptr<pki::CertificateManager> certificates_;
  std::unique_ptr<telemetry::OperatorPorts> operators_;  // behind the same doors
  std::atomic<bool> quit_{false};
};

}  // namespace meltemi::waypoint
