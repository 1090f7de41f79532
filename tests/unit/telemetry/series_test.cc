// No peer can make metrics grow: label values come from closed sets, sources and tables have a most,
// and a scrape is made piece by piece.
#include "userspace/telemetry/series.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "userspace/telemetry/request_report.h"

namespace meltemi::telemetry {
namespace {

using model::Symbol;
using testing::HasSubstr;
using testing::Not;

RequestInfo request(const std::string& principal, const std::string& claimed) {
  RequestInfo info;
  info.security = Security::kMutualTls;
  info.source.identity = *model::Identity::parse("spiffe://cluster.local/ns/a/sa/" + principal);
  info.source.name = Symbol(claimed);
  return info;
}

void finish(HttpMetrics& metrics, RequestInfo info, int status, std::string_view grpc) {
  RequestReport report(metrics, 0, std::move(info), MonoTime());
  report.set_response(status);
  report.set_grpc_status(grpc);
  report.finish(Reason::kOk, "", MonoTime());
}

size_t count(const std::string& text, std::string_view what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += what.size()) ++n;
  return n;
}

TEST(ClosedLabels, AThousandGrpcStatusesAreEighteenSeries) {
  Registry registry;
  HttpMetrics metrics(registry, 1, "waypoint");
  for (int i = 0; i < 21'000; ++i) finish(metrics, request("web", ""), 200, std::to_string(i));
  const std::string text = registry.text();
  EXPECT_EQ(count(text, "istio_requests_total{"), 18u);
  EXPECT_THAT(text, HasSubstr("grpc_response_status=\"other\"} 20983"));
  EXPECT_THAT(text, Not(HasSubstr("series_folded")));
}

TEST(ClosedLabels, OddSpellingsOfAStatusAreOther) {
  for (const char* odd : {"17", "-1", "00", "+1", " 1", "1 ", "1.0", "x", "4294967296"}) {
    EXPECT_EQ(grpc_status_label(odd), "other") << odd;
  }
  EXPECT_EQ(grpc_status_label(""), "");
  EXPECT_EQ(grpc_status_label("16"), "16");
  EXPECT_EQ(response_code_label(599), "599");
  for (int odd : {-1, 1, 99, 600, 999}) EXPECT_EQ(response_code_label(odd), "other") << odd;
}

TEST(SeriesLimits, OneSourceCannotTakeTheTableFromOthers) {
  Registry registry;
  HttpMetrics metrics(registry, 1, "waypoint", {.total = 100, .per_source = 10});
  // One proven identity under many claimed names, as its baggage may say.
  for (int i = 0; i < 1000; ++i) {
    finish(metrics, request("greedy", "name-" + std::to_string(i)), 200, "");
  }
  finish(metrics, request("modest", "me"), 200, "");
  const std::string text = registry.text();
  EXPECT_EQ(count(text, "istio_requests_total{"), 12u) << "ten, one folded, one of another";
  EXPECT_THAT(text, HasSubstr("sa/modest"));
}

TEST(SeriesLimits, ATableThatIsFullCountsTheRestAsOther) {
  SeriesTable<10, 1> table(1, {.total = 50, .per_source = 50});
  for (int i = 0; i < 500; ++i) {
    SeriesTable<10, 1>::LabelSet labels;
    labels[0] = Symbol("source");
    labels[5] = Symbol("id-" + std::to_string(i));
    table.series(0, labels)->cells[0].add(1);
  }
  SeriesTable<10, 1>::Walk walk(table);
  uint64_t sets = 0, sum = 0;
  while (walk.next(7, [&](const auto&, const auto& sums) {
    ++sets;
    sum += sums[0];
  })) {
  }
  EXPECT_EQ(sets, 51u);
  EXPECT_EQ(sum, 500u) << "nothing is lost";
  EXPECT_EQ(table.folded_by_total(), 450u);
}

TEST(Walk, SumsTheShardsAndVisitsEachSetOnce) {
  SeriesTable<10, 1> table(3, {});
  for (size_t shard = 0; shard < 3; ++shard) {
    for (size_t i = shard; i < 5; ++i) {
      SeriesTable<10, 1>::LabelSet labels;
      labels[1] = Symbol(std::to_string(i));
      table.series(shard, labels)->cells[0].add(1);
    }
  }
  SeriesTable<10, 1>::Walk walk(table);
  std::multiset<std::string> seen;
  while (walk.next(2, [&](const auto& labels, const auto& sums) {
    seen.insert(labels[1].str() + "=" + std::to_string(sums[0]));
  })) {
  }
  EXPECT_THAT(seen, testing::UnorderedElementsAre("0=1", "1=2", "2=3", "3=3", "4=3"));
}

TEST(Walk, SumsOnlyGrowWhileWorkersCount) {
  using Table = SeriesTable<10, 1>;
  Table table(2, {});
  Table::LabelSet labels;
  labels[1] = Symbol("x");
  std::vector<std::thread> workers;
  for (size_t shard = 0; shard < 2; ++shard) {
    workers.emplace_back([&, shard] {
      for (int i = 0; i < 50'000; ++i) table.series(shard, labels)->cells[0].add(1);
    });
  }
  const auto sum = [&] {
    uint64_t out = 0;
    Table::Walk(table).next(9, [&](const auto&, const auto& sums) { out = sums[0]; });
    return out;
  };
  uint64_t last = 0;
  for (int i = 0; i < 50; ++i) {
    const uint64_t now = sum();
    EXPECT_GE(now, last);
    last = now;
  }
  for (auto& w : workers) w.join();
  EXPECT_EQ(sum(), 100'000u);
}

constexpr Duration kIdle = std::chrono::hours(1);

struct Expiry : testing::Test {
  using Table = SeriesTable<10, 1>;
  static Table::LabelSet labels(const std::string& workload) {
    Table::LabelSet out;
    out[1] = Symbol(workload);
    return out;
  }
  void count(size_t shard, const std::string& workload) {
    table.series(shard, labels(workload))->cells[0].add(1);
  }
  // "workload=sum" of all that a scrape shows.
  std::multiset<std::string> shown() {
    std::multiset<std::string> out;
    Table::Walk(table).next(99, [&](const auto& l, const auto& sums) {
      out.insert(l[1].str() + "=" + std::to_string(sums[0]));
    });
    return out;
  }
  // Scrapes for a while, as somebody does all the time.
  void pass(Duration time) {
    for (const MonoTime end = now + time; now < end;) table.expire(now += kIdle / 8);
  }
  Table table{2, {.total = 3, .per_source = 3, .idle = kIdle}};
  MonoTime now = MonoTime(std::chrono::hours(1000));
};

TEST_F(Expiry, WhoIsGoneGivesHisPlaceToThoseWhoCome) {
  for (const char* workload : {"a", "b", "c"}) count(0, workload);
  count(0, "late");
  EXPECT_EQ(table.folded_by_total(), 1u);
  pass(kIdle / 2);
  count(0, "a");
  pass(kIdle * 3 / 4);
  EXPECT_THAT(shown(), testing::UnorderedElementsAre("a=2")) << "other is idle too";
  EXPECT_EQ(table.expired(), 3u);
  count(0, "d");
  count(0, "e");
  EXPECT_THAT(shown(), testing::UnorderedElementsAre("a=2", "d=1", "e=1"));
  EXPECT_EQ(table.folded_by_total(), 1u) << "none of them is other";
}

TEST_F(Expiry, ASumNeverShrinksSinceOneShardIsIdle) {
  count(0, "a");
  count(1, "a");
  for (int i = 0; i < 5; ++i) {
    pass(kIdle / 2);
    count(1, "a");
  }
  EXPECT_THAT(shown(), testing::UnorderedElementsAre("a=7"));
}

TEST_F(Expiry, WhatComesBackBeginsAtNothing) {
  count(0, "a");
  count(1, "a");
  pass(2 * kIdle);
  EXPECT_THAT(shown(), testing::IsEmpty());
  count(1, "a");
  EXPECT_THAT(shown(), testing::UnorderedElementsAre("a=1"));
  count(0, "a");
  EXPECT_THAT(shown(), testing::UnorderedElementsAre("a=2"));
}

TEST_F(Expiry, AScrapeThatIsUnderWayKeepsWhatItBeganWith) {
  count(0, "a");
  count(0, "b");
  Table::Walk walk(table);
  pass(2 * kIdle);
  count(0, "c");  // and the others are taken out
  size_t seen = 0;
  while (walk.next(1, [&](const auto&, const auto&) { ++seen; })) {
  }
  EXPECT_EQ(seen, 2u);
}

TEST_F(Expiry, NothingExpiresWhereItIsSwitchedOff) {
  Table keeps(1, {.idle = Duration::zero()});
  keeps.series(0, labels("a"))->cells[0].add(1);
  keeps.expire(now);
  keeps.expire(now + 100 * kIdle);
  EXPECT_EQ(keeps.expired(), 0u);
}

TEST(FlowExpiry, AnOpenFlowKeepsItsSeriesHoweverQuietItIs) {
  Registry registry;
  TcpMetrics metrics(registry, 1, {.idle = kIdle});
  FlowInfo info;
  info.source.name = Symbol("quiet");
  MonoTime now = MonoClock::now();
  auto flow = std::make_unique<ConnectionReport>(metrics, 0, info, now);
  for (int i = 0; i < 30; ++i) metrics.expire(now += kIdle / 8);
  flow->progress(5, 0);
  EXPECT_THAT(registry.text(), HasSubstr("istio_tcp_received_bytes_total{reporter=\"source\""));
  flow->finish(Reason::kOk, "", now);
  flow.reset();
  for (int i = 0; i < 30; ++i) metrics.expire(now += kIdle / 8);
  EXPECT_THAT(registry.text(), Not(HasSubstr("istio_tcp_received_bytes_total{")));
  EXPECT_THAT(registry.text(), HasSubstr("meltemi_series_expired_total{metrics=\"tcp\"} 1"));
}

TEST(FlowExpiry, TheNumberOfOpenSocketsOutlivesTheSeriesOfThoseThatFailed) {
  Registry registry;
  TcpMetrics metrics(registry, 1, {.idle = kIdle});
  MonoTime now = MonoClock::now();
  const ConnectionReport open(metrics, 0, FlowInfo(), now);
  {
    ConnectionReport failed(metrics, 0, FlowInfo(), now);
    failed.finish(Reason::kConnectTimeout, "", now);  // closed under other labels than opened
  }
  for (int i = 0; i < 30; ++i) metrics.expire(now += kIdle / 8);
  EXPECT_THAT(registry.text(), HasSubstr("istio_tcp_sockets_open{reporter=\"source\"} 1\n"));
}

TEST(FlowExpiry, AWorkersCacheLooksAgainWhenItsSeriesHasExpired) {
  Registry registry;
  HttpMetrics metrics(registry, 1, "waypoint", {.total = 9, .per_source = 9, .idle = kIdle});
  HttpSeriesCache cache;
  MonoTime now = MonoClock::now();
  const auto ask = [&](const std::string& who) {
    RequestReport report(metrics, 0, request(who, ""), now);
    report.set_response(200);
    report.finish(Reason::kOk, "", now, &cache);
  };
  for (int i = 0; i < 3; ++i) ask("web");
  for (int i = 0; i < 30; ++i) metrics.expire(now += kIdle / 8);
  EXPECT_EQ(count(registry.text(), "istio_requests_total{"), 0u);
  ask("other");  // takes the expired one out
  ask("web");
  const std::string text = registry.text();
  EXPECT_EQ(count(text, "istio_requests_total{"), 2u);
  EXPECT_THAT(text, Not(HasSubstr("} 3\n")));
}

TEST(Scrape, ComesInPiecesWhateverTheNumberOfSeries) {
  Registry registry;
  HttpMetrics metrics(registry, 2, "waypoint", {.total = 2000, .per_source = 2000});
  for (int i = 0; i < 1500; ++i) {
    finish(metrics, request("id-" + std::to_string(i), ""), 200, "");
  }
  Registry::Reading reading = registry.read();
  size_t largest = 0, total = 0;
  for (bool more = true; more;) {
    std::string piece;
    more = reading.more(piece);
    largest = std::max(largest, piece.size());
    total += piece.size();
  }
  EXPECT_GT(total, 50u << 20);
  EXPECT_LT(largest, 128u << 10);
}

}  // namespace
}  // namespace meltemi::telemetry
