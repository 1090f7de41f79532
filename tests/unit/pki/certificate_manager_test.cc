// The manager against a CA that refuses, fails, lies, or is slow.
#include "userspace/pki/certificate_manager.h"

#include <gmock/gmock.h>

#include <atomic>
#include <future>
#include <thread>

#include "tests/unit/pki/support.h"

namespace meltemi::pki {
namespace {

using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr Duration kPatience = seconds(60);

struct ManagerTest : ::testing::Test {
  ManagerTest() {
    AuthorityOptions options;
    options.directory = directory.path() + "/ca";
    ca = std::move(*CertificateAuthority::open(options, now() - std::chrono::hours(2)));
  }

  Result<std::vector<std::string>> sign(const SigningRequest& request) {
    ++calls;
    const auto csr = CertificateRequest::parse(request.csr_pem);
    return ca->issue(*csr, *model::Identity::parse(request.impersonate), ttl, now() - age);
  }
  Signer honest() {
    return [this](SigningRequest request, SigningDone done) { done(sign(request)); };
  }
  static Result<WorkloadCertificatePtr> wait_for(CertificateManager& manager,
                                                 const model::Identity& identity,
                                                 Duration deadline = kPatience) {
    auto promise = std::make_shared<std::promise<Result<WorkloadCertificatePtr>>>();
    auto future = promise->get_future();
    manager.get(identity, deadline,
                [promise](Result<WorkloadCertificatePtr> cert) { promise->set_value(std::move(cert)); });
    return future.get();
  }

  TemporaryDirectory directory;
  std::unique_ptr<CertificateAuthority> ca;
  std::atomic<int> calls{0};
  seconds ttl{3600}, age{0};
  const model::Identity web = identity_of("shop", "web"), db = identity_of("shop", "db");
};

TEST_F(ManagerTest, FetchesOnceAndKeeps) {
  CertificateManager manager({}, honest());
  EXPECT_EQ(manager.current(web), nullptr);
  const auto cert = wait_for(manager, web);
  ASSERT_TRUE(cert) << cert.error().to_string();
  EXPECT_EQ((*cert)->identity, web);
  EXPECT_EQ(manager.current(web), *cert);
  EXPECT_EQ(*wait_for(manager, web), *cert);
  EXPECT_EQ(calls, 1);
  ASSERT_EQ(manager.entries().size(), 1u);
  EXPECT_EQ(manager.entries()[0].state, CertificateState::kAvailable);
  manager.forget(web);
  EXPECT_EQ(manager.current(web), nullptr);
}

TEST_F(ManagerTest, RenewsPastHalfLifeWithoutAGap) {
  ttl = seconds(3600);
  age = seconds(3000);  // the CA's first answer is already past its half-life
  std::promise<void> renewed;
  std::atomic<int> heard{0};
  CertificateManager manager({}, honest(), [&](const model::Identity&, const WorkloadCertificatePtr& cert) {
    EXPECT_NE(cert, nullptr);
    if (++heard == 2) renewed.set_value();
    age = seconds(0);
  });
  ASSERT_TRUE(wait_for(manager, web));
  ASSERT_EQ(renewed.get_future().wait_for(kPatience), std::future_status::ready);
  ASSERT_NE(manager.current(web), nullptr);
  EXPECT_GT(manager.current(web)->not_after, now() + seconds(3000));
}

TEST_F(ManagerTest, ShortLivesThatAreDatedBackAreNoHotLoop) {
  ttl = seconds(360);  // and the CA dates it back by five minutes and a half
  age = seconds(330);
  CertificateManager manager({}, honest());
  ASSERT_TRUE(wait_for(manager, web));
  for (const auto end = MonoClock::now() + kPatience; calls < 2 && MonoClock::now() < end;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  EXPECT_EQ(calls, 2) << "an old answer is asked for again once";
}

TEST_F(ManagerTest, ARefusalIsToldAtOnceAndTriedAgain) {
  std::atomic<bool> refuse{true};
  CertificateManager manager({}, [&](SigningRequest request, SigningDone done) {
    if (!refuse) return done(sign(request));
    done(fail(Reason::kPermission, Fault::kConfig, "not on your node"));
  });
  const auto cert = wait_for(manager, web);
  ASSERT_FALSE(cert);
  EXPECT_EQ(cert.error().reason, Reason::kIdentityUnavailable);
  EXPECT_THAT(cert.error().detail, HasSubstr("not on your node"));
  EXPECT_EQ(manager.entries()[0].state, CertificateState::kUnavailable);
  refuse = false;
  EXPECT_TRUE(wait_for(manager, web)) << "the retry comes by itself";
  EXPECT_EQ(manager.entries()[0].failures, 0u);
}

TEST_F(ManagerTest, WaitersOutliveACaThatIsAwayForAMoment) {
  std::atomic<int> tries{0};
  CertificateManager manager({}, [&](SigningRequest request, SigningDone done) {
    if (++tries >= 2) return done(sign(request));
    done(fail(Reason::kConnectRefused, Fault::kUpstream, "away", Retry::kSafe));
  });
  EXPECT_TRUE(wait_for(manager, web));
  EXPECT_GE(tries, 2);
}

TEST_F(ManagerTest, WhatOneLearnsOfACaThatIsBackHelpsAll) {
  std::atomic<bool> away{true};
  CertificateManager manager({}, [&](SigningRequest request, SigningDone done) {
    if (!away) return done(sign(request));
    done(fail(Reason::kConnectRefused, Fault::kUpstream, "away", Retry::kSafe));
  });
  manager.want(web);
  const auto failures = [&] {
    const auto entries = manager.entries();
    return entries.empty() ? 0u : entries[0].failures;
  };
  for (const auto end = MonoClock::now() + kPatience; failures() < 2 && MonoClock::now() < end;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ASSERT_EQ(failures(), 2u) << "the next try is 1.6 s away or more";
  away = false;
  ASSERT_TRUE(wait_for(manager, db));
  EXPECT_TRUE(wait_for(manager, web, std::chrono::milliseconds(1200)));
}

TEST_F(ManagerTest, AValidCertificateSurvivesAFailingCa) {
  std::atomic<bool> broken{false};
  std::promise<void> failed;
  std::atomic<bool> told{false};
  CertificateManager manager({}, [&](SigningRequest request, SigningDone done) {
    if (!broken) return done(sign(request));
    done(fail(Reason::kConnectRefused, Fault::kUpstream, "away", Retry::kSafe));
    if (!told.exchange(true)) failed.set_value();
  });
  const auto cert = *wait_for(manager, web);
  broken = true;
  manager.refresh_all();
  ASSERT_EQ(failed.get_future().wait_for(kPatience), std::future_status::ready);
  EXPECT_EQ(manager.current(web), cert);
  EXPECT_EQ(manager.entries()[0].state, CertificateState::kAvailable);
}

TEST_F(ManagerTest, ALyingCaGetsNowhere) {
  CertificateManager manager({}, [&](SigningRequest request, SigningDone done) {
    request.impersonate = db.uri();  // certifies somebody else
    done(sign(request));
  });
  const auto cert = wait_for(manager, web, std::chrono::milliseconds(300));
  ASSERT_FALSE(cert);
  EXPECT_THAT(cert.error().detail, HasSubstr("spiffe://cluster.local/ns/shop/sa/db"));
  EXPECT_EQ(manager.current(web), nullptr);
}

TEST_F(ManagerTest, AskAtMostSoManyAtOnceAndUrgentOnesFirst) {
  std::mutex mutex;
  std::vector<std::pair<SigningRequest, SigningDone>> waiting;
  CertificateManagerOptions options;
  options.max_concurrent = 2;
  CertificateManager manager(options, [&](SigningRequest request, SigningDone done) {
    const std::lock_guard lock(mutex);
    waiting.emplace_back(std::move(request), std::move(done));
  });
  const auto held = [&] {
    const std::lock_guard lock(mutex);
    return waiting.size();
  };
  for (int i = 0; i < 5; ++i) manager.want(identity_of("shop", "a" + std::to_string(i)));
  while (held() < 2) std::this_thread::yield();
  manager.want(identity_of("shop", "zzz"), true);
  EXPECT_EQ(held(), 2u);
  {
    const std::lock_guard lock(mutex);
    auto [request, done] = std::move(waiting.front());
    done(sign(request));
  }
  while (held() < 3) std::this_thread::yield();
  const std::lock_guard lock(mutex);
  EXPECT_EQ(waiting.back().first.impersonate, "spiffe://cluster.local/ns/shop/sa/zzz");
}

TEST_F(ManagerTest, StoppingAnswersWhoWaits) {
  SigningDone late;
  std::promise<void> asked;
  auto manager = std::make_unique<CertificateManager>(
      CertificateManagerOptions{}, [&](SigningRequest, SigningDone done) {
        late = std::move(done);
        asked.set_value();
      });
  std::promise<Reason> ended;
  manager->get(web, kPatience, [&](Result<WorkloadCertificatePtr> cert) {
    ended.set_value(cert ? Reason::kOk : cert.error().reason);
  });
  asked.get_future().wait();
  manager.reset();
  EXPECT_EQ(ended.get_future().get(), Reason::kShutdown);
  late(fail(Reason::kInternal, Fault::kInternal, "too late"));  // must not touch what is gone
}

}  // namespace
}  // namespace meltemi::pki
