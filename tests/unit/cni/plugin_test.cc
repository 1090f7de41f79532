// The plugin against an agent that this test plays: what is asked, what is answered, and the
// errors.
#include "userspace/cni/plugin.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <map>
#include <thread>

#include "meltemi/local/v1/agent.pb.h"
#include "userspace/codec/local_frame.h"
#include "userspace/sys/packet.h"

namespace meltemi::cni {
namespace {

using std::chrono::seconds;
namespace wire = meltemi::local::v1;

// Answers one request with `response` and keeps the request.
class FakeAgent {
 public:
  FakeAgent(std::string path, wire::Response response)
      : listener_(*sys::listen_packets(path, 0600)),
        thread_([this, response = std::move(response)] { serve(response); }) {}
  ~FakeAgent() { thread_.join(); }
  wire::Request request;

 private:
  void serve(const wire::Response& response) {
    Result<UniqueFd> peer = sys::accept_packets(listener_.get());
    for (int i = 0; i < 2000 && !peer; ++i) {
      ::usleep(10'000);
      peer = sys::accept_packets(listener_.get());
    }
    if (!peer) return;
    codec::local::Assembler assembler;
    std::optional<std::string> message;
    while (!message) {
      const auto packet = sys::receive_packet(peer->get(), seconds(20));
      if (!packet) return;
      message = *assembler.add(as_bytes(packet->bytes));
    }
    request = *codec::local::decode_request(*message);
    for (const std::string& packet : *codec::local::encode(response))
      EXPECT_TRUE(sys::send_packet(peer->get(), as_bytes(packet), {}, seconds(5)));
  }
  UniqueFd listener_;
  std::thread thread_;
};

class PluginTest : public ::testing::Test {
 protected:
  std::string path = "/tmp/meltemi-cni-test-" + std::to_string(::getpid()) + ".sock";
  std::map<std::string, std::string, std::less<>> env = {
      {"CNI_COMMAND", "ADD"},
      {"CNI_CONTAINERID", "c1"},
      {"CNI_NETNS", "/run/netns/x"},
      {"CNI_IFNAME", "eth0"},
      {"CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"}};
  std::string config = R"({"cniVersion":"1.0.0","name":"n","type":"meltemi-cni","agentSocket":")" +
                       path +
                       R"(","prevResult":{"cniVersion":"1.0.0","ips":[)"
                       R"({"address":"10.0.0.7/24"},{"address":"fd00::7/64"}],"x":"kept"}})";
  ~PluginTest() override { ::unlink(path.c_str()); }
  Outcome run() {
    return run_plugin(
        [this](std::string_view name) -> std::optional<std::string> {
          const auto found = env.find(name);
          return found == env.end() ? std::nullopt : std::optional(found->second);
        },
        config);
  }
};

TEST_F(PluginTest, AddTellsTheAgentEverythingAndPassesThePreviousResultOn) {
  wire::Request request;
  Outcome out;
  {
    FakeAgent agent(path, {});
    out = run();
    // The request is complete once the answer is here.
    request = agent.request;
  }
  EXPECT_EQ(out.exit_code, 0) << out.output;
  EXPECT_NE(out.output.find("\"kept\""), std::string::npos) << out.output;
  ASSERT_TRUE(request.has_add());
  EXPECT_EQ(request.add().uid(), "u-1");
  EXPECT_EQ(request.add().name(), "web-0");
  EXPECT_EQ(request.add().namespace_(), "shop");
  EXPECT_EQ(request.add().netns_path(), "/run/netns/x");
  EXPECT_GT(request.add().deadline_ms(), 0u);
  ASSERT_EQ(request.add().addresses_size(), 2);
  EXPECT_EQ(request.add().addresses(0), std::string("\x0a\x00\x00\x07", 4));
}

TEST_F(PluginTest, ARefusalOfTheAgentIsTheErrorsDetail) {
  wire::Response response;
  response.set_error("port 15008 is taken");
  FakeAgent agent(path, response);
  const Outcome out = run();
  EXPECT_EQ(out.exit_code, 1);
  EXPECT_NE(out.output.find("\"code\":101"), std::string::npos) << out.output;
  EXPECT_NE(out.output.find("port 15008 is taken"), std::string::npos);
  EXPECT_NE(out.output.find("shop/web-0"), std::string::npos);
}

TEST_F(PluginTest, WithoutAnAgentAddAndCheckFailAndDelDoesNot) {
  const Outcome add = run();
  EXPECT_EQ(add.exit_code, 1);
  EXPECT_NE(add.output.find("\"code\":100"), std::string::npos) << add.output;
  env["CNI_COMMAND"] = "CHECK";
  EXPECT_EQ(run().exit_code, 1);
  env["CNI_COMMAND"] = "DEL";
  const Outcome del = run();
  EXPECT_EQ(del.exit_code, 0);
  EXPECT_EQ(del.output, "");
  EXPECT_NE(del.log.find("agent not told"), std::string::npos) << del.log;
}

TEST_F(PluginTest, AContainerWithoutAPodPassesThrough) {
  env["CNI_ARGS"] = "";
  const Outcome out = run();
  EXPECT_EQ(out.exit_code, 0) << out.output;
  EXPECT_NE(out.output.find("10.0.0.7/24"), std::string::npos);
}

TEST_F(PluginTest, VersionNeedsNothing) {
  env = {{"CNI_COMMAND", "VERSION"}};
  config = R"({"cniVersion":"1.0.0"})";
  const Outcome out = run();
  EXPECT_EQ(out.exit_code, 0);
  EXPECT_NE(out.output.find("supportedVersions"), std::string::npos);
}

TEST_F(PluginTest, BadInputIsAnErrorOfTheSpec) {
  env["CNI_COMMAND"] = "FLY";
  EXPECT_NE(run().output.find("\"code\":4"), std::string::npos);
  env["CNI_COMMAND"] = "ADD";
  config = "{";
  EXPECT_NE(run().output.find("\"code\":6"), std::string::npos);
}

}  // namespace
}  // namespace meltemi::cni
