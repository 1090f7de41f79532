// Where the mesh's state comes from: the control plane's delta xDS, or a local file. Applies each
// response as one batch; what cannot be converted is refused by name and the rest is used. What is
// known stays when the control plane goes away, and is kept on disk for a start without one.
#pragma once

#include <memory>
#include <string>

#include "userspace/model/store.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/readiness.h"
#include "userspace/xds/delta_client.h"
#include "ztunnel/settings.h"

namespace meltemi::ztunnel {

class MeshFeed {
 public:
  // Clears the readiness task "state manager" when the first state is complete.
  MeshFeed(const Settings& settings, model::MeshStore& store, telemetry::Registry& registry,
           telemetry::Readiness& readiness);
  ~MeshFeed();
  // Reads the file, then connects. Errors: the file, a bad address; never a control plane that is
  // away.
  Status start();
  void stop();  // idempotent
  bool synced() const;
  // Nothing where there is none.
  std::optional<xds::ClientStatus> control_plane() const;

 private:
  std::vector<xds::Rejection> on_addresses(const xds::Update& update);
  std::vector<xds::Rejection> on_policies(const xds::Update& update);
  void after_update();
  void restore_departed(const xds::SavedResources& notes);
  void collect(telemetry::Exposition& out) const;

  const Settings& settings_;
  model::MeshStore& store_;
  telemetry::Readiness& readiness_;
  std::unique_ptr<xds::DeltaClient> client_;
  std::atomic<bool> got_addresses_{false}, got_policies_{false};
};

}  // namespace meltemi::ztunnel
