// The directory source tells every change of a tree of manifests once, and nothing else.
#include "userspace/control/directory_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

namespace meltemi::control {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DirectorySourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/meltemi-source-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // As our writers do: a dotfile, then rename.
  void put(const std::string& path, const std::string& text) {
    const std::filesystem::path file = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(file.parent_path());
    const auto temporary = file.parent_path() / ("." + file.filename().string() + ".new");
    std::ofstream(temporary) << text;
    std::filesystem::rename(temporary, file);
  }
  std::vector<std::string> poll(DirectorySource& source) {
    std::vector<std::string> told;
    const Status status = source.poll([&](const FileEvent& e) {
      told.push_back((e.removed ? "-" : e.problem.empty() ? "+" : "!") + e.path + ":" +
                     std::to_string(e.layer) + "=" + e.bytes);
    });
    EXPECT_TRUE(status) << status.error().to_string();
    return told;
  }
  std::string root_;
};

TEST_F(DirectorySourceTest, TellsTheTreeOnceInOrderWithLayers) {
  put("b.yaml", "B");
  put("a/x.yml", "X");
  put("state/node/shop.web.yaml", "N");
  put("state/control/gen.json", "C");
  put("notes.txt", "no manifest");
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  EXPECT_THAT(poll(**source), ElementsAre("+a/x.yml:0=X", "+b.yaml:0=B", "+state/control/gen.json:1=C",
                                          "+state/node/shop.web.yaml:2=N"));
  EXPECT_THAT(poll(**source), IsEmpty());
}

TEST_F(DirectorySourceTest, TellsChangesRemovalsAndNewFolders) {
  put("a.yaml", "1");
  auto source = DirectorySource::open(root_ + "/");
  ASSERT_TRUE(source);
  poll(**source);
  put("a.yaml", "2");
  EXPECT_THAT(poll(**source), ElementsAre("+a.yaml:0=2"));
  put("a.yaml", "2");
  EXPECT_THAT(poll(**source), IsEmpty()) << "same content, new inode";
  put("deep/er/b.yaml", "B");
  EXPECT_THAT(poll(**source), ElementsAre("+deep/er/b.yaml:0=B"));
  put("deep/er/b.yaml", "C");
  EXPECT_THAT(poll(**source), ElementsAre("+deep/er/b.yaml:0=C"));
  std::filesystem::remove_all(root_ + "/deep");
  std::filesystem::remove(root_ + "/a.yaml");
  EXPECT_THAT(poll(**source), ElementsAre("-a.yaml:0=", "-deep/er/b.yaml:0="));
}

TEST_F(DirectorySourceTest, BecomesReadableWhenSomethingHappens) {
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  poll(**source);
  pollfd p{(*source)->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 0), 0);
  put("a.yaml", "1");
  EXPECT_EQ(::poll(&p, 1, 2000), 1);
  EXPECT_THAT(poll(**source), ElementsAre("+a.yaml:0=1"));
  EXPECT_EQ(::poll(&p, 1, 0), 0);
}

TEST_F(DirectorySourceTest, AFileThatIsTooLargeIsAProblemNotAnEnd) {
  put("ok.yaml", "fine");
  put("z.yaml", std::string(kMaxManifestBytes + 1, 'x'));
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  EXPECT_THAT(poll(**source), ElementsAre("+ok.yaml:0=fine", "!z.yaml:0="));
  put("z.yaml", "small again");
  EXPECT_THAT(poll(**source), ElementsAre("+z.yaml:0=small again"));
}

// No descriptor may be opened while it lives.
class NoDescriptors {
 public:
  NoDescriptors() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit none{0, before_.rlim_max};
    setrlimit(RLIMIT_NOFILE, &none);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_{};
};

TEST_F(DirectorySourceTest, AFileWhoseReadFailedIsReadWithoutAnotherEvent) {
  put("a.yaml", "1");
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  poll(**source);
  put("a.yaml", "2");
  put("deny.yaml", "D");
  {
    const NoDescriptors none;
    EXPECT_THAT(poll(**source), ElementsAre("!a.yaml:0=", "!deny.yaml:0="));
    EXPECT_THAT(poll(**source), IsEmpty()) << "said once";
    EXPECT_TRUE((*source)->owes());
    EXPECT_TRUE((*source)->unread());
    EXPECT_THAT((*source)->trouble(), HasSubstr("a.yaml cannot be read (open: Too many open files"));
    EXPECT_THAT((*source)->trouble(), HasSubstr("and 1 more files"));
  }
  EXPECT_THAT(poll(**source), ElementsAre("+a.yaml:0=2", "+deny.yaml:0=D"));
  EXPECT_FALSE((*source)->owes());
  EXPECT_EQ((*source)->trouble(), "");
}

TEST_F(DirectorySourceTest, AFolderThatCannotBeListedIsNotEmptyAndIsListedLater) {
  put("a/x.yaml", "X");
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  poll(**source);
  put("b/y.yaml", "Y");
  {
    const NoDescriptors none;
    std::vector<std::string> told;
    EXPECT_FALSE((*source)->poll([&](const FileEvent& e) { told.push_back(e.path); }));
    EXPECT_THAT(told, IsEmpty());
    EXPECT_TRUE((*source)->owes());
  }
  EXPECT_THAT(poll(**source), ElementsAre("+b/y.yaml:0=Y"));
  EXPECT_FALSE((*source)->owes());
}

TEST_F(DirectorySourceTest, AFolderNestedTooDeepKeepsNothingElseFromBeingRead) {
  std::string deep = "a";
  for (int i = 0; i <= kMaxManifestDepth; ++i) deep += "/d";
  put(deep + "/x.yaml", "X");
  put("z.yaml", "Z");
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  std::vector<std::string> told;
  EXPECT_FALSE((*source)->poll([&](const FileEvent& e) { told.push_back(e.path); }));
  EXPECT_THAT(told, ElementsAre("z.yaml"));
  EXPECT_THAT((*source)->trouble(), HasSubstr("nested deeper"));
}

TEST_F(DirectorySourceTest, AMissingRootIsNamed) {
  const auto source = DirectorySource::open(root_ + "/nowhere");
  ASSERT_FALSE(source);
  EXPECT_NE(source.error().detail.find("nowhere"), std::string::npos);
}

// Whatever happens between two polls, what was told adds up to what is there.
TEST_F(DirectorySourceTest, WhatWasToldEqualsTheTree) {
  auto source = DirectorySource::open(root_);
  ASSERT_TRUE(source);
  std::mt19937 random(7);
  std::map<std::string, std::string> told, wanted;
  for (int round = 0; round < 60; ++round) {
    for (int i = 0; i < 5; ++i) {
      const std::string path = "d" + std::to_string(random() % 4) + "/f" +
                               std::to_string(random() % 5) + ".yaml";
      switch (random() % 4) {
        case 0:
          std::filesystem::remove(std::filesystem::path(root_) / path);
          wanted.erase(path);
          break;
        case 1: {
          const std::string folder = path.substr(0, 2);
          std::filesystem::remove_all(std::filesystem::path(root_) / folder);
          std::erase_if(wanted, [&](const auto& entry) { return entry.first.starts_with(folder); });
          break;
        }
        default:
          wanted[path] = std::to_string(random());
          put(path, wanted[path]);
      }
    }
    ASSERT_TRUE((*source)->poll([&](const FileEvent& e) {
      if (e.removed)
        told.erase(e.path);
      else
        told[e.path] = e.bytes;
    }));
    ASSERT_EQ(told, wanted) << "round " << round;
  }
}

}  // namespace
}  // namespace meltemi::control
