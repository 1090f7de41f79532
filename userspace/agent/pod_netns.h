// The part of capture that lies inside a pod's network namespace: sysctls, routing and listeners.
// Every function may be called again and mends what is missing. Must never
// leave a moment without a rule that looks up `local`, nor touch a rule or route that is not the
// mesh's.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/sys/netns.h"
#include "userspace/sys/sock_diag.h"

namespace meltemi::agent {

struct Marks {
  uint32_t capture = 0;
  uint32_t tunnel = 0;
};

// Non-loopback addresses that are local in the namespace.
struct LocalAddresses {
  std::vector<IpAddress> routable;
  std::vector<IpAddress> link_local;  // fe80::/10
};
Result<LocalAddresses> local_addresses(const sys::Netns& netns);

// The ends in the node's namespace of the pod's veths: where its packets come out. Empty for pods whose
// interfaces are of another kind (macvlan, SR-IOV).
Result<std::vector<uint32_t>> node_ends(const sys::Netns& pod, const sys::Netns& node);

// What the agent holds of a pod. Any of them may be empty after a restart, while ztunnel holds it.
struct Listeners {
  UniqueFd outbound, inbound, hbone;
  bool complete() const { return outbound && inbound && hbone; }
};

// Bind, mark, listen. The outbound listener is transparent, so that it may answer as any address.
// One dual-stack socket, or IPv4 alone where the namespace has IPv6 disabled. Plain TCP, never
// MPTCP: socket options and sk_lookup need it so.
//
// The outbound listener, and so every captured connection, carries the capture mark: its packets go to
// the pod itself, by lo like the answers to them. With the tunnel mark the kernel's RST for an app that
// is gone reflects that mark, leaves by eth0, and the connection lingers in LAST-ACK until the app's
// next connection from the same port runs into it (measured: new connects stalled for seconds).
Result<UniqueFd> listen_outbound(const sys::Netns& netns, uint32_t capture_mark);
Result<UniqueFd> listen_inbound(const sys::Netns& netns, uint32_t tunnel_mark);
// Port 15008. Error with the owner's hint if the pod has taken it.
Result<UniqueFd> listen_hbone(const sys::Netns& netns, uint32_t tunnel_mark);

// Sysctls with the values they had, for undo.
using SavedSysctls = std::map<std::string, std::string>;
Status set_sysctls(const sys::Netns& netns, SavedSysctls& saved);
Status restore_sysctls(const sys::Netns& netns, const SavedSysctls& saved);

// Marked packets to lo, per family that has an address. First address of a family: the source that
// captured connections get.
Status add_routing(const sys::Netns& netns, const std::vector<IpAddress>& addresses,
                   uint32_t capture_mark);
Status remove_routing(const sys::Netns& netns, uint32_t capture_mark);

// What is there, read from the kernel.
struct NetnsTruth {
  bool sysctl = false;
  bool route = false;
  bool rule = false;
  std::vector<sys::TcpSocket> listening;  // with cookies, to compare with the SOCKMAP
  bool hbone_listener = false;            // LISTEN on 15008 with the tunnel's mark
};
Result<NetnsTruth> read_truth(const sys::Netns& netns, const std::vector<IpAddress>& addresses,
                              const Marks& marks);
// Live connections that carry the capture mark: those that would break without the routing.
Result<size_t> captured_flows(const sys::Netns& netns, uint32_t capture_mark);

}  // namespace meltemi::agent
