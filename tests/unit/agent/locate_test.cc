// Which processes are a pod's, and which ones capture misses.
#include "userspace/agent/locate.h"

#include <gtest/gtest.h>

namespace meltemi::agent {
namespace {

constexpr const char* kUid = "1a2b3c4d-0000-1111-2222-333344445555";
constexpr const char* kUnderscored = "1a2b3c4d_0000_1111_2222_333344445555";

TEST(Locate, KnowsThePodsCgroupInEverySpelling) {
  const std::string uid = kUid, flat = kUnderscored;
  EXPECT_TRUE(cgroup_is_of_pod("/meltemi/s1/n1/pods/" + uid, uid));
  EXPECT_TRUE(cgroup_is_of_pod("/meltemi/s1/n1/pods/" + uid + "/app", uid));
  EXPECT_TRUE(cgroup_is_of_pod("/kubepods/burstable/pod" + uid + "/abc123", uid));
  EXPECT_TRUE(cgroup_is_of_pod("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" +
                                   flat + ".slice/cri-containerd-abc.scope",
                               uid));
}

TEST(Locate, TakesNoOtherForIt) {
  const std::string uid = kUid;
  EXPECT_FALSE(cgroup_is_of_pod("/", uid));
  EXPECT_FALSE(cgroup_is_of_pod("/kubepods/podffff", uid));
  EXPECT_FALSE(cgroup_is_of_pod("/kubepods/pod" + uid + "9", uid));
  EXPECT_FALSE(cgroup_is_of_pod("/user/x-" + uid + "-y", uid));
  EXPECT_FALSE(cgroup_is_of_pod("/pods/anything", "")) << "an empty uid matches nothing";
}

sys::ProcessInfo process(pid_t pid, uint64_t netns, std::string cgroup) {
  return {.pid = pid, .command = "app", .netns_inode = netns, .cgroup = std::move(cgroup)};
}

TEST(Locate, FindsTheNamespaceOfTheOldestProcess) {
  const std::string cgroup = std::string("/pods/") + kUid;
  const auto got = locate_netns({process(30, 7, cgroup), process(20, 7, cgroup + "/x"),
                                 process(10, 8, "/pods/other"), process(5, 1, cgroup)},
                                kUid, 1);
  ASSERT_TRUE(got);
  EXPECT_EQ(*got, "/proc/20/ns/net");
}

TEST(Locate, SaysNothingWhenNoProcessRuns) {
  const auto got = locate_netns({process(10, 8, "/pods/other")}, kUid, 1);
  ASSERT_TRUE(got);
  EXPECT_FALSE(got->has_value());
}

TEST(Locate, RefusesToChooseBetweenNamespaces) {
  const std::string cgroup = std::string("/pods/") + kUid;
  const auto got = locate_netns({process(30, 7, cgroup), process(31, 8, cgroup)}, kUid, 1);
  ASSERT_FALSE(got);
  EXPECT_EQ(got.error().reason, Reason::kBadConfig);
}

TEST(Locate, ListsProcessesOutsideOfTheNodesSubtree) {
  const std::vector<sys::ProcessInfo> all = {
      process(1, 7, "/meltemi/n1/pods/a"), process(2, 7, "/meltemi/n1"),
      process(3, 7, "/meltemi/n10/pods/a"), process(4, 7, "/"), process(5, 8, "/")};
  EXPECT_EQ(uncaptured_processes(all, 7, "/meltemi/n1"),
            (std::vector<std::string>{"3 app", "4 app"}));
  EXPECT_TRUE(uncaptured_processes(all, 7, "/").empty());
}

}  // namespace
}  // namespace meltemi::agent
