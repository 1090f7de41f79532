// The BPF side of capture on one node: programs, maps and links, pinned so that they outlive this
// process. The only file that knows libbpf. One instance a node.
//
// Pins, below a directory on a bpffs:
//   v<version>-<layout hash>/maps/{enrolled,excluded,probes,cgroups,tunnel_sockets,guarded,counters}
//   v<version>-<layout hash>/links/<program>              the node's cgroup hooks
//   v<version>-<layout hash>/guards/<ifindex>             the guard at a pod's veth (tcx)
//   v<version>-<layout hash>/pods/<cookie>/{config,listeners,link}
// A new agent reuses the maps of its own layout and swaps the programs behind the pinned links
// (one atomic syscall each), so that no connection ever meets a gap. Pins of another layout are
// taken over: their links move here once the new maps are filled. Must never unpin on the way out:
// only uninstall() does, on request.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/netns.h"

namespace meltemi::agent {

struct BpfOptions {
  std::string directory;  // on a bpffs
  uint32_t capture_mark = MELTEMI_CAPTURE_MARK;
  uint32_t tunnel_mark = MELTEMI_TUNNEL_MARK;
  IpAddress probe_v4, probe_v6;
  uint64_t node_netns_cookie = 0;
  sys::Netns node_netns;      // where pods' veths end; invalid: the calling thread's
  std::string layout_salt;    // tests: pretends to be another layout
  bool without_tcx = false;   // tests: pretends to be a kernel before 6.6
};

meltemi_address to_abi(const IpAddress& ip);

class BpfStore {
 public:
  // Loads the programs, reusing pinned maps. Nothing is attached yet. Errors say what the kernel
  // lacks and what to do.
  static Result<std::unique_ptr<BpfStore>> load(BpfOptions options);
  ~BpfStore();
  BpfStore(const BpfStore&) = delete;
  BpfStore& operator=(const BpfStore&) = delete;

  // Attaches the cgroup hooks, or swaps the programs behind links that are pinned already. A link
  // whose cgroup is gone or another one (ENOLINK) is made anew. Then removes pins of other layouts
  // that nothing uses any more.
  Status attach(const sys::Cgroup& cgroup);
  // True if all hooks are attached to this cgroup, as the kernel says.
  Result<bool> attached(const sys::Cgroup& cgroup) const;

  // --- one pod -----------------------------------------------------------------------------------
  // The pod's maps exist, hold `config`, and stay pinned. Does not attach.
  Status ensure_pod(uint64_t cookie, const meltemi_pod& config);
  // Puts a listening socket of the pod's netns into its slot.
  Status set_listener(uint64_t cookie, meltemi_listener_slot slot, int listener_fd);
  // Socket cookie in a slot; nullopt: empty, nobody holds that listener any more.
  Result<std::optional<uint64_t>> listener(uint64_t cookie, meltemi_listener_slot slot) const;
  // Attaches this pod's clone of the lookup program, or swaps it into the pinned link.
  Status attach_pod(uint64_t cookie, const sys::Netns& netns);
  // True if a link is pinned and the kernel says that it steers this namespace.
  Result<bool> pod_attached(uint64_t cookie, uint64_t netns_inode) const;
  // Detaches and unpins; nothing there is success.
  Status remove_pod(uint64_t cookie);
  // Cookies of all pods that have pins, live or not.
  Result<std::vector<uint64_t>> pods() const;
  // Netns inode of a pod's link; 0 if that namespace is gone.
  Result<uint64_t> pod_netns_inode(uint64_t cookie) const;

  // --- the guard (bpf_guard.cc) ------------------------------------------------------------------
  // Guards the pod with this netns cookie at a device of the node's namespace; again: mends. It does
  // nothing until the pod is in `enrolled` with MELTEMI_POD_GUARDED. tcx where the kernel has it (6.6),
  // else a clsact filter. `netns_id`: the pod's namespace in the node's numbering.
  Status attach_guard(uint32_t ifindex, uint64_t cookie, uint32_t netns_id);
  // True if the kernel says that our program sees what this device receives, for this pod.
  Result<bool> guard_attached(uint32_t ifindex, uint64_t cookie) const;
  // All of a pod, also those whose device is gone; nothing there is success.
  Status remove_guards(uint64_t cookie);
  // By ifindex, with what was dropped since.
  Result<std::map<uint32_t, meltemi_guard>> guards() const;
  const sys::Netns& node_netns() const;

  // --- the node's maps ---------------------------------------------------------------------------
  Status set_enrolled(uint64_t cookie, const meltemi_pod& pod);  // turns capture on
  Status clear_enrolled(uint64_t cookie);
  Result<std::optional<meltemi_pod>> enrolled(uint64_t cookie) const;
  Status add_exclusion(const meltemi_exclusion& key);
  Status remove_exclusions(uint64_t cookie);
  Status add_probe(const IpAddress& pod, uint16_t port);
  Status remove_probe(const IpAddress& pod, uint16_t port);
  // Connections from the probe address that went to the app without policy, since add_probe.
  Result<uint64_t> probes_passed(const IpAddress& pod, uint16_t port) const;
  // Bits of meltemi_cgroup_role; 0 removes.
  Status set_cgroup_roles(uint64_t cgroup_id, uint32_t roles);
  Result<std::map<uint64_t, uint32_t>> cgroup_roles() const;
  // Sums over all CPUs.
  Result<std::array<uint64_t, MELTEMI_COUNTERS>> counters() const;

  // Detaches everything and removes every pin of this directory.
  Status uninstall();
  const std::string& version_directory() const;

 private:
  struct Impl;
  explicit BpfStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace meltemi::agent
