// inet_diag dumps; see sock_diag.h.
#include "userspace/sys/sock_diag.h"

#include <errno.h>
#include <fmt/format.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "userspace/base/fd.h"

namespace meltemi::sys {
namespace {

struct Request {
  nlmsghdr header;
  inet_diag_req_v2 diag;
};

Result<UniqueFd> open_diag() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!fd) return fail_errno(errno, "sock_diag socket");
  return fd;
}

Request request_of(uint16_t type, uint16_t flags, int family) {
  Request r{};
  r.header.nlmsg_len = sizeof r;
  r.header.nlmsg_type = type;
  r.header.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
  r.diag.sdiag_family = static_cast<uint8_t>(family);
  r.diag.sdiag_protocol = IPPROTO_TCP;
  return r;
}

SocketAddress address_of(int family, const uint32_t words[4], uint16_t port_network_order) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(words);
  const auto ip = IpAddress::from_bytes(ByteView(bytes, family == AF_INET ? 4 : 16));
  return {ip.value_or(IpAddress()), ntohs(port_network_order)};
}

void write_address(uint32_t words[4], int family, const IpAddress& ip) {
  if (family == AF_INET)
    words[0] = ip.v4_network_order();
  else
    std::memcpy(words, ip.bytes().data(), 16);
}

TcpSocket socket_of(const nlmsghdr* message) {
  inet_diag_msg m{};
  const size_t size = message->nlmsg_len - NLMSG_HDRLEN;
  const auto* payload = reinterpret_cast<const uint8_t*>(message) + NLMSG_HDRLEN;
  std::memcpy(&m, payload, std::min(size, sizeof m));
  TcpSocket s;
  s.state = static_cast<TcpState>(m.idiag_state);
  s.family = m.idiag_family;
  s.local = address_of(m.idiag_family, m.id.idiag_src, m.id.idiag_sport);
  s.remote = address_of(m.idiag_family, m.id.idiag_dst, m.id.idiag_dport);
  s.uid = m.idiag_uid;
  s.interface = m.id.idiag_if;
  s.inode = m.idiag_inode;
  s.cookie = uint64_t{m.id.idiag_cookie[1]} << 32 | m.id.idiag_cookie[0];
  s.receive_queue = m.idiag_rqueue;
  s.send_queue = m.idiag_wqueue;
  if (size <= sizeof m) return s;
  auto left = static_cast<int>(size - sizeof m);
  for (auto* a = reinterpret_cast<const rtattr*>(payload + sizeof m); RTA_OK(a, left);
       a = RTA_NEXT(a, left))
    if (a->rta_type == INET_DIAG_MARK) std::memcpy(&s.mark, RTA_DATA(a), sizeof s.mark);
  return s;
}

// Reads answers to the end of a dump or to an error message, whose errno (0: acknowledged) is
// returned.
template <typename F>
Result<int> read_answers(int fd, F&& each) {
  alignas(nlmsghdr) std::array<char, 64 << 10> buffer;
  while (true) {
    const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "sock_diag");
    const auto size = static_cast<size_t>(n);
    const nlmsghdr* m = nullptr;
    for (size_t at = 0; at + sizeof *m <= size; at += NLMSG_ALIGN(m->nlmsg_len)) {
      m = reinterpret_cast<const nlmsghdr*>(buffer.data() + at);
      if (m->nlmsg_len < sizeof *m || m->nlmsg_len > size - at) break;
      if (m->nlmsg_type == NLMSG_DONE) {
        int error = 0;
        if (m->nlmsg_len >= NLMSG_HDRLEN + sizeof error)
          std::memcpy(&error, reinterpret_cast<const char*>(m) + NLMSG_HDRLEN, sizeof error);
        return error < 0 ? -error : 0;
      }
      if (m->nlmsg_type == NLMSG_ERROR)
        return -reinterpret_cast<const nlmsgerr*>(reinterpret_cast<const char*>(m) + NLMSG_HDRLEN)
                    ->error;
      each(m);
    }
  }
}

}  // namespace

Result<std::vector<TcpSocket>> tcp_sockets(uint32_t states) {
  const UniqueFd fd = MELTEMI_TRY(open_diag());
  std::vector<TcpSocket> out;
  for (const int family : {AF_INET, AF_INET6}) {
    Request r = request_of(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family);
    r.diag.idiag_states = states;
    if (::send(fd.get(), &r, sizeof r, 0) < 0) return fail_errno(errno, "sock_diag");
    const int error = MELTEMI_TRY(
        read_answers(fd.get(), [&](const nlmsghdr* m) { out.push_back(socket_of(m)); }));
    if (error != 0) return fail_errno(error, "sock_diag dump (is inet_diag in the kernel?)");
  }
  return out;
}

Result<std::vector<TcpSocket>> tcp_sockets_in(const Netns& netns, uint32_t states) {
  return netns.run([&] { return tcp_sockets(states); });
}

Status destroy_tcp_socket(const TcpSocket& socket) {
  const UniqueFd fd = MELTEMI_TRY(open_diag());
  Request r = request_of(SOCK_DESTROY, NLM_F_ACK, socket.family);
  r.diag.idiag_states = kAllStates;
  write_address(r.diag.id.idiag_src, socket.family, socket.local.ip);
  write_address(r.diag.id.idiag_dst, socket.family, socket.remote.ip);
  r.diag.id.idiag_sport = htons(socket.local.port);
  r.diag.id.idiag_dport = htons(socket.remote.port);
  r.diag.id.idiag_if = socket.interface;
  r.diag.id.idiag_cookie[0] = static_cast<uint32_t>(socket.cookie);
  r.diag.id.idiag_cookie[1] = static_cast<uint32_t>(socket.cookie >> 32);
  if (::send(fd.get(), &r, sizeof r, 0) < 0) return fail_errno(errno, "SOCK_DESTROY");
  const int error = MELTEMI_TRY(read_answers(fd.get(), [](const nlmsghdr*) {}));
  if (error == 0 || error == ENOENT) return {};
  return fail_errno(error, fmt::format("SOCK_DESTROY of {} to {}", socket.local.to_string(),
                                       socket.remote.to_string()));
}

}  // namespace meltemi::sys
