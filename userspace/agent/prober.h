// Who may pass a pod's policy to its declared probe ports: the kubelet, known by its cgroup. Everything
// else in the node's network namespace, pods with hostNetwork above all, is an ordinary client. Pure
// functions over one listing of /proc. Must never name a pod's cgroup, nor guess between two.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/sys/process.h"

namespace meltemi::agent {

// The cgroup2 path of the kubelet that runs in the node's network namespace: "kubelet", or a
// distribution's process that contains it (k3s, microk8s). Error kNotFound: there is none; kBadConfig:
// there are several. Both say which option names it.
Result<std::string> kubelet_cgroup(const std::vector<sys::ProcessInfo>& processes,
                                   uint64_t node_netns_inode);

// A path below a kubelet's "kubepods", or one with a container runtime's name: a process there may call
// itself what it likes.
bool cgroup_is_of_any_pod(std::string_view path);

}  // namespace meltemi::agent
