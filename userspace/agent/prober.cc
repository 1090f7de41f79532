// Finding the kubelet; see prober.h.
#include "userspace/agent/prober.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace meltemi::agent {
namespace {

constexpr std::string_view kHint =
    "name its cgroup with --prober-cgroup (AGENT_PROBER_CGROUP); until then no probe is exempt from "
    "policy";

// As /proc/PID/comm has them, 15 characters at most.
constexpr std::array<std::string_view, 5> kKubelets = {"kubelet", "k3s-server", "k3s-agent", "kubelite",
                                                       "rke2"};

}  // namespace

bool cgroup_is_of_any_pod(std::string_view path) {
  // kubelet's hierarchies; containerd's, CRI-O's and Docker's scopes; the sandbox's pods.
  for (const std::string_view word :
       {"kubepods", "cri-containerd", "crio-", "docker-", "libpod-", "/pods/"})
    if (path.find(word) != std::string_view::npos) return true;
  return false;
}

Result<std::string> kubelet_cgroup(const std::vector<sys::ProcessInfo>& processes,
                                   uint64_t node_netns_inode) {
  const sys::ProcessInfo* found = nullptr;
  for (const sys::ProcessInfo& p : processes) {
    if (p.netns_inode != node_netns_inode || p.cgroup.size() < 2 ||
        std::ranges::find(kKubelets, p.command) == kKubelets.end() || cgroup_is_of_any_pod(p.cgroup))
      continue;
    if (found != nullptr && found->cgroup != p.cgroup)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("processes {} ({}) and {} ({}) may both be the kubelet; {}", found->pid,
                              found->cgroup, p.pid, p.cgroup, kHint));
    found = &p;
  }
  if (found == nullptr)
    return fail(Reason::kNotFound, Fault::kConfig,
                fmt::format("no kubelet runs in this node's network namespace; {}", kHint));
  return found->cgroup;
}

}  // namespace meltemi::agent
