// The order of enrolment; see capture.h.
#include "userspace/agent/capture.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/sys/netlink.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("capture");

// Pod IPs first: the first of a family becomes the source of captured connections.
Result<std::vector<IpAddress>> ordered_addresses(const sys::Netns& netns,
                                                 const std::vector<IpAddress>& own) {
  const std::vector<IpAddress> local = MELTEMI_TRY(local_addresses(netns)).routable;
  std::vector<IpAddress> out;
  for (const IpAddress& ip : own)
    if (std::find(local.begin(), local.end(), ip) != local.end()) out.push_back(ip);
  for (const IpAddress& ip : local)
    if (std::find(out.begin(), out.end(), ip) == out.end()) out.push_back(ip);
  if (out.size() > MELTEMI_POD_ADDRESSES)
    return fail(Reason::kLimitExceeded, Fault::kConfig,
                fmt::format("the pod has {} addresses; the mesh handles {}", out.size(),
                            MELTEMI_POD_ADDRESSES));
  return out;
}

bool listens(const std::vector<sys::TcpSocket>& listening, std::optional<uint64_t> cookie) {
  return cookie && std::any_of(listening.begin(), listening.end(),
                               [&](const sys::TcpSocket& s) { return s.cookie == *cookie; });
}

}  // namespace

Result<CapturedPod> Capture::open(const std::string& netns_path,
                                  const std::vector<IpAddress>& known) const {
  CapturedPod pod;
  pod.netns = MELTEMI_TRY(sys::Netns::open(netns_path));
  pod.id = MELTEMI_TRY(pod.netns.id());
  pod.cookie = MELTEMI_TRY(pod.netns.cookie());
  const Result<sys::Netns> init = sys::Netns::open_pid(1);
  const bool is_init = init && init->id() && *init->id() == pod.id;
  if (pod.cookie == node_cookie_ || is_init)
    return fail(Reason::kPermission, Fault::kConfig,
                fmt::format("{} is the node's own network namespace: host network pods are never "
                            "enrolled",
                            netns_path));
  pod.addresses = MELTEMI_TRY(ordered_addresses(pod.netns, known));
  for (const IpAddress& ip : known)
    if (std::find(pod.addresses.begin(), pod.addresses.end(), ip) == pod.addresses.end())
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("{} does not have the pod's address {}; refusing to give this "
                              "namespace the pod's identity",
                              netns_path, ip.to_string()));
  if (pod.addresses.empty())
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("{} has no address yet; the plugin must come after the one that sets "
                            "up the pod's interface",
                            netns_path));
  return pod;
}

meltemi_pod Capture::config_of(const CapturedPod& pod, const CaptureSpec& spec,
                               uint32_t flags) const {
  meltemi_pod out{};
  out.flags = flags;
  if (spec.strict) out.flags |= MELTEMI_POD_STRICT;
  if (!spec.exclude_cidrs.empty() || !spec.exclude_ports.empty())
    out.flags |= MELTEMI_POD_EXCLUSIONS;
  if (pod.guard_wanted && !pod.guarded_devices.empty()) out.flags |= MELTEMI_POD_GUARDED;
  size_t i = 0;
  for (const IpAddress& ip : pod.addresses) out.address[i++] = to_abi(ip);
  for (const IpAddress& ip : pod.link_local)
    if (i < MELTEMI_POD_ADDRESSES) out.address[i++] = to_abi(ip);
  return out;
}

// A pod that cannot be guarded is enrolled all the same, and says so: its interface may be of a kind that
// has no end in the node, or the kernel may lack the hook. A guard that stood is never given up for an
// error, which may be over in a moment.
Status Capture::attach_guards(CapturedPod& pod) {
  pod.guard_problem.clear();
  pod.guard_retry = false;
  if (!pod.guard_wanted) {
    pod.guarded_devices.clear();
    return bpf_.remove_guards(pod.cookie);
  }
  const auto add = [&](uint32_t device) {
    if (std::ranges::find(pod.guarded_devices, device) == pod.guarded_devices.end())
      pod.guarded_devices.push_back(device);
  };
  for (const auto& [device, guard] : MELTEMI_TRY(bpf_.guards()))
    if (guard.netns_cookie == pod.cookie) add(device);  // as an earlier agent found them
  for (const uint32_t device : MELTEMI_TRY(node_ends(pod.netns, bpf_.node_netns()))) add(device);
  if (pod.guarded_devices.empty()) {
    pod.guard_problem = "none of its interfaces is a veth whose other end is the node's";
    return {};
  }
  sys::Netlink node = MELTEMI_TRY(sys::Netlink::open_in(bpf_.node_netns()));
  const uint32_t id = MELTEMI_TRY(node.netns_id(pod.netns));
  const std::vector<sys::Link> links = MELTEMI_TRY(node.links());
  std::erase_if(pod.guarded_devices, [&](uint32_t device) {
    return std::ranges::none_of(links, [&](const sys::Link& l) { return l.ifindex == device; });
  });
  for (const uint32_t device : pod.guarded_devices) {
    const Status attached = bpf_.attach_guard(device, pod.cookie, id);
    if (attached) continue;
    const auto enrolled = MELTEMI_TRY(bpf_.enrolled(pod.cookie));
    if (enrolled && (enrolled->flags & MELTEMI_POD_GUARDED) != 0) return fail(attached.error());
    pod.guard_problem = attached.error().to_string();
    pod.guard_retry = true;
    pod.guarded_devices.clear();
    break;
  }
  return {};
}

// True also where no guard is wanted or possible: nothing of it is missing then.
Result<bool> Capture::guard_stands(const CapturedPod& pod) const {
  if (!pod.guard_wanted || pod.guarded_devices.empty()) return true;
  const auto enrolled = MELTEMI_TRY(bpf_.enrolled(pod.cookie));
  if (enrolled && (enrolled->flags & MELTEMI_POD_GUARDED) == 0) return false;
  for (const uint32_t device : pod.guarded_devices)
    if (!MELTEMI_TRY(bpf_.guard_attached(device, pod.cookie))) return false;
  return true;
}

Result<PodUse> Capture::use(const CapturedPod& pod) const {
  PodUse out;
  for (const auto& [device, guard] : MELTEMI_TRY(bpf_.guards())) {
    if (guard.netns_cookie != pod.cookie) continue;
    out.guard_dropped += guard.dropped + guard.unreadable;
    if (guard.dropped + guard.unreadable >= out.last.dropped + out.last.unreadable) out.last = guard;
  }
  for (const IpAddress& ip : pod.probed_addresses)
    for (const uint16_t port : pod.probed_ports)
      out.probes_passed += MELTEMI_TRY(bpf_.probes_passed(ip, port));
  return out;
}

// Makes the listeners that nobody holds. One that only ztunnel holds (this process is younger) is
// left alone: its queue may be full of connections.
Status Capture::ensure_listeners(CapturedPod& pod) const {
  const NetnsTruth truth = MELTEMI_TRY(read_truth(pod.netns, pod.addresses, marks_));
  Listeners& l = pod.listeners;
  const auto outbound = MELTEMI_TRY(bpf_.listener(pod.cookie, MELTEMI_LISTENER_OUTBOUND));
  if (!l.outbound && !listens(truth.listening, outbound))
    l.outbound = MELTEMI_TRY(listen_outbound(pod.netns, marks_.capture));
  const auto inbound = MELTEMI_TRY(bpf_.listener(pod.cookie, MELTEMI_LISTENER_INBOUND));
  if (!l.inbound && !listens(truth.listening, inbound))
    l.inbound = MELTEMI_TRY(listen_inbound(pod.netns, marks_.tunnel));
  if (!l.hbone && !truth.hbone_listener)
    l.hbone = MELTEMI_TRY(listen_hbone(pod.netns, marks_.tunnel));
  return {};
}

Status Capture::fill_slots(const CapturedPod& pod) const {
  const Listeners& l = pod.listeners;
  if (l.outbound)
    MELTEMI_TRY(bpf_.set_listener(pod.cookie, MELTEMI_LISTENER_OUTBOUND, l.outbound.get()));
  if (l.inbound)
    MELTEMI_TRY(bpf_.set_listener(pod.cookie, MELTEMI_LISTENER_INBOUND, l.inbound.get()));
  return {};
}

Status Capture::write_exclusions(const CapturedPod& pod, const CaptureSpec& spec) {
  MELTEMI_TRY(bpf_.remove_exclusions(pod.cookie));
  meltemi_exclusion key{};
  key.netns_cookie = pod.cookie;
  for (const Cidr& cidr : spec.exclude_cidrs) {
    // IPv4 prefixes lie behind the 96 bits of ::ffff:0:0/96.
    key.prefix_bits =
        MELTEMI_EXCLUSION_FIXED_BITS + cidr.length + (cidr.address.is_v4() ? 96u : 0u);
    key.port = 0;
    key.address = to_abi(cidr.address);
    MELTEMI_TRY(bpf_.add_exclusion(key));
  }
  for (const uint16_t port : spec.exclude_ports) {
    key.prefix_bits = MELTEMI_EXCLUSION_FIXED_BITS;
    key.port = port;
    key.address = {};
    MELTEMI_TRY(bpf_.add_exclusion(key));
  }
  return {};
}

Status Capture::remove_probes(CapturedPod& pod) {
  for (const IpAddress& ip : pod.probed_addresses)
    for (const uint16_t port : pod.probed_ports) MELTEMI_TRY(bpf_.remove_probe(ip, port));
  pod.probed_addresses.clear();
  pod.probed_ports.clear();
  return {};
}

Status Capture::write_probes(CapturedPod& pod, const CaptureSpec& spec) {
  if (pod.probed_addresses != pod.addresses || pod.probed_ports != spec.probe_ports)
    MELTEMI_TRY(remove_probes(pod));
  for (const IpAddress& ip : pod.addresses)
    for (const uint16_t port : spec.probe_ports) MELTEMI_TRY(bpf_.add_probe(ip, port));
  pod.probed_addresses = pod.addresses;
  pod.probed_ports = spec.probe_ports;
  return {};
}

Status Capture::steps(CapturedPod& pod, const CaptureSpec& spec) {
  pod.addresses = MELTEMI_TRY(ordered_addresses(pod.netns, spec.addresses));
  pod.link_local = MELTEMI_TRY(local_addresses(pod.netns)).link_local;
  pod.guard_wanted = spec.guard;
  MELTEMI_TRY(set_sysctls(pod.netns, pod.saved_sysctls));
  MELTEMI_TRY(add_routing(pod.netns, pod.addresses, marks_.capture));
  MELTEMI_TRY(ensure_listeners(pod));
  MELTEMI_TRY(attach_guards(pod));
  const meltemi_pod config = config_of(pod, spec, 0);
  MELTEMI_TRY(bpf_.ensure_pod(pod.cookie, config));
  MELTEMI_TRY(fill_slots(pod));
  MELTEMI_TRY(bpf_.attach_pod(pod.cookie, pod.netns));
  MELTEMI_TRY(write_exclusions(pod, spec));
  MELTEMI_TRY(write_probes(pod, spec));
  return bpf_.set_enrolled(pod.cookie, config);
}

Status Capture::enrol(CapturedPod& pod, const CaptureSpec& spec) {
  const bool captured_before = MELTEMI_TRY(bpf_.enrolled(pod.cookie)).has_value();
  const Status status = steps(pod, spec);
  if (status || captured_before) return status;
  if (const Status undone = finish(pod); !undone)
    scope.warn("undoing a failed enrolment left traces: {}", undone.error().to_string());
  return status;
}

bool Capture::addresses_current(const CapturedPod& pod, const CaptureSpec& spec) const {
  const auto now = ordered_addresses(pod.netns, spec.addresses);
  const auto all = local_addresses(pod.netns);
  return now && *now == pod.addresses && all && all->link_local == pod.link_local;
}

Result<std::vector<std::string>> Capture::missing(const CapturedPod& pod) const {
  const NetnsTruth truth = MELTEMI_TRY(read_truth(pod.netns, pod.addresses, marks_));
  const auto outbound = MELTEMI_TRY(bpf_.listener(pod.cookie, MELTEMI_LISTENER_OUTBOUND));
  const auto inbound = MELTEMI_TRY(bpf_.listener(pod.cookie, MELTEMI_LISTENER_INBOUND));
  const bool present[] = {
      truth.sysctl,
      truth.route,
      truth.rule,
      listens(truth.listening, outbound),
      listens(truth.listening, inbound),
      truth.hbone_listener,
      MELTEMI_TRY(bpf_.pod_attached(pod.cookie, pod.id.inode)),
      MELTEMI_TRY(bpf_.enrolled(pod.cookie)).has_value(),
      MELTEMI_TRY(guard_stands(pod)),
  };
  static_assert(std::size(present) == std::size(kTruthNames));
  std::vector<std::string> out;
  for (size_t i = 0; i < std::size(present); ++i)
    if (!present[i]) out.emplace_back(kTruthNames[i]);
  return out;
}

Result<bool> Capture::any_trace(const CapturedPod& pod) const {
  if (MELTEMI_TRY(bpf_.enrolled(pod.cookie))) return true;
  if (MELTEMI_TRY(bpf_.pod_netns_inode(pod.cookie)) != 0) return true;
  return MELTEMI_TRY(read_truth(pod.netns, pod.addresses, marks_)).rule;
}

Status Capture::begin_drain(CapturedPod& pod) {
  MELTEMI_TRY(bpf_.clear_enrolled(pod.cookie));
  MELTEMI_TRY(bpf_.ensure_pod(pod.cookie, config_of(pod, {}, MELTEMI_POD_DRAINING)));
  MELTEMI_TRY(remove_probes(pod));
  return bpf_.remove_exclusions(pod.cookie);
}

Result<bool> Capture::drained(const CapturedPod& pod) const {
  return MELTEMI_TRY(captured_flows(pod.netns, marks_.capture)) == 0;
}

Status Capture::finish(CapturedPod& pod) {
  MELTEMI_TRY(bpf_.clear_enrolled(pod.cookie));
  MELTEMI_TRY(remove_probes(pod));
  MELTEMI_TRY(bpf_.remove_exclusions(pod.cookie));
  MELTEMI_TRY(bpf_.remove_guards(pod.cookie));
  pod.guarded_devices.clear();
  pod.guard_wanted = false;
  MELTEMI_TRY(remove_routing(pod.netns, marks_.capture));
  MELTEMI_TRY(bpf_.remove_pod(pod.cookie));
  pod.listeners = {};
  MELTEMI_TRY(restore_sysctls(pod.netns, pod.saved_sysctls));
  pod.saved_sysctls.clear();
  return {};
}

Status Capture::forget(uint64_t cookie, const std::vector<IpAddress>& probed_addresses,
                       const std::vector<uint16_t>& probed_ports) {
  MELTEMI_TRY(bpf_.clear_enrolled(cookie));
  for (const IpAddress& ip : probed_addresses)
    for (const uint16_t port : probed_ports) MELTEMI_TRY(bpf_.remove_probe(ip, port));
  MELTEMI_TRY(bpf_.remove_exclusions(cookie));
  MELTEMI_TRY(bpf_.remove_guards(cookie));
  return bpf_.remove_pod(cookie);
}

}  // namespace meltemi::agent
