// Hostile pods: programs with NET_RAW and NET_ADMIN (hostile.py, `ip`, `nft`, curl) try every way we know to
// get TCP out of an enrolled pod past ztunnel, and into one past its policy, in both families. Both ends are
// listened to: what left the pod, and what arrived. Nothing may arrive; what left is counted for the pod.
// Beside them what must go on to work: ztunnel's own dials, excluded destinations, connections from before,
// UDP, answers.
#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cstring>
#include <set>

#include "tests/netns/capture/lab.h"

namespace meltemi::test {
namespace {

using agent::BpfOptions;
using agent::BpfStore;
using agent::Capture;
using agent::CapturedPod;
using agent::CaptureSpec;

const Require require(Need::kRootAndCgroup2);

constexpr uint16_t kPort = 8080;
constexpr agent::Marks kMarks{MELTEMI_CAPTURE_MARK, MELTEMI_TUNNEL_MARK};

// Every frame of a device, whatever becomes of it later.
class Sniffer {
 public:
  Sniffer(const sys::Netns& netns, const std::string& device)
      : fd_(must(sys::socket_in(netns, AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)))) {
    const uint32_t index = must(must(sys::Netlink::open_in(netns)).index(device));
    sockaddr_ll address{.sll_family = AF_PACKET,
                        .sll_protocol = htons(ETH_P_ALL),
                        .sll_ifindex = static_cast<int>(index)};
    must(netns.run([&]() -> Status {
      if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
        return fail_errno(errno, "bind a packet socket");
      return {};
    }));
  }
  // SYNs without ACK for kPort, anywhere in a frame where a segment may begin: also behind tags, options,
  // extension headers and in other packets. Consumes what was heard.
  size_t syns() {
    size_t found = 0;
    uint8_t frame[2048];
    ssize_t n;
    while ((n = ::recv(fd_.get(), frame, sizeof frame, MSG_DONTWAIT)) > 0) {
      for (ssize_t at = 34; at + 14 <= n; ++at) {
        const bool ours = frame[at + 2] == kPort >> 8 && frame[at + 3] == (kPort & 0xff);
        if (!ours || frame[at + 12] < 0x50 || (frame[at + 13] & 0x12) != 0x02) continue;
        ++found;
        break;
      }
    }
    return found;
  }

 private:
  UniqueFd fd_;
};

class HostileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const agent::ProbeAddresses probes{ip(MELTEMI_PROBE_ADDRESS_V4), ip(MELTEMI_PROBE_ADDRESS_V6)};
    ASSERT_OK(lab.node.run([&] { return agent::set_up_probe_addresses(probes); }));
    start(false);
    hostile = &lab.add_pod(1);
    target = &lab.add_pod(2);
    server = tcp_server(target->netns, kPort);
    // Neighbours are known before anything is listened to.
    for (const IpAddress& to : target->addresses()) EXPECT_TRUE(tcp_client(hostile->netns, {to, kPort}));
    while (accept_one(server.get(), 0)) {
    }
  }
  void start(bool without_tcx) {
    bpf = must(BpfStore::load({.directory = lab.bpf_directory(),
                               .probe_v4 = ip(MELTEMI_PROBE_ADDRESS_V4),
                               .probe_v6 = ip(MELTEMI_PROBE_ADDRESS_V6),
                               .node_netns_cookie = must(lab.node.cookie()),
                               .node_netns = must(lab.node.duplicate()),
                               .without_tcx = without_tcx}));
    must(bpf->attach(lab.cgroup));
    capture = std::make_unique<Capture>(*bpf, kMarks, must(lab.node.cookie()));
    const sys::Cgroup mine = must(sys::Cgroup::of_process(0));
    must(bpf->set_cgroup_roles(must(mine.id()), MELTEMI_CGROUP_TUNNEL));
  }
  CapturedPod enrol(CaptureSpec spec = {}) {
    spec.addresses = hostile->addresses();
    CapturedPod captured = must(capture->open(hostile->path, hostile->addresses()));
    must(capture->enrol(captured, spec));
    EXPECT_EQ(must(capture->missing(captured)), std::vector<std::string>());
    EXPECT_EQ(captured.guard_problem, "");
    return captured;
  }
  static std::string script() {
    const char* root = std::getenv("MELTEMI_SOURCE_DIR");
    return std::string(root != nullptr ? root : ".") + "/tests/netns/capture/hostile.py";
  }
  // Runs one way to its end, in the pod and its cgroup.
  void attempt(const std::string& name) {
    const sys::Cgroup pods = must(lab.cgroup.child("pods"));
    auto process = sys::Process::spawn(
        {.argv = {"/usr/bin/python3", "-B", script(), name,
                  target->v4.to_string(), target->v6.to_string(), std::to_string(kPort), mac_of_gateway()},
         .netns = &hostile->netns,
         .cgroup = &pods});
    ASSERT_OK(process);
    EXPECT_EQ(process->wait(std::chrono::seconds(60)).value_or(-1), 0) << name;
  }
  std::string mac_of_gateway() {
    ifreq request{};
    hostile->name.copy(request.ifr_name, IFNAMSIZ - 1);
    const UniqueFd fd = must(sys::socket_in(lab.node, AF_INET, SOCK_DGRAM, 0));
    EXPECT_EQ(::ioctl(fd.get(), SIOCGIFHWADDR, &request), 0);
    const auto* m = reinterpret_cast<const uint8_t*>(request.ifr_hwaddr.sa_data);
    char text[18];
    std::snprintf(text, sizeof text, "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
    return text;
  }
  uint64_t dropped(const CapturedPod& pod) { return must(capture->use(pod)).guard_dropped; }
  // ztunnel's dial: this process, with the tunnel's mark, in the pod.
  UniqueFd tunnel_dial(const IpAddress& to) {
    UniqueFd fd = tcp_socket(hostile->netns, to.is_v4() ? AF_INET : AF_INET6);
    const uint32_t mark = MELTEMI_TUNNEL_MARK;
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
    EXPECT_EQ(connect_within(fd.get(), {to, kPort}, kPatience), 0);
    return fd;
  }

  Lab lab;
  LabPod* hostile = nullptr;
  LabPod* target = nullptr;
  UniqueFd server;
  std::unique_ptr<BpfStore> bpf;
  std::unique_ptr<Capture> capture;
};

struct Way {
  const char* name;
  bool leaves;  // something gets as far as the veth, to be dropped and counted there
};

class WayOut : public HostileTest, public ::testing::WithParamInterface<Way> {};

TEST_P(WayOut, NothingArrivesAndWhatLeftIsCounted) {
  const Way way = GetParam();
  const CapturedPod captured = enrol();
  Sniffer left(lab.node, hostile->name), arrived(target->netns, "eth0");
  attempt(way.name);
  EXPECT_EQ(arrived.syns(), 0u) << "got out";
  EXPECT_FALSE(accept_one(server.get(), 0));
  EXPECT_EQ(left.syns() > 0 || dropped(captured) > 0, way.leaves);
  EXPECT_EQ(dropped(captured) > 0, way.leaves);
}

// The same ways do get out of a pod whose namespace has switched the guard off: the tries are real.
TEST_P(WayOut, IsOpenWithoutTheGuard) {
  const Way way = GetParam();
  // Their receiver drops what is tagged or tunnelled by itself, and what is no SYN to it.
  static const std::set<std::string> kNeedsAReceiver = {"ip_in_ip", "vlan_tags", "fragments",
                                                        "ip_options", "link_local"};
  if (!way.leaves || kNeedsAReceiver.contains(way.name)) GTEST_SKIP() << "never arrives here";
  const CapturedPod captured = enrol({.guard = false});
  Sniffer arrived(target->netns, "eth0");
  attempt(way.name);
  EXPECT_GT(arrived.syns(), 0u);
  EXPECT_EQ(dropped(captured), 0u);
}

constexpr Way kWays[] = {
    {"mark", false},  // refused at connect
    {"mark_taken_off_before_the_syn", true},
    {"device_bound_before_the_syn", true},
    {"raw_socket", true},
    {"packet_socket", true},
    {"odd_flags", true},
    {"ip_options", true},
    {"fragments", true},
    {"v6_extension_headers", true},
    {"ip_in_ip", true},
    {"vlan_tags", true},
    {"rule_deleted", true},
    {"route_deleted", true},
    {"rule_before_ours", true},
    {"own_netfilter_rules", true},
    {"another_cgroup", true},
    {"sysctls_flipped", false},  // it is captured all the same
    {"mptcp", true},
    {"tcp_fast_open", true},
    {"v4_mapped", true},
    {"link_local", true},
    {"neighbours_address", true},
    {"added_address", true},
    {"transparent", true},
    {"macvlan_in_a_namespace_of_its_own", true},
    {"interface_moved_away", true},
    {"forwarded_from_a_namespace_inside", true},
};
INSTANTIATE_TEST_SUITE_P(All, WayOut, ::testing::ValuesIn(kWays),
                         [](const auto& info) { return std::string(info.param.name); });

// The other direction: a pod outside of the mesh, with the same capabilities, and an app under STRICT.
class WayIn : public HostileTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    HostileTest::SetUp();
    // The app takes data in a SYN, from whoever sends it.
    const int queue = 16;
    ASSERT_EQ(::setsockopt(server.get(), SOL_TCP, TCP_FASTOPEN, &queue, sizeof queue), 0);
    must(target->netns.run([] { return sys::write_sysctl("net/ipv4/tcp_fastopen", "1539"); }));
  }
};

TEST_P(WayIn, ReachesTheInboundListenerAndNeverTheApp) {
  CapturedPod captured = must(capture->open(target->path, target->addresses()));
  must(capture->enrol(captured, {.addresses = target->addresses(), .strict = true}));
  attempt(GetParam());
  EXPECT_FALSE(accept_one(server.get(), 0)) << "past the policy";
  EXPECT_TRUE(accept_one(captured.listeners.inbound.get(), 0)) << "nothing was tried";
  // Without a ztunnel that takes them they are refused, not let through.
  captured.listeners = {};
  attempt(GetParam());
  EXPECT_FALSE(accept_one(server.get(), 0)) << "past the policy while no ztunnel is there";
}

TEST_P(WayIn, IsOpenToAPodOutsideOfTheMesh) {
  attempt(GetParam());
  EXPECT_TRUE(accept_one(server.get(), 0));
}

INSTANTIATE_TEST_SUITE_P(All, WayIn,
                         ::testing::Values("mark", "own_netfilter_rules", "another_cgroup", "mptcp",
                                           "tcp_fast_open", "v4_mapped", "device_bound_before_the_syn",
                                           "forwarded_from_a_namespace_inside"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(HostileTest, TheGuardTouchesNothingThatIsAllowed) {
  // From before enrolment, both ways.
  const UniqueFd before = tcp_client(hostile->netns, {target->v4, kPort});
  const UniqueFd before_peer = accept_one(server.get());
  const UniqueFd app = tcp_server(hostile->netns, 9090);
  const UniqueFd caller = tcp_client(target->netns, {hostile->v6, 9090});
  const UniqueFd called = accept_one(app.get());
  const CapturedPod captured = enrol({.exclude_ports = {9191}});
  EXPECT_TRUE(talk(before.get(), before_peer.get()));
  EXPECT_TRUE(talk(caller.get(), called.get()));
  // ztunnel's dials, and answers of the inbound side.
  for (const IpAddress& to : target->addresses()) {
    const UniqueFd dial = tunnel_dial(to);
    const UniqueFd accepted = accept_one(server.get());
    EXPECT_TRUE(talk(dial.get(), accepted.get()));
  }
  for (const IpAddress& to : hostile->addresses()) {
    const UniqueFd client = tcp_client(target->netns, {to, 9090});
    const UniqueFd accepted = accept_one(captured.listeners.inbound.get());
    EXPECT_TRUE(talk(client.get(), accepted.get()));
  }
  // What the pod's owner excluded.
  const UniqueFd excluded = tcp_server(target->netns, 9191);
  for (const IpAddress& to : target->addresses()) {
    const UniqueFd client = tcp_client(hostile->netns, {to, 9191});
    const UniqueFd accepted = accept_one(excluded.get());
    EXPECT_TRUE(talk(client.get(), accepted.get()));
  }
  // UDP, in fragments too.
  const UniqueFd receiver = must(sys::socket_in(target->netns, AF_INET, SOCK_DGRAM, 0));
  sockaddr_in any{.sin_family = AF_INET, .sin_port = htons(5353)};
  ASSERT_EQ(::bind(receiver.get(), reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
  const UniqueFd sender = must(sys::socket_in(hostile->netns, AF_INET, SOCK_DGRAM, 0));
  ASSERT_EQ(connect_to(sender.get(), {target->v4, 5353}), 0);
  const std::string large(20'000, 'u');
  ASSERT_EQ(::send(sender.get(), large.data(), large.size(), 0), static_cast<ssize_t>(large.size()));
  std::string got(large.size(), 0);
  ASSERT_TRUE(wait_for(receiver.get(), POLLIN));
  EXPECT_EQ(::recv(receiver.get(), got.data(), got.size(), 0), static_cast<ssize_t>(large.size()));
  EXPECT_EQ(dropped(captured), 0u);
}

TEST_F(HostileTest, ThePodThatDidItIsNamedWithTheDestination) {
  const CapturedPod captured = enrol();
  attempt("packet_socket");
  const agent::PodUse use = must(capture->use(captured));
  EXPECT_EQ(use.guard_dropped, 2u);
  EXPECT_EQ(use.last.netns_cookie, captured.cookie);
  EXPECT_EQ(use.last.last_port, kPort);
  const meltemi_address last = agent::to_abi(target->v6);
  EXPECT_EQ(std::memcmp(&use.last.last_to, &last, sizeof last), 0);
  EXPECT_EQ(must(bpf->counters())[MELTEMI_COUNT_GUARD_DROPPED], 2u);
}

TEST_F(HostileTest, TheGuardEndsWithTheEnrolmentAndOutlivesTheAgent) {
  CapturedPod captured = enrol();
  capture.reset();
  bpf.reset();  // no agent
  Sniffer arrived(target->netns, "eth0");
  attempt("packet_socket");
  EXPECT_EQ(arrived.syns(), 0u);
  start(false);
  captured = enrol();
  EXPECT_EQ(dropped(captured), 2u) << "a new agent goes on counting";
  ASSERT_OK(capture->begin_drain(captured));
  attempt("packet_socket");
  EXPECT_EQ(arrived.syns(), 2u) << "the pod is its own again";
  ASSERT_OK(capture->finish(captured));
  EXPECT_TRUE(must(bpf->guards()).empty());
}

// It cannot be attached anew at a moment, for whatever cause: here something else has its pin's name.
TEST_F(HostileTest, AGuardThatStandsIsNotGivenUpForAnError) {
  CapturedPod captured = enrol();
  const CaptureSpec spec{.addresses = hostile->addresses()};
  const uint32_t device = must(must(sys::Netlink::open_in(lab.node)).index(hostile->name));
  const std::string pin = bpf->version_directory() + "/guards/" + std::to_string(device);
  ASSERT_EQ(::rename(pin.c_str(), (pin + "-away").c_str()), 0);
  ASSERT_EQ(::mkdir(pin.c_str(), 0700), 0);
  EXPECT_FALSE(capture->enrol(captured, spec));
  Sniffer arrived(target->netns, "eth0");
  attempt("packet_socket");
  EXPECT_EQ(arrived.syns(), 0u);
  EXPECT_EQ(dropped(captured), 2u);
  ASSERT_EQ(::rmdir(pin.c_str()), 0);
  ASSERT_EQ(::rename((pin + "-away").c_str(), pin.c_str()), 0);
  ASSERT_OK(capture->enrol(captured, spec));
  EXPECT_EQ(must(capture->missing(captured)), std::vector<std::string>());
}

TEST_F(HostileTest, WithoutTcxAFilterGuards) {
  start(true);
  CapturedPod captured = enrol();
  Sniffer arrived(target->netns, "eth0");
  attempt("packet_socket");
  EXPECT_EQ(arrived.syns(), 0u);
  EXPECT_EQ(dropped(captured), 2u);
  const UniqueFd dial = tunnel_dial(target->v4);
  EXPECT_TRUE(accept_one(server.get()));
  ASSERT_OK(capture->finish(captured));
  arrived.syns();
  attempt("packet_socket");
  EXPECT_EQ(arrived.syns(), 2u) << "the filter is still there";
}

}  // namespace
}  // namespace meltemi::test
