// What a caller may cost the server before and after it has shown its token, and what ends when the token
// does. The other side is curl, which speaks HTTP/2 and knows nothing of gRPC's manners.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <mutex>

#include "userspace/xds/ca_client.h"
#include "userspace/xds/delta_client.h"
#include "userspace/xds/server.h"

namespace meltemi::xds {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr auto kPatience = 60s;
const WallTime kTokenEnds = std::chrono::system_clock::now() + 1h;

struct ServerLimitsTest : ::testing::Test {
  ServerLimitsTest() : server(hooks()) {
    std::string name = "/tmp/meltemi-limits-XXXXXX";
    directory = mkdtemp(name.data());
    std::ofstream(directory + "/token") << "good-token";
    ServerOptions options;
    options.plaintext_listen = {{*IpAddress::parse("127.0.0.1"), 0}};
    const Status started = server.start(options);
    EXPECT_TRUE(started) << started.error().to_string();
    server.set_ready();
  }
  ~ServerLimitsTest() override { std::filesystem::remove_all(directory); }

  static ServerHooks hooks() {
    ServerHooks out;
    out.authenticate = [](std::string_view token) -> Result<Caller> {
      if (token != "good-token") return fail(Reason::kPermission, Fault::kDownstream, "bad token");
      return Caller{.ns = "istio-system", .service_account = "ztunnel", .pod_name = {},
                    .pod_uid = {}, .node_name = "node-1", .expires = kTokenEnds};
    };
    out.scope_of = [](const Caller&, const Node&, std::string_view) -> Result<std::string> {
      return std::string();
    };
    out.sign = [](const Caller&, const CertificateCall& call) -> Result<std::vector<std::string>> {
      return std::vector<std::string>{std::to_string(call.csr_pem.size())};
    };
    out.report = [](const Caller&, const node::v1::NodeReport&) -> Status { return {}; };
    return out;
  }
  ChannelOptions channel() const {
    ChannelOptions out;
    out.address = fmt::format("http://127.0.0.1:{}", server.ports()[0]);
    out.token_file = directory + "/token";
    return out;
  }
  Result<std::vector<std::string>> sign(const std::string& csr) const {
    CaClient client(channel());
    std::promise<Result<std::vector<std::string>>> promise;
    client.sign(csr, 60s, "", [&](auto result) { promise.set_value(std::move(result)); });
    return promise.get_future().get();
  }

  std::string directory;
  Server server;
};

// Kilobytes, from /proc/self/status.
long memory(std::string_view row) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(row)) return std::atol(line.c_str() + row.size() + 1);
  }
  return -1;
}

TEST_F(ServerLimitsTest, NoByteOfABodyIsKeptForACallerWithoutAToken) {
  std::filesystem::resize_file((std::ofstream(directory + "/body"), directory + "/body"), 30 << 20);
  std::ofstream("/proc/self/clear_refs") << 5;  // the high-water mark begins anew
  const long before = memory("VmRSS");
  std::string calls;
  for (const char* method : {"istio.v1.auth.IstioCertificateService/CreateCertificate",
                             "meltemi.node.v1.NodeStatus/Report",
                             "envoy.service.discovery.v3.AggregatedDiscoveryService/"
                             "DeltaAggregatedResources"}) {
    for (int i = 0; i < 7; ++i) {
      calls += fmt::format(
          "curl -s -o /dev/null --max-time 60 --noproxy '*' --http2-prior-knowledge -H 'te: trailers' "
          "-H 'content-type: application/grpc' -X POST -T {}/body http://127.0.0.1:{}/{} & ",
          directory, server.ports()[0], method);
    }
  }
  ASSERT_EQ(std::system((calls + "wait").c_str()), 0);
  EXPECT_GE(server.stats().refused, 21u);
#if __has_feature(address_sanitizer)
  constexpr long kMost = (20 + 256) << 10;  // it keeps 256 MB of what was freed
#else
  constexpr long kMost = 20 << 10;
#endif
  EXPECT_LT(memory("VmHWM") - before, kMost) << "KB, of 630 MB that were offered";
}

TEST_F(ServerLimitsTest, ARequestLargerThanItsMethodNeedsIsRefusedByName) {
  const auto fits = sign(std::string(kMaxCertificateRequestBytes - 100, 'x'));
  ASSERT_TRUE(fits) << fits.error().to_string();
  const auto refused = sign(std::string(kMaxCertificateRequestBytes, 'x'));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, Reason::kLimitExceeded);
  EXPECT_THAT(refused.error().detail, HasSubstr(std::to_string(kMaxCertificateRequestBytes)));
}

// gRPC gathers a message before it looks at its length, so the limit is on what came and was not taken.
TEST_F(ServerLimitsTest, AMessageWithoutEndIsCutShort) {
  constexpr uint32_t kBytes = 2'000'000'000;
  const char head[5] = {0, 0x77, 0x35, static_cast<char>(0x94), 0x00};  // gRPC's prefix: kBytes
  std::ofstream(directory + "/body", std::ios::binary).write(head, sizeof head);
  std::filesystem::resize_file(directory + "/body", kBytes);
  const std::string call = fmt::format(
      "curl -s -o /dev/null --max-time 120 --noproxy '*' --http2-prior-knowledge -H 'te: trailers' "
      "-H 'authorization: Bearer good-token' -H 'content-type: application/grpc' -T {}/body "
      "-X POST http://127.0.0.1:{}/istio.v1.auth.IstioCertificateService/CreateCertificate",
      directory, server.ports()[0]);
  EXPECT_NE(std::system(call.c_str()), 0) << "the connection was ended";
  EXPECT_EQ(server.stats().overdrawn, 1u);
  EXPECT_EQ(server.stats().certificates + server.stats().certificates_refused, 0u);
}

TEST_F(ServerLimitsTest, AStreamEndsWithItsToken) {
  std::mutex mutex;
  std::condition_variable changed;
  std::string seen;
  DeltaClient client(channel(), make_node("ztunnel", "10.0.0.1", "zt", "ns", "cluster.local"));
  client.subscribe(std::string(kTypeAddress), [&](const Update& update) {
    const std::lock_guard lock(mutex);
    for (const auto& r : update.resources) seen = r.body;
    changed.notify_all();
    return std::vector<Rejection>();
  });
  ASSERT_TRUE(client.start());
  const auto told = [&](const std::string& body) {
    server.update({{std::string(kTypeAddress), "", "a", body, body}});
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, kPatience, [&] { return seen == body; });
  };
  ASSERT_TRUE(told("one"));
  server.end_expired(kTokenEnds - 1s);
  ASSERT_TRUE(told("two"));
  EXPECT_EQ(server.stats().streams_opened, 1u);
  server.end_expired(kTokenEnds);
  ASSERT_TRUE(told("three")) << "it comes back with the token that its file has then";
  EXPECT_EQ(server.stats().streams_opened, 2u);
}

}  // namespace
}  // namespace meltemi::xds
