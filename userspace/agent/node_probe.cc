// Addresses and rules of the node netns; see node_probe.h.
#include "userspace/agent/node_probe.h"

#include <sys/socket.h>

#include <array>

#include "userspace/sys/netlink.h"
#include "userspace/sys/sysctl.h"

namespace meltemi::agent {
namespace {

// Before the kernel's own rule of priority 0 nothing can be placed; its `local` table delivers only
// to this host, and the packets to be stopped here are on their way through. Low numbers therefore.
constexpr uint32_t kPriorityOwn = 1;
constexpr uint32_t kPriorityDrop = 2;

std::array<sys::Rule, 2> rules_of(const IpAddress& v6) {
  const auto from = Cidr::make(v6, 128);
  return {{{.family = AF_INET6,
            .priority = kPriorityOwn,
            .table = sys::kTableMain,
            .from = from,
            .iif = "lo"},
           {.family = AF_INET6,
            .priority = kPriorityDrop,
            .action = sys::Rule::Action::kBlackhole,
            .from = from}}};
}

bool has_ipv6() {
  const Result<std::string> disabled = sys::read_sysctl("net/ipv6/conf/lo/disable_ipv6");
  return disabled && *disabled == "0";
}

}  // namespace

Status set_up_probe_addresses(const ProbeAddresses& addresses) {
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open());
  const uint32_t lo = MELTEMI_TRY(netlink.index("lo"));
  if (has_ipv6()) {
    for (const sys::Rule& rule : rules_of(addresses.v6)) MELTEMI_TRY(netlink.ensure_rule(rule));
    MELTEMI_TRY(netlink.add_address({.ip = addresses.v6, .prefix_length = 128, .ifindex = lo}));
  }
  return netlink.add_address({.ip = addresses.v4, .prefix_length = 32, .ifindex = lo});
}

Status remove_probe_addresses(const ProbeAddresses& addresses) {
  sys::Netlink netlink = MELTEMI_TRY(sys::Netlink::open());
  const uint32_t lo = MELTEMI_TRY(netlink.index("lo"));
  MELTEMI_TRY(netlink.delete_address({.ip = addresses.v4, .prefix_length = 32, .ifindex = lo}));
  if (!has_ipv6()) return {};
  MELTEMI_TRY(netlink.delete_address({.ip = addresses.v6, .prefix_length = 128, .ifindex = lo}));
  for (const sys::Rule& rule : rules_of(addresses.v6)) MELTEMI_TRY(netlink.delete_rule(rule));
  return {};
}

}  // namespace meltemi::agent
