// A certificate kept over a restart: it is verified as a new one is, and renewed when it is due.
#include "userspace/pki/kept_certificate.h"

#include <gmock/gmock.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "tests/unit/pki/support.h"
#include "userspace/pki/certificate_manager.h"
#include "userspace/pki/csr.h"

namespace meltemi::pki {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

struct KeptTest : ::testing::Test {
  KeptTest() {
    AuthorityOptions options;
    options.directory = directory.path() + "/ca";
    ca = std::move(*CertificateAuthority::open(options, now() - hours(48)));
  }
  WorkloadCertificatePtr make(seconds ttl = hours(1), seconds age = {}) const {
    const auto key = *PrivateKey::generate();
    const auto csr = *CertificateRequest::parse(*make_csr(key, web));
    const auto chain = *ca->issue(csr, web, ttl, now() - age);
    return *assemble(key, web, chain, now() - age);
  }
  TemporaryDirectory directory;
  std::unique_ptr<CertificateAuthority> ca;
  const model::Identity web = identity_of("shop", "web");
};

TEST_F(KeptTest, ComesBackWhole) {
  const auto before = make();
  const auto after = from_kept_text(keep_text(*before).view(), now());
  ASSERT_TRUE(after.has_value()) << after.error().to_string();
  EXPECT_EQ((*after)->identity, web);
  EXPECT_EQ((*after)->key.to_pem().view(), before->key.to_pem().view());
  EXPECT_EQ((*after)->chain_pem, before->chain_pem);
  EXPECT_EQ((*after)->roots_pem, before->roots_pem);
  EXPECT_EQ((*after)->not_after, before->not_after);
}

TEST_F(KeptTest, IsBelievedOnlyIfItStillHolds) {
  const auto certificate = make();
  const std::string text(keep_text(*certificate).view());
  EXPECT_FALSE(from_kept_text(text, certificate->not_after + seconds(1)));
  std::string other = text;
  other.replace(other.find("sa/web"), 6, "sa/wob");
  EXPECT_EQ(from_kept_text(other, now()).error().reason, Reason::kIdentityUnavailable);
  // The key of one and the chain of another.
  WorkloadCertificate mixed = *certificate;
  mixed.key = make()->key;
  EXPECT_THAT(from_kept_text(keep_text(mixed).view(), now()).error().detail, HasSubstr("another key"));
  for (size_t n = 0; n < text.size(); n += 7) {
    const auto cut = from_kept_text(text.substr(0, n), now());
    ASSERT_FALSE(cut) << n;
    ASSERT_THAT(cut.error().detail, Not(HasSubstr("PRIVATE"))) << "a key in an error";
  }
}

TEST_F(KeptTest, TheManagerServesARestoredOneThoughTheAuthorityIsAway) {
  std::mutex mutex;
  std::condition_variable changed;
  WorkloadCertificatePtr told;
  std::atomic<int> asked{0};
  CertificateManager manager(
      {},
      [&](const SigningRequest&, const SigningDone& done) {
        ++asked;
        done(fail(Reason::kConnectRefused, Fault::kUpstream, "away"));
      },
      [&](const model::Identity&, const WorkloadCertificatePtr& certificate) {
        const std::lock_guard lock(mutex);
        told = certificate;
        changed.notify_all();
      });
  const auto kept = make(), old = make(hours(24), hours(20));
  manager.restore(kept);
  manager.want(web, true);
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(changed.wait_for(lock, seconds(60), [&] { return told == kept; }));
  }
  EXPECT_EQ(manager.current(web), kept);
  EXPECT_EQ(asked, 0) << "it is not due";
  manager.forget(web);
  manager.restore(old);  // past its half-life: asked for again, and served meanwhile
  for (const auto end = MonoClock::now() + seconds(60); asked == 0 && MonoClock::now() < end;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  EXPECT_GT(asked, 0);
  EXPECT_EQ(manager.current(web), old);
  manager.restore(kept);
  EXPECT_EQ(manager.current(web), old) << "the longer one stays";
}

}  // namespace
}  // namespace meltemi::pki
