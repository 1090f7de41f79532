// rtnetlink: rules, routes, addresses, links and neighbours, without forking `ip`. One Netlink is
// one socket, bound for life to the namespace in which it was opened; calls block until the kernel
// has answered, which it does at once. Errors are kSystem with the kernel's extended text where
// given. Must never guess: an `add` of what exists is an error (EEXIST) unless the call says
// otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/sys/netns.h"

struct nlmsghdr;

namespace meltemi::sys {

inline constexpr uint32_t kTableMain = 254;
inline constexpr uint32_t kTableLocal = 255;

// ip-rule(8). Fields left empty are not part of the selector.
struct Rule {
  enum class Action : uint8_t { kLookup, kBlackhole, kUnreachable, kOther };
  int family = 0;  // AF_INET or AF_INET6
  uint32_t priority = 0;
  Action action = Action::kLookup;
  uint32_t table = 0;  // kLookup only
  uint32_t fwmark = 0;
  uint32_t fwmask = 0;  // 0: no mark selector
  std::optional<Cidr> from;
  std::optional<Cidr> to;
  std::string iif;  // "lo": locally generated packets
  uint8_t ip_protocol = 0;
  uint16_t dport = 0;
  bool operator==(const Rule&) const = default;
};

// ip-route(8).
struct Route {
  enum class Type : uint8_t { kUnicast, kLocal, kBlackhole, kUnreachable, kOther };
  int family = 0;
  uint32_t table = kTableMain;
  Type type = Type::kUnicast;
  std::optional<Cidr> destination;  // empty: default
  std::optional<IpAddress> gateway;
  std::optional<IpAddress> preferred_source;
  uint32_t oif = 0;
  bool onlink = false;      // gateway need not be in a connected prefix
  bool scope_link = false;  // the destination is reached without a gateway
  bool operator==(const Route&) const = default;
};

struct Address {
  IpAddress ip;
  uint8_t prefix_length = 32;
  uint32_t ifindex = 0;
  bool nodad = true;        // IPv6: usable at once. Only for add.
  bool link_scope = false;  // fe80::/10 and the like, as read back
};

struct Link {
  uint32_t ifindex = 0;
  std::string name;
  bool up = false;
  uint32_t mtu = 0;
  uint32_t master = 0;  // ifindex of the bridge, or 0
  std::string kind;     // "veth", "bridge", "" for plain devices
  uint32_t peer = 0;    // veth: ifindex of the other end; else that of the lower device, or 0
  // Where `peer` is, as this namespace numbers it; empty: in this one.
  std::optional<uint32_t> peer_netns_id;
};

// The addresses by which the node itself comes to the ports of this namespace: those of its own links, and
// in a pod (its default route leaves by a veth) the next hops, where the kubelet is.
Result<std::vector<IpAddress>> node_addresses();

class Netlink {
 public:
  static Result<Netlink> open();  // in the calling thread's namespace
  static Result<Netlink> open_in(const Netns& netns);

  Status add_rule(const Rule& rule);     // EEXIST is an error: check with has_rule, or ensure_rule
  Status ensure_rule(const Rule& rule);  // adds it unless it is there
  Status delete_rule(const Rule& rule);  // ENOENT is success
  Result<std::vector<Rule>> rules(int family);
  Result<bool> has_rule(const Rule& rule);

  Status add_route(const Route& route);      // EEXIST is an error
  Status replace_route(const Route& route);  // `ip route replace`
  Status delete_route(const Route& route);   // ESRCH is success
  Result<std::vector<Route>> routes(int family, uint32_t table);

  Status add_address(const Address& address);     // EEXIST is success
  Status delete_address(const Address& address);  // EADDRNOTAVAIL is success
  Result<std::vector<Address>> addresses();
  // Until the kernel delivers `ip` locally. It makes an IPv6 address local in a work item, after
  // add_address has returned; a socket that connects to it before that looks for a neighbour of
  // that address for ever. Blocks; kRequestTimeout when it does not happen.
  Status wait_until_local(const IpAddress& ip, Duration timeout);

  // One end stays here as `name`; the other is `peer_name` inside `peer_netns`. Both stay down.
  Status add_veth(const std::string& name, const std::string& peer_name, const Netns& peer_netns);
  Status add_bridge(const std::string& name);
  Status delete_link(const std::string& name);  // ENODEV is success
  Status set_up(const std::string& name);
  Status set_mtu(const std::string& name, uint32_t mtu);
  Status set_master(const std::string& name, const std::string& bridge);
  Status rename(const std::string& name, const std::string& new_name);  // link must be down
  Result<uint32_t> index(const std::string& name);  // kNotFound if there is none
  Result<std::vector<Link>> links();
  // The number by which this socket's namespace refers to `other` (ip-netns(8), nsid); given, and kept
  // for as long as both live, if there was none.
  Result<uint32_t> netns_id(const Netns& other);

  // A permanent neighbour entry; `mac` is 6 bytes.
  Status add_neighbour(const std::string& link, const IpAddress& ip, const uint8_t mac[6]);
  // Answer ARP/NDP for `ip` on `link`.
  Status add_proxy_neighbour(const std::string& link, const IpAddress& ip);

 private:
  explicit Netlink(UniqueFd fd) : fd_(std::move(fd)) {}
  class Message;
  Status transact(Message& message, std::string_view what);
  Result<bool> dump_once(Message& message, std::string_view what, std::vector<std::vector<char>>& answers);
  Status dump(Message& message, std::string_view what,
              const std::function<void(const nlmsghdr*)>& each);
  Status change_rule(const Rule& rule, uint16_t type, uint16_t flags);
  Status change_route(const Route& route, uint16_t type, uint16_t flags);
  Status change_address(const Address& address, uint16_t type, uint16_t flags);
  Status change_neighbour(const std::string& link, const IpAddress& ip, const uint8_t* mac);

  UniqueFd fd_;
  uint32_t sequence_ = 0;
};

}  // namespace meltemi::sys
