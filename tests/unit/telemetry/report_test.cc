// A flow's or request's one report: metrics and the log line agree, in Istio's names and order.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "userspace/base/log.h"
#include "userspace/telemetry/connection_report.h"
#include "userspace/telemetry/refusal.h"
#include "userspace/telemetry/request_report.h"

namespace meltemi::telemetry {
namespace {

using model::Symbol;
using testing::HasSubstr;
using testing::Not;

model::WorkloadPtr workload(std::string_view name, std::string_view region = {}) {
  auto w = std::make_shared<model::Workload>();
  w->uid = Symbol(name);
  w->name = Symbol(std::string(name) + "-1");
  w->workload_name = Symbol(name);
  w->ns = Symbol("shop");
  w->service_account = Symbol(name);
  w->trust_domain = Symbol("cluster.local");
  w->canonical_name = Symbol(name);
  w->canonical_revision = Symbol("v1");
  w->cluster = Symbol("Kubernetes");
  w->locality.region = Symbol(region);
  EXPECT_TRUE(w->seal());
  return w;
}

FlowInfo flow(Direction direction) {
  FlowInfo f;
  f.direction = direction;
  f.security = Security::kMutualTls;
  f.src = *SocketAddress::parse("10.0.0.5:40112");
  f.dst = *SocketAddress::parse("10.0.0.9:15008");
  f.hbone = *SocketAddress::parse("10.0.0.9:8080");
  f.source.workload = workload("web");
  f.destination.workload = workload("api");
  f.source.identity = f.source.workload->identity;
  f.destination.identity = f.destination.workload->identity;
  auto s = std::make_shared<model::Service>();
  s->name = Symbol("api");
  s->ns = Symbol("shop");
  s->hostname = Symbol("api.shop.svc.cluster.local");
  f.service = s;
  return f;
}

bool log_is_on() {
  static const bool once = log::init("info", log::Format::kPlain).has_value();
  return once;
}

// What the log writes to stderr while `f` runs.
template <typename F>
std::string logged(F f) {
  EXPECT_TRUE(log_is_on());
  log::flush();
  FILE* file = std::tmpfile();
  const int saved = dup(2);
  dup2(fileno(file), 2);
  f();
  log::flush();
  usleep(50'000);  // the writer thread owns the last line
  log::flush();
  dup2(saved, 2);
  close(saved);
  std::rewind(file);
  std::string text(64 * 1024, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

class Reports : public testing::Test {
 protected:
  Registry registry_;
  TcpMetrics metrics_{registry_, 2};
};

constexpr const char* kLabels =
    "source_workload=\"web\",source_canonical_service=\"web\",source_canonical_revision=\"v1\","
    "source_workload_namespace=\"shop\",source_principal=\"spiffe://cluster.local/ns/shop/sa/web\","
    "source_app=\"web\",source_version=\"v1\",source_cluster=\"Kubernetes\","
    "destination_service=\"api.shop.svc.cluster.local\",destination_service_namespace=\"shop\","
    "destination_service_name=\"api\",destination_workload=\"api\","
    "destination_canonical_service=\"api\",destination_canonical_revision=\"v1\","
    "destination_workload_namespace=\"shop\","
    "destination_principal=\"spiffe://cluster.local/ns/shop/sa/api\",destination_app=\"api\","
    "destination_version=\"v1\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\","
    "response_flags=\"-\",connection_security_policy=\"mutual_tls\"";

TEST_F(Reports, AGoodFlow) {
  const std::string line = logged([&] {
    ConnectionReport report(metrics_, 0, flow(Direction::kOutbound), MonoTime());
    report.progress(5, 20);
    report.progress(11, 22);
    report.finish(Reason::kOk, "", MonoTime(std::chrono::milliseconds(3)));
    report.finish(Reason::kConnectReset, "later calls are ignored", MonoTime());
  });
  EXPECT_THAT(
      line,
      HasSubstr("\tinfo\taccess\tconnection complete src.addr=10.0.0.5:40112 src.workload=\"web-1\" "
                "src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" "
                "src.cluster=\"Kubernetes\" dst.addr=10.0.0.9:15008 dst.hbone_addr=10.0.0.9:8080 "
                "dst.service=\"api.shop.svc.cluster.local\" dst.workload=\"api-1\" "
                "dst.namespace=\"shop\" dst.identity=\"spiffe://cluster.local/ns/shop/sa/api\" "
                "dst.cluster=\"Kubernetes\" direction=\"outbound\" bytes_sent=11 bytes_recv=22 "
                "duration=\"3ms\" reason=ok\n"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  const std::string text = registry_.text();
  const std::string labels = std::string("{reporter=\"source\",") + kLabels + "}";
  EXPECT_THAT(text, HasSubstr("istio_tcp_connections_opened_total" + labels + " 1\n"));
  EXPECT_THAT(text, HasSubstr("istio_tcp_connections_closed_total" + labels + " 1\n"));
  EXPECT_THAT(text, HasSubstr("istio_tcp_received_bytes_total" + labels + " 11\n"));
  EXPECT_THAT(text, HasSubstr("istio_tcp_sent_bytes_total" + labels + " 22\n"));
  EXPECT_THAT(text, Not(HasSubstr("istio_tcp_connections_failed_total")));
}

TEST_F(Reports, InboundSeesBytesFromTheWorkloadsSide) {
  const std::string line = logged([&] {
    ConnectionReport report(metrics_, 1, flow(Direction::kInbound), MonoTime());
    report.progress(11, 22);
    report.finish(Reason::kOk, "", MonoTime());
  });
  EXPECT_THAT(line, HasSubstr("direction=\"inbound\" bytes_sent=22 bytes_recv=11"));
  const std::string labels = std::string("{reporter=\"destination\",") + kLabels + "}";
  EXPECT_THAT(registry_.text(), HasSubstr("istio_tcp_received_bytes_total" + labels + " 11\n"));
}

TEST_F(Reports, AFailedFlowCarriesItsFlagAndReason) {
  const std::string line = logged([&] {
    ConnectionReport report(metrics_, 0, flow(Direction::kInbound), MonoTime());
    report.set_policy("shop/deny");
    report.finish(Reason::kPolicyDeny, "rule \"x\"\nforged", MonoTime());
  });
  EXPECT_THAT(line, HasSubstr("\terror\taccess\t"));
  EXPECT_THAT(line, HasSubstr("reason=policy_deny policy=\"shop/deny\" error=\"rule \\\"x\\\"\\nforged\"\n"));
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1) << "a peer's bytes forge no line";
  const std::string text = registry_.text();
  EXPECT_THAT(text, testing::ContainsRegex("connections_failed_total\\{.*response_flags=\"DENY\".*\\} 1\n"));
  EXPECT_THAT(text, testing::ContainsRegex("connections_closed_total\\{.*response_flags=\"DENY\".*\\} 1\n"));
}

TEST_F(Reports, JsonHasTheFieldsAsMembersAndAlwaysParses) {
  logged([] {});
  ASSERT_TRUE(log::init("info", log::Format::kJson));
  const std::string lines = logged([&] {
    ConnectionReport good(metrics_, 0, flow(Direction::kOutbound), MonoTime());
    good.progress(11, 22);
    good.finish(Reason::kOk, "", MonoTime(std::chrono::milliseconds(3)));
    FlowInfo hostile = flow(Direction::kInbound);
    hostile.hbone.reset();
    hostile.hbone_host = "a\x1f\",\"reason\":\"ok\xff\xc0\x80\n";
    ConnectionReport bad(metrics_, 0, hostile, MonoTime());
    bad.finish(Reason::kBadRequest, std::string("\x00\xed\xa0\x80 \xe2\x82\xac", 8), MonoTime());
    log::Scope("peer").warn("raw {}", "\x1f,\"level\":\"forged\"\xfe");
  });
  ASSERT_TRUE(log::init("info", log::Format::kPlain));
  std::istringstream in(lines);
  std::vector<nlohmann::json> parsed;
  for (std::string line; std::getline(in, line);) parsed.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(parsed.size(), 3u) << lines;
  EXPECT_EQ(parsed[0]["message"], "connection complete");
  EXPECT_EQ(parsed[0]["scope"], "access");
  EXPECT_EQ(parsed[0]["src.addr"], "10.0.0.5:40112");
  EXPECT_EQ(parsed[0]["dst.identity"], "spiffe://cluster.local/ns/shop/sa/api");
  EXPECT_EQ(parsed[0]["bytes_sent"], 11);
  EXPECT_EQ(parsed[0]["duration"], "3ms");
  EXPECT_EQ(parsed[0]["reason"], "ok");
  EXPECT_EQ(parsed[1]["reason"], "bad_request");
  EXPECT_EQ(parsed[1]["level"], "error");
  EXPECT_EQ(parsed[2]["level"], "warn");
}

TEST_F(Reports, ADroppedReportSaysSo) {
  const std::string line = logged([&] {
    ConnectionReport report(metrics_, 0, flow(Direction::kInbound), MonoTime());
  });
  EXPECT_THAT(line, HasSubstr("reason=internal"));
}

TEST_F(Reports, EarlyFailureWithNothingKnown) {
  const std::string line = logged([&] {
    FlowInfo f;
    f.direction = Direction::kInbound;
    f.src = *SocketAddress::parse("10.0.0.5:1");
    report_early_failure(metrics_, 0, f, Reason::kTlsHandshake, "no certificate");
  });
  EXPECT_THAT(line, HasSubstr("\twarn\taccess\tconnection failed src.addr=10.0.0.5:1 "));
  EXPECT_THAT(line, HasSubstr("reason=tls_handshake error=\"no certificate\""));
  EXPECT_THAT(registry_.text(), testing::ContainsRegex("failed_total\\{.*source_workload=\"unknown\".*TLS_FAILURE"));
}

TEST_F(Reports, LocalityLabelsOnlyWhereKnown) {
  auto f = flow(Direction::kOutbound);
  f.source.workload = workload("web", "eu");
  logged([&] { ConnectionReport(metrics_, 0, f, MonoTime()).finish(Reason::kOk, "", MonoTime()); });
  EXPECT_THAT(registry_.text(), HasSubstr("connection_security_policy=\"mutual_tls\",source_region=\"eu\","
                                          "source_zone=\"unknown\",destination_region=\"unknown\","
                                          "destination_zone=\"unknown\"}"));
}

TEST_F(Reports, BaggageNamesAnUnknownPeer) {
  auto f = flow(Direction::kInbound);
  f.source.workload = nullptr;
  f.source.name = Symbol("claimed");
  logged([&] { ConnectionReport(metrics_, 0, f, MonoTime()).finish(Reason::kOk, "", MonoTime()); });
  EXPECT_THAT(registry_.text(), HasSubstr("source_workload=\"claimed\""));
  EXPECT_THAT(registry_.text(), HasSubstr("source_workload_namespace=\"shop\"")) << "from the identity";
}

TEST_F(Reports, OpenSocketsAreCountedWhileTheyAreOpen) {
  {
    ConnectionReport open(metrics_, 0, flow(Direction::kOutbound), MonoTime());
    EXPECT_THAT(registry_.text(), HasSubstr("istio_tcp_sockets_open{reporter=\"source\"} 1\n"));
    open.finish(Reason::kOk, "", MonoTime());
  }
  EXPECT_THAT(registry_.text(), HasSubstr("istio_tcp_sockets_open{reporter=\"source\"} 0\n"));
}

TEST(Refusal, OnlyAReasonOfTheSetIsTaken) {
  EXPECT_EQ(refusal_of("policy_deny"), Reason::kPolicyDeny);
  for (const char* other : {"", "ok", "policy_deny ", "POLICY_DENY", "\x1b[31m"}) {
    EXPECT_FALSE(refusal_of(other)) << other;
  }
}

TEST(Flags, EveryReasonHasOne) {
  for (size_t i = 0; i < kReasonCount; ++i) {
    EXPECT_FALSE(response_flags(static_cast<Reason>(i)).empty());
    EXPECT_FALSE(http_response_flags(static_cast<Reason>(i)).empty());
  }
  EXPECT_EQ(http_response_flags(Reason::kUpstreamReset), "UR");
  EXPECT_EQ(http_response_flags(Reason::kUpstreamProtocol), "UPE");
}

TEST(Requests, MetricsHistogramsAndLine) {
  Registry registry;
  HttpMetrics metrics(registry, 1, "waypoint");
  const std::string line = logged([&] {
    RequestInfo info;
    info.method = "GET";
    info.path = "/items?q=\"\n";
    info.authority = "catalog";
    info.security = Security::kMutualTls;
    info.source.workload = workload("web");
    info.source.identity = info.source.workload->identity;
    RequestReport report(metrics, 0, std::move(info), MonoTime());
    report.received(7);
    report.sent(600);
    report.set_response(200);
    report.set_attempts(2);
    report.finish(Reason::kOk, "", MonoTime(std::chrono::microseconds(12'500)));
  });
  EXPECT_THAT(line, HasSubstr("request complete method=\"GET\" path=\"/items?q=\\\"\\n\" authority=\"catalog\""));
  EXPECT_THAT(line, HasSubstr("response_code=200 response_flags=- bytes_received=7 bytes_sent=600 duration=\"12ms\" attempts=2"));
  EXPECT_THAT(line, HasSubstr("reason=ok\n"));
  const std::string text = registry.text();
  EXPECT_THAT(text, testing::ContainsRegex("istio_requests_total\\{reporter=\"waypoint\",source_workload=\"web\".*request_protocol=\"http\",response_flags=\"-\",connection_security_policy=\"mutual_tls\",response_code=\"200\",grpc_response_status=\"unknown\"\\} 1\n"));
  EXPECT_THAT(text, testing::ContainsRegex("istio_request_duration_milliseconds_bucket\\{.*le=\"10\"\\} 0\n"));
  EXPECT_THAT(text, testing::ContainsRegex("istio_request_duration_milliseconds_bucket\\{.*le=\"25\"\\} 1\n"));
  EXPECT_THAT(text, testing::ContainsRegex("istio_request_duration_milliseconds_bucket\\{.*le=\"\\+Inf\"\\} 1\n"));
  EXPECT_THAT(text, testing::ContainsRegex("istio_request_duration_milliseconds_sum\\{.*\\} 12.5\n"));
  EXPECT_THAT(text, testing::ContainsRegex("istio_response_bytes_sum\\{.*\\} 600\n"));
  EXPECT_THAT(text, testing::ContainsRegex("istio_request_bytes_count\\{.*\\} 1\n"));
}

}  // namespace
}  // namespace meltemi::telemetry
