// Finds the network namespace of a pod whose CNI ADD this agent did not see (it was not there yet),
// and the processes that capture does not reach. Must never pair a pod with a namespace on one
// hint: the cgroup names the pod, all of its processes share one namespace, and that namespace has
// the pod's address (checked by Capture::open).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/sys/process.h"

namespace meltemi::agent {

// True if a component of the cgroup path is the pod's: kubelet writes the uid as is or with '_' for
// '-' ("kubepods-burstable-pod1a2b_3c.slice", "pod1a2b-3c"), the sandbox as a directory of its own.
bool cgroup_is_of_pod(std::string_view cgroup_path, std::string_view uid);

// "/proc/PID/ns/net" of the pod, nullopt if no process of it runs. Error kBadConfig if its
// processes are in different namespaces.
Result<std::optional<std::string>> locate_netns(const std::vector<sys::ProcessInfo>& processes,
                                                std::string_view uid, uint64_t node_netns_inode);

// "pid comm" of those in the namespace but outside of the cgroup subtree that the hooks are
// attached to: what they connect is not captured. `subtree` is a path within cgroup2 ("/",
// "/meltemi/n1").
std::vector<std::string> uncaptured_processes(const std::vector<sys::ProcessInfo>& processes,
                                              uint64_t netns_inode, std::string_view subtree);

}  // namespace meltemi::agent
