// Kubelet's part: runs the pods that the supervisor has placed on one node. A process of its own,
// in the node's namespace and `system` cgroup, because probes must come from there. Watches a
// directory of Pod manifests, one file a pod.
#pragma once

#include "userspace/base/error.h"
#include "userspace/sandbox/layout.h"

namespace meltemi::sandbox {

struct KubeletOptions {
  std::string sandbox;
  int node_index = 1;
  std::string bin_dir;
};
// Runs until SIGTERM or SIGINT. Pods are not stopped: that is `down`'s, by their cgroups.
Status run_kubelet(const KubeletOptions& options);

}  // namespace meltemi::sandbox
