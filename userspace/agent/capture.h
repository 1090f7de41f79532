// Enrols one pod in the kernel, undoes it, and reads back what is there. The order is the point:
//
//   enrol      sysctls, route, rules, listeners, maps, lookup link, exclusions, probes, guard; last, the
//              netns cookie into `enrolled`, which is what turns capture and guard on
//   un-enrol   the cookie first: new connections are the pod's own again. Routing, listeners and
//              link stay while a captured flow lives (begin_drain, drained), then go in reverse
//              (finish)
//
// Every step may be repeated, so enrolling again is the repair. A step that fails undoes those
// before it, unless the pod was captured already: a pod is plain or fully captured, never half.
// Blocking, a few milliseconds; one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "userspace/agent/bpf_store.h"
#include "userspace/agent/pod_netns.h"
#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/sys/netns.h"

namespace meltemi::agent {

// What a pod is to be enrolled as.
struct CaptureSpec {
  std::vector<IpAddress> addresses;  // that the pod is known by; may be empty
  std::vector<uint16_t> probe_ports;
  bool strict = false;  // inbound plaintext without a listener: dropped
  std::vector<Cidr> exclude_cidrs;
  std::vector<uint16_t> exclude_ports;
  bool guard = true;  // drop what leaves the pod past ztunnel
  bool operator==(const CaptureSpec&) const = default;
};

// A pod's namespace with everything that is kept for it.
struct CapturedPod {
  sys::Netns netns;
  sys::NetnsId id;
  uint64_t cookie = 0;
  std::vector<IpAddress> addresses;  // local in the netns, the pod's own first
  std::vector<IpAddress> link_local;
  Listeners listeners;
  SavedSysctls saved_sysctls;
  std::vector<IpAddress> probed_addresses;  // what was written to `probes`, for removal
  std::vector<uint16_t> probed_ports;
  bool guard_wanted = false;
  // The node's ends of its veths. Only ever grows: an interface that the pod has moved elsewhere since
  // still comes out there.
  std::vector<uint32_t> guarded_devices;
  std::string guard_problem;  // why there is no guard, although wanted
  bool guard_retry = false;   // the cause may end: enrolling again tries
};

// What the guard and the probe exemption did for one pod.
struct PodUse {
  uint64_t guard_dropped = 0;  // unreadable packets included
  meltemi_guard last{};        // of the device that dropped most: the destination of the last one
  uint64_t probes_passed = 0;
};

// The names of meltemi.node.v1.PodStatus.missing, in the order of enrolment.
inline constexpr const char* kTruthNames[] = {
    "sysctl",           "route",          "rule", "outbound_listener",
    "inbound_listener", "hbone_listener", "link", "map", "guard"};

class Capture {
 public:
  Capture(BpfStore& bpf, Marks marks, uint64_t node_netns_cookie)
      : bpf_(bpf), marks_(marks), node_cookie_(node_netns_cookie) {}

  // Opens the namespace and checks that it can be this pod's: not the node's own, nor init's, and
  // holding the addresses the pod is known by. Error kPermission, kBadConfig: never retry.
  Result<CapturedPod> open(const std::string& netns_path,
                           const std::vector<IpAddress>& known_addresses) const;

  Status enrol(CapturedPod& pod, const CaptureSpec& spec);

  // False when the namespace has gained or lost an address since the pod was enrolled.
  bool addresses_current(const CapturedPod& pod, const CaptureSpec& spec) const;

  // Kernel truth: names of what is missing; empty means enrolled.
  Result<std::vector<std::string>> missing(const CapturedPod& pod) const;
  // Whether anything of this pod is in the kernel, also half of it.
  Result<bool> any_trace(const CapturedPod& pod) const;

  Result<PodUse> use(const CapturedPod& pod) const;

  Status begin_drain(CapturedPod& pod);  // capture off; what flows, flows on
  Result<bool> drained(const CapturedPod& pod) const;
  Status finish(CapturedPod& pod);  // all traces gone
  // The namespace is gone or going: only maps and pins are left to remove.
  Status forget(uint64_t cookie, const std::vector<IpAddress>& probed_addresses,
                const std::vector<uint16_t>& probed_ports);

 private:
  meltemi_pod config_of(const CapturedPod& pod, const CaptureSpec& spec, uint32_t flags) const;
  Status ensure_listeners(CapturedPod& pod) const;
  Status fill_slots(const CapturedPod& pod) const;
  Status write_exclusions(const CapturedPod& pod, const CaptureSpec& spec);
  Status write_probes(CapturedPod& pod, const CaptureSpec& spec);
  Status attach_guards(CapturedPod& pod);
  Result<bool> guard_stands(const CapturedPod& pod) const;
  Status remove_probes(CapturedPod& pod);
  Status steps(CapturedPod& pod, const CaptureSpec& spec);

  BpfStore& bpf_;
  Marks marks_;
  uint64_t node_cookie_;
};

}  // namespace meltemi::agent
