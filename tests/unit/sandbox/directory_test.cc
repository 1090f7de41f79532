// A config directory as objects, and what a process that is out of descriptors makes of it.
#include "userspace/sandbox/directory.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "tests/support/few_descriptors.h"

namespace meltemi::sandbox {
namespace {

class DirectoryTest : public ::testing::Test {
 protected:
  DirectoryTest() {
    std::string name = "/tmp/meltemi-directory-XXXXXX";
    root = ::mkdtemp(name.data());
    std::filesystem::create_directories(root + "/below");
  }
  ~DirectoryTest() override { std::filesystem::remove_all(root); }
  void write(const std::string& file, const std::string& name) {
    std::ofstream(root + "/" + file) << "apiVersion: v1\nkind: Service\nmetadata: {name: " << name
                                     << ", namespace: shop}\nspec: {ports: [{port: 80}]}\n";
  }
  static bool has(const Directory& directory, const std::string& name) {
    return directory.store().find(config::Kind::kService, "shop", name) != nullptr;
  }
  std::string root;
};

TEST_F(DirectoryTest, WhatCannotBeReadNowStaysAndIsReadLater) {
  write("a.yaml", "a");
  write("below/b.yaml", "b");
  Directory directory(root, View::kUser);
  ASSERT_TRUE(directory.refresh());
  ASSERT_TRUE(has(directory, "a") && has(directory, "b"));
  write("c.yaml", "new");
  std::filesystem::remove(root + "/below/b.yaml");
  for (const int left : {0, 1, 2}) {  // the directory, the one below, a file
    const test::FewDescriptors few(left);
    directory.refresh();
    EXPECT_TRUE(has(directory, "a")) << "with " << left << " descriptors it counts as deleted";
    if (left < 2) {
      EXPECT_NE(directory.trouble(), "");
    }
  }
  directory.refresh();
  EXPECT_EQ(directory.trouble(), "");
  EXPECT_TRUE(has(directory, "new")) << "never read again";
  EXPECT_FALSE(has(directory, "b")) << "it is gone for certain";
}

TEST_F(DirectoryTest, AFileWhoseReadFailedOnceIsReadAgain) {
  write("a.yaml", "first");
  Directory directory(root, View::kUser);
  ASSERT_TRUE(directory.refresh());
  write("a.yaml", "second");
  {
    const test::FewDescriptors few(1);  // to list, not to read
    std::filesystem::remove_all(root + "/below");
    EXPECT_FALSE(directory.refresh());
    EXPECT_TRUE(has(directory, "first"));
    EXPECT_NE(directory.trouble(), "");
  }
  EXPECT_TRUE(directory.refresh());
  EXPECT_TRUE(has(directory, "second"));
  EXPECT_FALSE(has(directory, "first"));
}

}  // namespace
}  // namespace meltemi::sandbox
