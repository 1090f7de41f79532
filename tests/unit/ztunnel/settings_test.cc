// What the rows of the configuration mean together.
#include "ztunnel/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace meltemi::ztunnel {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

TEST(Settings, Workers) {
  Settings s;
  EXPECT_EQ(*s.workers(1), 2u);
  EXPECT_EQ(*s.workers(64), 16u);
  const std::tuple<const char*, uint32_t, uint32_t> cases[] = {
      {"3", 8, 3}, {"0", 8, 8}, {"25%", 8, 2}, {"1%", 8, 1}, {"100%", 8, 8}, {"30%", 10, 3}};
  for (const auto& [text, cores, want] : cases) {
    s.workers_text = text;
    EXPECT_EQ(*s.workers(cores), want) << text;
  }
  for (const char* text : {"x", "-1", "1.5", "%", "4096", "3 "}) {
    s.workers_text = text;
    ASSERT_FALSE(s.workers(8).has_value()) << text;
    EXPECT_THAT(s.workers(8).error().detail, HasSubstr("worker-threads"));
  }
}

TEST(Settings, DrainFollowsTheGracePeriod) {
  Settings s;
  EXPECT_EQ(s.drain(), seconds(5));
  const std::pair<int, int> cases[] = {{30, 25}, {11, 6}, {10, 9}, {2, 1}, {1, 1}};
  for (const auto& [grace, want] : cases) {
    s.grace_seconds = grace;
    EXPECT_EQ(s.drain(), seconds(want)) << grace;
  }
  s.drain_deadline = seconds(99);
  EXPECT_EQ(s.drain(), seconds(99));
}

TEST(Settings, ChecksNameTheRowAndTheFix) {
  EXPECT_TRUE(Settings().check().has_value());
  const auto broken = [](auto change) {
    Settings s;
    change(s);
    const Status status = s.check();
    return status ? std::string("ok") : status.error().detail;
  };
  EXPECT_THAT(broken([](Settings& s) { s.proxy_mode = "both"; }), HasSubstr("use shared, dedicated"));
  EXPECT_THAT(broken([](Settings& s) { s.io_backend = "poll"; }), HasSubstr("io-backend"));
  EXPECT_THAT(broken([](Settings& s) { s.proxy_mode = "dedicated"; }), HasSubstr("namespace/name/serviceaccount"));
  EXPECT_THAT(broken([](Settings& s) { s.discovery.address = ""; }), HasSubstr("no source of configuration"));
  EXPECT_THAT(broken([](Settings& s) { s.discovery.address = ""; s.local_xds_path = "x"; }), HasSubstr("certificate authority"));
  EXPECT_THAT(broken([](Settings& s) { s.operators.admin_listen = "15000"; }), HasSubstr("admin-listen"));
  EXPECT_EQ(broken([](Settings& s) {
              s.proxy_mode = "dedicated";
              s.workload_info = "ns/name/sa";
            }),
            "ok");
}

TEST(Settings, EveryRowIsInTheReference) {
  Settings s;
  ConfigTable table("ztunnel", "x");
  s.describe(table);
  const std::string reference = table.reference();
  for (const char* env : {"XDS_ADDRESS", "CA_ADDRESS", "INPOD_UDS", "LOCAL_XDS_PATH", "PACKET_MARK",
                          "CAPTURE_MARK", "ZTUNNEL_WORKER_THREADS", "SECRET_TTL", "NODE_NAME",
                          "POOL_MAX_STREAMS_PER_CONNECTION", "CONNECTION_TERMINATION_DEADLINE"}) {
    EXPECT_THAT(reference, HasSubstr(env));
  }
}

}  // namespace
}  // namespace meltemi::ztunnel
