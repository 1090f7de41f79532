// Which kept keys end because nobody asked for them. The clock is the test's.
#include "ztunnel/unclaimed.h"

#include <gmock/gmock.h>

#include "tests/unit/pki/support.h"

namespace meltemi::ztunnel {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

pki::WorkloadCertificatePtr of(std::string_view account) {
  return std::make_shared<pki::WorkloadCertificate>(pki::WorkloadCertificate{
      .identity = pki::identity_of("ns", account), .key = *pki::PrivateKey::generate()});
}

TEST(Unclaimed, AKeyThatNobodyAsksForEndsAMinuteAfterTheMeshIsKnown) {
  Unclaimed kept;
  kept.add(of("stays"));
  kept.add(of("left"));
  const MonoTime known{std::chrono::hours(5)};  // however long that took
  EXPECT_THAT(kept.expire(known), IsEmpty());
  EXPECT_EQ(kept.claim(pki::identity_of("ns", "stays"))->identity, pki::identity_of("ns", "stays"));
  EXPECT_THAT(kept.expire(known + kUnclaimedPatience - seconds(1)), IsEmpty());
  EXPECT_THAT(kept.expire(known + kUnclaimedPatience), ElementsAre(pki::identity_of("ns", "left")));
  EXPECT_EQ(kept.size(), 0u);
  EXPECT_EQ(kept.claim(pki::identity_of("ns", "left")), nullptr);
}

TEST(Unclaimed, OneThatComesLaterHasItsOwnTime) {
  Unclaimed kept;
  kept.add(of("first"));
  const MonoTime known{seconds(100)};
  EXPECT_THAT(kept.expire(known), IsEmpty());
  kept.add(of("second"));
  EXPECT_THAT(kept.expire(known + kUnclaimedPatience), ElementsAre(pki::identity_of("ns", "first")));
  EXPECT_THAT(kept.expire(known + 2 * kUnclaimedPatience), ElementsAre(pki::identity_of("ns", "second")));
}

}  // namespace
}  // namespace meltemi::ztunnel
