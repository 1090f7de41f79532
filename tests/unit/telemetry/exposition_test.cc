// Text exposition: escaping, omitted families, sums over workers.
#include "userspace/telemetry/exposition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>



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

}  // namespace
}  // namespace meltemi::telemetry
