// Which cgroup the kubelet's is, in the layouts of the field, and whom nobody takes for it.
#include "userspace/agent/prober.h"

#include <gtest/gtest.h>

namespace meltemi::agent {
namespace {

constexpr uint64_t kNode = 7;

sys::ProcessInfo process(pid_t pid, std::string command, std::string cgroup, uint64_t netns = kNode) {
  return {.pid = pid, .command = std::move(command), .netns_inode = netns, .cgroup = std::move(cgroup)};
}

TEST(Prober, TheKubeletIsFoundWhereDistributionsRunIt) {
  const struct {
    const char* command;
    const char* cgroup;
  } table[] = {
      {"kubelet", "/system.slice/kubelet.service"},         // kubeadm
      {"kubelet", "/kubelet.slice/kubelet.service"},        // kind
      {"k3s-server", "/system.slice/k3s.service"},          // k3s
      {"kubelet", "/system.slice/rke2-agent.service"},      // RKE2
      {"kubelite", "/system.slice/snap.microk8s.daemon-kubelite.service"},
      {"kubelet", "/podruntime/kubelet"},                   // Talos
  };
  for (const auto& row : table) {
    const auto got = kubelet_cgroup({process(1, "systemd", "/init.scope"),
                                     process(900, row.command, row.cgroup)},
                                    kNode);
    ASSERT_TRUE(got) << row.cgroup << ": " << got.error().to_string();
    EXPECT_EQ(*got, row.cgroup);
  }
}

TEST(Prober, AHostNetworkPodThatCallsItselfKubeletIsNot) {
  for (const char* cgroup :
       {"/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope", "/kubepods/besteffort/pod1/2",
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/cri-containerd-1.scope",
        "/system.slice/docker-abc.scope", "/meltemi/demo/node1/pods/u1/app", "/"}) {
    const auto got = kubelet_cgroup({process(10, "kubelet", cgroup)}, kNode);
    ASSERT_FALSE(got) << cgroup;
    EXPECT_EQ(got.error().reason, Reason::kNotFound);
    EXPECT_NE(got.error().detail.find("AGENT_PROBER_CGROUP"), std::string::npos);
  }
}

TEST(Prober, BetweenTwoNobodyIsChosen) {
  const auto got = kubelet_cgroup({process(10, "kubelet", "/system.slice/kubelet.service"),
                                   process(11, "kubelet", "/user.slice/x.scope")},
                                  kNode);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().reason, Reason::kBadConfig);
  // One of another node (a node in a container has its own namespace) does not count.
  EXPECT_TRUE(kubelet_cgroup({process(10, "kubelet", "/system.slice/kubelet.service"),
                              process(11, "kubelet", "/other/kubelet.service", 8)},
                             kNode));
}

}  // namespace
}  // namespace meltemi::agent
