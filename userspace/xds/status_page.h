// What a process of the mesh says of itself on its page /status: is it in step with the control plane, how
// old is what it acts on, until when are its certificates good. One shape for all of them, so that one
// reader (`meltemi get mesh`) understands all. Must never show a key.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/xds/delta_client.h"

namespace meltemi::xds {

struct ProcessStatus {
  std::string component;  // "ztunnel", "waypoint", "meltemi-agent", "meltemid"
  std::string version;    // of the binary
  bool ready = false;
  std::string trouble;  // "" or why it is not ready
  std::optional<ClientStatus> control_plane;  // nullopt: it has none to ask
  std::string configuration;                  // version of what it acts on; "" if it counts none
  struct Certificates {
    size_t available = 0, missing = 0;
    WallTime first_end = WallTime::max();  // of the available ones
    // One identity's: its certificate's end, max() if it has none.
    void add(WallTime end) {
      end == WallTime::max() ? ++missing : ++available;
      first_end = std::min(first_end, end);
    }
  };
  std::optional<Certificates> certificates;
  std::vector<std::pair<std::string, uint64_t>> counts;  // "pods", "services", ...
  std::vector<std::string> problems;                     // each with its fix
};

// JSON, one object.
std::string status_page(const ProcessStatus& status, WallTime now);

// "SYNCED", "SYNCING" (the stream lives, and not everything that was asked for has come), "NACK" (it lives
// and the last word about some type was refused in part), "STALE" (no stream).
std::string_view sync_state(const ClientStatus& status);

}  // namespace meltemi::xds
