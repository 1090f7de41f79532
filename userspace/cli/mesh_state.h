// What the mesh's processes say of themselves (their pages /status, xds/status_page.h): in step with the
// control plane or not, how old, until when their certificates are good. Only asks; changes nothing.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/cli/context.h"
#include "userspace/config/value.h"

namespace meltemi::cli {

struct MeshState {
  bool told = false;      // the page was read; else everything below is empty
  config::Value page;     // as it came
  std::string why_not;    // "" or why the page could not be read

  bool ready = false;
  std::string version;        // of the binary
  std::string sync;           // "SYNCED", "SYNCING", "NACK", "STALE 5m10s"; "" if it asks nobody
  std::string configuration;  // version of what it acts on
  std::string certificates;   // "3 for 23h59m", "3 for 23h59m, 1 missing"; "" if it has none
  std::string counts;         // "pods=4 connections=0"
  // What somebody should look at, with what the process says about it.
  std::vector<std::string> findings;
};

// What a page says. Error kBadRequest: it is no such page.
Result<MeshState> read_state(std::string_view page);
// Fetches and reads http://127.0.0.1:PORT/status inside of a network namespace (a name of /run/netns).
MeshState state_in(const std::string& netns, uint16_t port);

}  // namespace meltemi::cli
