// Kubernetes' controllers, as far as a sandbox has them: Deployments, ReplicaSets and Jobs become
// pods, and the scheduler places them. Pure: what is wanted and what lives go in, what to create,
// change and delete comes out. Must never decide by time, so that a plan for a settled state is
// empty.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "userspace/config/store.h"

namespace meltemi::sandbox {

// On pods: "Deployment/catalog", "Job/load"; absent on pods that a user wrote.
inline constexpr std::string_view kControllerAnnotation = "sandbox.meltemi.io/controller";
// On pods that a user wrote: hash of the manifest that they were made from.
inline constexpr std::string_view kSpecAnnotation = "sandbox.meltemi.io/spec-hash";
inline constexpr int kDefaultBackoffLimit = 6;  // batch/v1

struct NodeInfo {
  std::string name;
  std::map<std::string, std::string> labels;
};

// A pod that exists: as it was placed (spec.nodeName empty: not yet), and as its node reports it.
struct LivePod {
  config::Object desired;
  config::ObjectPtr reported;  // null until the node has said something

  bool terminating() const { return !desired.meta().deletion_timestamp().empty(); }
  bool finished() const;
  bool ready() const;
};
using LivePods = std::map<std::string, LivePod>;  // by uid

struct PodPlan {
  // Without uid and creationTimestamp: the caller makes them. spec.nodeName is set, or empty with
  // `unplaced` saying why.
  struct Create {
    config::Object pod;
    std::string unplaced;
  };
  std::vector<Create> create;
  std::map<std::string, std::string> place;  // uid of a pod that waited for a node -> node
  std::vector<config::Object> update;        // same uid, new labels or annotations
  std::vector<std::string> remove;           // uids
  bool empty() const { return create.empty() && place.empty() && update.empty() && remove.empty(); }
};

// `wanted`: users' and controllers' objects. `suffix` yields five random characters for pod names.
PodPlan plan_pods(const config::ObjectStore& wanted, const LivePods& live,
                  const std::vector<NodeInfo>& nodes, const std::function<std::string()>& suffix);

// Kubernetes' alphabet for generated names (no vowels, no look-alikes); `length` <= 12.
std::string encode_hash(uint64_t hash, size_t length);
uint64_t stable_hash(std::string_view text);

}  // namespace meltemi::sandbox
