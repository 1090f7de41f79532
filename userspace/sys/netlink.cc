// rtnetlink messages; see netlink.h. One request, one answer; the buffer of a dump is sized so that
// the kernel never truncates a message.
#include "userspace/sys/netlink.h"

#include <errno.h>
#include <fmt/format.h>
#include <linux/fib_rules.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/net_namespace.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace meltemi::sys {
namespace {

constexpr size_t kReceiveBuffer = 64 << 10;
constexpr int kDumpAttempts = 50;  // each takes some 10 us

struct AttributeView {
  uint16_t type;
  const uint8_t* data;
  size_t size;

  uint32_t u32() const {
    uint32_t v = 0;
    std::memcpy(&v, data, std::min(size, sizeof v));
    return v;
  }
  uint8_t u8() const { return size > 0 ? data[0] : 0; }
  std::string text() const {
    const char* s = reinterpret_cast<const char*>(data);
    return std::string(s, ::strnlen(s, size));
  }
  std::optional<IpAddress> ip() const { return IpAddress::from_bytes(ByteView(data, size)); }
};

// Walks the attributes behind a fixed header of `header_size` bytes.
template <typename F>
void for_each_attribute(const uint8_t* begin, size_t size, F&& f) {
  while (size >= sizeof(rtattr)) {
    rtattr a;
    std::memcpy(&a, begin, sizeof a);
    if (a.rta_len < sizeof a || a.rta_len > size) return;
    f(AttributeView{static_cast<uint16_t>(a.rta_type & NLA_TYPE_MASK), begin + RTA_LENGTH(0),
                    a.rta_len - RTA_LENGTH(0)});
    const size_t step = std::min<size_t>(RTA_ALIGN(a.rta_len), size);
    begin += step;
    size -= step;
  }
}

// REQUIRES: the message is of the type that has header H.
template <typename H, typename F>
H parse(const nlmsghdr* message, F&& each_attribute) {
  H header{};
  const auto* payload = reinterpret_cast<const uint8_t*>(message) + NLMSG_HDRLEN;
  const size_t size = message->nlmsg_len - NLMSG_HDRLEN;
  if (size < sizeof header) return header;
  std::memcpy(&header, payload, sizeof header);
  const size_t skip = std::min<size_t>(NLMSG_ALIGN(sizeof header), size);
  for_each_attribute(payload + skip, size - skip, each_attribute);
  return header;
}

int family_of(const IpAddress& ip) {
  return ip.is_v4() ? AF_INET : AF_INET6;
}

// Unicast and local routes have their type; others are told apart only as "other".
uint8_t wire_type(Route::Type type) {
  switch (type) {
    case Route::Type::kLocal:
      return RTN_LOCAL;
    case Route::Type::kBlackhole:
      return RTN_BLACKHOLE;
    case Route::Type::kUnreachable:
      return RTN_UNREACHABLE;
    default:
      return RTN_UNICAST;
  }
}
Route::Type route_type(uint8_t wire) {
  switch (wire) {
    case RTN_UNICAST:
      return Route::Type::kUnicast;
    case RTN_LOCAL:
      return Route::Type::kLocal;
    case RTN_BLACKHOLE:
      return Route::Type::kBlackhole;
    case RTN_UNREACHABLE:
      return Route::Type::kUnreachable;
    default:
      return Route::Type::kOther;
  }
}
uint8_t wire_action(Rule::Action action) {
  switch (action) {
    case Rule::Action::kBlackhole:
      return FR_ACT_BLACKHOLE;
    case Rule::Action::kUnreachable:
      return FR_ACT_UNREACHABLE;
    default:
      return FR_ACT_TO_TBL;
  }
}
Rule::Action rule_action(uint8_t wire) {
  switch (wire) {
    case FR_ACT_TO_TBL:
      return Rule::Action::kLookup;
    case FR_ACT_BLACKHOLE:
      return Rule::Action::kBlackhole;
    case FR_ACT_UNREACHABLE:
      return Rule::Action::kUnreachable;
    default:
      return Rule::Action::kOther;
  }
}

std::string rule_text(const Rule& rule) {
  return fmt::format("rule pref {} fwmark {:#x} table {}", rule.priority, rule.fwmark, rule.table);
}
std::string route_text(const Route& route) {
  return fmt::format("route {} table {}",
                     route.destination ? route.destination->to_string() : "default", route.table);
}

// The text that the kernel attaches to an error (NETLINK_EXT_ACK), if any.
std::string extended_text(const nlmsghdr* message, const nlmsgerr* error) {
  std::string text;
  if ((message->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return text;
  size_t skip = NLMSG_HDRLEN + sizeof(nlmsgerr);
  if ((message->nlmsg_flags & NLM_F_CAPPED) == 0) skip += error->msg.nlmsg_len - NLMSG_HDRLEN;
  if (skip >= message->nlmsg_len) return text;
  for_each_attribute(reinterpret_cast<const uint8_t*>(message) + skip, message->nlmsg_len - skip,
                     [&](const AttributeView& a) {
                       if (a.type == NLMSGERR_ATTR_MSG) text = ": " + a.text();
                     });
  return text;
}

// Turns the errnos that mean "it is so already" into success.
Status forgive(Status status, std::initializer_list<int> accepted, int last_errno) {
  if (status) return status;
  for (const int e : accepted)
    if (e == last_errno) return {};
  return status;
}

}  // namespace

// A request under construction.
class Netlink::Message {
 public:
  template <typename H>
  Message(uint16_t type, uint16_t flags, const H& header) {
    nlmsghdr h{};
    h.nlmsg_type = type;
    h.nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
    append(&h, sizeof h);
    append(&header, sizeof header);
  }
  void attribute(uint16_t type, const void* data, size_t size) {
    rtattr a{};
    a.rta_type = type;
    a.rta_len = static_cast<uint16_t>(RTA_LENGTH(size));
    append(&a, sizeof a);
    append(data, size);
  }
  void u32(uint16_t type, uint32_t value) { attribute(type, &value, sizeof value); }
  void u8(uint16_t type, uint8_t value) { attribute(type, &value, sizeof value); }
  void text(uint16_t type, std::string_view s) {
    attribute(type, std::string(s).c_str(), s.size() + 1);
  }
  void ip(uint16_t type, const IpAddress& address) {
    const std::string wire = address.wire();
    attribute(type, wire.data(), wire.size());
  }
  size_t begin(uint16_t type) {
    const size_t at = bytes_.size();
    attribute(static_cast<uint16_t>(type), nullptr, 0);
    return at;
  }
  void end(size_t at) {
    const auto length = static_cast<uint16_t>(bytes_.size() - at);
    std::memcpy(bytes_.data() + at, &length, sizeof length);
  }
  // Some attributes nest behind a fixed header (VETH_INFO_PEER).
  template <typename H>
  void header(const H& h) {
    append(&h, sizeof h);
  }
  const std::vector<uint8_t>& finish(uint32_t sequence) {
    nlmsghdr h;
    std::memcpy(&h, bytes_.data(), sizeof h);
    h.nlmsg_len = static_cast<uint32_t>(bytes_.size());
    h.nlmsg_seq = sequence;
    std::memcpy(bytes_.data(), &h, sizeof h);
    return bytes_;
  }
  int last_errno = 0;  // of the answer

 private:
  void append(const void* data, size_t size) {
    const auto* p = static_cast<const uint8_t*>(data);
    if (size > 0) bytes_.insert(bytes_.end(), p, p + size);
    bytes_.resize(NLMSG_ALIGN(bytes_.size()));
  }
  std::vector<uint8_t> bytes_;
};

Result<std::vector<IpAddress>> node_addresses() {
  Netlink netlink = MELTEMI_TRY(Netlink::open());
  std::vector<IpAddress> out;
  for (const Address& a : MELTEMI_TRY(netlink.addresses())) out.push_back(a.ip);
  const std::vector<Link> links = MELTEMI_TRY(netlink.links());
  for (const int family : {AF_INET, AF_INET6}) {
    for (const Route& r : MELTEMI_TRY(netlink.routes(family, kTableMain))) {
      const auto leaves_by = std::ranges::find(links, r.oif, &Link::ifindex);
      if (!r.destination && r.gateway && leaves_by != links.end() && leaves_by->kind == "veth")
        out.push_back(*r.gateway);
    }
  }
  return out;
}

Result<Netlink> Netlink::open() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return fail_errno(errno, "netlink socket");
  const int on = 1;
  ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  // Without it rule and route dumps of the other families are filtered in user space only.
  ::setsockopt(fd.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
  return Netlink(std::move(fd));
}

Result<Netlink> Netlink::open_in(const Netns& netns) {
  return netns.run([] { return open(); });
}

Status Netlink::transact(Message& message, std::string_view what) {
  return dump(message, what, [](const nlmsghdr*) {});
}

// Sends a request and reads until its acknowledgement or the end of its dump. A dump during which the kernel's
// list changed may lack what was there all the time, and the kernel says so: it is asked again, and `each`
// sees one whole list.
Status Netlink::dump(Message& message, std::string_view what,
                     const std::function<void(const nlmsghdr*)>& each) {
  for (int attempt = 0; attempt < kDumpAttempts; ++attempt) {
    std::vector<std::vector<char>> answers;
    if (!MELTEMI_TRY(dump_once(message, what, answers))) continue;
    for (const std::vector<char>& answer : answers) each(reinterpret_cast<const nlmsghdr*>(answer.data()));
    return {};
  }
  return fail(Reason::kSystem, Fault::kInternal,
              fmt::format("netlink {}: it changes faster than it can be read", what), Retry::kSafe);
}

// False: interrupted by a change.
Result<bool> Netlink::dump_once(Message& message, std::string_view what,
                                std::vector<std::vector<char>>& answers) {
  bool whole = true;
  const std::vector<uint8_t>& bytes = message.finish(++sequence_);
  if (::send(fd_.get(), bytes.data(), bytes.size(), 0) < 0)
    return fail_errno(errno, fmt::format("netlink {}", what));
  alignas(nlmsghdr) std::array<char, kReceiveBuffer> buffer;
  while (true) {
    const ssize_t n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, fmt::format("netlink {}", what));
    const auto size = static_cast<size_t>(n);
    const nlmsghdr* m = nullptr;
    for (size_t at = 0; at + sizeof *m <= size; at += NLMSG_ALIGN(m->nlmsg_len)) {
      m = reinterpret_cast<const nlmsghdr*>(buffer.data() + at);
      if (m->nlmsg_len < sizeof *m || m->nlmsg_len > size - at) break;
      if (m->nlmsg_seq != sequence_) continue;
      if ((m->nlmsg_flags & NLM_F_DUMP_INTR) != 0) whole = false;
      const char* payload = reinterpret_cast<const char*>(m) + NLMSG_HDRLEN;
      if (m->nlmsg_type == NLMSG_DONE) {
        int error = 0;
        if (m->nlmsg_len >= NLMSG_HDRLEN + sizeof error) std::memcpy(&error, payload, sizeof error);
        message.last_errno = -std::min(error, 0);
        if (error < 0) return fail_errno(-error, fmt::format("netlink {}", what));
        return whole;
      }
      if (m->nlmsg_type != NLMSG_ERROR) {
        answers.emplace_back(reinterpret_cast<const char*>(m),
                             reinterpret_cast<const char*>(m) + m->nlmsg_len);
        continue;
      }
      const auto* error = reinterpret_cast<const nlmsgerr*>(payload);
      message.last_errno = -error->error;
      if (error->error == 0) return true;
      return fail_errno(-error->error, fmt::format("netlink {}{}", what, extended_text(m, error)));
    }
  }
}

// --- rules ---------------------------------------------------------------------------------------

Status Netlink::change_rule(const Rule& rule, uint16_t type, uint16_t flags) {
  fib_rule_hdr h{};
  h.family = static_cast<uint8_t>(rule.family);
  h.action = wire_action(rule.action);
  h.table = rule.table < 256 ? static_cast<uint8_t>(rule.table) : RT_TABLE_UNSPEC;
  if (rule.from) h.src_len = rule.from->length;
  if (rule.to) h.dst_len = rule.to->length;
  Message m(type, static_cast<uint16_t>(flags | NLM_F_ACK), h);
  m.u32(FRA_PRIORITY, rule.priority);
  if (rule.action == Rule::Action::kLookup) m.u32(FRA_TABLE, rule.table);
  if (rule.fwmask != 0) {
    m.u32(FRA_FWMARK, rule.fwmark);
    m.u32(FRA_FWMASK, rule.fwmask);
  }
  if (rule.from) m.ip(FRA_SRC, rule.from->address);
  if (rule.to) m.ip(FRA_DST, rule.to->address);
  if (!rule.iif.empty()) m.text(FRA_IIFNAME, rule.iif);
  if (rule.ip_protocol != 0) m.u8(FRA_IP_PROTO, rule.ip_protocol);
  if (rule.dport != 0) {
    const fib_rule_port_range range{rule.dport, rule.dport};
    m.attribute(FRA_DPORT_RANGE, &range, sizeof range);
  }
  const Status status = transact(m, (type == RTM_NEWRULE ? "add " : "delete ") + rule_text(rule));
  if (type == RTM_DELRULE) return forgive(status, {ENOENT}, m.last_errno);
  return status;
}

Status Netlink::add_rule(const Rule& rule) {
  return change_rule(rule, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL);
}
Status Netlink::ensure_rule(const Rule& rule) {
  if (MELTEMI_TRY(has_rule(rule))) return {};
  return add_rule(rule);
}
Status Netlink::delete_rule(const Rule& rule) {
  return change_rule(rule, RTM_DELRULE, 0);
}

Result<std::vector<Rule>> Netlink::rules(int family) {
  fib_rule_hdr h{};
  h.family = static_cast<uint8_t>(family);
  Message m(RTM_GETRULE, NLM_F_DUMP, h);
  std::vector<Rule> out;
  MELTEMI_TRY(dump(m, "list rules", [&](const nlmsghdr* message) {
    Rule rule;
    std::optional<IpAddress> from, to;
    const auto header = parse<fib_rule_hdr>(message, [&](const AttributeView& a) {
      switch (a.type) {
        case FRA_PRIORITY:
          rule.priority = a.u32();
          break;
        case FRA_TABLE:
          rule.table = a.u32();
          break;
        case FRA_FWMARK:
          rule.fwmark = a.u32();
          break;
        case FRA_FWMASK:
          rule.fwmask = a.u32();
          break;
        case FRA_SRC:
          from = a.ip();
          break;
        case FRA_DST:
          to = a.ip();
          break;
        case FRA_IIFNAME:
          rule.iif = a.text();
          break;
        case FRA_IP_PROTO:
          rule.ip_protocol = a.u8();
          break;
        case FRA_DPORT_RANGE: {
          fib_rule_port_range range{};
          std::memcpy(&range, a.data, std::min(a.size, sizeof range));
          if (range.start == range.end) rule.dport = range.start;
          break;
        }
        default:
          break;
      }
    });
    rule.family = header.family;
    rule.action = rule_action(header.action);
    if (rule.action != Rule::Action::kLookup) rule.table = 0;
    if (from) rule.from = Cidr::make(*from, header.src_len);
    if (to) rule.to = Cidr::make(*to, header.dst_len);
    if (rule.family == family) out.push_back(std::move(rule));
  }));
  return out;
}

Result<bool> Netlink::has_rule(const Rule& rule) {
  const std::vector<Rule> all = MELTEMI_TRY(rules(rule.family));
  return std::find(all.begin(), all.end(), rule) != all.end();
}

// --- routes --------------------------------------------------------------------------------------

Status Netlink::change_route(const Route& route, uint16_t type, uint16_t flags) {
  rtmsg h{};
  h.rtm_family = static_cast<uint8_t>(route.family);
  h.rtm_table = route.table < 256 ? static_cast<uint8_t>(route.table) : RT_TABLE_UNSPEC;
  h.rtm_type = wire_type(route.type);
  h.rtm_protocol = RTPROT_STATIC;
  h.rtm_scope = RT_SCOPE_UNIVERSE;
  if (route.type == Route::Type::kLocal) h.rtm_scope = RT_SCOPE_HOST;
  if (route.scope_link) h.rtm_scope = RT_SCOPE_LINK;
  if (route.onlink) h.rtm_flags = RTNH_F_ONLINK;
  if (route.destination) h.rtm_dst_len = route.destination->length;
  Message m(type, static_cast<uint16_t>(flags | NLM_F_ACK), h);
  m.u32(RTA_TABLE, route.table);
  if (route.destination) m.ip(RTA_DST, route.destination->address);
  if (route.gateway) m.ip(RTA_GATEWAY, *route.gateway);
  if (route.preferred_source) m.ip(RTA_PREFSRC, *route.preferred_source);
  if (route.oif != 0) m.u32(RTA_OIF, route.oif);
  const Status status =
      transact(m, (type == RTM_NEWROUTE ? "set " : "delete ") + route_text(route));
  if (type == RTM_DELROUTE) return forgive(status, {ESRCH}, m.last_errno);
  return status;
}

Status Netlink::add_route(const Route& route) {
  return change_route(route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
}
Status Netlink::replace_route(const Route& route) {
  return change_route(route, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
}
Status Netlink::delete_route(const Route& route) {
  return change_route(route, RTM_DELROUTE, 0);
}

Result<std::vector<Route>> Netlink::routes(int family, uint32_t table) {
  rtmsg h{};
  h.rtm_family = static_cast<uint8_t>(family);
  Message m(RTM_GETROUTE, NLM_F_DUMP, h);
  m.u32(RTA_TABLE, table);
  std::vector<Route> out;
  const Status status = dump(m, "list routes", [&](const nlmsghdr* message) {
    Route route;
    std::optional<IpAddress> destination;
    const auto header = parse<rtmsg>(message, [&](const AttributeView& a) {
      switch (a.type) {
        case RTA_TABLE:
          route.table = a.u32();
          break;
        case RTA_DST:
          destination = a.ip();
          break;
        case RTA_GATEWAY:
          route.gateway = a.ip();
          break;
        case RTA_PREFSRC:
          route.preferred_source = a.ip();
          break;
        case RTA_OIF:
          route.oif = a.u32();
          break;
        default:
          break;
      }
    });
    route.family = header.rtm_family;
    route.type = route_type(header.rtm_type);
    route.onlink = (header.rtm_flags & RTNH_F_ONLINK) != 0;
    route.scope_link = header.rtm_scope == RT_SCOPE_LINK;
    if (destination) route.destination = Cidr::make(*destination, header.rtm_dst_len);
    if (route.family == family && route.table == table) out.push_back(std::move(route));
  });
  // A table that nobody has used yet does not exist.
  MELTEMI_TRY(forgive(status, {ENOENT}, m.last_errno));
  return out;
}

// --- addresses -----------------------------------------------------------------------------------

Status Netlink::change_address(const Address& address, uint16_t type, uint16_t flags) {
  ifaddrmsg h{};
  h.ifa_family = static_cast<uint8_t>(family_of(address.ip));
  h.ifa_prefixlen = address.prefix_length;
  h.ifa_index = address.ifindex;
  if (type == RTM_NEWADDR && address.nodad && !address.ip.is_v4()) h.ifa_flags = IFA_F_NODAD;
  Message m(type, static_cast<uint16_t>(flags | NLM_F_ACK), h);
  m.ip(IFA_LOCAL, address.ip);
  m.ip(IFA_ADDRESS, address.ip);
  const Status status =
      transact(m, fmt::format("{} address {}/{}", type == RTM_NEWADDR ? "add" : "delete",
                              address.ip.to_string(), address.prefix_length));
  return type == RTM_NEWADDR ? forgive(status, {EEXIST}, m.last_errno)
                             : forgive(status, {EADDRNOTAVAIL}, m.last_errno);
}

Status Netlink::add_address(const Address& address) {
  return change_address(address, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
}
Status Netlink::delete_address(const Address& address) {
  return change_address(address, RTM_DELADDR, 0);
}

Result<std::vector<Address>> Netlink::addresses() {
  ifaddrmsg h{};
  h.ifa_family = AF_UNSPEC;
  Message m(RTM_GETADDR, NLM_F_DUMP, h);
  std::vector<Address> out;
  MELTEMI_TRY(dump(m, "list addresses", [&](const nlmsghdr* message) {
    Address address;
    std::optional<IpAddress> local, peer;
    const auto header = parse<ifaddrmsg>(message, [&](const AttributeView& a) {
      if (a.type == IFA_LOCAL) local = a.ip();
      if (a.type == IFA_ADDRESS) peer = a.ip();
    });
    if (!local) local = peer;  // IPv6 has no IFA_LOCAL unless point-to-point
    if (!local) return;
    address.ip = *local;
    address.prefix_length = header.ifa_prefixlen;
    address.ifindex = header.ifa_index;
    address.link_scope = header.ifa_scope == RT_SCOPE_LINK;
    out.push_back(address);
  }));
  return out;
}

Status Netlink::wait_until_local(const IpAddress& ip, Duration timeout) {
  constexpr useconds_t kPause = 5000;
  const auto destination = Cidr::make(ip, ip.is_v4() ? 32 : 128);
  const MonoTime deadline = MonoClock::now() + timeout;
  while (true) {
    for (const Route& route : MELTEMI_TRY(routes(family_of(ip), kTableLocal)))
      if (route.type == Route::Type::kLocal && route.destination == destination) return {};
    if (MonoClock::now() >= deadline)
      return fail(Reason::kRequestTimeout, Fault::kInternal,
                  fmt::format("{} has not become a local address", ip.to_string()));
    ::usleep(kPause);
  }
}

// --- links ---------------------------------------------------------------------------------------

Status Netlink::add_veth(const std::string& name, const std::string& peer_name,
                         const Netns& peer_netns) {
  Message m(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, ifinfomsg{});
  m.text(IFLA_IFNAME, name);
  const size_t info = m.begin(IFLA_LINKINFO);
  m.text(IFLA_INFO_KIND, "veth");
  const size_t data = m.begin(IFLA_INFO_DATA);
  const size_t peer = m.begin(VETH_INFO_PEER);
  m.header(ifinfomsg{});
  m.text(IFLA_IFNAME, peer_name);
  m.u32(IFLA_NET_NS_FD, static_cast<uint32_t>(peer_netns.fd()));
  m.end(peer);
  m.end(data);
  m.end(info);
  return transact(m, fmt::format("add veth {} and {}", name, peer_name));
}

Status Netlink::add_bridge(const std::string& name) {
  Message m(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, ifinfomsg{});
  m.text(IFLA_IFNAME, name);
  const size_t info = m.begin(IFLA_LINKINFO);
  m.text(IFLA_INFO_KIND, "bridge");
  m.end(info);
  return transact(m, "add bridge " + name);
}

Status Netlink::delete_link(const std::string& name) {
  Message m(RTM_DELLINK, NLM_F_ACK, ifinfomsg{});
  m.text(IFLA_IFNAME, name);
  return forgive(transact(m, "delete link " + name), {ENODEV}, m.last_errno);
}

Status Netlink::set_up(const std::string& name) {
  ifinfomsg h{};
  h.ifi_flags = IFF_UP;
  h.ifi_change = IFF_UP;
  Message m(RTM_NEWLINK, NLM_F_ACK, h);
  m.text(IFLA_IFNAME, name);
  return transact(m, "set up link " + name);
}

Status Netlink::set_mtu(const std::string& name, uint32_t mtu) {
  Message m(RTM_NEWLINK, NLM_F_ACK, ifinfomsg{});
  m.text(IFLA_IFNAME, name);
  m.u32(IFLA_MTU, mtu);
  return transact(m, fmt::format("set mtu {} of link {}", mtu, name));
}

Status Netlink::set_master(const std::string& name, const std::string& bridge) {
  const uint32_t master = MELTEMI_TRY(index(bridge));
  Message m(RTM_NEWLINK, NLM_F_ACK, ifinfomsg{});
  m.text(IFLA_IFNAME, name);
  m.u32(IFLA_MASTER, master);
  return transact(m, fmt::format("put link {} into bridge {}", name, bridge));
}

Status Netlink::rename(const std::string& name, const std::string& new_name) {
  ifinfomsg h{};
  h.ifi_index = static_cast<int>(MELTEMI_TRY(index(name)));
  Message m(RTM_NEWLINK, NLM_F_ACK, h);
  m.text(IFLA_IFNAME, new_name);
  return transact(m, fmt::format("rename link {} to {}", name, new_name));
}

Result<uint32_t> Netlink::index(const std::string& name) {
  for (const Link& link : MELTEMI_TRY(links()))
    if (link.name == name) return link.ifindex;
  return fail(Reason::kNotFound, Fault::kConfig, "there is no link " + name);
}

Result<std::vector<Link>> Netlink::links() {
  Message m(RTM_GETLINK, NLM_F_DUMP, ifinfomsg{});
  std::vector<Link> out;
  MELTEMI_TRY(dump(m, "list links", [&](const nlmsghdr* message) {
    Link link;
    const auto header = parse<ifinfomsg>(message, [&](const AttributeView& a) {
      switch (a.type) {
        case IFLA_IFNAME:
          link.name = a.text();
          break;
        case IFLA_MTU:
          link.mtu = a.u32();
          break;
        case IFLA_MASTER:
          link.master = a.u32();
          break;
        case IFLA_LINK:
          link.peer = a.u32();
          break;
        case IFLA_LINK_NETNSID:
          link.peer_netns_id = a.u32();
          break;
        case IFLA_LINKINFO:
          for_each_attribute(a.data, a.size, [&](const AttributeView& info) {
            if (info.type == IFLA_INFO_KIND) link.kind = info.text();
          });
          break;
        default:
          break;
      }
    });
    link.ifindex = static_cast<uint32_t>(header.ifi_index);
    link.up = (header.ifi_flags & IFF_UP) != 0;
    out.push_back(std::move(link));
  }));
  return out;
}

Result<uint32_t> Netlink::netns_id(const Netns& other) {
  const auto fd = static_cast<uint32_t>(other.fd());
  constexpr uint32_t kNone = 0xffffffff;  // the kernel's -1: not numbered; in a request: any number
  const auto get = [&]() -> Result<uint32_t> {
    Message m(RTM_GETNSID, NLM_F_ACK, rtgenmsg{.rtgen_family = AF_UNSPEC});
    m.u32(NETNSA_FD, fd);
    uint32_t id = kNone;
    MELTEMI_TRY(dump(m, "get a namespace's number", [&](const nlmsghdr* message) {
      (void)parse<rtgenmsg>(message, [&](const AttributeView& a) {
        if (a.type == NETNSA_NSID) id = a.u32();
      });
    }));
    return id;
  };
  const uint32_t known = MELTEMI_TRY(get());
  if (known != kNone) return known;
  Message m(RTM_NEWNSID, NLM_F_ACK, rtgenmsg{.rtgen_family = AF_UNSPEC});
  m.u32(NETNSA_FD, fd);
  m.u32(NETNSA_NSID, kNone);
  // EEXIST: somebody else gave it one meanwhile.
  MELTEMI_TRY(forgive(transact(m, "number a namespace"), {EEXIST}, m.last_errno));
  const uint32_t given = MELTEMI_TRY(get());
  if (given == kNone)
    return fail(Reason::kSystem, Fault::kInternal, "the kernel gave a namespace no number");
  return given;
}

// --- neighbours ----------------------------------------------------------------------------------

Status Netlink::change_neighbour(const std::string& link, const IpAddress& ip, const uint8_t* mac) {
  ndmsg h{};
  h.ndm_family = static_cast<uint8_t>(family_of(ip));
  h.ndm_ifindex = static_cast<int>(MELTEMI_TRY(index(link)));
  h.ndm_state = NUD_PERMANENT;
  h.ndm_flags = mac == nullptr ? NTF_PROXY : 0;
  Message m(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK, h);
  m.ip(NDA_DST, ip);
  if (mac != nullptr) m.attribute(NDA_LLADDR, mac, 6);
  return transact(m, fmt::format("set neighbour {} on {}", ip.to_string(), link));
}

Status Netlink::add_neighbour(const std::string& link, const IpAddress& ip, const uint8_t mac[6]) {
  return change_neighbour(link, ip, mac);
}
Status Netlink::add_proxy_neighbour(const std::string& link, const IpAddress& ip) {
  return change_neighbour(link, ip, nullptr);
}

}  // namespace meltemi::sys
