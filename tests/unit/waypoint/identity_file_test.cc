// A waypoint's key over its restarts: in memory only, of its own identity only.
#include "waypoint/app/identity_file.h"

#include <gmock/gmock.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>

#include "tests/support/few_descriptors.h"
#include "tests/unit/pki/support.h"
#include "userspace/pki/csr.h"
#include "userspace/sys/own_file.h"

namespace meltemi::waypoint {
namespace {

using std::chrono::hours;
using ::testing::HasSubstr;

struct IdentityFileTest : ::testing::Test {
  IdentityFileTest() {
    std::string name = "/dev/shm/meltemi-waypoint-XXXXXX";
    memory = ::mkdtemp(name.data());
    pki::AuthorityOptions options;
    options.directory = disk.path() + "/ca";
    ca = std::move(*pki::CertificateAuthority::open(options, pki::now() - hours(48)));
    const auto key = *pki::PrivateKey::generate();
    const auto csr = *pki::CertificateRequest::parse(*pki::make_csr(key, wp));
    certificate = *pki::assemble(key, wp, *ca->issue(csr, wp, hours(1), pki::now()), pki::now());
  }
  ~IdentityFileTest() override { std::filesystem::remove_all(memory); }

  pki::TemporaryDirectory disk;
  std::string memory;
  std::unique_ptr<pki::CertificateAuthority> ca;
  const model::Identity wp = pki::identity_of("shop", "wp");
  pki::WorkloadCertificatePtr certificate;
};

TEST_F(IdentityFileTest, AKilledWaypointHasItsKeyAgain) {
  const auto file = IdentityFile::open(memory, false);
  ASSERT_TRUE(file.has_value()) << file.error().detail;
  EXPECT_EQ(file->load(wp, pki::now()).error().reason, Reason::kNotFound);
  ASSERT_TRUE(file->save(*certificate));
  struct stat st{};
  ASSERT_EQ(::stat(file->path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  const auto again = IdentityFile::open(memory, false)->load(wp, pki::now());
  ASSERT_TRUE(again.has_value()) << again.error().detail;
  EXPECT_EQ((*again)->chain_pem, certificate->chain_pem);
}

TEST_F(IdentityFileTest, WhatCannotBeReadForAMomentIsThereAfterIt) {
  const auto file = IdentityFile::open(memory, false);
  ASSERT_TRUE(file->save(*certificate));
  {
    const test::FewDescriptors none(0);
    EXPECT_EQ(file->load(wp, pki::now()).error().reason, Reason::kSystem) << "tried again";
  }
  EXPECT_TRUE(file->load(wp, pki::now()));
}

TEST_F(IdentityFileTest, AKeyNeverGoesToADiskUnlessToldTo) {
  if (sys::is_in_memory(disk.path()).value()) GTEST_SKIP() << "/tmp is in memory here";
  const auto refused = IdentityFile::open(disk.path(), false);
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().detail, HasSubstr("medium Memory"));
  EXPECT_THAT(refused.error().detail, HasSubstr("keys-on-disk"));
  EXPECT_TRUE(IdentityFile::open(disk.path(), true).has_value());
}

TEST_F(IdentityFileTest, TheKeyOfAnotherOrAnExpiredOneIsNotUsed) {
  const auto file = IdentityFile::open(memory, false);
  ASSERT_TRUE(file->save(*certificate));
  EXPECT_THAT(file->load(pki::identity_of("shop", "other"), pki::now()).error().detail,
              HasSubstr("this waypoint is"));
  EXPECT_FALSE(file->load(wp, pki::now() + hours(2)));
  ASSERT_EQ(::chmod(file->path().c_str(), 0666), 0);
  EXPECT_THAT(file->load(wp, pki::now()).error().detail, HasSubstr("others may write it"));
}

}  // namespace
}  // namespace meltemi::waypoint
