// Routing, sysctls and listeners of one pod; see pod_netns.h.
#include "userspace/agent/pod_netns.h"

#include <errno.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "bpf/abi.h"
#include "userspace/sys/netlink.h"
#include "userspace/sys/sysctl.h"

namespace meltemi::agent {
namespace {

constexpr int kBacklog =
    4096;  // SYNs that wait while ztunnel restarts; the kernel caps by somaxconn

struct SysctlWanted {
  const char* key;
  const char* why;
};
// All are 0 by default and take "1".
constexpr SysctlWanted kSysctls[] = {
    {"net/ipv4/tcp_fwmark_accept", "the app's answers to ztunnel's dials return over lo"},
    {"net/ipv4/tcp_migrate_req", "no connection is lost when a listener changes hands"},
    // Without it the kernel's own RST (nobody listens) leaves by eth0 to the client, whose address
    // ztunnel dialled from, and ztunnel waits for its timeout instead of being refused.
    {"net/ipv4/fwmark_reflect", "a refused dial of ztunnel is refused at once"},
    {"net/ipv6/fwmark_reflect", "a refused dial of ztunnel is refused at once"},
};

// A kernel without IPv6 has no sysctls of it. In the calling thread's namespace.
bool applies(const SysctlWanted& wanted) {
  return !std::string_view(wanted.key).starts_with("net/ipv6/") ||
         ::access("/proc/sys/net/ipv6", F_OK) == 0;
}

Result<bool> has_ipv6() {
  const Result<std::string> disabled = sys::read_sysctl("net/ipv6/conf/all/disable_ipv6");
  if (!disabled && disabled.error().reason != Reason::kNotFound) return fail(disabled.error());
  return disabled && *disabled == "0";
}

Status set_option(int fd, int level, int name, int value, const char* what) {
  if (::setsockopt(fd, level, name, &value, sizeof value) < 0) return fail_errno(errno, what);
  return {};
}

Status make_transparent(int fd, bool v6) {
  MELTEMI_TRY(set_option(fd, SOL_IP, IP_TRANSPARENT, 1, "IP_TRANSPARENT (needs CAP_NET_ADMIN)"));
  if (v6) MELTEMI_TRY(set_option(fd, SOL_IPV6, IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT"));
  return {};
}

// In the calling thread's namespace.
Result<UniqueFd> listen_here(uint16_t port, uint32_t mark, bool transparent) {
  const bool v6 = MELTEMI_TRY(has_ipv6());
  UniqueFd fd(
      ::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP));
  if (!fd) return fail_errno(errno, "socket");
  if (v6) MELTEMI_TRY(set_option(fd.get(), SOL_IPV6, IPV6_V6ONLY, 0, "IPV6_V6ONLY"));
  MELTEMI_TRY(set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  MELTEMI_TRY(set_option(fd.get(), SOL_SOCKET, SO_MARK, static_cast<int>(mark), "SO_MARK"));
  if (transparent) MELTEMI_TRY(make_transparent(fd.get(), v6));
  sockaddr_storage any;
  const socklen_t length = SocketAddress{IpAddress::v4(0), port}.to_sockaddr(any, false);
  sockaddr_in6 any6{.sin6_family = AF_INET6, .sin6_port = htons(port)};
  const auto* address = v6 ? reinterpret_cast<sockaddr*>(&any6) : reinterpret_cast<sockaddr*>(&any);
  if (::bind(fd.get(), address, v6 ? sizeof any6 : length) < 0)
    return fail_errno(errno, fmt::format("bind port {} in the pod", port));
  if (::listen(fd.get(), kBacklog) < 0) return fail_errno(errno, "listen in the pod");
  return fd;
}

std::optional<IpAddress> first_of_family(const std::vector<IpAddress>& addresses, int family) {
  for (const IpAddress& ip : addresses)
    if (ip.is_v4() == (family == AF_INET)) return ip;
  return std::nullopt;
}

// The three rules of one family.
struct Rules {
  sys::Rule capture, local, original_local;
  Rules(int family, uint32_t mark)
      : capture{.family = family,
                .priority = MELTEMI_RULE_PRIORITY_CAPTURE,
                .table = MELTEMI_ROUTE_TABLE,
                .fwmark = mark,
                .fwmask = 0xffffffff},
        local{.family = family, .priority = MELTEMI_RULE_PRIORITY_LOCAL, .table = sys::kTableLocal},
        original_local{.family = family, .priority = 0, .table = sys::kTableLocal} {}
};

sys::Route route_to_lo(const IpAddress& source) {
  return {.family = source.is_v4() ? AF_INET : AF_INET6,
          .table = MELTEMI_ROUTE_TABLE,
          .type = sys::Route::Type::kLocal,
          .preferred_source = source,
          .oif = 1};  // lo is the first device of every namespace
}

bool contains(const std::vector<sys::Rule>& rules, const sys::Rule& rule) {
  return std::find(rules.begin(), rules.end(), rule) != rules.end();
}

}  // namespace

Result<LocalAddresses> local_addresses(const sys::Netns& netns) {
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open_in(netns));
  LocalAddresses out;
  for (const sys::Address& a : MELTEMI_TRY(netlink.addresses())) {
    const bool link_local_v6 =
        !a.ip.is_v4() && a.ip.bytes()[0] == 0xfe && (a.ip.bytes()[1] & 0xc0) == 0x80;
    if (a.ip.is_loopback()) continue;
    (link_local_v6 ? out.link_local : out.routable).push_back(a.ip);
  }
  return out;
}

Result<std::vector<uint32_t>> node_ends(const sys::Netns& pod, const sys::Netns& node) {
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open_in(pod));
  const uint32_t node_id = MELTEMI_TRY(netlink.netns_id(node));
  std::vector<uint32_t> out;
  for (const sys::Link& link : MELTEMI_TRY(netlink.links()))
    if (link.kind == "veth" && link.peer != 0 && link.peer_netns_id == node_id)
      out.push_back(link.peer);
  return out;
}

Result<UniqueFd> listen_outbound(const sys::Netns& netns, uint32_t capture_mark) {
  return netns.run([&] { return listen_here(0, capture_mark, true); });
}

Result<UniqueFd> listen_inbound(const sys::Netns& netns, uint32_t tunnel_mark) {
  return netns.run([&] { return listen_here(0, tunnel_mark, true); });
}

Result<UniqueFd> listen_hbone(const sys::Netns& netns, uint32_t tunnel_mark) {
  Result<UniqueFd> fd =
      netns.run([&] { return listen_here(MELTEMI_HBONE_PORT, tunnel_mark, true); });
  if (!fd)
    fd.error().detail += fmt::format(
        "; the mesh needs port {} of every enrolled pod (who has it: nsenter -n ss -ltnp)",
        MELTEMI_HBONE_PORT);
  return fd;
}

Status set_sysctls(const sys::Netns& netns, SavedSysctls& saved) {
  return netns.run([&]() -> Status {
    for (const SysctlWanted& wanted : kSysctls) {
      if (!applies(wanted)) continue;
      Result<std::string> before = sys::read_sysctl(wanted.key);
      if (!before) {
        before.error().detail += fmt::format("; needed so that {}", wanted.why);
        return fail(before.error());
      }
      saved.emplace(wanted.key, *before);  // the first look counts
      if (*before != "1") MELTEMI_TRY(sys::write_sysctl(wanted.key, "1"));
    }
    return {};
  });
}

Status restore_sysctls(const sys::Netns& netns, const SavedSysctls& saved) {
  return netns.run([&]() -> Status {
    for (const SysctlWanted& wanted : kSysctls) {
      if (!applies(wanted)) continue;
      const auto found = saved.find(wanted.key);
      MELTEMI_TRY(sys::write_sysctl(wanted.key, found == saved.end() ? "0" : found->second));
    }
    return {};
  });
}

Status add_routing(const sys::Netns& netns, const std::vector<IpAddress>& addresses,
                   uint32_t capture_mark) {
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open_in(netns));
  for (const int family : {AF_INET, AF_INET6}) {
    const std::optional<IpAddress> source = first_of_family(addresses, family);
    if (!source) continue;
    const sys::Route route = route_to_lo(*source);
    const auto routes = MELTEMI_TRY(netlink.routes(family, MELTEMI_ROUTE_TABLE));
    if (routes.size() != 1 || routes.front() != route) MELTEMI_TRY(netlink.replace_route(route));
    const Rules rules(family, capture_mark);
    // Add, add, delete: at no moment is `local` not looked up.
    MELTEMI_TRY(netlink.ensure_rule(rules.capture));
    MELTEMI_TRY(netlink.ensure_rule(rules.local));
    MELTEMI_TRY(netlink.delete_rule(rules.original_local));
  }
  return {};
}

Status remove_routing(const sys::Netns& netns, uint32_t capture_mark) {
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open_in(netns));
  for (const int family : {AF_INET, AF_INET6}) {
    const Rules rules(family, capture_mark);
    const std::vector<sys::Rule> present = MELTEMI_TRY(netlink.rules(family));
    if (present.empty()) continue;  // the family is not there
    if (!contains(present, rules.original_local))
      MELTEMI_TRY(netlink.add_rule(rules.original_local));
    MELTEMI_TRY(netlink.delete_rule(rules.local));
    MELTEMI_TRY(netlink.delete_rule(rules.capture));
    for (const sys::Route& route : MELTEMI_TRY(netlink.routes(family, MELTEMI_ROUTE_TABLE)))
      MELTEMI_TRY(netlink.delete_route(route));
  }
  return {};
}

Result<NetnsTruth> read_truth(const sys::Netns& netns, const std::vector<IpAddress>& addresses,
                              const Marks& marks) {
  NetnsTruth truth;
  truth.sysctl = true;
  for (const SysctlWanted& wanted : kSysctls) {
    if (!applies(wanted)) continue;
    const Result<std::string> value = netns.run([&] { return sys::read_sysctl(wanted.key); });
    if (!value && value.error().reason != Reason::kNotFound) return fail(value.error());
    if (!value || *value != "1") truth.sysctl = false;
  }
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open_in(netns));
  truth.route = truth.rule = !addresses.empty();
  for (const int family : {AF_INET, AF_INET6}) {
    const std::optional<IpAddress> source = first_of_family(addresses, family);
    if (!source) continue;
    const auto routes = MELTEMI_TRY(netlink.routes(family, MELTEMI_ROUTE_TABLE));
    if (std::none_of(routes.begin(), routes.end(), [&](const sys::Route& r) {
          return r.type == sys::Route::Type::kLocal && !r.destination && r.oif == 1;
        }))
      truth.route = false;
    const auto present = MELTEMI_TRY(netlink.rules(family));
    const Rules rules(family, marks.capture);
    if (!contains(present, rules.capture) || !contains(present, rules.local) ||
        contains(present, rules.original_local))
      truth.rule = false;
  }
  truth.listening = MELTEMI_TRY(sys::tcp_sockets_in(netns, sys::state_bit(sys::TcpState::kListen)));
  for (const sys::TcpSocket& s : truth.listening)
    if (s.local.port == MELTEMI_HBONE_PORT && s.mark == marks.tunnel) truth.hbone_listener = true;
  return truth;
}

Result<size_t> captured_flows(const sys::Netns& netns, uint32_t capture_mark) {
  const auto live = MELTEMI_TRY(sys::tcp_sockets_in(netns, sys::kLiveStates));
  return static_cast<size_t>(std::count_if(
      live.begin(), live.end(), [&](const sys::TcpSocket& s) { return s.mark == capture_mark; }));
}

}  // namespace meltemi::agent
