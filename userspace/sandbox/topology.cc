#include "userspace/sandbox/topology.h"

#include <dirent.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>

#include "userspace/base/clock.h"
#include "userspace/base/log.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/files.h"
#include "userspace/sys/netlink.h"
#include "userspace/sys/sysctl.h"

namespace meltemi::sandbox {
namespace {

using sys::Netlink;
using sys::Netns;
using sys::Route;

const log::Scope scope("topology");

constexpr char kBridge[] = "fabric0";
constexpr char kUplink[] = "eth0";
constexpr char kPodInterface[] = "eth0";
constexpr Duration kAddressDeadline = std::chrono::seconds(5);
constexpr Duration kKillDeadline = std::chrono::seconds(10);

std::string host_interface(std::string_view uid) {
  return fmt::format("pod-{}", uid.substr(0, 8));
}

Status add_address(Netlink& netlink, const std::string& link, const IpAddress& ip, uint8_t length) {
  const uint32_t index = MELTEMI_TRY(netlink.index(link));
  return netlink.add_address({.ip = ip, .prefix_length = length, .ifindex = index});
}

// A route to `to` (empty: default); family is that of `via` or `to`.
Route route_via(std::optional<Cidr> to, const IpAddress& via, uint32_t oif, bool onlink) {
  Route route;
  route.family = via.is_v4() ? AF_INET : AF_INET6;
  route.destination = to;
  route.gateway = via;
  route.oif = oif;
  route.onlink = onlink;
  return route;
}

Status add_unreachable(Netlink& netlink, const Cidr& to) {
  Route route;
  route.family = to.address.is_v4() ? AF_INET : AF_INET6;
  route.type = Route::Type::kUnreachable;
  route.destination = to;
  return netlink.add_route(route);
}

Status add_pod_cidr_routes(Netlink& netlink, int node, uint32_t oif) {
  const AddressPair via = node_address(node);
  MELTEMI_TRY(netlink.add_route(route_via(pod_cidr_v4(node), via.v4, oif, false)));
  return netlink.add_route(route_via(pod_cidr_v6(node), via.v6, oif, false));
}

// The pod's side: address, and the default route through a next hop that every node answers for.
Status configure_pod_side(const Netns& pod, const AddressPair& ip) {
  Netlink netlink = MELTEMI_TRY(Netlink::open_in(pod));
  const uint32_t index = MELTEMI_TRY(netlink.index(kPodInterface));
  MELTEMI_TRY(add_address(netlink, kPodInterface, ip.v4, 32));
  MELTEMI_TRY(add_address(netlink, kPodInterface, ip.v6, 128));
  MELTEMI_TRY(netlink.set_up(kPodInterface));
  for (const IpAddress& via : {pod_gateway().v4, pod_gateway().v6})
    MELTEMI_TRY(netlink.add_route(route_via(std::nullopt, via, index, true)));
  // The kernel makes an IPv6 address local a moment after the link is up, also without duplicate
  // address detection.
  return netlink.wait_until_local(ip.v6, kAddressDeadline);
}

// The node's side: the next hop's address, and a route to the pod that speaks with the node's
// address.
Status configure_node_side(Netlink& node, const std::string& link, const AddressPair& ip,
                           int index) {
  MELTEMI_TRY(add_address(node, link, pod_gateway().v4, 32));
  MELTEMI_TRY(add_address(node, link, pod_gateway().v6, 64));
  MELTEMI_TRY(node.set_up(link));
  const uint32_t oif = MELTEMI_TRY(node.index(link));
  const AddressPair source = node_address(index);
  for (const auto& [to, from] : {std::pair(ip.v4, source.v4), std::pair(ip.v6, source.v6)}) {
    Route route;
    route.family = to.is_v4() ? AF_INET : AF_INET6;
    route.destination = Cidr{to, static_cast<uint8_t>(to.is_v4() ? 32 : 128)};
    route.oif = oif;
    route.scope_link = true;
    route.preferred_source = from;
    MELTEMI_TRY(node.add_route(route));
  }
  return {};
}

// None where there is no directory.
Result<std::vector<std::string>> entries(const std::string& directory) {
  std::vector<std::string> out;
  std::error_code error;
  std::filesystem::directory_iterator it(directory, error), end;
  if (error == std::errc::no_such_file_or_directory) return out;
  for (; !error && it != end; it.increment(error)) out.push_back(it->path().filename());
  if (error) return fail_errno(error.value(), "list " + directory);
  std::sort(out.begin(), out.end());
  return out;
}

Result<std::vector<std::string>> namespaces_of(const Layout& layout) {
  std::vector<std::string> out = MELTEMI_TRY(entries("/run/netns"));
  std::erase_if(out,
                [&](const std::string& name) { return !name.starts_with(layout.netns_prefix()); });
  return out;
}

// Innermost first.
Result<std::vector<std::string>> mounts_of(const Layout& layout) {
  std::vector<std::string> out;
  for (const sys::Mount& mount : MELTEMI_TRY(sys::mounts()))
    if (mount.directory.starts_with(layout.run_dir() + "/")) out.push_back(mount.directory);
  std::reverse(out.begin(), out.end());
  return out;
}

Result<std::string> cgroup_directory(const Layout& layout) {
  return MELTEMI_TRY(sys::cgroup2_mount()) + "/" + layout.cgroup();
}

Status kill_processes(const sys::Cgroup& cgroup) {
  const MonoTime deadline = MonoClock::now() + kKillDeadline;
  while (true) {
    MELTEMI_TRY(cgroup.kill_all());
    const auto left = MELTEMI_TRY(cgroup.processes_below());
    if (left.empty()) return {};
    if (MonoClock::now() > deadline)
      return fail(Reason::kSystem, Fault::kInternal,
                  fmt::format("{} processes of {} do not end (first: pid {})", left.size(),
                              cgroup.path(), left.front()));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

Status remove_cgroup(const Layout& layout) {
  const std::string directory = MELTEMI_TRY(cgroup_directory(layout));
  if (::access(directory.c_str(), F_OK) < 0) return {};
  const sys::Cgroup cgroup = MELTEMI_TRY(sys::Cgroup::open(layout.cgroup()));
  MELTEMI_TRY(kill_processes(cgroup));
  // A killed process leaves its cgroup a moment after it has left cgroup.procs.
  const MonoTime deadline = MonoClock::now() + kKillDeadline;
  while (true) {
    const Status removed = cgroup.remove();
    if (removed) break;
    if (MonoClock::now() > deadline) return removed;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  ::rmdir(
      std::filesystem::path(directory).parent_path().c_str());  // stays if another sandbox is in it
  return {};
}

}  // namespace

Status tune_namespace(const Netns& netns, bool forwards) {
  return netns.run([&]() -> Status {
    if (!sys::write_sysctl("net/ipv4/tcp_congestion_control", "cubic"))
      scope.debug("cubic is not allowed here, the machine's default stays");
    MELTEMI_TRY(sys::write_sysctl("net/ipv6/conf/all/accept_dad", "0"));
    MELTEMI_TRY(sys::write_sysctl("net/ipv6/conf/default/accept_dad", "0"));
    MELTEMI_TRY(sys::write_sysctl("net/ipv6/conf/default/accept_ra", "0"));
    // As containerd: a pod's ports are its own, so that none needs a privilege.
    if (!forwards) return sys::write_sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    MELTEMI_TRY(sys::write_sysctl("net/ipv4/ip_forward", "1"));
    return sys::write_sysctl("net/ipv6/conf/all/forwarding", "1");
  });
}

Status create_fabric(const Layout& layout, int nodes) {
  const Netns fabric = MELTEMI_TRY(Netns::create_named(layout.fabric_netns()));
  MELTEMI_TRY(tune_namespace(fabric, true));
  Netlink netlink = MELTEMI_TRY(Netlink::open_in(fabric));
  MELTEMI_TRY(netlink.add_bridge(kBridge));
  MELTEMI_TRY(add_address(netlink, kBridge, fabric_address().v4, fabric_cidr_v4().length));
  MELTEMI_TRY(add_address(netlink, kBridge, fabric_address().v6, fabric_cidr_v6().length));
  MELTEMI_TRY(netlink.set_up(kBridge));
  MELTEMI_TRY(add_address(netlink, "lo", dns_address().v4, 32));
  MELTEMI_TRY(add_address(netlink, "lo", dns_address().v6, 128));
  // A service address that no node has translated ends here, at once, instead of looping.
  MELTEMI_TRY(add_unreachable(netlink, service_cidr_v4()));
  MELTEMI_TRY(add_unreachable(netlink, service_cidr_v6()));
  const uint32_t bridge = MELTEMI_TRY(netlink.index(kBridge));
  for (int node = 1; node <= nodes; ++node) MELTEMI_TRY(add_pod_cidr_routes(netlink, node, bridge));
  return {};
}

Status create_node(const Layout& layout, int index, int nodes) {
  const std::string name = node_name(index);
  const Netns node = MELTEMI_TRY(Netns::create_named(layout.node_netns(name)));
  MELTEMI_TRY(tune_namespace(node, true));
  Netlink fabric = MELTEMI_TRY(
      Netlink::open_in(MELTEMI_TRY(Netns::open(Netns::named_path(layout.fabric_netns())))));
  MELTEMI_TRY(fabric.add_veth(name, kUplink, node));
  MELTEMI_TRY(fabric.set_master(name, kBridge));
  MELTEMI_TRY(fabric.set_up(name));

  Netlink netlink = MELTEMI_TRY(Netlink::open_in(node));
  const AddressPair ip = node_address(index);
  MELTEMI_TRY(add_address(netlink, kUplink, ip.v4, fabric_cidr_v4().length));
  MELTEMI_TRY(add_address(netlink, kUplink, ip.v6, fabric_cidr_v6().length));
  MELTEMI_TRY(netlink.set_up(kUplink));
  const uint32_t uplink = MELTEMI_TRY(netlink.index(kUplink));
  MELTEMI_TRY(netlink.add_route(route_via(std::nullopt, fabric_address().v4, uplink, false)));
  MELTEMI_TRY(netlink.add_route(route_via(std::nullopt, fabric_address().v6, uplink, false)));
  for (int other = 1; other <= nodes; ++other)
    if (other != index) MELTEMI_TRY(add_pod_cidr_routes(netlink, other, uplink));
  // Addresses of this node's range that no pod has.
  MELTEMI_TRY(add_unreachable(netlink, pod_cidr_v4(index)));
  return add_unreachable(netlink, pod_cidr_v6(index));
}

Result<PodNetwork> create_pod_network(const Layout& layout, int node_index, std::string_view uid,
                                      int host) {
  const Netns node =
      MELTEMI_TRY(Netns::open(Netns::named_path(layout.node_netns(node_name(node_index)))));
  PodNetwork network{layout.pod_netns(uid), pod_address(node_index, host), host_interface(uid)};
  const Netns pod = MELTEMI_TRY(Netns::create_named(network.netns_name));
  MELTEMI_TRY(tune_namespace(pod, false));
  Netlink netlink = MELTEMI_TRY(Netlink::open_in(node));
  MELTEMI_TRY(netlink.add_veth(network.host_interface, kPodInterface, pod));
  MELTEMI_TRY(configure_node_side(netlink, network.host_interface, network.addresses, node_index));
  MELTEMI_TRY(configure_pod_side(pod, network.addresses));
  return network;
}

Status remove_pod_network(const Layout& layout, int node_index, std::string_view uid) {
  const Result<Netns> node =
      Netns::open(Netns::named_path(layout.node_netns(node_name(node_index))));
  if (node) {
    // At once, with its routes: the namespace itself may live on in a socket for a while.
    Netlink netlink = MELTEMI_TRY(Netlink::open_in(*node));
    MELTEMI_TRY(netlink.delete_link(host_interface(uid)));
  }
  return Netns::remove_named(layout.pod_netns(uid));
}

Result<std::vector<std::string>> find_remains(const Layout& layout) {
  std::vector<std::string> out;
  for (const std::string& name : MELTEMI_TRY(namespaces_of(layout))) out.push_back("network namespace " + name);
  for (const std::string& mount : MELTEMI_TRY(mounts_of(layout))) out.push_back("mount " + mount);
  const std::string cgroup = MELTEMI_TRY(cgroup_directory(layout));
  if (::access(cgroup.c_str(), F_OK) == 0) out.push_back("cgroup " + cgroup);
  if (::access(layout.run_dir().c_str(), F_OK) == 0) out.push_back("directory " + layout.run_dir());
  return out;
}

Status remove_everything(const Layout& layout) {
  MELTEMI_TRY(remove_cgroup(layout));
  for (const std::string& name : MELTEMI_TRY(namespaces_of(layout))) MELTEMI_TRY(Netns::remove_named(name));
  for (const std::string& mount : MELTEMI_TRY(mounts_of(layout))) MELTEMI_TRY(sys::unmount(mount));
  std::error_code error;
  std::filesystem::remove_all(layout.run_dir(), error);
  if (error) return fail_errno(error.value(), "remove " + layout.run_dir());
  ::rmdir("/run/meltemi");  // stays if another sandbox is in it
  return {};
}

std::vector<std::string> list_sandboxes() {
  std::vector<std::string> out = entries("/run/meltemi").value_or(std::vector<std::string>());
  std::erase_if(out, [](const std::string& name) { return !check_sandbox_name(name).has_value(); });
  return out;
}

}  // namespace meltemi::sandbox
