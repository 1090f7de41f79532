// Our server against a client that none of us wrote: python3's grpcio with protoc's messages.
#include <gmock/gmock.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "userspace/xds/server.h"

namespace meltemi::xds {
namespace {

using nlohmann::json;

const std::string kA(kTypeAddress);

class PythonClient {
 public:
  PythonClient(uint16_t port, const std::string& scenario) {
    const char* source = std::getenv("MELTEMI_SOURCE_DIR");
    const std::string root = source != nullptr ? source : ".";  // as ctest sets it, or the top
    pipe_ = popen(("/usr/bin/python3 " + root + "/tests/unit/xds/python_client.py " + root +
                   "/userspace/api " + std::to_string(port) + " " + scenario + " 2>&1")
                      .c_str(),
                  "r");
  }
  ~PythonClient() {
    if (pipe_ != nullptr) pclose(pipe_);
  }
  std::string line() {
    char buffer[65536];
    return fgets(buffer, sizeof buffer, pipe_) != nullptr ? buffer : "";
  }
  std::string rest() {
    std::string out;
    for (std::string l = line(); !l.empty(); l = line()) out += l;
    return out;
  }

 private:
  FILE* pipe_;
};

struct GrpcioTest : ::testing::Test {
  GrpcioTest() : server(hooks()) {
    ServerOptions options;
    options.plaintext_listen = {{*IpAddress::parse("127.0.0.1"), 0}};
    const Status started = server.start(options);
    EXPECT_TRUE(started) << started.error().to_string();
    server.set_ready();
  }
  void SetUp() override {
    if (std::system("/usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null") != 0) {
      GTEST_SKIP() << "python3-grpcio is not installed";
    }
  }
  static ServerHooks hooks() {
    ServerHooks out;
    out.authenticate = [](std::string_view token) -> Result<Caller> {
      if (token != "good-token") return fail(Reason::kPermission, Fault::kDownstream, "bad token");
      return Caller{"istio-system", "ztunnel", "", "", "node-9"};
    };
    out.scope_of = [](const Caller&, const Node&, std::string_view type) -> Result<std::string> {
      if (type != kA) return fail(Reason::kUnsupported, Fault::kDownstream, "not for you");
      return std::string();
    };
    out.sign = [](const Caller&, const CertificateCall& call) -> Result<std::vector<std::string>> {
      if (call.impersonate == "spiffe://forbidden") {
        return fail(Reason::kPermission, Fault::kDownstream, "no such pod on node-9");
      }
      return std::vector<std::string>{call.csr_pem, call.impersonate, std::to_string(call.ttl.count())};
    };
    out.report = [](const Caller&, const node::v1::NodeReport&) -> Status { return {}; };
    return out;
  }
  void put(const std::string& name, const std::string& version, const std::string& body) {
    server.update({{kA, "", name, version, body}});
  }
  Server server;
};

TEST_F(GrpcioTest, SyncsResumesAndRefuses) {
  put("same", "1", "unchanged");
  put("stale", "2", "fresh");
  PythonClient python(server.ports()[0], "sync");
  const std::string ready = python.line();
  ASSERT_EQ(ready, "ready\n") << ready << python.rest();
  server.update({{kA, "", "later", "1", "x"},
                 {.type_url = kA, .scope = "", .name = "same", .removed = true}});
  while (server.stats().nacks == 0 && server.stats().streams > 0) {
  }
  EXPECT_EQ(server.streams()[0].types[0].last_nack, "later: not understood");
  put("later", "2", "y");
  const std::string text = python.rest();
  const json out = json::parse(text, nullptr, false);
  ASSERT_TRUE(out.is_object()) << text;
  EXPECT_EQ(out["first"], json({{"resources", {{"stale", {"2", "fresh"}}}},
                                {"removed", {"gone"}}, {"type", kA}}));
  EXPECT_EQ(out["second"], json({{"resources", {{"later", {"1", "x"}}}},
                                 {"removed", {"same"}}, {"type", kA}}));
  EXPECT_EQ(out["third"], json({{"resources", {{"later", {"2", "y"}}}},
                                {"removed", json::array()}, {"type", kA}}));
}

TEST_F(GrpcioTest, RefusesStreamsWithoutProofOrNode) {
  PythonClient python(server.ports()[0], "refused");
  const std::string text = python.rest();
  const json out = json::parse(text, nullptr, false);
  ASSERT_TRUE(out.is_object()) << text;
  EXPECT_EQ(out, json({{"no_token", "UNAUTHENTICATED"},
                       {"two_tokens", "UNAUTHENTICATED"},
                       {"bad_token", "UNAUTHENTICATED"},
                       {"no_node", "INVALID_ARGUMENT"}}));
}

json only(std::map<std::string, std::string> resources, std::vector<std::string> removed = {}) {
  json shown = json::object();
  for (const auto& [name, body] : resources) shown[name] = {"1", body};
  return {{"resources", shown}, {"removed", removed}, {"type", kA}};
}

// As a ztunnel with XDS_ON_DEMAND asks: by address, and gets what is behind it.
TEST_F(GrpcioTest, OnDemandAnAddressBringsItsServiceAndThatItsWorkloads) {
  const auto member = [](const std::string& name, const std::string& node) {
    return ResourceUpdate{.type_url = kA, .scope = "", .name = name, .version = "1", .body = name,
                          .aliases = {"shop/web", "~node/" + node}};
  };
  server.update({{.type_url = kA, .scope = "", .name = "shop/web", .version = "1", .body = "service",
                  .aliases = {"net/10.96.0.1"}},
                 member("near", "node-9"), member("far", "node-1"),
                 {.type_url = kA, .scope = "", .name = "other", .version = "1", .body = "other"}});
  PythonClient python(server.ports()[0], "on_demand");
  const std::string ready = python.line();
  ASSERT_EQ(ready, "ready\n") << ready << python.rest();
  server.update({{.type_url = kA, .scope = "", .name = "other", .version = "2", .body = "unasked"},
                 member("new", "node-1"),
                 {.type_url = kA, .scope = "", .name = "far", .removed = true}});
  const std::string text = python.rest();
  const json out = json::parse(text, nullptr, false);
  ASSERT_TRUE(out.is_object()) << text;
  EXPECT_EQ(out["own_node"], only({{"near", "near"}})) << "without being asked for";
  EXPECT_EQ(out["vip"], only({{"net/10.96.0.1", "service"}, {"shop/web", "service"}, {"far", "far"}}));
  EXPECT_EQ(out["unknown"], only({}, {"net/192.0.2.1"}));
  EXPECT_EQ(out["new_member"], only({{"new", "new"}}, {"far"}));
}

TEST_F(GrpcioTest, ATypeThatIsNotForTheCallerLeavesTheOthersAlone) {
  put("a", "1", "one");
  PythonClient python(server.ports()[0], "forbidden_type");
  const std::string text = python.rest();
  const json out = json::parse(text, nullptr, false);
  ASSERT_TRUE(out.is_object()) << text;
  EXPECT_EQ(out["address"], only({{"a", "one"}}));
}

TEST_F(GrpcioTest, SignsAndTakesReports) {
  PythonClient python(server.ports()[0], "unary");
  const std::string text = python.rest();
  const json out = json::parse(text, nullptr, false);
  ASSERT_TRUE(out.is_object()) << text;
  EXPECT_EQ(out["chain"], json({"CSR", "spiffe://td/ns/a/sa/b", "77"}));
  EXPECT_EQ(out["refused"], json({"UNAUTHENTICATED", "request authenticate failure"}));
  EXPECT_EQ(out["report_without_token"], "UNAUTHENTICATED");
  EXPECT_EQ(server.stats().reports, 1u);
  EXPECT_EQ(server.stats().certificates, 1u);
  EXPECT_EQ(server.stats().certificates_refused, 1u);
}

}  // namespace
}  // namespace meltemi::xds
