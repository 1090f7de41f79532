// A node with pods, made of namespaces of the test's own: one node netns, pods on routed veths (a
// /32 and a /128 each), a cgroup subtree and a bpffs, all named after this process and gone with
// it. The test process itself joins the subtree, so that its sockets are the node's and the pods'.
#pragma once

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/require.h"
#include "userspace/agent/bpf_store.h"
#include "userspace/agent/capture.h"
#include "userspace/agent/node_probe.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/files.h"
#include "userspace/sys/netlink.h"
#include "userspace/sys/netns.h"
#include "userspace/sys/process.h"
#include "userspace/sys/sysctl.h"

namespace meltemi::test {

#define ASSERT_OK(...)                                                                           \
  do {                                                                                           \
    const auto& ok_result = (__VA_ARGS__);                                                       \
    ASSERT_TRUE(ok_result.has_value()) << #__VA_ARGS__ << ": " << ok_result.error().to_string(); \
  } while (0)
#define EXPECT_OK(...)                                                                           \
  do {                                                                                           \
    const auto& ok_result = (__VA_ARGS__);                                                       \
    EXPECT_TRUE(ok_result.has_value()) << #__VA_ARGS__ << ": " << ok_result.error().to_string(); \
  } while (0)

inline IpAddress ip(const char* text) {
  return IpAddress::parse(text).value();
}
inline SocketAddress at(const char* text, uint16_t port) {
  return {ip(text), port};
}

// Aborts the test binary with the error: for set-up, where nothing can go on.
template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().to_string());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

struct LabPod {
  std::string name;
  sys::Netns netns;
  std::string path;  // of the netns
  IpAddress v4, v6;
  std::vector<IpAddress> addresses() const { return {v4, v6}; }
};

class Lab {
 public:
  Lab() {
    clean_up_after_crashes();
    const std::string unique = "meltemi-test-" + std::to_string(::getpid());
    directory_ = "/tmp/" + unique;
    must(sys::make_directories(directory_ + "/run", 0700));
    must(sys::mount_bpffs(bpf_directory()));
    home_ = must(sys::Cgroup::of_process(0));
    subtree_ = must(sys::Cgroup::create(unique));
    cgroup = must(subtree_.child("node"));
    const sys::Cgroup leaf = must(cgroup.child("tests"));
    must(leaf.add_process(0));
    node = must(sys::Netns::create());
    must(node.run([]() -> Status {
      MELTEMI_TRY(sys::write_sysctl("net/ipv4/ip_forward", "1"));
      // A device without a usable link-local address asks no neighbour: a second each, else.
      MELTEMI_TRY(sys::write_sysctl("net/ipv6/conf/default/accept_dad", "0"));
      return sys::write_sysctl("net/ipv6/conf/all/forwarding", "1");
    }));
  }
  ~Lab() {
    pods_.clear();
    (void)home_.add_process(0);
    (void)subtree_.kill_all();
    for (int i = 0; i < 100 && !subtree_.remove(); ++i) ::usleep(20'000);
    (void)sys::unmount(bpf_directory());
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::string bpf_directory() const { return directory_ + "/bpf"; }
  std::string run_directory() const { return directory_ + "/run"; }

  // Pod number n (1..200): 10.66.0.n and fd66::n.
  LabPod& add_pod(int n) {
    auto pod = std::make_unique<LabPod>();
    pod->name = "pod" + std::to_string(n);
    pod->netns = must(sys::Netns::create());
    pod->path = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(pod->netns.fd());
    pod->v4 = ip(("10.66.0." + std::to_string(n)).c_str());
    pod->v6 = ip(("fd66::" + std::to_string(n)).c_str());
    wire(*pod);
    pods_.push_back(std::move(pod));
    return *pods_.back();
  }

  sys::Netns node;
  sys::Cgroup cgroup;  // of the node: where the hooks are attached

 private:
  // A test that was killed left its cgroup, bpffs and processes: all carry its pid in their names.
  static void clean_up_after_crashes() {
    const Result<std::string> mount = sys::cgroup2_mount();
    if (!mount) return;
    for (const auto& entry : std::filesystem::directory_iterator(*mount)) {
      const std::string name = entry.path().filename();
      if (!name.starts_with("meltemi-test-")) continue;
      const std::string pid = name.substr(name.rfind('-') + 1);
      if (std::filesystem::exists("/proc/" + pid)) continue;
      const Result<sys::Cgroup> left = sys::Cgroup::open(name);
      if (!left) continue;
      (void)left->kill_all();
      for (int i = 0; i < 100 && !left->remove(); ++i) ::usleep(20'000);
      (void)sys::unmount("/tmp/" + name + "/bpf");
      std::error_code ignored;
      std::filesystem::remove_all("/tmp/" + name, ignored);
    }
  }
  void wire(const LabPod& pod) {
    sys::Netlink outside = must(sys::Netlink::open_in(node));
    sys::Netlink inside = must(sys::Netlink::open_in(pod.netns));
    must(pod.netns.run([] { return sys::write_sysctl("net/ipv6/conf/default/accept_dad", "0"); }));
    must(outside.add_veth(pod.name, "eth0", pod.netns));
    must(outside.set_up(pod.name));
    must(inside.set_up("eth0"));
    const uint32_t host = must(outside.index(pod.name));
    const uint32_t eth0 = must(inside.index("eth0"));
    const IpAddress gateway4 = ip("169.254.1.1"), gateway6 = ip("fd66:ffff::1");
    must(outside.add_address({.ip = gateway4, .prefix_length = 32, .ifindex = host}));
    must(outside.add_address({.ip = gateway6, .prefix_length = 128, .ifindex = host}));
    for (const IpAddress& own : {pod.v4, pod.v6}) {
      const int family = own.is_v4() ? AF_INET : AF_INET6;
      const auto length = static_cast<uint8_t>(own.is_v4() ? 32 : 128);
      const IpAddress& gateway = own.is_v4() ? gateway4 : gateway6;
      must(inside.add_address({.ip = own, .prefix_length = length, .ifindex = eth0}));
      must(outside.add_route({.family = family,
                              .destination = Cidr::make(own, length),
                              .oif = host,
                              .scope_link = own.is_v4()}));
      must(inside.add_route({.family = family,
                             .destination = Cidr::make(gateway, length),
                             .oif = eth0,
                             .scope_link = own.is_v4()}));
      must(inside.add_route({.family = family, .gateway = gateway, .oif = eth0}));
    }
    must(inside.wait_until_local(pod.v6, std::chrono::seconds(10)));
  }

  std::string directory_;
  sys::Cgroup home_, subtree_;
  std::vector<std::unique_ptr<LabPod>> pods_;
};

// --- sockets -------------------------------------------------------------------------------------

inline constexpr int kPatience = 20'000;  // ms; the machine may be loaded

inline bool wait_for(int fd, short events, int timeout_ms = kPatience) {
  pollfd p{fd, events, 0};
  return ::poll(&p, 1, timeout_ms) == 1;
}

inline UniqueFd tcp_socket(const sys::Netns& netns, int family, int protocol = IPPROTO_TCP) {
  return must(sys::socket_in(netns, family, SOCK_STREAM, protocol));
}

// connect(2) with errno as result; 0 is success. `mapped`: IPv4 as ::ffff:a.b.c.d.
inline int connect_to(int fd, const SocketAddress& to, bool mapped = false) {
  sockaddr_storage address;
  const socklen_t length = to.to_sockaddr(address, mapped);
  return ::connect(fd, reinterpret_cast<sockaddr*>(&address), length) < 0 ? errno : 0;
}

// Nonblocking connect, then up to `timeout_ms` of waiting; ETIMEDOUT if nothing was decided by
// then.
inline int connect_within(int fd, const SocketAddress& to, int timeout_ms) {
  const int flags = ::fcntl(fd, F_GETFL);
  ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  int error = connect_to(fd, to);
  if (error == EINPROGRESS) {
    if (!wait_for(fd, POLLOUT, timeout_ms)) return ETIMEDOUT;
    socklen_t length = sizeof error;
    ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  }
  ::fcntl(fd, F_SETFL, flags);
  return error;
}

inline UniqueFd tcp_client(const sys::Netns& netns, const SocketAddress& to) {
  UniqueFd fd = tcp_socket(netns, to.ip.is_v4() ? AF_INET : AF_INET6);
  const int error = connect_within(fd.get(), to, kPatience);
  EXPECT_EQ(error, 0) << "connect to " << to.to_string() << ": " << std::strerror(error);
  return fd;
}

// A server in the pod, as an app has it: dual-stack, any address.
inline UniqueFd tcp_server(const sys::Netns& netns, uint16_t port, int protocol = IPPROTO_TCP) {
  UniqueFd fd = tcp_socket(netns, AF_INET6, protocol);
  const int on = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in6 any{.sin6_family = AF_INET6, .sin6_port = htons(port)};
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&any), sizeof any), 0)
      << std::strerror(errno);
  EXPECT_EQ(::listen(fd.get(), 64), 0);
  return fd;
}

// Invalid if nothing came in time.
inline UniqueFd accept_one(int listener, int timeout_ms = kPatience) {
  if (!wait_for(listener, POLLIN, timeout_ms)) return UniqueFd();
  return UniqueFd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
}

inline SocketAddress local_of(int fd) {
  sockaddr_storage a;
  socklen_t n = sizeof a;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &n) < 0) return {};
  return SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&a), n).value_or(SocketAddress());
}
inline SocketAddress peer_of(int fd) {
  sockaddr_storage a;
  socklen_t n = sizeof a;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&a), &n) < 0) return {};
  return SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&a), n).value_or(SocketAddress());
}

// Whether bytes go both ways.
inline ::testing::AssertionResult talk(int a, int b) {
  const auto one_way = [](int from, int to) {
    static char next = 'a';
    const char sent = next++;
    char got = 0;
    if (::send(from, &sent, 1, MSG_NOSIGNAL) != 1) return false;
    return wait_for(to, POLLIN) && ::recv(to, &got, 1, MSG_DONTWAIT) == 1 && got == sent;
  };
  if (!one_way(a, b)) return ::testing::AssertionFailure() << "nothing arrives from the first";
  if (!one_way(b, a)) return ::testing::AssertionFailure() << "nothing arrives from the second";
  return ::testing::AssertionSuccess();
}

// What ztunnel does to reach the app: the client's address as source, the capture mark.
inline UniqueFd dial_as(const sys::Netns& netns, const IpAddress& source, const SocketAddress& app,
                        uint32_t mark) {
  const bool v4 = app.ip.is_v4();
  UniqueFd fd = tcp_socket(netns, v4 ? AF_INET : AF_INET6);
  const int on = 1;
  EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark), 0);
  EXPECT_EQ(::setsockopt(fd.get(), SOL_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on), 0);
  EXPECT_EQ(v4 ? ::setsockopt(fd.get(), SOL_IP, IP_TRANSPARENT, &on, sizeof on)
               : ::setsockopt(fd.get(), SOL_IPV6, IPV6_TRANSPARENT, &on, sizeof on),
            0);
  sockaddr_storage a;
  const socklen_t n = SocketAddress{source, 0}.to_sockaddr(a);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&a), n), 0) << std::strerror(errno);
  const int error = connect_within(fd.get(), app, kPatience);
  EXPECT_EQ(error, 0) << std::strerror(error);
  return fd;
}

}  // namespace meltemi::test
