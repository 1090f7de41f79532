// Namespaces, netlink, sysctl, sock_diag and cgroups against the real kernel. Root; works in
// namespaces and a cgroup of its own.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>

#include "tests/support/require.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/files.h"
#include "userspace/sys/netlink.h"
#include "userspace/sys/netns.h"
#include "userspace/sys/process.h"
#include "userspace/sys/sock_diag.h"
#include "userspace/sys/sysctl.h"

namespace meltemi::sys {
namespace {

using std::chrono::seconds;

#define ASSERT_OK(...)                                                                           \
  do {                                                                                           \
    const auto& ok_result = (__VA_ARGS__);                                                       \
    ASSERT_TRUE(ok_result.has_value()) << #__VA_ARGS__ << ": " << ok_result.error().to_string(); \
  } while (0)

const test::Require require(test::Need::kRootAndCgroup2);

class Root : public ::testing::Test {
 protected:
  static std::string unique(const std::string& word) {
    return "meltemi-test-" + word + "-" + std::to_string(::getpid());
  }
};

uint64_t inode_here() {
  struct stat st{};
  ::stat("/proc/thread-self/ns/net", &st);
  return st.st_ino;
}

TEST_F(Root, NamespacesHaveTheirOwnIdCookieAndLoopback) {
  const auto home = Netns::current();
  const uint64_t inode = inode_here();
  const auto a = Netns::create();
  const auto b = Netns::create();
  ASSERT_OK(a);
  ASSERT_OK(b);
  EXPECT_EQ(inode_here(), inode);
  EXPECT_NE(a->id().value(), b->id().value());
  EXPECT_NE(a->cookie().value(), b->cookie().value());
  EXPECT_NE(a->cookie().value(), home->cookie().value());
  EXPECT_EQ(a->cookie().value(), a->duplicate()->cookie().value());
  auto links = Netlink::open_in(*a)->links();
  ASSERT_OK(links);
  ASSERT_EQ(links->size(), 1u);
  EXPECT_EQ(links->front().name, "lo");
  EXPECT_TRUE(links->front().up);
}

TEST_F(Root, NamedNamespaceIsSeenByIpNetnsAndGoesAway) {
  const std::string name = unique("named");
  const auto made = Netns::create_named(name);
  ASSERT_OK(made);
  EXPECT_FALSE(Netns::create_named(name)) << "a second one of the same name";
  EXPECT_EQ(Netns::open(Netns::named_path(name))->id().value(), made->id().value());
  auto ip = Process::spawn({.argv = {"ip", "netns", "exec", name, "true"}});
  ASSERT_OK(ip);
  EXPECT_EQ(ip->wait(seconds(30)).value(), 0);
  ASSERT_OK(Netns::remove_named(name));
  ASSERT_OK(Netns::remove_named(name));
  EXPECT_FALSE(Netns::open(Netns::named_path(name)));
}

TEST_F(Root, RefusesADescriptorThatIsNoNamespace) {
  const auto got = Netns::open("/dev/null");
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().reason, Reason::kBadConfig);
}

TEST_F(Root, RunComesBackAlsoAfterAnError) {
  const auto ns = Netns::create();
  ASSERT_OK(ns);
  const uint64_t inode = inode_here();
  const Status status = ns->run([&]() -> Status {
    EXPECT_EQ(inode_here(), ns->id()->inode);
    return fail(Reason::kInternal, Fault::kInternal, "x");
  });
  EXPECT_FALSE(status);
  EXPECT_EQ(inode_here(), inode);
}

TEST_F(Root, RunFromComesBackToTheNamespaceItWasTold) {
  const auto home = Netns::current();
  const auto ns = Netns::create();
  ASSERT_OK(home);
  ASSERT_OK(ns);
  const uint64_t inode = inode_here();
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(ns->run_from(*home, [&]() -> Status {
      EXPECT_EQ(inode_here(), ns->id()->inode);
      return {};
    }));
    EXPECT_EQ(inode_here(), inode);
  }
  EXPECT_FALSE(Netns().run_from(*home, []() -> Status { return {}; })) << "there is no such place";
  EXPECT_EQ(inode_here(), inode);
}

TEST_F(Root, RulesAreAddedFoundAndDeleted) {
  const auto ns = Netns::create();
  auto nl = Netlink::open_in(*ns);
  ASSERT_OK(nl);
  for (const int family : {AF_INET, AF_INET6}) {
    Rule rule{
        .family = family, .priority = 1, .table = 0x6d31, .fwmark = 0x6d31, .fwmask = 0xffffffff};
    EXPECT_FALSE(nl->has_rule(rule).value());
    ASSERT_OK(nl->add_rule(rule));
    EXPECT_TRUE(nl->has_rule(rule).value());
    const Status again = nl->add_rule(rule);
    ASSERT_FALSE(again) << "adding what exists";
    ASSERT_OK(nl->ensure_rule(rule));
    ASSERT_OK(nl->delete_rule(rule));
    ASSERT_OK(nl->delete_rule(rule));
    EXPECT_FALSE(nl->has_rule(rule).value());
    const Rule local{.family = family, .priority = 0, .table = kTableLocal};
    EXPECT_TRUE(nl->has_rule(local).value());
  }
  const Rule probe{.family = AF_INET6,
                   .priority = 10,
                   .action = Rule::Action::kBlackhole,
                   .from = Cidr::parse("fd16::1/128"),
                   .iif = "lo"};
  ASSERT_OK(nl->add_rule(probe));
  EXPECT_TRUE(nl->has_rule(probe).value());
  const Rule dns{
      .family = AF_INET, .priority = 11, .table = 100, .iif = "lo", .ip_protocol = 17, .dport = 53};
  ASSERT_OK(nl->add_rule(dns));
  EXPECT_TRUE(nl->has_rule(dns).value());
}

TEST_F(Root, LocalDefaultRouteKeepsItsSource) {
  const auto ns = Netns::create();
  auto nl = Netlink::open_in(*ns);
  const uint32_t lo = nl->index("lo").value();
  EXPECT_TRUE(nl->routes(AF_INET, 7777)->empty()) << "a table that does not exist yet";
  for (const char* text : {"10.7.0.2", "fd00:7::2"}) {
    const IpAddress ip = *IpAddress::parse(text);
    const int family = ip.is_v4() ? AF_INET : AF_INET6;
    ASSERT_OK(nl->add_address(
        {.ip = ip, .prefix_length = uint8_t(ip.is_v4() ? 32 : 128), .ifindex = lo}));
    ASSERT_OK(nl->add_address(
        {.ip = ip, .prefix_length = uint8_t(ip.is_v4() ? 32 : 128), .ifindex = lo}));
    const Route route{.family = family,
                      .table = 0x6d31,
                      .type = Route::Type::kLocal,
                      .preferred_source = ip,
                      .oif = lo};
    ASSERT_OK(nl->add_route(route));
    EXPECT_FALSE(nl->add_route(route));
    ASSERT_OK(nl->replace_route(route));
    const auto routes = nl->routes(family, 0x6d31);
    ASSERT_OK(routes);
    ASSERT_EQ(routes->size(), 1u);
    EXPECT_EQ(routes->front(), route);
    ASSERT_OK(nl->delete_route(route));
    ASSERT_OK(nl->delete_route(route));
    EXPECT_TRUE(nl->routes(family, 0x6d31)->empty());
  }
}

TEST_F(Root, VethsJoinTwoNamespacesAndCarryPings) {
  const auto a = Netns::create();
  const auto b = Netns::create();
  auto na = Netlink::open_in(*a);
  auto nb = Netlink::open_in(*b);
  ASSERT_OK(na->add_veth("pod0", "eth0", *b));
  const uint32_t host = na->index("pod0").value();
  const uint32_t eth0 = nb->index("eth0").value();
  ASSERT_OK(na->set_mtu("pod0", 1400));
  ASSERT_OK(na->set_up("pod0"));
  ASSERT_OK(nb->set_up("eth0"));
  const IpAddress pod = *IpAddress::parse("10.9.0.2"), gateway = *IpAddress::parse("169.254.1.1");
  ASSERT_OK(na->add_address({.ip = gateway, .prefix_length = 32, .ifindex = host}));
  ASSERT_OK(nb->add_address({.ip = pod, .prefix_length = 32, .ifindex = eth0}));
  ASSERT_OK(na->add_route(
      {.family = AF_INET, .destination = Cidr::make(pod, 32), .oif = host, .scope_link = true}));
  ASSERT_OK(nb->add_route({.family = AF_INET,
                           .destination = Cidr::make(gateway, 32),
                           .oif = eth0,
                           .scope_link = true}));
  ASSERT_OK(nb->add_route({.family = AF_INET, .gateway = gateway, .oif = eth0, .onlink = true}));
  const auto links = na->links();
  const auto link =
      std::find_if(links->begin(), links->end(), [](const Link& l) { return l.name == "pod0"; });
  ASSERT_NE(link, links->end());
  EXPECT_EQ(link->mtu, 1400u);
  EXPECT_EQ(link->kind, "veth");
  const auto addresses = nb->addresses();
  EXPECT_TRUE(std::any_of(addresses->begin(), addresses->end(), [&](const Address& x) {
    return x.ip == pod && x.ifindex == eth0 && x.prefix_length == 32;
  }));
  // A TCP connection across, which sock_diag then sees on both sides with its mark.
  const auto listener = b->run([&]() -> Result<UniqueFd> {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in any{.sin_family = AF_INET, .sin_port = htons(8080)};
    if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&any), sizeof any) < 0 ||
        ::listen(fd.get(), 5) < 0)
      return fail_errno(errno, "listen");
    return fd;
  });
  ASSERT_OK(listener);
  const auto client = socket_in(*a, AF_INET, SOCK_STREAM, 0);
  const uint32_t mark = 0x77;
  ASSERT_EQ(::setsockopt(client->get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
  sockaddr_storage to;
  const socklen_t length = SocketAddress{pod, 8080}.to_sockaddr(to);
  ASSERT_EQ(::connect(client->get(), reinterpret_cast<sockaddr*>(&to), length), 0)
      << std::strerror(errno);
  const auto live = tcp_sockets_in(*a, kLiveStates);
  ASSERT_OK(live);
  ASSERT_EQ(live->size(), 1u);
  EXPECT_EQ(live->front().mark, 0x77u);
  EXPECT_EQ(live->front().remote, (SocketAddress{pod, 8080}));
  EXPECT_EQ(live->front().state, TcpState::kEstablished);
  EXPECT_EQ(netns_cookie_of_socket(client->get()).value(), a->cookie().value());
  const auto listening = tcp_sockets_in(*b, state_bit(TcpState::kListen));
  ASSERT_EQ(listening->size(), 1u);
  struct stat st{};
  ::fstat(listener->get(), &st);
  EXPECT_EQ(listening->front().inode, st.st_ino);
  EXPECT_EQ(listening->front().receive_queue, 1u);
  // And resets it.
  ASSERT_OK(a->run([&] { return destroy_tcp_socket(live->front()); }));
  char byte;
  EXPECT_EQ(::recv(client->get(), &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_TRUE(tcp_sockets_in(*a, kLiveStates)->empty());
  ASSERT_OK(na->delete_link("pod0"));
  ASSERT_OK(na->delete_link("pod0"));
  EXPECT_FALSE(nb->index("eth0"));
}

// Pods come and go on a node while one of them is looked at.
TEST_F(Root, AListIsWholeWhileItsNeighboursChange) {
  const auto a = Netns::create();
  const auto b = Netns::create();
  auto netlink = Netlink::open_in(*a);
  std::set<std::string> stay;
  for (int i = 0; i < 150; ++i) {
    const std::string name = "stays" + std::to_string(i);
    ASSERT_OK(netlink->add_veth(name, name, *b));
    stay.insert(name);
  }
  std::atomic<bool> done = false;
  std::thread neighbour([&] {
    auto own = Netlink::open_in(*a);
    for (int i = 0; !done; ++i) {
      const std::string name = "goes" + std::to_string(i % 3);
      EXPECT_TRUE(own->add_veth(name, name, *b));
      EXPECT_TRUE(own->delete_link(name));
    }
  });
  for (int i = 0; i < 300; ++i) {
    const auto links = netlink->links();
    if (!links) {
      ADD_FAILURE() << links.error().to_string();
      break;
    }
    std::set<std::string> missing = stay;
    for (const Link& link : *links) missing.erase(link.name);
    if (!missing.empty()) {
      ADD_FAILURE() << missing.size() << " are missing, " << *missing.begin() << " first";
      break;
    }
  }
  done = true;
  neighbour.join();
}

TEST_F(Root, AnIpv6AddressIsWaitedForUntilItIsLocal) {
  const auto a = Netns::create();
  const auto b = Netns::create();
  auto na = Netlink::open_in(*a);
  auto nb = Netlink::open_in(*b);
  const IpAddress ip = *IpAddress::parse("fd00:9::2");
  ASSERT_OK(na->add_veth("v0", "eth0", *b));
  ASSERT_OK(nb->set_up("eth0"));
  const Status early = nb->wait_until_local(ip, std::chrono::milliseconds(30));
  ASSERT_FALSE(early) << "nobody has added it";
  EXPECT_EQ(early.error().reason, Reason::kRequestTimeout);
  ASSERT_OK(
      nb->add_address({.ip = ip, .prefix_length = 128, .ifindex = nb->index("eth0").value()}));
  ASSERT_OK(nb->wait_until_local(ip, seconds(20)));
}

TEST_F(Root, BridgesTakePorts) {
  const auto a = Netns::create();
  const auto b = Netns::create();
  auto nl = Netlink::open_in(*a);
  ASSERT_OK(nl->add_bridge("br0"));
  ASSERT_OK(nl->add_veth("v0", "eth0", *b));
  ASSERT_OK(nl->set_master("v0", "br0"));
  ASSERT_OK(nl->rename("v0", "v1"));
  const auto links = nl->links();
  const auto port =
      std::find_if(links->begin(), links->end(), [](const Link& l) { return l.name == "v1"; });
  ASSERT_NE(port, links->end());
  EXPECT_EQ(port->master, nl->index("br0").value());
}

TEST_F(Root, SysctlsBelongToTheNamespace) {
  const auto ns = Netns::create();
  const std::string before = read_sysctl("net/ipv4/tcp_fwmark_accept").value();
  ASSERT_OK(ns->run([] { return write_sysctl("net/ipv4/tcp_fwmark_accept", "1"); }));
  EXPECT_EQ(ns->run([] { return read_sysctl("net/ipv4/tcp_fwmark_accept"); }).value(), "1");
  EXPECT_EQ(read_sysctl("net/ipv4/tcp_fwmark_accept").value(), before);
  EXPECT_EQ(read_sysctl("net/ipv4/no_such_key").error().reason, Reason::kNotFound);
}

TEST_F(Root, ProcessesStartInTheirCgroupAndNamespace) {
  const auto group = Cgroup::create(unique("cgroup"));
  ASSERT_OK(group);
  const auto pod = group->child("pod");
  ASSERT_OK(pod);
  const auto ns = Netns::create();
  auto p = Process::spawn({.argv = {"sleep", "60"}, .netns = &*ns, .cgroup = &*pod});
  ASSERT_OK(p);
  EXPECT_EQ(pod->processes().value(), std::vector<pid_t>{p->pid()});
  EXPECT_EQ(group->processes()->size(), 0u);
  EXPECT_EQ(group->processes_below().value(), std::vector<pid_t>{p->pid()});
  const auto inside = processes_in(ns->id().value());
  ASSERT_OK(inside);
  ASSERT_EQ(inside->size(), 1u);
  EXPECT_EQ(inside->front().pid, p->pid());
  EXPECT_TRUE(inside->front().cgroup.ends_with("/pod")) << inside->front().cgroup;
  EXPECT_FALSE(group->remove()) << "a process is in it";
  ASSERT_OK(group->kill_all());
  ASSERT_OK(p->wait(seconds(30)));
  EXPECT_EQ(group->processes_below()->size(), 0u);
  // A cgroup that was emptied by force takes new processes, and they live.
  auto next = Process::spawn({.argv = {"sh", "-c", "sleep 0.2; exit 7"}, .cgroup = &*pod});
  ASSERT_OK(next);
  const auto end = next->wait(seconds(30));
  ASSERT_OK(end);
  EXPECT_TRUE(WIFEXITED(*end) && WEXITSTATUS(*end) == 7) << *end;
  ASSERT_OK(group->remove());
  EXPECT_FALSE(Cgroup::open(unique("cgroup")));
}

TEST_F(Root, MountsABpffsOnce) {
  const std::string dir = "/tmp/" + unique("bpffs");
  ASSERT_OK(mount_bpffs(dir));
  EXPECT_TRUE(is_bpffs(dir).value());
  ASSERT_OK(mount_bpffs(dir));
  ASSERT_OK(unmount(dir));
  EXPECT_FALSE(is_bpffs(dir).value());
  ::rmdir(dir.c_str());
}

}  // namespace
}  // namespace meltemi::sys
