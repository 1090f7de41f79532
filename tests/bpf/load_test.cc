// Loading and pinning: on a real bpffs, and what is said when it cannot be.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "tests/support/require.h"
#include "userspace/agent/bpf_store.h"
#include "userspace/sys/files.h"

namespace meltemi::agent {
namespace {

const test::Require require(test::Need::kRoot);

struct Bpffs {
  std::string path = "/tmp/meltemi-test-bpf-" + std::to_string(::getpid());
  Bpffs() { EXPECT_TRUE(sys::mount_bpffs(path)); }
  ~Bpffs() {
    EXPECT_TRUE(sys::unmount(path));
    std::filesystem::remove(path);
  }
};

BpfOptions options(const std::string& directory) {
  return {.directory = directory,
          .probe_v4 = *IpAddress::parse(MELTEMI_PROBE_ADDRESS_V4),
          .probe_v6 = *IpAddress::parse(MELTEMI_PROBE_ADDRESS_V6),
          .node_netns_cookie = 1};
}

TEST(BpfLoad, EveryProgramPassesTheVerifierAndMapsArePinned) {
  const Bpffs fs;
  const auto store = BpfStore::load(options(fs.path + "/node"));
  ASSERT_TRUE(store) << store.error().to_string();
  for (const char* map : {"enrolled", "excluded", "probes", "counters"})
    EXPECT_EQ(::access(((*store)->version_directory() + "/maps/" + map).c_str(), F_OK), 0) << map;
}

TEST(BpfLoad, ASecondLoadSeesTheFirstsEntries) {
  const Bpffs fs;
  {
    const auto first = BpfStore::load(options(fs.path));
    ASSERT_TRUE(first);
    ASSERT_TRUE((*first)->set_enrolled(42, meltemi_pod{.flags = MELTEMI_POD_STRICT}));
  }
  const auto second = BpfStore::load(options(fs.path));
  ASSERT_TRUE(second);
  const auto pod = (*second)->enrolled(42);
  ASSERT_TRUE(pod);
  ASSERT_TRUE(pod->has_value());
  EXPECT_EQ((*pod)->flags, MELTEMI_POD_STRICT);
  ASSERT_TRUE((*second)->clear_enrolled(42));
  ASSERT_TRUE((*second)->clear_enrolled(42)) << "clearing twice";
  EXPECT_FALSE((*second)->enrolled(42)->has_value());
}

TEST(BpfLoad, ExclusionsArePerPod) {
  const Bpffs fs;
  const auto store = BpfStore::load(options(fs.path));
  ASSERT_TRUE(store);
  for (const uint64_t cookie : {1, 2})
    for (uint32_t port = 1; port <= 20; ++port)
      ASSERT_TRUE((*store)->add_exclusion(
          {.prefix_bits = MELTEMI_EXCLUSION_FIXED_BITS, .port = port, .netns_cookie = cookie}));
  ASSERT_TRUE((*store)->remove_exclusions(1));
  ASSERT_TRUE((*store)->remove_exclusions(1));
  ASSERT_TRUE((*store)->remove_exclusions(2));
}

TEST(BpfLoad, SaysWhatToMountWhereThereIsNoBpffs) {
  const std::string path = "/tmp/meltemi-test-nobpf-" + std::to_string(::getpid());
  const auto store = BpfStore::load(options(path));
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().reason, Reason::kBadConfig);
  EXPECT_NE(store.error().detail.find("mount -t bpf"), std::string::npos) << store.error().detail;
  std::filesystem::remove_all(path);
}

}  // namespace
}  // namespace meltemi::agent
