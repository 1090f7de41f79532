// See socket_options.h.
#include "userspace/rt/socket_options.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstring>

namespace meltemi::rt {
namespace {

Status set_option(int fd, int level, int name, int value, const char* what) {
  if (setsockopt(fd, level, name, &value, sizeof value) < 0) return fail_errno(errno, what);
  return {};
}

int seconds(Duration d) {
  return static_cast<int>(std::chrono::ceil<std::chrono::seconds>(d).count());
}

Result<SocketAddress> address_of(int fd, int (*get)(int, sockaddr*, socklen_t*),
                                 const char* what) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (get(fd, reinterpret_cast<sockaddr*>(&storage), &length) < 0) return fail_errno(errno, what);
  auto address = SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length);
  if (!address) return fail(Reason::kInternal, Fault::kInternal, std::string(what) + ": no address");
  return *address;
}

}  // namespace

Result<UniqueFd> make_tcp_socket(const SocketAddress& peer) {
  const int family = peer.ip.is_v4() ? AF_INET : AF_INET6;
  UniqueFd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd) return fail_errno(errno, "socket");
  MELTEMI_TRY(set_nodelay(fd.get()));
  return fd;
}

Result<UniqueFd> make_tcp_listener(const SocketAddress& address, const ListenOptions& options) {
  const bool v6 = !address.ip.is_v4();
  UniqueFd fd(socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd) return fail_errno(errno, "socket");
  MELTEMI_TRY(set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  if (options.reuse_port)
    MELTEMI_TRY(set_option(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT"));
  if (v6)
    MELTEMI_TRY(set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, options.v6_only, "IPV6_V6ONLY"));
  if (options.transparent) MELTEMI_TRY(set_transparent(fd.get(), v6));
  MELTEMI_TRY(set_nodelay(fd.get()));  // accepted sockets inherit it
  sockaddr_storage storage{};
  const socklen_t length = address.to_sockaddr(storage);
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&storage), length) < 0)
    return fail_errno(errno, "bind " + address.to_string());
  if (listen(fd.get(), options.backlog) < 0)
    return fail_errno(errno, "listen " + address.to_string());
  return fd;
}

Status set_nodelay(int fd) { return set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"); }

Status set_keepalive(int fd, const Keepalive& k) {
  MELTEMI_TRY(set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"));
  MELTEMI_TRY(set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds(k.idle), "TCP_KEEPIDLE"));
  MELTEMI_TRY(set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds(k.interval), "TCP_KEEPINTVL"));
  return set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, k.probes, "TCP_KEEPCNT");
}

Status set_mark(int fd, uint32_t mark) {
  return set_option(fd, SOL_SOCKET, SO_MARK, static_cast<int>(mark), "SO_MARK");
}

Status set_transparent(int fd, bool v6) {
  // A dual-stack socket needs both; a plain v4 one refuses the v6 option.
  if (v6) MELTEMI_TRY(set_option(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT"));
  const Status v4 = set_option(fd, IPPROTO_IP, IP_TRANSPARENT, 1, "IP_TRANSPARENT");
  return v6 ? Status{} : v4;
}

Status bind_source(int fd, const SocketAddress& source) {
  if (source.port == 0) {
    MELTEMI_TRY(set_option(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT"));
  } else {
    MELTEMI_TRY(set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  }
  int family = AF_INET;
  socklen_t size = sizeof family;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) < 0)
    return fail_errno(errno, "SO_DOMAIN");
  sockaddr_storage storage{};
  const socklen_t length = source.to_sockaddr(storage, family == AF_INET6);
  if (bind(fd, reinterpret_cast<sockaddr*>(&storage), length) < 0)
    return fail_errno(errno, "bind " + source.to_string());
  return {};
}

Status set_congestion_control(int fd, const char* name) {
  if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, static_cast<socklen_t>(strlen(name))) < 0)
    return fail_errno(errno, std::string("TCP_CONGESTION ") + name);
  return {};
}

Status limit_receive_buffer(int fd, uint32_t bytes) {
  // The kernel doubles the value, for its own bookkeeping.
  const int value = static_cast<int>(bytes);
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &value, sizeof value) == 0) return {};
  return set_option(fd, SOL_SOCKET, SO_RCVBUF, value, "SO_RCVBUF");
}

void set_reset_on_close(int fd) {
  const linger l{1, 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
}

Result<SocketAddress> local_address(int fd) { return address_of(fd, getsockname, "getsockname"); }
Result<SocketAddress> peer_address(int fd) { return address_of(fd, getpeername, "getpeername"); }

}  // namespace meltemi::rt
