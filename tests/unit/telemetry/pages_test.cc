// The pages that all processes share, asked by curl.
#include "userspace/telemetry/pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

namespace meltemi::telemetry {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

class Pages : public testing::Test {
 protected:
  void SetUp() override {
    add_readiness_route(router_, readiness_);
    add_metrics_routes(router_, registry_);
    add_admin_routes(router_, "info", [this] { ++quits_; });
    auto at = server_.listen(router_, {*IpAddress::parse("127.0.0.1"), 0});
    ASSERT_TRUE(at);
    address_ = at->to_string();
    ASSERT_TRUE(server_.start());
  }
  std::string curl(const std::string& arguments, const std::string& path) {
    const std::string command = "curl -sS -g --max-time 60 -w '\\n%{http_code}' " + arguments +
                                " 'http://" + address_ + path + "' 2>&1";
    FILE* pipe = popen(command.c_str(), "r");
    std::string out;
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  http::Router router_;
  Readiness readiness_;
  Registry registry_;
  std::string address_;
  std::atomic<int> quits_{0};
  http::Server server_;
};

TEST_F(Pages, ReadinessNamesWhatIsPending) {
  readiness_.pending("state manager");
  readiness_.pending("a");
  EXPECT_EQ(curl("", "/healthz/ready"), "not ready, pending: a, state manager\n\n500");
  readiness_.done("a");
  readiness_.done("state manager");
  EXPECT_EQ(curl("", "/healthz/ready"), "ready\n\n200");
}

TEST_F(Pages, LevelsAreSetAndReset) {
  EXPECT_EQ(curl("", "/logging"), "use POST\n\n405");
  EXPECT_THAT(curl("-X POST", "/logging?level=nonsense"), HasSubstr("\n400"));
  EXPECT_THAT(curl("-X POST", "/logging?level=warn,access=info"), HasSubstr("\n200"));
  EXPECT_EQ(curl("-X POST", "/logging?level=xds=debug"),
            "current log level is warn,access=info,xds=debug\n\n200") << "they add up";
  EXPECT_EQ(curl("-X POST", "/logging"), "current log level is warn,access=info,xds=debug\n\n200");
  EXPECT_THAT(curl("-X POST", "/logging?reset"), HasSubstr("\n200"));
  EXPECT_THAT(curl("-X POST", "/logging"), testing::Not(HasSubstr("xds=debug")));
}

TEST_F(Pages, QuitIsHeardOnce) {
  EXPECT_EQ(curl("-X POST", "/quitquitquit"), "shutdown now\n\n200");
  EXPECT_EQ(curl("-X POST", "/quitquitquit"), "shutdown now\n\n200");
  EXPECT_EQ(quits_, 1);
}

TEST_F(Pages, MetricsAreStreamed) {
  add_process_metrics(registry_, "test");
  const std::string text = curl("-i", "/metrics");
  EXPECT_THAT(text, HasSubstr("ransfer-encoding: chunked"));
  EXPECT_THAT(text, HasSubstr("istio_build{component=\"test\""));
  EXPECT_THAT(text, EndsWith("# EOF\n\n200"));
}

}  // namespace
}  // namespace meltemi::telemetry
