// Which clients are believed about where a request came from (X-Forwarded-*, Forwarded): the waypoints of
// the mesh, which have sanitised what their own client said, and the identities that the operator
// names, e.g. of an ingress controller. Everybody else may be the one who invents it. Not thread
// safe: one of each worker. Must never believe an address, a label or a header: only a verified
// identity, at the workload that it belongs to.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/model/identity.h"
#include "userspace/model/store.h"

namespace meltemi::waypoint {

class Forwarders {
 public:
  // `named`: SPIFFE IDs, separated by commas. Error: kBadConfig, names the part that is none.
  static Result<std::vector<model::Identity>> parse(std::string_view named);

  explicit Forwarders(std::vector<model::Identity> named = {}) : named_(std::move(named)) {}

  // `client` is verified, `address` its own. In the mesh a waypoint is known by what the control plane
  // tells everybody: a Service or workload is reached through a Service that this workload backs.
  bool believes(const model::Snapshot& mesh, const model::Identity& client,
                const model::NetworkAddress& address);

 private:
  void learn(const model::Snapshot& mesh);

  std::vector<model::Identity> named_;
  uint64_t version_ = 0;  // of the mesh that `waypoints_` is from
  std::unordered_set<std::string> waypoints_;  // keys of Services that are some waypoint
};

}  // namespace meltemi::waypoint
