// Which of the mesh's objects concern a Pod or a Service, and who enforces them: the answer to "why was
// this call refused" before any log is read. Pure. Must never leave out a policy that the data plane
// enforces.
#pragma once

#include <string>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/config/validate.h"

namespace meltemi::cli {

struct Applied {
  config::ObjectPtr object;  // AuthorizationPolicy, PeerAuthentication, VirtualService, DestinationRule
  std::string what;          // "DENY", "STRICT", "routes", "subsets v1, v2"
  std::string where;         // who acts on it: "ztunnel of node1", "waypoint shop/waypoint"
};

// Of a Pod: what selects it, its namespace's and the mesh's. Of a Service: what names it, its waypoint or
// its host. Nothing for other kinds.
std::vector<Applied> what_applies(const config::ObjectStore& store, const config::Object& object,
                                  const config::MeshNames& names = {});

}  // namespace meltemi::cli
