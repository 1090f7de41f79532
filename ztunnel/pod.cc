#include "ztunnel/pod.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "userspace/base/log.h"
#include "userspace/model/types.h"

namespace meltemi::ztunnel {
namespace {

constexpr int kSoOriginalDst = 80;  // <linux/netfilter_ipv4.h>, the same number for IPv6

// Our threads leave the namespace that the process was started in for a socket(2) and no longer, so
// one descriptor of it serves all of them.
template <typename F>
std::invoke_result_t<F> inside(const sys::Netns& netns, F&& f) {
  static const Result<sys::Netns> home = sys::Netns::current();
  if (!home) return fail(home.error());
  return netns.valid() ? netns.run_from(*home, std::forward<F>(f)) : std::forward<F>(f)();
}

}  // namespace

uint16_t listener_port(ListenerKind kind) {
  switch (kind) {
    case ListenerKind::kOutbound: return model::kOutboundPort;
    case ListenerKind::kInbound: return model::kInboundPlaintextPort;
    case ListenerKind::kHbone: return model::kHbonePort;
  }
  return 0;
}

Result<UniqueFd> Pod::dial_socket(const SocketAddress& to, std::optional<IpAddress> source) const {
  UniqueFd fd = MELTEMI_TRY(inside(netns, [&] { return rt::make_tcp_socket(to); }));
  const uint32_t mark = source ? source_mark : tunnel_mark;
  if (mark != 0) MELTEMI_TRY(rt::set_mark(fd.get(), mark));
  if (source) {
    MELTEMI_TRY(rt::set_transparent(fd.get(), !source->is_v4()));
    MELTEMI_TRY(rt::bind_source(fd.get(), {*source, 0}));
  }
  return fd;
}

Result<UniqueFd> Pod::listen(ListenerKind kind, bool ipv6) const {
  const SocketAddress any{ipv6 ? IpAddress() : IpAddress::v4(0), listener_port(kind)};
  rt::ListenOptions options;
  options.reuse_port = true;
  UniqueFd fd = MELTEMI_TRY(inside(netns, [&] { return rt::make_tcp_listener(any, options); }));
  if (tunnel_mark != 0) MELTEMI_TRY(rt::set_mark(fd.get(), tunnel_mark));
  return fd;
}

Result<SocketAddress> Pod::original_destination(int fd) const {
  const SocketAddress local = MELTEMI_TRY(rt::local_address(fd));
  if (!redirected) return local;
  for (const int level : {SOL_IP, SOL_IPV6}) {
    sockaddr_storage storage{};
    socklen_t length = sizeof storage;
    if (getsockopt(fd, level, kSoOriginalDst, &storage, &length) != 0) continue;
    if (auto a = SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&storage), length)) {
      return *a;
    }
  }
  return local;
}

}  // namespace meltemi::ztunnel
