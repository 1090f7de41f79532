// One pod that this ztunnel serves, and the only way to make sockets in its network namespace.
// Immutable and shared by all workers. Must never be the reason that a thread stays in a foreign
// namespace (sys::NetnsGuard sees to it).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/rt/socket_options.h"
#include "userspace/sys/netns.h"

namespace meltemi::ztunnel {

enum class ListenerKind : uint8_t { kOutbound, kInbound, kHbone };
inline constexpr size_t kListenerKinds = 3;
// Ports of our own listeners where nobody hands us some: Istio's.
uint16_t listener_port(ListenerKind kind);

struct Pod {
  std::string uid, name, ns, service_account;
  // Invalid: the process's own namespace (dedicated mode).
  sys::Netns netns;
  sys::NetnsId netns_id;
  // Captured by REDIRECT rules (Istio's CNI): the destination is in SO_ORIGINAL_DST. Otherwise it is
  // the accepted socket's local address (bpf/abi.h).
  bool redirected = false;
  bool preserve_source = true;
  uint32_t tunnel_mark = 0;  // SO_MARK of every socket but those that keep the client's address; 0: none
  uint32_t source_mark = 0;  // SO_MARK of those

  // A non-blocking, unconnected socket for dialling `to` from the pod. With `source` it carries that
  // address (transparent), so the app sees its client.
  Result<UniqueFd> dial_socket(const SocketAddress& to, std::optional<IpAddress> source) const;
  // A listening socket at Istio's port.
  Result<UniqueFd> listen(ListenerKind kind, bool ipv6) const;
  // Where the client of an accepted connection wanted to go.
  Result<SocketAddress> original_destination(int fd) const;
};
using PodPtr = std::shared_ptr<const Pod>;

}  // namespace meltemi::ztunnel
