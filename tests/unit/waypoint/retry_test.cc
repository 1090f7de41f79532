#include "waypoint/route/retry.h"

#include <gtest/gtest.h>

#include "envoy/config/route/v3/route_components.pb.h"
#include "protos.h"

namespace meltemi::waypoint {
namespace {

using Kind = AttemptOutcome::Kind;

RetryPolicy policy(const std::string& json) {
  auto p = RetryPolicy::compile(from_json<envoy::config::route::v3::RetryPolicy>(json));
  EXPECT_TRUE(p) << p.error().detail;
  return *p;
}

AttemptOutcome ended(Kind kind, bool sent = true) {
  AttemptOutcome o;
  o.kind = kind;
  o.request_sent = sent;
  return o;
}
AttemptOutcome response(uint16_t status, int grpc = -1) {
  AttemptOutcome o;
  o.status = status;
  o.grpc_status = grpc;
  return o;
}
bool again(const RetryPolicy& p, const AttemptOutcome& o, RetryState s = {}) {
  Arena arena;
  return decide_retry(p, o, s, arena) == RetryVerdict::kYes;
}

// An application must not see a request twice because a proxy guessed.
TEST(RetryDefault, OnlyWhatIsProvablyUnprocessed) {
  const RetryPolicy& p = RetryPolicy::safe_default();
  EXPECT_TRUE(again(p, ended(Kind::kConnectFailure, false)));
  EXPECT_TRUE(again(p, ended(Kind::kUnprocessed)));
  EXPECT_FALSE(again(p, ended(Kind::kReset)));
  EXPECT_FALSE(again(p, ended(Kind::kTimeout)));
  for (const uint16_t status : {500, 502, 503, 504}) EXPECT_FALSE(again(p, response(status)));
}

TEST(RetryPolicyTest, ConditionTruthTable) {
  const RetryPolicy p5xx = policy(R"({"retry_on":"5xx","num_retries":3})");
  EXPECT_TRUE(again(p5xx, response(500)));
  EXPECT_TRUE(again(p5xx, response(599)));
  EXPECT_FALSE(again(p5xx, response(499)));
  EXPECT_TRUE(again(p5xx, ended(Kind::kReset)));
  EXPECT_TRUE(again(p5xx, ended(Kind::kTimeout)));
  const RetryPolicy gateway = policy(R"({"retry_on":"gateway-error"})");
  EXPECT_FALSE(again(gateway, response(500)));
  EXPECT_TRUE(again(gateway, response(503)));
  EXPECT_FALSE(again(gateway, response(505)));
  const RetryPolicy reset = policy(R"({"retry_on":"reset"})");
  EXPECT_TRUE(again(reset, ended(Kind::kReset)));
  EXPECT_FALSE(again(reset, response(503)));
  const RetryPolicy before = policy(R"({"retry_on":"reset-before-request"})");
  EXPECT_TRUE(again(before, ended(Kind::kReset, false)));
  EXPECT_FALSE(again(before, ended(Kind::kReset, true)));
  const RetryPolicy codes = policy(R"({"retry_on":"retriable-4xx,418","retriable_status_codes":[429]})");
  EXPECT_TRUE(again(codes, response(409)));
  EXPECT_TRUE(again(codes, response(418)));
  EXPECT_TRUE(again(codes, response(429)));
  EXPECT_FALSE(again(codes, response(500)));
  const RetryPolicy grpc = policy(R"({"retry_on":"unavailable,cancelled"})");
  EXPECT_TRUE(again(grpc, response(200, 14)));
  EXPECT_TRUE(again(grpc, response(200, 1)));
  EXPECT_FALSE(again(grpc, response(200, 13)));
  EXPECT_FALSE(again(grpc, response(200)));
}

TEST(RetryPolicyTest, HeadersOfTheResponse) {
  const RetryPolicy p = policy(R"({"retry_on":"retriable-headers,envoy-ratelimited",
    "retriable_headers":[{"name":"x-again","string_match":{"exact":"1"}}]})");
  Fields f;
  AttemptOutcome o = response(429);
  o.headers = &f;
  EXPECT_FALSE(again(p, o));
  f.add("X-Again", "1");
  EXPECT_TRUE(again(p, o));
  f.clear();
  f.add("x-envoy-ratelimited", "true");
  EXPECT_TRUE(again(p, o));
}

TEST(RetryPolicyTest, Bounds) {
  const RetryPolicy p = policy(R"({"retry_on":"5xx","num_retries":2})");
  Arena arena;
  RetryState s;
  s.tried = 2;
  EXPECT_EQ(decide_retry(p, response(500), s, arena), RetryVerdict::kYes);
  s.tried = 3;
  EXPECT_EQ(decide_retry(p, response(500), s, arena), RetryVerdict::kExhausted);
  s.tried = 1;
  s.body_replayable = false;
  EXPECT_EQ(decide_retry(p, response(500), s, arena), RetryVerdict::kBodyGone);
  s.response_started = true;
  EXPECT_EQ(decide_retry(p, response(500), s, arena), RetryVerdict::kNo);
  EXPECT_EQ(policy(R"({"num_retries":1000})").retries, RetryPolicy::kMaxRetries);
}

TEST(RetryPolicyTest, RefusesUnknownConditions) {
  using Proto = envoy::config::route::v3::RetryPolicy;
  for (const char* bad : {R"({"retry_on":"sometimes"})", R"({"retry_on":"5xx,99"})",
                          R"({"retriable_status_codes":[1000]})",
                          R"({"retry_back_off":{"base_interval":"0s"}})",
                          R"({"retry_host_predicate":[{"name":"x"}]})"}) {
    EXPECT_FALSE(RetryPolicy::compile(from_json<Proto>(bad))) << bad;
  }
}

TEST(RetryBackoff, StaysBelowItsCeilingAndGrows) {
  RetryPolicy p;
  model::Random random{3};
  for (uint32_t retry = 1; retry < 40; ++retry) {
    const Duration ceiling =
        std::min(p.backoff_max, p.backoff_base * (int64_t{1} << std::min(retry - 1, 20u)));
    Duration most{};
    for (int i = 0; i < 200; ++i) {
      const Duration d = retry_backoff(p, retry, random);
      ASSERT_GE(d, Duration::zero());
      ASSERT_LE(d, ceiling);
      most = std::max(most, d);
    }
    EXPECT_GT(most, ceiling / 2) << "jitter uses the whole range";
  }
}

TEST(RetryBudgetTest, ShareOfActiveRequestsWithAFloor) {
  const RetryBudget budget;
  EXPECT_TRUE(budget.allows(0, 0));
  EXPECT_TRUE(budget.allows(1, 2));
  EXPECT_FALSE(budget.allows(1, 3));
  EXPECT_TRUE(budget.allows(100, 19));
  EXPECT_FALSE(budget.allows(100, 20));
}

}  // namespace
}  // namespace meltemi::waypoint
