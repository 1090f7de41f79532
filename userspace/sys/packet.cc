// SOCK_SEQPACKET with SCM_RIGHTS; see packet.h.
#include "userspace/sys/packet.h"

#include <errno.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>

namespace meltemi::sys {
namespace {

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("socket path \"{}\" must have 1 to {} characters", path,
                            sizeof address.sun_path - 1));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

// Waits until `events` or the deadline.
Status wait_for(int fd, short events, MonoTime deadline, const char* what) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - MonoClock::now());
    pollfd p{fd, events, 0};
    const int n = ::poll(&p, 1, static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3600'000)));
    if (n > 0) return {};
    if (n < 0 && errno != EINTR) return fail_errno(errno, "poll");
    if (n == 0)
      return fail(Reason::kRequestTimeout, Fault::kUpstream,
                  fmt::format("{}: no answer in time", what));
  }
}

// Takes ownership of every descriptor in the control data, whatever else is wrong with the packet.
std::vector<UniqueFd> take_fds(msghdr& message) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

// Length of the next packet, which stays queued; 0 at end of file.
Result<size_t> wait_for_packet(int socket, Duration timeout) {
  const MonoTime deadline = MonoClock::now() + timeout;
  while (true) {
    const ssize_t n = ::recv(socket, nullptr, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
    if (n >= 0) return static_cast<size_t>(n);
    if (errno == ECONNRESET) return size_t{0};
    if (errno == EAGAIN && timeout == Duration::zero())
      return fail(Reason::kNotFound, Fault::kUpstream, "no packet waits");
    if (errno == EAGAIN)
      MELTEMI_TRY(wait_for(socket, POLLIN, deadline, "receive"));
    else if (errno != EINTR)
      return fail_errno(errno, "recv");
  }
}

}  // namespace

Result<UniqueFd> listen_packets(const std::string& path, uint32_t mode) {
  const sockaddr_un address = MELTEMI_TRY(address_of(path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno(errno, "socket");
  ::unlink(path.c_str());
  // Nobody may connect between bind and chmod.
  const mode_t old = ::umask(0177);
  const int bound = ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int error = errno;
  ::umask(old);
  if (bound < 0) return fail_errno(error, "bind " + path);
  if (::chmod(path.c_str(), mode) < 0) return fail_errno(errno, "chmod " + path);
  if (::listen(fd.get(), 64) < 0) return fail_errno(errno, "listen " + path);
  return fd;
}

Result<UniqueFd> connect_packets(const std::string& path) {
  const sockaddr_un address = MELTEMI_TRY(address_of(path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno(errno, "socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0)
    return fail_errno(errno, "connect " + path);
  return fd;
}

Result<UniqueFd> accept_packets(int listener) {
  while (true) {
    UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) return fd;
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno == EAGAIN) return fail(Reason::kNotFound, Fault::kDownstream, "nobody waits");
    return fail_errno(errno, "accept");
  }
}

Status send_packet(int socket, ByteView bytes, std::span<const int> fds, Duration timeout) {
  if (fds.size() > kMaxPacketFds || bytes.size() > kMaxPacketBytes)
    return fail(Reason::kLimitExceeded, Fault::kInternal,
                fmt::format("a packet of {} bytes and {} descriptors", bytes.size(), fds.size()));
  iovec data{const_cast<uint8_t*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)]{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
  }
  const MonoTime deadline = MonoClock::now() + timeout;
  while (true) {
    const ssize_t n = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) return {};
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {
      MELTEMI_TRY(wait_for(socket, POLLOUT, deadline, "send to the peer"));
      continue;
    }
    if (errno == EPIPE || errno == ECONNRESET)
      return fail(Reason::kConnectReset, Fault::kUpstream, "the peer closed the socket");
    return fail_errno(errno, "sendmsg");
  }
}

Result<Packet> receive_packet(int socket, Duration timeout, size_t max_bytes) {
  // The length first, so that a small packet does not cost a large buffer.
  const size_t length = MELTEMI_TRY(wait_for_packet(socket, timeout));
  Packet packet;
  packet.bytes.resize(std::min(length, max_bytes));
  iovec data{packet.bytes.data(), packet.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (n < 0) return fail_errno(errno, "recvmsg");
  packet.fds = take_fds(message);
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
    return fail(
        Reason::kBadRequest, Fault::kUpstream,
        fmt::format("a packet larger than {} bytes or {} descriptors", max_bytes, kMaxPacketFds));
  if (n == 0 && packet.fds.empty())
    return fail(Reason::kServerClosedEarly, Fault::kUpstream, "the peer closed the socket");
  return packet;
}

Result<PeerCredentials> peer_credentials(int socket) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0)
    return fail_errno(errno, "SO_PEERCRED");
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

}  // namespace meltemi::sys
