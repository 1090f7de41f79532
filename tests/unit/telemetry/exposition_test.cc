// Text exposition: escaping, omitted families, sums over workers.
#include "userspace/telemetry/exposition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "userspace/telemetry/series.h"

namespace meltemi::telemetry {
namespace {

using testing::HasSubstr;
using testing::Not;

TEST(Exposition, EscapesValuesAndNamesTheUnknown) {
  Exposition out;
  constexpr std::string_view labels[] = {"a", "b"};
  const std::string_view values[] = {"q\"\\\n", ""};
  out.family("x_total", MetricType::kCounter, "help");
  out.sample("x_total", labels, values, uint64_t{7});
  EXPECT_EQ(out.take(),
            "# HELP x_total help\n# TYPE x_total counter\nx_total{a=\"q\\\"\\\\\\n\",b=\"unknown\"} 7\n");
}

TEST(SimpleMetric, OmittedUntilTouchedAndKeepsLabelSetsApart) {
  Registry registry;
  SimpleMetric gauge(registry, "pods", MetricType::kGauge, "Pods");
  SimpleMetric count(registry, "acks_total", MetricType::kCounter, "Acks", {"type"});
  EXPECT_EQ(registry.text(), "# EOF\n");
  gauge.set(3);
  count.add(1, {"a"});
  count.add(2, {"b"});
  count.add(1, {"a"});
  const std::string text = registry.text();
  EXPECT_THAT(text, HasSubstr("pods 3\n"));
  EXPECT_THAT(text, HasSubstr("acks_total{type=\"a\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("acks_total{type=\"b\"} 2\n"));
  EXPECT_TRUE(text.ends_with("# EOF\n"));
  EXPECT_EQ(count.value({"a"}), 2);
}

TEST(ProcessMetrics, SayWhoAndHowMuch) {
  Registry registry;
  add_process_metrics(registry, "ztunnel");
  const std::string text = registry.text();
  EXPECT_THAT(text, HasSubstr("istio_build{component=\"ztunnel\",tag=\""));
  EXPECT_THAT(text, HasSubstr("\nprocess_open_fds "));
  EXPECT_THAT(text, HasSubstr("\nprocess_resident_memory_bytes "));
  EXPECT_THAT(text, Not(HasSubstr("process_max_fds 0\n")));
}

TEST(SeriesTable, SumsShardsWhileWorkersCount) {
  using Table = SeriesTable<2, 1>;
  Table table(2);
  const Table::LabelSet labels{model::Symbol("x"), model::Symbol("y")};
  std::vector<std::thread> workers;
  for (size_t shard = 0; shard < 2; ++shard) {
    workers.emplace_back([&, shard] {
      for (int i = 0; i < 50'000; ++i) table.series(shard, labels)->cells[0].add(1);
    });
  }
  uint64_t last = 0;
  for (int i = 0; i < 50; ++i) {
    const auto totals = table.totals();
    const uint64_t now = totals.contains(labels) ? totals.at(labels)[0] : 0;
    EXPECT_GE(now, last);
    last = now;
  }
  for (auto& w : workers) w.join();
  EXPECT_EQ(table.totals().at(labels)[0], 100'000u);
}

TEST(SeriesTable, TooManyLabelSetsShareOneAndAreCounted) {
  SeriesTable<1, 1> table(1);
  for (size_t i = 0; i < table.kMaxSeries + 5; ++i) {
    table.series(0, {model::Symbol("w" + std::to_string(i))})->cells[0].add(1);
  }
  EXPECT_EQ(table.overflow(), 5u);
  EXPECT_EQ(table.totals().at({model::Symbol()})[0], 5u);
  EXPECT_EQ(table.totals().size(), table.kMaxSeries + 1);
}

}  // namespace
}  // namespace meltemi::telemetry
