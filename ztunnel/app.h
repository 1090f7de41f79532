// The ztunnel process: makes its parts in order, runs until it is told to stop, takes them down in
// reverse. Must never block a worker, nor end because a peer sent something bad.
#pragma once

#include <atomic>
#include <memory>
#include <functional>

#include "userspace/base/config.h"
#include "userspace/xds/status_page.h"
#include "ztunnel/certificates.h"
#include "ztunnel/mesh_feed.h"
#include "ztunnel/pod_manager.h"
#include "ztunnel/proxy_worker.h"
#include "ztunnel/zds_client.h"

namespace meltemi::ztunnel {

class App {
 public:
  // `table` is asked for the values that /config_dump shows. Both must outlive the app.
  App(const Settings& settings, const ConfigTable& table);
  ~App();

  // Everything up to serving. Errors: bad settings or files, a port in use, no way to do I/O.
  Status start();
  // Work that waits for something; call every 100 ms or so from the main thread.
  void poll();
  bool quit_requested() const { return quit_.load(); }
  // Drains, then stops. `urgent` is asked now and then: true ends the patience.
  void shutdown(const std::function<bool()>& urgent);

 private:
  Status start_workers();
  Status start_operators();
  void mesh_changed();
  http::Response dump();
  xds::ProcessStatus status() const;
  void collect(telemetry::Exposition& out) const;

  const Settings& settings_;
  const ConfigTable& table_;
  telemetry::Registry registry_;
  telemetry::Readiness readiness_;
  std::unique_ptr<telemetry::TcpMetrics> metrics_;
  model::MeshStore store_;
  std::unique_ptr<Doors> doors_;
  std::unique_ptr<rt::WorkerPool> pool_;
  Shared shared_;
  std::unique_ptr<Certificates> certificates_;
  std::unique_ptr<MeshFeed> feed_;
  std::unique_ptr<PodManager> pods_;
  std::unique_ptr<ZdsClient> zds_;
  std::unique_ptr<telemetry::OperatorPorts> operators_;  // behind the same doors
  bool zds_started_ = false;
  std::atomic<bool> quit_{false};
};

}  // namespace meltemi::ztunnel
