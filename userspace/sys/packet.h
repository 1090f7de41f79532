// AF_UNIX SOCK_SEQPACKET with descriptors (SCM_RIGHTS): the transport of ZDS and of the agent's
// socket. One packet is one message. Must never leak a descriptor: what is received is owned at
// once, with CLOEXEC, and a truncated packet is an error that closes them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::sys {

inline constexpr size_t kMaxPacketBytes = 1 << 20;  // a ListPods answer of 1000 pods fits
inline constexpr size_t kMaxPacketFds = 8;

struct Packet {
  std::string bytes;
  std::vector<UniqueFd> fds;
};

// Removes a stale socket file first. `mode` as in chmod. Nonblocking.
Result<UniqueFd> listen_packets(const std::string& path, uint32_t mode);
// Blocking socket.
Result<UniqueFd> connect_packets(const std::string& path);
// kNotFound when nobody waits (EAGAIN). The accepted socket is nonblocking.
Result<UniqueFd> accept_packets(int listener);

// Blocks up to `timeout` where the socket is full. Error kConnectReset if the peer is gone.
Status send_packet(int socket, ByteView bytes, std::span<const int> fds, Duration timeout);
// Waits up to `timeout` for one packet (zero: do not wait; error kNotFound if there is none).
// kServerClosedEarly at end of file; kBadRequest if it is larger than `max_bytes` or carries more
// than kMaxPacketFds descriptors; kRequestTimeout if nothing came in time.
Result<Packet> receive_packet(int socket, Duration timeout, size_t max_bytes = kMaxPacketBytes);

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};
Result<PeerCredentials> peer_credentials(int socket);  // SO_PEERCRED

}  // namespace meltemi::sys
