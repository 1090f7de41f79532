// The truth table of the lookup program for what comes from the network, run by the kernel
// (BPF_PROG_TEST_RUN) on described lookups. A test run has no ingress interface (the kernel refuses
// one), so what comes over lo (captured calls, ztunnel's dials) is tested with real sockets:
// capture_test.
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>

// The skeleton uses the types of the contract.
#include "bpf/abi.h"

#include "skel/lookup.skel.h"
#include "tests/support/require.h"
#include "userspace/agent/bpf_store.h"

namespace meltemi {
namespace {

const test::Require require(test::Need::kRoot);

constexpr const char* kOwn = "10.0.0.2";
constexpr const char* kOwn6 = "fd00::2";
constexpr const char* kOther = "10.0.0.9";
constexpr const char* kOther6 = "fd00::9";

enum class Gets { kInbound, kWhoeverIsBound, kNobody };

struct Lookup {
  const char* local;
  uint16_t port;
  const char* remote;
  int protocol = IPPROTO_TCP;
};

class LookupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    skeleton_ = meltemi_lookup_skel__open();
    ASSERT_NE(skeleton_, nullptr);
    // Without a bpffs: these maps live as long as the test.
    bpf_map* map;
    bpf_object__for_each_map(map, skeleton_->obj) ASSERT_EQ(bpf_map__set_pin_path(map, nullptr), 0);
    const meltemi_address v4 = address(MELTEMI_PROBE_ADDRESS_V4);
    const meltemi_address v6 = address(MELTEMI_PROBE_ADDRESS_V6);
    std::memcpy(const_cast<meltemi_address*>(&skeleton_->rodata->probe_v4), &v4, sizeof v4);
    std::memcpy(const_cast<meltemi_address*>(&skeleton_->rodata->probe_v6), &v6, sizeof v6);
    ASSERT_EQ(meltemi_lookup_skel__load(skeleton_), 0);
    configure(0);
    outbound_ = listener();
    inbound_ = listener();
    fill(MELTEMI_LISTENER_OUTBOUND, outbound_);
    fill(MELTEMI_LISTENER_INBOUND, inbound_);
    declare_probe(kOwn, 8080);
    declare_probe(kOwn6, 8080);
  }
  void TearDown() override { meltemi_lookup_skel__destroy(skeleton_); }

  static meltemi_address address(const char* text) {
    return agent::to_abi(IpAddress::parse(text).value());
  }
  void configure(uint32_t flags) {
    meltemi_pod pod{.flags = flags};
    pod.address[0] = address(kOwn);
    pod.address[1] = address(kOwn6);
    const uint32_t key = 0;
    ASSERT_EQ(bpf_map_update_elem(bpf_map__fd(skeleton_->maps.pod_config), &key, &pod, 0), 0);
  }
  static UniqueFd listener() {
    UniqueFd fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::listen(fd.get(), 1), 0);
    return fd;
  }
  void fill(uint32_t slot, const UniqueFd& socket) {
    const uint64_t value = static_cast<uint64_t>(socket.get());
    ASSERT_EQ(bpf_map_update_elem(bpf_map__fd(skeleton_->maps.listeners), &slot, &value, 0), 0)
        << std::strerror(errno);
  }
  void declare_probe(const char* ip, uint32_t port) {
    const meltemi_probe key{address(ip), port, 0};
    const meltemi_probe_use none{};
    ASSERT_EQ(bpf_map_update_elem(bpf_map__fd(skeleton_->maps.probes), &key, &none, 0), 0);
  }
  uint64_t passed(const char* ip, uint32_t port) {
    const meltemi_probe key{address(ip), port, 0};
    meltemi_probe_use use{};
    EXPECT_EQ(bpf_map_lookup_elem(bpf_map__fd(skeleton_->maps.probes), &key, &use), 0);
    return use.passed;
  }
  static uint64_t cookie(const UniqueFd& socket) {
    uint64_t value = 0;
    socklen_t length = sizeof value;
    ::getsockopt(socket.get(), SOL_SOCKET, SO_COOKIE, &value, &length);
    return value;
  }

  Gets run(const Lookup& l) {
    bpf_sk_lookup context{};
    const IpAddress local = *IpAddress::parse(l.local), remote = *IpAddress::parse(l.remote);
    context.family = local.is_v4() ? AF_INET : AF_INET6;
    context.protocol = static_cast<uint32_t>(l.protocol);
    context.local_port = l.port;
    context.remote_port = htons(40000);
    if (local.is_v4()) {
      context.local_ip4 = local.v4_network_order();
      context.remote_ip4 = remote.v4_network_order();
    } else {
      std::memcpy(context.local_ip6, local.bytes().data(), 16);
      std::memcpy(context.remote_ip6, remote.bytes().data(), 16);
    }
    LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = &context, .ctx_out = &context,
                .ctx_size_in = sizeof context, .ctx_size_out = sizeof context);
    EXPECT_EQ(bpf_prog_test_run_opts(bpf_program__fd(skeleton_->progs.steer_pod), &options), 0)
        << std::strerror(errno);
    if (options.retval == SK_DROP) return Gets::kNobody;
    // The selected socket is reported by its cookie.
    if (context.cookie == cookie(inbound_)) return Gets::kInbound;
    EXPECT_EQ(context.cookie, 0u);
    return Gets::kWhoeverIsBound;
  }

  meltemi_lookup_skel* skeleton_ = nullptr;
  UniqueFd outbound_, inbound_;
};

TEST_F(LookupTest, network_order) {
  const struct {
    const char* what;
    Lookup lookup;
    Gets gets;
  } table[] = {
      {"inbound, v4", {kOwn, 80, kOther}, Gets::kInbound},
      {"inbound, v6", {kOwn6, 80, kOther6}, Gets::kInbound},
      {"inbound to an address learned later", {"10.0.0.77", 80, kOther}, Gets::kInbound},
      {"hbone, v4", {kOwn, 15008, kOther}, Gets::kWhoeverIsBound},
      {"hbone, v6", {kOwn6, 15008, kOther6}, Gets::kWhoeverIsBound},
      {"self call by own address", {kOwn, 80, kOwn}, Gets::kWhoeverIsBound},
      {"self call between families' addresses", {kOwn6, 80, kOwn6}, Gets::kWhoeverIsBound},
      // From lo they are the pod's own affair: capture_test.
      {"loopback from the network, v4", {"127.3.2.1", 80, kOther}, Gets::kInbound},
      {"loopback from the network, v6", {"::1", 80, kOther6}, Gets::kInbound},
      {"link-local, v6", {"fe80::1", 80, "fe80::2"}, Gets::kInbound},
      {"hbone, link-local", {"fe80::1", 15008, "fe80::2"}, Gets::kWhoeverIsBound},
      {"link-local source", {kOwn6, 80, "fe80::2"}, Gets::kInbound},
      {"v4 link-local", {"169.254.1.9", 80, kOther}, Gets::kInbound},
      {"v4-compatible", {"::10.0.0.2", 80, kOther6}, Gets::kInbound},
      {"multicast", {"ff02::1", 80, "fe80::2"}, Gets::kInbound},
      {"unspecified", {"::", 80, "fe80::2"}, Gets::kInbound},
      {"probe, v4", {kOwn, 8080, MELTEMI_PROBE_ADDRESS_V4}, Gets::kWhoeverIsBound},
      {"probe, v6", {kOwn6, 8080, MELTEMI_PROBE_ADDRESS_V6}, Gets::kWhoeverIsBound},
      {"probe source, port not declared", {kOwn, 8081, MELTEMI_PROBE_ADDRESS_V4}, Gets::kInbound},
      {"probe port, another source", {kOwn, 8080, kOther}, Gets::kInbound},
      {"UDP reply from the network", {kOwn, 5353, kOther, IPPROTO_UDP}, Gets::kWhoeverIsBound},
  };
  for (const auto& row : table) EXPECT_EQ(run(row.lookup), row.gets) << row.what;
}

TEST_F(LookupTest, every_exempted_probe_is_counted) {
  run({kOwn, 8080, MELTEMI_PROBE_ADDRESS_V4});
  run({kOwn, 8080, MELTEMI_PROBE_ADDRESS_V4});
  run({kOwn, 8080, kOther});
  run({kOwn, 8081, MELTEMI_PROBE_ADDRESS_V4});
  EXPECT_EQ(passed(kOwn, 8080), 2u);
  EXPECT_EQ(passed(kOwn6, 8080), 0u);
}

TEST_F(LookupTest, without_listeners_inbound_follows_the_policy) {
  inbound_.reset();  // the kernel empties the slot
  inbound_ = listener();
  const Lookup inbound{kOwn, 80, kOther};
  EXPECT_EQ(run(inbound), Gets::kWhoeverIsBound);
  configure(MELTEMI_POD_STRICT);
  EXPECT_EQ(run(inbound), Gets::kNobody);
  EXPECT_EQ(run({kOwn, 8080, MELTEMI_PROBE_ADDRESS_V4}), Gets::kWhoeverIsBound)
      << "a probe needs no listener";
}

TEST_F(LookupTest, a_draining_pod_takes_its_inbound_itself) {
  configure(MELTEMI_POD_DRAINING | MELTEMI_POD_STRICT);
  EXPECT_EQ(run({kOwn, 80, kOther}), Gets::kWhoeverIsBound);
}

}  // namespace
}  // namespace meltemi
