// Atomic replacement and the little that is read from /proc.
#include "userspace/sys/files.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

namespace meltemi::sys {
namespace {

struct TemporaryDirectory {
  std::string path;
  TemporaryDirectory() {
    char name[] = "/tmp/meltemi-files-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path); }
};

TEST(WriteFile, NothingIsWrittenThroughALinkOrAFileOfOthers) {
  TemporaryDirectory dir;
  const std::string target = dir.path + "/target", victim = dir.path + "/victim";
  ASSERT_TRUE(write_file_atomically(victim, "precious", 0600));
  // All temporary names that this process can use lead to the victim.
  for (int i = 0; i < 64; ++i) {
    const std::string link = fmt::format("{}/.target.{}-{}.tmp", dir.path, ::getpid(), i);
    ASSERT_EQ(::symlink(victim.c_str(), link.c_str()), 0);
  }
  ASSERT_TRUE(write_file_atomically(target, "new", 0600));
  EXPECT_EQ(*read_file(victim), "precious");
  EXPECT_EQ(*read_file(target), "new");
  // The same for the path itself: the link is replaced, not followed.
  ASSERT_EQ(::unlink(target.c_str()), 0);
  ASSERT_EQ(::symlink(victim.c_str(), target.c_str()), 0);
  ASSERT_TRUE(write_file_atomically(target, "newer", 0600));
  EXPECT_EQ(*read_file(victim), "precious");
  EXPECT_EQ(*read_file(target), "newer");
}

TEST(Files, ReplacesAtomicallyAndLeavesNoTemporary) {
  TemporaryDirectory dir;
  const std::string path = dir.path + "/state.json";
  ASSERT_TRUE(write_file_atomically(path, "old", 0600));
  ASSERT_TRUE(write_file_atomically(path, "new", 0600));
  EXPECT_EQ(read_file(path).value(), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path), {}), 1);
  struct stat st{};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600u);
}

TEST(Files, MissingFileIsNotFound) {
  EXPECT_EQ(read_file("/nonexistent/x").error().reason, Reason::kNotFound);
}

TEST(Files, RefusesMoreThanTheLimit) {
  TemporaryDirectory dir;
  ASSERT_TRUE(write_file_atomically(dir.path + "/big", std::string(50000, 'x'), 0600));
  EXPECT_EQ(read_file(dir.path + "/big", 49999).error().reason, Reason::kLimitExceeded);
  EXPECT_EQ(read_file(dir.path + "/big", 50000)->size(), 50000u);
}

TEST(Files, MakesParentsAndAcceptsWhatIsThere) {
  TemporaryDirectory dir;
  ASSERT_TRUE(make_directories(dir.path + "/a/b/c", 0700));
  ASSERT_TRUE(make_directories(dir.path + "/a/b/c", 0700));
  ASSERT_TRUE(write_file_atomically(dir.path + "/a/file", "", 0600));
  EXPECT_FALSE(make_directories(dir.path + "/a/file", 0700));
}

TEST(Files, SeesProcAmongTheMounts) {
  const auto all = mounts();
  ASSERT_TRUE(all);
  EXPECT_TRUE(std::any_of(all->begin(), all->end(), [](const Mount& m) {
    return m.directory == "/proc" && m.type == "proc";
  }));
  EXPECT_FALSE(is_bpffs("/proc").value());
  EXPECT_FALSE(is_bpffs("/nonexistent").value());
}

}  // namespace
}  // namespace meltemi::sys
