// Matching processes to pods; see locate.h. Pure functions over one listing of /proc.
#include "userspace/agent/locate.h"

#include <fmt/format.h>

#include <algorithm>

namespace meltemi::agent {
namespace {

// `word` stands alone in `component`: whole, or between '-' or "pod" before and '.' behind.
bool names_pod(std::string_view component, std::string_view word) {
  if (component == word) return true;
  const size_t at = component.rfind(word);
  if (at == std::string_view::npos) return false;
  const std::string_view before = component.substr(0, at);
  const std::string_view behind = component.substr(at + word.size());
  return before.ends_with("pod") && (behind.empty() || behind == ".slice");
}

}  // namespace

bool cgroup_is_of_pod(std::string_view path, std::string_view uid) {
  if (uid.empty()) return false;
  std::string underscored(uid);
  std::replace(underscored.begin(), underscored.end(), '-', '_');
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string_view component = path.substr(0, slash);
    if (names_pod(component, uid) || names_pod(component, underscored)) return true;
    if (slash == std::string_view::npos) break;
    path.remove_prefix(slash + 1);
  }
  return false;
}

Result<std::optional<std::string>> locate_netns(const std::vector<sys::ProcessInfo>& processes,
                                                std::string_view uid, uint64_t node_netns_inode) {
  const sys::ProcessInfo* found = nullptr;
  for (const sys::ProcessInfo& p : processes) {
    // A helper of the runtime may sit in the pod's cgroup and the node's namespace for a moment.
    if (p.netns_inode == node_netns_inode || !cgroup_is_of_pod(p.cgroup, uid)) continue;
    if (found != nullptr && found->netns_inode != p.netns_inode)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("pod {}: processes {} ({}) and {} ({}) are in different network "
                              "namespaces; refusing to choose",
                              uid, found->pid, found->command, p.pid, p.command));
    if (found == nullptr || p.pid < found->pid) found = &p;
  }
  if (found == nullptr) return std::optional<std::string>();
  return std::optional<std::string>(fmt::format("/proc/{}/ns/net", found->pid));
}

std::vector<std::string> uncaptured_processes(const std::vector<sys::ProcessInfo>& processes,
                                              uint64_t netns_inode, std::string_view subtree) {
  std::vector<std::string> out;
  const std::string below = subtree == "/" ? "/" : std::string(subtree) + "/";
  for (const sys::ProcessInfo& p : processes)
    if (p.netns_inode == netns_inode && p.cgroup != subtree && !p.cgroup.starts_with(below))
      out.push_back(fmt::format("{} {}", p.pid, p.command));
  return out;
}

}  // namespace meltemi::agent
