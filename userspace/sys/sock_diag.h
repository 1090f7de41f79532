// sock_diag(7): the TCP sockets of a namespace with mark, state and cookie, and SOCK_DESTROY. Works
// on the calling thread's namespace, or the one given. Marks are shown only to CAP_NET_ADMIN.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/sys/netns.h"

namespace meltemi::sys {

// As in include/net/tcp_states.h.
enum class TcpState : uint8_t {
  kEstablished = 1,
  kSynSent,
  kSynRecv,
  kFinWait1,
  kFinWait2,
  kTimeWait,
  kClose,
  kCloseWait,
  kLastAck,
  kListen,
  kClosing,
  kNewSynRecv,
};
constexpr uint32_t state_bit(TcpState s) {
  return 1u << static_cast<uint8_t>(s);
}
inline constexpr uint32_t kAllStates = 0xffffffff;
// Everything that carries or will carry data: neither listening nor closed nor TIME_WAIT.
inline constexpr uint32_t kLiveStates =
    kAllStates &
    ~(state_bit(TcpState::kListen) | state_bit(TcpState::kClose) | state_bit(TcpState::kTimeWait));

struct TcpSocket {
  TcpState state = TcpState::kClose;
  int family = 0;  // AF_INET6 also for v4-mapped flows of a dual-stack socket
  SocketAddress local;
  SocketAddress remote;
  uint32_t mark = 0;
  uint32_t uid = 0;
  uint32_t interface = 0;  // bound device or 0
  uint64_t inode = 0;
  uint64_t cookie = 0;
  uint32_t receive_queue = 0;  // bytes; LISTEN: connections waiting for accept
  uint32_t send_queue = 0;     // bytes; LISTEN: backlog
};

// Sockets of both families whose state is in the bit set `states`.
Result<std::vector<TcpSocket>> tcp_sockets(uint32_t states = kAllStates);
Result<std::vector<TcpSocket>> tcp_sockets_in(const Netns& netns, uint32_t states = kAllStates);
// Resets the connection (INET_DIAG_DESTROY). ENOENT (gone already) is success.
Status destroy_tcp_socket(const TcpSocket& socket);

}  // namespace meltemi::sys
