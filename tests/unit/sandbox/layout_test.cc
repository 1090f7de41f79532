#include "userspace/sandbox/layout.h"

#include <gtest/gtest.h>

namespace meltemi::sandbox {
namespace {

TEST(SandboxName, KeepsPrefixesApart) {
  EXPECT_TRUE(check_sandbox_name("default"));
  EXPECT_TRUE(check_sandbox_name("a1"));
  // "a" would own what "a-b" made if dashes were allowed: removal goes by prefix.
  for (const char* bad : {"", "a-b", "1a", "A", "a.b", "../x", "thirteenchars", "a b"})
    EXPECT_FALSE(check_sandbox_name(bad)) << bad;
}

TEST(Layout, NamesEverythingAfterTheSandbox) {
  const Layout layout("demo");
  EXPECT_EQ(layout.run_dir(), "/run/meltemi/demo");
  EXPECT_EQ(layout.node_netns("node1"), "meltemi-demo-node1");
  EXPECT_EQ(layout.pod_netns("0123456789ab"), "meltemi-demo-pod-01234567");
  EXPECT_EQ(layout.pod_cgroup("node1", "u"), "meltemi/demo/node1/pods/u");
  EXPECT_EQ(layout.system_cgroup("node1"), "meltemi/demo/node1/system");
  for (const std::string& name :
       {layout.fabric_netns(), layout.node_netns("node2"), layout.pod_netns("abcdefgh")})
    EXPECT_TRUE(name.starts_with(layout.netns_prefix())) << name;
}

TEST(Nodes, HaveNumbersInBothDirections) {
  EXPECT_EQ(node_name(3), "node3");
  EXPECT_EQ(node_index("node3"), 3);
  for (const char* bad : {"node", "node0", "node03", "node65", "node-1", "nod1", "node1x"})
    EXPECT_EQ(node_index(bad), 0) << bad;
}

TEST(Addresses, LieInTheirRangesAndDoNotMeet) {
  for (const int node : {1, 9, 10, 64}) {
    EXPECT_TRUE(fabric_cidr_v4().contains(node_address(node).v4));
    EXPECT_TRUE(fabric_cidr_v6().contains(node_address(node).v6));
    for (const int host : {kFirstPodHost, 10, kLastPodHost}) {
      EXPECT_TRUE(pod_cidr_v4(node).contains(pod_address(node, host).v4));
      EXPECT_TRUE(pod_cidr_v6(node).contains(pod_address(node, host).v6));
      EXPECT_FALSE(pod_cidr_v4(node == 64 ? 1 : 64).contains(pod_address(node, host).v4));
    }
  }
  EXPECT_EQ(dns_address().v4.to_string(), "10.96.0.10");
  EXPECT_TRUE(service_cidr_v4().contains(service_address(65535).v4));
  EXPECT_TRUE(service_cidr_v6().contains(service_address(65535).v6));
  EXPECT_NE(fabric_address().v4, node_address(1).v4);
  EXPECT_NE(fabric_address().v6, node_address(1).v6);
}

}  // namespace
}  // namespace meltemi::sandbox
