// Where a waypoint's configuration comes from: xDS or a static file. Keeps the resources, refuses bad ones
// by name, and publishes a snapshot when everything that it names is there (or patience ends), so that a
// route never points at a cluster whose endpoints are still on the way. What is known stays when the
// control plane goes away, and is kept on disk for a start without one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "userspace/model/store.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/readiness.h"
#include "userspace/xds/delta_client.h"
#include "waypoint/app/settings.h"
#include "waypoint/xds/refusals.h"
#include "waypoint/xds/store.h"

namespace meltemi::waypoint {

class ConfigFeed {
 public:
  using Publish = std::function<void(SnapshotPtr)>;
  // `publish` is called on the feed's thread or that of start() and poll(), one at a time.
  ConfigFeed(const Settings& settings, model::MeshStore& mesh, telemetry::Registry& registry,
             telemetry::Readiness& readiness, Publish publish);
  ~ConfigFeed();
  // Errors: the file, a bad address; never a control plane that is away.
  Status start();
  // Publishes what has waited long enough; every 100 ms or so.
  void poll();
  void stop();  // idempotent
  std::string dump_json() const;
  // How the control plane's stream is; nullopt without a control plane. Any thread.
  std::optional<xds::ClientStatus> control_plane() const;

 private:
  std::vector<xds::Rejection> on_addresses(const xds::Update& update);
  std::vector<xds::Rejection> on_resources(XdsType type, const xds::Update& update);
  // What was taken away goes now, or once who has not heard of it yet has had time to.
  void take_away(XdsType type, const std::string& name);  // REQUIRES: lock held
  void changed();                                         // REQUIRES: lock held
  void subscribe_to_named();      // REQUIRES: lock held
  void publish_if_ready(bool force);  // REQUIRES: lock held
  void collect(telemetry::Exposition& out) const;

  const Settings& settings_;
  model::MeshStore& mesh_;
  telemetry::Readiness& readiness_;
  Publish publish_;
  Refusals refusals_;
  mutable std::mutex mutex_;  // guards what follows
  ConfigStore store_;
  bool dirty_ = false;
  bool got_listeners_ = false, got_clusters_ = false, published_ = false;
  MonoTime dirty_since_{};
  std::map<std::pair<XdsType, std::string>, MonoTime> leaving_;  // and when they go
  std::unique_ptr<xds::DeltaClient> client_;
};

}  // namespace meltemi::waypoint
