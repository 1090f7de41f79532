// Making and marking TCP sockets. Every socket is made with IPPROTO_TCP by name (a pod's policy may
// turn the default into MPTCP) and close-on-exec; loops set O_NONBLOCK as they need it. Never
// changes the thread's netns.
#pragma once

#include <cstdint>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::rt {

// AF_INET or AF_INET6 by the address. TCP_NODELAY is set.
Result<UniqueFd> make_tcp_socket(const SocketAddress& peer);

struct ListenOptions {
  bool transparent = false;  // IP_TRANSPARENT
  bool reuse_port = false;
  bool v6_only = false;
  int backlog = 4096;
};
Result<UniqueFd> make_tcp_listener(const SocketAddress& address, const ListenOptions& options);

struct Keepalive {
  Duration idle = std::chrono::seconds(180);
  Duration interval = std::chrono::seconds(180);
  int probes = 9;
};

// All return kSystem with the option's name.
Status set_nodelay(int fd);
Status set_keepalive(int fd, const Keepalive& keepalive);
Status set_mark(int fd, uint32_t mark);                // SO_MARK; needs CAP_NET_ADMIN
Status set_transparent(int fd, bool v6);               // IP(V6)_TRANSPARENT; needs CAP_NET_ADMIN
// Binds the source address, the port is chosen at connect (IP_BIND_ADDRESS_NO_PORT). With port != 0
// binds both.
Status bind_source(int fd, const SocketAddress& source);
Status set_congestion_control(int fd, const char* name);  // TCP_CONGESTION
// Fixes the receive buffer, which the kernel otherwise grows to tcp_rmem[2] (SO_RCVBUFFORCE, without
// CAP_NET_ADMIN SO_RCVBUF, which net.core.rmem_max caps). `bytes` of payload, about. For the window
// scale to fit it is set before connect(), or on a listener: accepted sockets inherit it.
Status limit_receive_buffer(int fd, uint32_t bytes);
void set_reset_on_close(int fd);                       // SO_LINGER 0: close() sends RST

// For a captured connection the local address is the original destination.
Result<SocketAddress> local_address(int fd);
Result<SocketAddress> peer_address(int fd);

}  // namespace meltemi::rt
