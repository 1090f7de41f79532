// The promises of capture, each a test: what an app, a client, a probe and an attacker see while
// pods are enrolled, by the real kernel, BPF and sockets. No agent process here: the functions that
// it calls.
#include <gtest/gtest.h>
#include <liburing.h>
#include <signal.h>
#include <sys/wait.h>

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

constexpr uint32_t kMark = MELTEMI_CAPTURE_MARK;
constexpr agent::Marks kMarks{MELTEMI_CAPTURE_MARK, MELTEMI_TUNNEL_MARK};

class CaptureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    probes_ = {ip(MELTEMI_PROBE_ADDRESS_V4), ip(MELTEMI_PROBE_ADDRESS_V6)};
    ASSERT_OK(lab.node.run([&] { return agent::set_up_probe_addresses(probes_); }));
    start();
  }
  BpfOptions options() {
    return {.directory = lab.bpf_directory(),
            .probe_v4 = probes_.v4,
            .probe_v6 = probes_.v6,
            .node_netns_cookie = must(lab.node.cookie()),
            .node_netns = must(lab.node.duplicate())};
  }
  void start() {
    auto loaded = BpfStore::load(options());
    ASSERT_OK(loaded);
    bpf = std::move(*loaded);
    ASSERT_OK(bpf->attach(lab.cgroup));
    capture = std::make_unique<Capture>(*bpf, kMarks, must(lab.node.cookie()));
    // This process plays the kubelet, and, with the tunnel's mark, ztunnel.
    play(MELTEMI_CGROUP_TUNNEL | MELTEMI_CGROUP_PROBER);
  }
  void play(uint32_t roles) {
    const sys::Cgroup mine = must(sys::Cgroup::of_process(0));
    must(bpf->set_cgroup_roles(must(mine.id()), roles));
  }
  uint64_t counted(meltemi_counter counter) { return must(bpf->counters())[counter]; }
  CapturedPod enrol(const LabPod& pod, CaptureSpec spec = {}) {
    spec.addresses = pod.addresses();
    CapturedPod captured = must(capture->open(pod.path, pod.addresses()));
    const Status status = capture->enrol(captured, spec);
    EXPECT_OK(status);
    const auto missing = capture->missing(captured);
    EXPECT_OK(missing);
    EXPECT_EQ(*missing, std::vector<std::string>());
    return captured;
  }

  Lab lab;
  agent::ProbeAddresses probes_;
  std::unique_ptr<BpfStore> bpf;
  std::unique_ptr<Capture> capture;
};

// --- outbound ------------------------------------------------------------------------------------

enum class Way { kBlocking, kNonBlocking, kMptcp, kUring };
enum class Family { kV4, kV6, kMapped };

int connect_by_uring(int fd, const SocketAddress& to, bool mapped) {
  io_uring ring;
  if (io_uring_queue_init(4, &ring, 0) < 0) return -1;
  sockaddr_storage address;
  const socklen_t length = to.to_sockaddr(address, mapped);
  io_uring_sqe* sqe = io_uring_get_sqe(&ring);
  io_uring_prep_connect(sqe, fd, reinterpret_cast<sockaddr*>(&address), length);
  io_uring_submit(&ring);
  io_uring_cqe* cqe = nullptr;
  __kernel_timespec timeout{.tv_sec = kPatience / 1000};
  int result = -ETIMEDOUT;
  if (io_uring_wait_cqe_timeout(&ring, &cqe, &timeout) == 0) result = cqe->res;
  io_uring_queue_exit(&ring);
  return -result;
}

class VipConnectMatrix : public CaptureTest,
                         public ::testing::WithParamInterface<std::tuple<Way, Family>> {};

TEST_P(VipConnectMatrix, reaches_the_tunnel_and_looks_to_the_app_like_the_service) {
  const auto [way, family] = GetParam();
  LabPod& pod = lab.add_pod(1);
  const CapturedPod captured = enrol(pod);
  const bool mapped = family == Family::kMapped;
  const SocketAddress vip = family == Family::kV6 ? at("fd96::10", 80) : at("10.96.0.10", 80);
  const IpAddress own = family == Family::kV6 ? pod.v6 : pod.v4;

  Result<UniqueFd> client =
      sys::socket_in(pod.netns, family == Family::kV4 ? AF_INET : AF_INET6, SOCK_STREAM,
                     way == Way::kMptcp ? IPPROTO_MPTCP : IPPROTO_TCP);
  if (!client && way == Way::kMptcp) GTEST_SKIP() << "the kernel has no MPTCP";
  ASSERT_OK(client);
  int error = 0;
  if (way == Way::kUring) {
    error = connect_by_uring(client->get(), vip, mapped);
    if (error == 1) GTEST_SKIP() << "io_uring is refused here";
  } else if (way == Way::kNonBlocking) {
    ::fcntl(client->get(), F_SETFL, O_NONBLOCK);
    EXPECT_EQ(connect_to(client->get(), vip, mapped), EINPROGRESS);
    ASSERT_TRUE(wait_for(client->get(), POLLOUT));
    socklen_t length = sizeof error;
    ::getsockopt(client->get(), SOL_SOCKET, SO_ERROR, &error, &length);
  } else {
    error = connect_to(client->get(), vip, mapped);
  }
  ASSERT_EQ(error, 0) << std::strerror(error);
  EXPECT_EQ(peer_of(client->get()), vip);
  EXPECT_EQ(local_of(client->get()).ip, own);

  const UniqueFd accepted = accept_one(captured.listeners.outbound.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(local_of(accepted.get()), vip) << "the tunnel must see the original destination";
  EXPECT_EQ(peer_of(accepted.get()), local_of(client->get()));
  EXPECT_TRUE(talk(client->get(), accepted.get()));
}

std::string matrix_name(const ::testing::TestParamInfo<std::tuple<Way, Family>>& info) {
  static constexpr const char* kWays[] = {"tcp", "nonblocking", "mptcp", "io_uring"};
  static constexpr const char* kFamilies[] = {"v4", "v6", "mapped"};
  return std::string(kWays[static_cast<int>(std::get<0>(info.param))]) + "_" +
         kFamilies[static_cast<int>(std::get<1>(info.param))];
}
INSTANTIATE_TEST_SUITE_P(All, VipConnectMatrix,
                         ::testing::Combine(::testing::Values(Way::kBlocking, Way::kNonBlocking,
                                                              Way::kMptcp, Way::kUring),
                                            ::testing::Values(Family::kV4, Family::kV6,
                                                              Family::kMapped)),
                         matrix_name);

TEST_F(CaptureTest, a_socket_bound_to_a_device_is_captured_too) {
  LabPod& pod = lab.add_pod(1);
  // As some CNIs have it: the host answers ARP for everything, and the SYN would leave the pod.
  must(lab.node.run(
      [&] { return sys::write_sysctl("net/ipv4/conf/" + pod.name + "/proxy_arp", "1"); }));
  const CapturedPod captured = enrol(pod);
  const UniqueFd client = tcp_socket(pod.netns, AF_INET);
  ASSERT_EQ(::setsockopt(client.get(), SOL_SOCKET, SO_BINDTODEVICE, "eth0", 5), 0);
  ASSERT_EQ(connect_within(client.get(), at("10.96.0.10", 80), kPatience), 0);
  const UniqueFd accepted = accept_one(captured.listeners.outbound.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(local_of(accepted.get()), at("10.96.0.10", 80));
  EXPECT_TRUE(talk(client.get(), accepted.get()));
}

TEST_F(CaptureTest, the_tunnels_own_dials_are_not_captured) {
  LabPod& a = lab.add_pod(1);
  LabPod& b = lab.add_pod(2);
  const CapturedPod captured = enrol(a);
  const UniqueFd server = tcp_server(b.netns, 9000);
  for (const IpAddress& to : b.addresses()) {
    const UniqueFd dial = tcp_socket(a.netns, to.is_v4() ? AF_INET : AF_INET6);
    const uint32_t mark = MELTEMI_TUNNEL_MARK;
    ASSERT_EQ(::setsockopt(dial.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
    ASSERT_EQ(connect_within(dial.get(), {to, 9000}, kPatience), 0);
    const UniqueFd accepted = accept_one(server.get());
    ASSERT_TRUE(accepted);
    EXPECT_EQ(peer_of(accepted.get()).ip, to.is_v4() ? a.v4 : a.v6);
    EXPECT_TRUE(talk(dial.get(), accepted.get()));
  }
}

TEST_F(CaptureTest, TheTunnelsMarkOnAnAppsSocketOpensNothing) {
  LabPod& a = lab.add_pod(1);
  LabPod& b = lab.add_pod(2);
  const CapturedPod captured = enrol(a);
  const UniqueFd server = tcp_server(b.netns, 9000);
  play(0);  // not ztunnel any more; CAP_NET_RAW is all that the mark takes
  for (const IpAddress& to : b.addresses()) {
    const UniqueFd client = tcp_socket(a.netns, to.is_v4() ? AF_INET : AF_INET6);
    const uint32_t mark = MELTEMI_TUNNEL_MARK;
    ASSERT_EQ(::setsockopt(client.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
    EXPECT_EQ(connect_within(client.get(), {to, 9000}, kPatience), EPERM);
  }
  EXPECT_FALSE(accept_one(server.get(), 0));
  EXPECT_EQ(counted(MELTEMI_COUNT_MARK_REFUSED), 2u);
  // In a pod that is not enrolled the mark is nobody's business.
  LabPod& plain = lab.add_pod(3);
  const UniqueFd other = tcp_socket(plain.netns, AF_INET);
  const uint32_t mark = MELTEMI_TUNNEL_MARK;
  ASSERT_EQ(::setsockopt(other.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
  EXPECT_EQ(connect_within(other.get(), {b.v4, 9000}, kPatience), 0);
}

// --- link-local ----------------------------------------------------------------------------------

// fe80::/10 of a device; it is there as soon as the device is up (accept_dad is off here).
IpAddress link_local_of(const sys::Netns& netns, const std::string& device) {
  sys::Netlink netlink = must(sys::Netlink::open_in(netns));
  const uint32_t index = must(netlink.index(device));
  for (int i = 0; i < 250; ++i, ::usleep(20'000))
    for (const sys::Address& a : must(netlink.addresses()))
      if (a.ifindex == index && a.link_scope && !a.ip.is_v4()) return a.ip;
  throw std::runtime_error("no link-local address on " + device);
}

int connect_scoped(int fd, const IpAddress& to, uint16_t port, uint32_t device, int timeout_ms) {
  sockaddr_in6 address{.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_scope_id = device};
  std::memcpy(&address.sin6_addr, to.bytes().data(), 16);
  ::fcntl(fd, F_SETFL, O_NONBLOCK);
  int error = ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0 ? errno : 0;
  if (error != EINPROGRESS) return error;
  if (!wait_for(fd, POLLOUT, timeout_ms)) return ETIMEDOUT;
  socklen_t length = sizeof error;
  ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

TEST_F(CaptureTest, LinkLocalClientsMeetThePolicyLikeAllOthers) {
  LabPod& pod = lab.add_pod(1);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  const CapturedPod captured = enrol(pod, {.probe_ports = {8080}, .strict = true});
  const IpAddress inside = link_local_of(pod.netns, "eth0");
  const uint32_t veth = must(must(sys::Netlink::open_in(lab.node)).index(pod.name));
  const UniqueFd client = tcp_socket(lab.node, AF_INET6);
  ASSERT_EQ(connect_scoped(client.get(), inside, 8080, veth, kPatience), 0);
  const UniqueFd accepted = accept_one(captured.listeners.inbound.get());
  ASSERT_TRUE(accepted) << "past STRICT and every policy";
  EXPECT_EQ(local_of(accepted.get()), (SocketAddress{inside, 8080}));
  EXPECT_FALSE(accept_one(app.get(), 0));
}

TEST_F(CaptureTest, LinkLocalDestinationsAreRefusedUnlessExcluded) {
  LabPod& pod = lab.add_pod(1);
  const IpAddress outside = link_local_of(lab.node, pod.name);
  const UniqueFd server = tcp_server(lab.node, 9000);
  const uint32_t eth0 = must(must(sys::Netlink::open_in(pod.netns)).index("eth0"));
  for (const bool excluded : {false, true}) {
    CaptureSpec spec;
    if (excluded) spec.exclude_cidrs = {*Cidr::parse("fe80::/10")};
    CapturedPod captured = enrol(pod, spec);
    const UniqueFd client = tcp_socket(pod.netns, AF_INET6);
    EXPECT_EQ(connect_scoped(client.get(), outside, 9000, eth0, kPatience), excluded ? 0 : EPERM);
    EXPECT_EQ(accept_one(server.get(), excluded ? kPatience : 0).valid(), excluded);
    // Its own is its own.
    const UniqueFd app = tcp_server(pod.netns, 8080);
    const UniqueFd self = tcp_socket(pod.netns, AF_INET6);
    EXPECT_EQ(connect_scoped(self.get(), link_local_of(pod.netns, "eth0"), 8080, eth0, kPatience), 0);
    EXPECT_TRUE(accept_one(app.get()));
    ASSERT_OK(capture->finish(captured));
  }
  EXPECT_EQ(counted(MELTEMI_COUNT_LINK_LOCAL_REFUSED), 1u);
}

TEST_F(CaptureTest, excluded_destinations_are_reached_directly_and_only_those) {
  LabPod& a = lab.add_pod(1);
  LabPod& b = lab.add_pod(2);
  LabPod& other = lab.add_pod(3);
  const UniqueFd server = tcp_server(b.netns, 9000);
  const UniqueFd by_port = tcp_server(b.netns, 9001);
  CaptureSpec spec;
  spec.exclude_cidrs = {*Cidr::parse("10.66.0.2/31"), *Cidr::parse("fd66::2/128")};
  spec.exclude_ports = {9001};
  const CapturedPod captured = enrol(a, spec);
  const CapturedPod unrelated = enrol(other);

  for (const IpAddress& to : b.addresses()) {
    const UniqueFd client = tcp_client(a.netns, {to, 9000});
    EXPECT_TRUE(accept_one(server.get()));
  }
  const UniqueFd elsewhere = tcp_client(a.netns, at("10.66.0.99", 9000));
  EXPECT_EQ(local_of(accept_one(captured.listeners.outbound.get()).get()), at("10.66.0.99", 9000));
  const UniqueFd port = tcp_client(a.netns, {b.v4, 9001});
  EXPECT_TRUE(accept_one(by_port.get()));
  // Another pod's exclusions are its own.
  const UniqueFd c = tcp_client(other.netns, {b.v4, 9000});
  EXPECT_EQ(local_of(accept_one(unrelated.listeners.outbound.get()).get()),
            (SocketAddress{b.v4, 9000}));
}

TEST_F(CaptureTest, a_pod_talks_to_itself_without_the_tunnel) {
  LabPod& pod = lab.add_pod(1);
  const CapturedPod captured = enrol(pod);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  for (const SocketAddress& to : {SocketAddress{pod.v4, 8080}, SocketAddress{pod.v6, 8080},
                                  at("127.0.0.1", 8080), at("::1", 8080), at("127.1.2.3", 8080)}) {
    const UniqueFd client = tcp_client(pod.netns, to);
    const UniqueFd accepted = accept_one(app.get());
    ASSERT_TRUE(accepted) << to.to_string();
    EXPECT_TRUE(talk(client.get(), accepted.get())) << to.to_string();
  }
}

TEST_F(CaptureTest, udp_is_left_alone) {
  LabPod& a = lab.add_pod(1);
  LabPod& b = lab.add_pod(2);
  const CapturedPod captured = enrol(a);
  const CapturedPod other = enrol(b);
  const UniqueFd server = must(sys::socket_in(b.netns, AF_INET, SOCK_DGRAM, 0));
  sockaddr_in any{.sin_family = AF_INET, .sin_port = htons(5353)};
  ASSERT_EQ(::bind(server.get(), reinterpret_cast<sockaddr*>(&any), sizeof any), 0);
  const UniqueFd client = must(sys::socket_in(a.netns, AF_INET, SOCK_DGRAM, 0));
  ASSERT_EQ(connect_to(client.get(), {b.v4, 5353}), 0);
  ASSERT_EQ(::send(client.get(), "q", 1, 0), 1);
  ASSERT_TRUE(wait_for(server.get(), POLLIN));
  sockaddr_in from{};
  socklen_t length = sizeof from;
  char byte;
  ASSERT_EQ(::recvfrom(server.get(), &byte, 1, 0, reinterpret_cast<sockaddr*>(&from), &length), 1);
  ASSERT_EQ(::sendto(server.get(), "a", 1, 0, reinterpret_cast<sockaddr*>(&from), length), 1);
  EXPECT_TRUE(wait_for(client.get(), POLLIN)) << "the reply is lost";
}

TEST_F(CaptureTest, without_the_tunnel_a_call_waits_and_never_lands_on_the_pods_own_port) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  const UniqueFd own_server = tcp_server(pod.netns, 80);
  captured.listeners = {};  // agent and ztunnel are gone
  const UniqueFd client = tcp_socket(pod.netns, AF_INET);
  ::fcntl(client.get(), F_SETFL, O_NONBLOCK);
  EXPECT_EQ(connect_to(client.get(), at("10.96.0.10", 80)), EINPROGRESS);
  EXPECT_FALSE(accept_one(own_server.get(), 300))
      << "a call to the service reached the pod's port 80";
  const auto missing = capture->missing(captured);
  ASSERT_OK(missing);
  EXPECT_EQ(*missing,
            (std::vector<std::string>{"outbound_listener", "inbound_listener", "hbone_listener"}));
  // The tunnel is back: the same call goes through, by TCP's own repetition.
  ASSERT_OK(capture->enrol(captured, {.addresses = pod.addresses()}));
  ASSERT_TRUE(wait_for(client.get(), POLLOUT));
  const UniqueFd accepted = accept_one(captured.listeners.outbound.get());
  ASSERT_TRUE(accepted);
  EXPECT_TRUE(talk(client.get(), accepted.get()));
}

// --- inbound -------------------------------------------------------------------------------------

TEST_F(CaptureTest, inbound_reaches_the_tunnel_and_the_app_still_sees_the_client) {
  LabPod& server = lab.add_pod(1);
  LabPod& client_pod = lab.add_pod(2);
  must(server.netns.run([]() -> Status {
    MELTEMI_TRY(sys::write_sysctl("net/ipv4/conf/all/rp_filter", "1"));
    return sys::write_sysctl("net/ipv4/conf/eth0/rp_filter", "1");
  }));
  for (const int protocol : {IPPROTO_TCP, IPPROTO_MPTCP}) {
    const uint16_t port = protocol == IPPROTO_TCP ? 8080 : 8081;
    const Result<UniqueFd> probe = sys::socket_in(server.netns, AF_INET6, SOCK_STREAM, protocol);
    if (!probe) continue;  // no MPTCP in this kernel
    const UniqueFd app = tcp_server(server.netns, port, protocol);
    const CapturedPod captured = enrol(server);
    for (const bool v4 : {true, false}) {
      const IpAddress to = v4 ? server.v4 : server.v6, from = v4 ? client_pod.v4 : client_pod.v6;
      const UniqueFd client = tcp_client(client_pod.netns, {to, port});
      const UniqueFd accepted = accept_one(captured.listeners.inbound.get());
      ASSERT_TRUE(accepted);
      EXPECT_EQ(local_of(accepted.get()), (SocketAddress{to, port}));
      EXPECT_EQ(peer_of(accepted.get()), local_of(client.get()));
      EXPECT_FALSE(accept_one(app.get(), 0)) << "the app was reached without the tunnel";
      const UniqueFd dial = dial_as(server.netns, from, {to, port}, kMark);
      const UniqueFd in_app = accept_one(app.get());
      ASSERT_TRUE(in_app);
      EXPECT_EQ(peer_of(in_app.get()).ip, from);
      EXPECT_TRUE(talk(dial.get(), in_app.get()));
    }
    CapturedPod done = must(capture->open(server.path, server.addresses()));
    ASSERT_OK(capture->finish(done));
  }
}

TEST_F(CaptureTest, hbone_is_an_ordinary_port) {
  LabPod& server = lab.add_pod(1);
  LabPod& client = lab.add_pod(2);
  const CapturedPod captured = enrol(server);
  const UniqueFd c = tcp_client(client.netns, {server.v4, MELTEMI_HBONE_PORT});
  const UniqueFd accepted = accept_one(captured.listeners.hbone.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(peer_of(accepted.get()).ip, client.v4);
}

TEST_F(CaptureTest, without_the_tunnel_inbound_follows_the_pods_policy) {
  LabPod& server = lab.add_pod(1);
  LabPod& client = lab.add_pod(2);
  const UniqueFd app = tcp_server(server.netns, 8080);
  for (const bool strict : {true, false}) {
    CapturedPod captured = enrol(server, {.strict = strict});
    captured.listeners = {};
    const UniqueFd c = tcp_socket(client.netns, AF_INET);
    const int error = connect_within(c.get(), {server.v4, 8080}, strict ? 1000 : kPatience);
    EXPECT_EQ(error == 0, !strict) << std::strerror(error);
    EXPECT_EQ(accept_one(app.get(), strict ? 0 : kPatience).valid(), !strict);
    ASSERT_OK(capture->finish(captured));
  }
}

TEST_F(CaptureTest, nobody_outside_speaks_as_the_pod) {
  LabPod& server = lab.add_pod(1);
  LabPod& client = lab.add_pod(2);
  const CapturedPod captured = enrol(server);
  // An address that the pod got after it was enrolled; a neighbour routes to it.
  sys::Netlink inside = must(sys::Netlink::open_in(server.netns));
  must(inside.add_address(
      {.ip = ip("10.67.0.1"), .prefix_length = 32, .ifindex = must(inside.index("eth0"))}));
  sys::Netlink outside = must(sys::Netlink::open_in(lab.node));
  must(outside.add_route({.family = AF_INET,
                          .destination = Cidr::parse("10.67.0.1/32"),
                          .oif = must(outside.index(server.name)),
                          .scope_link = true}));
  const UniqueFd c = tcp_client(client.netns, at("10.67.0.1", 8080));
  EXPECT_FALSE(accept_one(captured.listeners.outbound.get(), 200));
  const UniqueFd accepted = accept_one(captured.listeners.inbound.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(peer_of(accepted.get()).ip, client.v4);
}

// --- probes --------------------------------------------------------------------------------------

TEST_F(CaptureTest, kubelets_probe_reaches_the_app_under_strict) {
  LabPod& pod = lab.add_pod(1);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  const UniqueFd other = tcp_server(pod.netns, 8081);
  const CapturedPod captured = enrol(pod, {.probe_ports = {8080}, .strict = true});
  for (const IpAddress& to : pod.addresses()) {
    const UniqueFd probe = tcp_client(lab.node, {to, 8080});
    const UniqueFd accepted = accept_one(app.get());
    ASSERT_TRUE(accepted) << to.to_string();
    EXPECT_EQ(peer_of(accepted.get()).ip, to.is_v4() ? probes_.v4 : probes_.v6);
    EXPECT_TRUE(talk(probe.get(), accepted.get()));
    // A port that no probe declares is the tunnel's, also for the node.
    const UniqueFd call = tcp_client(lab.node, {to, 8081});
    EXPECT_TRUE(accept_one(captured.listeners.inbound.get()));
    EXPECT_FALSE(accept_one(other.get(), 0));
  }
  // By a v4-mapped socket as well.
  const UniqueFd mapped = tcp_socket(lab.node, AF_INET6);
  ASSERT_EQ(connect_to(mapped.get(), {pod.v4, 8080}, true), 0);
  const UniqueFd accepted = accept_one(app.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(peer_of(accepted.get()).ip, probes_.v4);
}

TEST_F(CaptureTest, curl_probes_an_app_like_the_kubelet) {
  LabPod& pod = lab.add_pod(1);
  const CapturedPod captured = enrol(pod, {.probe_ports = {8080}, .strict = true});
  const sys::Cgroup pods = must(lab.cgroup.child("pods"));
  auto app = sys::Process::spawn({.argv = {"/usr/bin/python3", "-m", "http.server", "8080"},
                                  .directory = "/tmp",
                                  .netns = &pod.netns,
                                  .cgroup = &pods});
  ASSERT_OK(app);
  const sys::Cgroup system = must(lab.cgroup.child("system"));
  must(bpf->set_cgroup_roles(must(system.id()), MELTEMI_CGROUP_PROBER));
  auto curl = sys::Process::spawn(
      {.argv = {"curl", "-s", "-o", "/dev/null", "--retry", "20", "--retry-connrefused",
                "--retry-delay", "1", "--max-time", "30", "http://10.66.0.1:8080/"},
       .netns = &lab.node,
       .cgroup = &system});
  ASSERT_OK(curl);
  const auto status = curl->wait(std::chrono::seconds(60));
  EXPECT_EQ(status.value_or(-1), 0);
  EXPECT_OK(app->stop(std::chrono::seconds(5)));
}

TEST_F(CaptureTest, OnlyTheKubeletsCgroupIsExemptAndItIsCounted) {
  LabPod& pod = lab.add_pod(1);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  const CapturedPod captured = enrol(pod, {.probe_ports = {8080}, .strict = true});
  const sys::Cgroup kubelet = must(must(lab.cgroup.child("system")).child("kubelet"));
  play(0);
  must(bpf->set_cgroup_roles(must(kubelet.id()), MELTEMI_CGROUP_PROBER));
  // This process is of the node's network, like a pod with hostNetwork, but not the kubelet.
  for (const IpAddress& to : pod.addresses()) {
    const UniqueFd other = tcp_client(lab.node, {to, 8080});
    EXPECT_TRUE(accept_one(captured.listeners.inbound.get()));
    EXPECT_FALSE(accept_one(app.get(), 0));
  }
  EXPECT_EQ(counted(MELTEMI_COUNT_PROBE_REFUSED), 2u);
  EXPECT_EQ(must(capture->use(captured)).probes_passed, 0u);
  // A child of the kubelet, in a cgroup of its own below.
  const sys::Cgroup below = must(kubelet.child("prober"));
  auto probe =
      sys::Process::spawn({.argv = {"curl", "-s", "--max-time", "5", "http://10.66.0.1:8080/"},
                           .netns = &lab.node,
                           .cgroup = &below});
  ASSERT_OK(probe);
  const UniqueFd accepted = accept_one(app.get());
  ASSERT_TRUE(accepted);
  EXPECT_EQ(peer_of(accepted.get()).ip, probes_.v4);
  EXPECT_OK(probe->stop(std::chrono::seconds(1)));
  EXPECT_GE(must(capture->use(captured)).probes_passed, 1u);
}

TEST_F(CaptureTest, WhereTheKubeletIsNotKnownNobodyIsExempt) {
  LabPod& pod = lab.add_pod(1);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  const CapturedPod captured = enrol(pod, {.probe_ports = {8080}, .strict = true});
  play(MELTEMI_CGROUP_TUNNEL);
  const UniqueFd client = tcp_client(lab.node, {pod.v4, 8080});
  EXPECT_TRUE(accept_one(captured.listeners.inbound.get()));
  EXPECT_FALSE(accept_one(app.get(), 0));
}

TEST_F(CaptureTest, a_spoofed_probe_source_does_not_pass) {
  LabPod& pod = lab.add_pod(1);
  LabPod& attacker = lab.add_pod(2);
  const UniqueFd app = tcp_server(pod.netns, 8080);
  const CapturedPod captured = enrol(pod, {.probe_ports = {8080}, .strict = true});
  for (const bool v4 : {true, false}) {
    const IpAddress source = v4 ? probes_.v4 : probes_.v6;
    // The attacker gives itself the probe address and calls from it.
    sys::Netlink inside = must(sys::Netlink::open_in(attacker.netns));
    must(inside.add_address({.ip = source,
                             .prefix_length = uint8_t(v4 ? 32 : 128),
                             .ifindex = must(inside.index("eth0"))}));
    const UniqueFd c = tcp_socket(attacker.netns, v4 ? AF_INET : AF_INET6);
    sockaddr_storage a;
    const socklen_t n = SocketAddress{source, 0}.to_sockaddr(a);
    ASSERT_EQ(::bind(c.get(), reinterpret_cast<sockaddr*>(&a), n), 0);
    EXPECT_NE(connect_within(c.get(), {v4 ? pod.v4 : pod.v6, 8080}, 1500), 0);
    EXPECT_FALSE(accept_one(app.get(), 0)) << (v4 ? "v4" : "v6") << " SYN got through";
  }
}

// --- life cycle ----------------------------------------------------------------------------------

TEST_F(CaptureTest, existing_connections_survive_enrolment_and_unenrolment) {
  LabPod& a = lab.add_pod(1);
  LabPod& b = lab.add_pod(2);
  const UniqueFd app_a = tcp_server(a.netns, 8080);
  const UniqueFd app_b = tcp_server(b.netns, 8080);
  struct Flow {
    UniqueFd client, server;
  };
  std::vector<Flow> flows;
  for (const bool v4 : {true, false}) {
    Flow out{tcp_client(a.netns, {v4 ? b.v4 : b.v6, 8080}), {}};
    out.server = accept_one(app_b.get());
    Flow in{tcp_client(b.netns, {v4 ? a.v4 : a.v6, 8080}), {}};
    in.server = accept_one(app_a.get());
    flows.push_back(std::move(out));
    flows.push_back(std::move(in));
  }
  CapturedPod captured = enrol(a);
  for (const Flow& f : flows)
    EXPECT_TRUE(talk(f.client.get(), f.server.get())) << "after enrolment";

  // Flows of the enrolled time: one out, one in with the app behind it.
  Flow out{tcp_client(a.netns, at("10.96.0.10", 80)),
           accept_one(captured.listeners.outbound.get())};
  Flow in{tcp_client(b.netns, {a.v4, 8080}), accept_one(captured.listeners.inbound.get())};
  Flow app{dial_as(a.netns, b.v4, {a.v4, 8080}, kMark), accept_one(app_a.get())};
  flows.push_back(std::move(out));
  flows.push_back(std::move(in));
  flows.push_back(std::move(app));

  ASSERT_OK(capture->begin_drain(captured));
  for (const Flow& f : flows) EXPECT_TRUE(talk(f.client.get(), f.server.get())) << "while draining";
  EXPECT_FALSE(must(capture->drained(captured)));
  // New connections are the pod's own again, both ways.
  const UniqueFd direct = tcp_client(a.netns, {b.v4, 8080});
  EXPECT_TRUE(accept_one(app_b.get()));
  const UniqueFd inbound = tcp_client(b.netns, {a.v4, 8080});
  EXPECT_TRUE(accept_one(app_a.get()));

  flows.resize(4);  // the captured ones end
  for (int i = 0; i < 200 && !must(capture->drained(captured)); ++i) ::usleep(20'000);
  ASSERT_TRUE(must(capture->drained(captured)));
  ASSERT_OK(capture->finish(captured));
  for (const Flow& f : flows)
    EXPECT_TRUE(talk(f.client.get(), f.server.get())) << "after un-enrolment";
  EXPECT_FALSE(must(capture->any_trace(captured)));
}

TEST_F(CaptureTest, enrolment_twice_and_unenrolment_twice_are_the_same_as_once) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  const auto before = must(bpf->listener(captured.cookie, MELTEMI_LISTENER_OUTBOUND));
  ASSERT_OK(capture->enrol(captured, {.addresses = pod.addresses()}));
  EXPECT_EQ(must(bpf->listener(captured.cookie, MELTEMI_LISTENER_OUTBOUND)), before);
  EXPECT_TRUE(must(capture->missing(captured)).empty());
  ASSERT_OK(capture->finish(captured));
  ASSERT_OK(capture->finish(captured));
  // All of it, but for the guard, which nobody wants any more.
  EXPECT_EQ(must(capture->missing(captured)).size(), std::size(agent::kTruthNames) - 1);
  EXPECT_TRUE(must(bpf->guards()).empty());
  EXPECT_EQ(pod.netns.run([] { return sys::read_sysctl("net/ipv4/tcp_fwmark_accept"); }).value(),
            "0");
  auto netlink = must(sys::Netlink::open_in(pod.netns));
  for (const int family : {AF_INET, AF_INET6}) {
    EXPECT_TRUE(must(netlink.has_rule({.family = family, .table = sys::kTableLocal})));
    EXPECT_TRUE(must(netlink.routes(family, MELTEMI_ROUTE_TABLE)).empty());
  }
}

TEST_F(CaptureTest, every_missing_piece_is_named_and_mended) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  auto netlink = must(sys::Netlink::open_in(pod.netns));
  const std::vector<std::pair<std::string, std::function<void()>>> damages = {
      {"sysctl",
       [&] {
         must(pod.netns.run([] { return sys::write_sysctl("net/ipv4/tcp_migrate_req", "0"); }));
       }},
      {"route",
       [&] {
         for (const auto& route : must(netlink.routes(AF_INET6, MELTEMI_ROUTE_TABLE)))
           must(netlink.delete_route(route));
       }},
      {"rule",
       [&] {
         must(netlink.add_rule({.family = AF_INET, .priority = 0, .table = sys::kTableLocal}));
       }},
      {"outbound_listener", [&] { captured.listeners.outbound.reset(); }},
      {"inbound_listener", [&] { captured.listeners.inbound.reset(); }},
      {"hbone_listener", [&] { captured.listeners.hbone.reset(); }},
      {"map", [&] { must(bpf->clear_enrolled(captured.cookie)); }},
      {"guard", [&] { must(bpf->remove_guards(captured.cookie)); }},
  };
  for (const auto& [name, damage] : damages) {
    damage();
    EXPECT_EQ(must(capture->missing(captured)), std::vector<std::string>{name});
    ASSERT_OK(capture->enrol(captured, {.addresses = pod.addresses()}));
    EXPECT_TRUE(must(capture->missing(captured)).empty()) << name;
  }
  ASSERT_OK(bpf->remove_pod(captured.cookie));
  EXPECT_EQ(must(capture->missing(captured)),
            (std::vector<std::string>{"outbound_listener", "inbound_listener", "link"}));
  ASSERT_OK(capture->enrol(captured, {.addresses = pod.addresses()}));
  EXPECT_TRUE(must(capture->missing(captured)).empty());
}

TEST_F(CaptureTest, a_pod_that_cannot_be_enrolled_stays_plain) {
  LabPod& a = lab.add_pod(1);
  LabPod& b = lab.add_pod(2);
  const UniqueFd squatter = tcp_server(a.netns, MELTEMI_HBONE_PORT);
  const UniqueFd app = tcp_server(b.netns, 8080);
  CapturedPod captured = must(capture->open(a.path, a.addresses()));
  const Status status = capture->enrol(captured, {.addresses = a.addresses()});
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().detail.find("15008"), std::string::npos) << status.error().detail;
  EXPECT_FALSE(must(capture->any_trace(captured)));
  const UniqueFd client = tcp_client(a.netns, {b.v4, 8080});
  EXPECT_TRUE(accept_one(app.get()));
}

TEST_F(CaptureTest, the_nodes_own_namespace_and_a_strangers_are_refused) {
  LabPod& pod = lab.add_pod(1);
  const std::string node_path = "/proc/self/fd/" + std::to_string(lab.node.fd());
  EXPECT_EQ(capture->open(node_path, {}).error().reason, Reason::kPermission);
  if (sys::Netns::open_pid(1))  // some sandboxes hide it
    EXPECT_EQ(capture->open("/proc/1/ns/net", {}).error().reason, Reason::kPermission);
  const auto wrong = capture->open(pod.path, {ip("10.66.0.77")});
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().reason, Reason::kBadConfig);
  EXPECT_NE(wrong.error().detail.find("10.66.0.77"), std::string::npos);
  EXPECT_FALSE(capture->open("/nonexistent", {}));
}

TEST_F(CaptureTest, pods_without_ipv6_are_captured_on_ipv4) {
  LabPod& pod = lab.add_pod(1);
  must(pod.netns.run([] { return sys::write_sysctl("net/ipv6/conf/all/disable_ipv6", "1"); }));
  CapturedPod captured = must(capture->open(pod.path, {pod.v4}));
  ASSERT_OK(capture->enrol(captured, {.addresses = {pod.v4}}));
  EXPECT_TRUE(must(capture->missing(captured)).empty());
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  const UniqueFd accepted = accept_one(captured.listeners.outbound.get());
  ASSERT_TRUE(accepted);
  EXPECT_TRUE(talk(client.get(), accepted.get()));
}

// --- restarts ------------------------------------------------------------------------------------

TEST_F(CaptureTest, a_new_agent_takes_over_without_a_gap) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  bpf.reset();  // the old process is gone; its listeners live on in ztunnel (here: in this test)
  const UniqueFd between = tcp_client(pod.netns, at("10.96.0.10", 80));
  EXPECT_TRUE(accept_one(captured.listeners.outbound.get()));
  start();
  EXPECT_TRUE(must(bpf->attached(lab.cgroup)));
  CapturedPod adopted = must(capture->open(pod.path, pod.addresses()));
  EXPECT_TRUE(must(capture->missing(adopted)).empty());
  ASSERT_OK(capture->enrol(adopted, {.addresses = pod.addresses()}));
  EXPECT_FALSE(adopted.listeners.outbound) << "the living listener was replaced";
  const UniqueFd after = tcp_client(pod.netns, at("10.96.0.11", 80));
  EXPECT_TRUE(accept_one(captured.listeners.outbound.get()));
}

TEST_F(CaptureTest, a_new_map_layout_takes_over_the_links) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  const std::string old_directory = bpf->version_directory();
  bpf.reset();
  BpfOptions other = options();
  other.layout_salt = "next";
  auto loaded = BpfStore::load(std::move(other));
  ASSERT_OK(loaded);
  bpf = std::move(*loaded);
  ASSERT_NE(bpf->version_directory(), old_directory);
  Capture next(*bpf, kMarks, must(lab.node.cookie()));
  ASSERT_OK(next.enrol(captured, {.addresses = pod.addresses()}));
  ASSERT_OK(bpf->attach(lab.cgroup));
  EXPECT_TRUE(must(next.missing(captured)).empty());
  EXPECT_TRUE(must(bpf->attached(lab.cgroup)));
  EXPECT_NE(::access(old_directory.c_str(), F_OK), 0) << "the old pins are still there";
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  EXPECT_TRUE(accept_one(captured.listeners.outbound.get()));
}

TEST_F(CaptureTest, links_of_a_cgroup_that_is_gone_are_made_anew) {
  LabPod& pod = lab.add_pod(1);
  const CapturedPod captured = enrol(pod);
  const sys::Cgroup doomed = must(lab.cgroup.child("doomed"));
  ASSERT_OK(bpf->attach(doomed));
  EXPECT_TRUE(must(bpf->attached(doomed)));
  ASSERT_OK(doomed.remove());
  for (int i = 0; i < 100 && must(bpf->attached(lab.cgroup)); ++i) ::usleep(20'000);
  ASSERT_OK(bpf->attach(lab.cgroup));
  EXPECT_TRUE(must(bpf->attached(lab.cgroup)));
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  EXPECT_TRUE(accept_one(captured.listeners.outbound.get()));
}

TEST_F(CaptureTest, uninstalling_removes_every_pin) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  ASSERT_OK(capture->finish(captured));
  ASSERT_OK(bpf->uninstall());
  EXPECT_NE(::access(bpf->version_directory().c_str(), F_OK), 0);
}

// kill -9 at ever later moments of an enrolment and of an un-enrolment: what is left is either no
// capture or a full one (but for the listeners that died with the process), and the next agent
// finishes it.
TEST_F(CaptureTest, kill_9_at_any_moment_leaves_no_half_enrolled_pod) {
  LabPod& pod = lab.add_pod(1);
  LabPod& other = lab.add_pod(2);
  const UniqueFd app = tcp_server(other.netns, 8080);
  const std::set<std::string> listeners = {"outbound_listener", "inbound_listener",
                                           "hbone_listener"};
  for (int round = 0; round < 40; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto mine = capture->open(pod.path, pod.addresses());
      for (;;) {
        (void)capture->enrol(*mine, {.addresses = pod.addresses()});
        (void)capture->finish(*mine);
      }
    }
    ::usleep(static_cast<useconds_t>(500 + round * 137));
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);

    CapturedPod captured = must(capture->open(pod.path, pod.addresses()));
    if (must(bpf->enrolled(captured.cookie))) {
      for (const std::string& name : must(capture->missing(captured)))
        EXPECT_TRUE(listeners.contains(name)) << "captured without " << name;
    } else {
      const UniqueFd plain = tcp_client(pod.netns, {other.v4, 8080});
      EXPECT_TRUE(accept_one(app.get())) << "not captured, and not plain either";
    }
    ASSERT_OK(capture->enrol(captured, {.addresses = pod.addresses()}));
    EXPECT_TRUE(must(capture->missing(captured)).empty());
    const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
    EXPECT_TRUE(accept_one(captured.listeners.outbound.get()));
    ASSERT_OK(capture->finish(captured));
    EXPECT_FALSE(must(capture->any_trace(captured)));
  }
}

TEST_F(CaptureTest, what_happened_is_counted) {
  LabPod& pod = lab.add_pod(1);
  CapturedPod captured = enrol(pod);
  const auto before = must(bpf->counters());
  const UniqueFd client = tcp_client(pod.netns, at("10.96.0.10", 80));
  const auto after = must(bpf->counters());
  EXPECT_EQ(after[MELTEMI_COUNT_CAPTURED], before[MELTEMI_COUNT_CAPTURED] + 1);
}

}  // namespace
}  // namespace meltemi::test
