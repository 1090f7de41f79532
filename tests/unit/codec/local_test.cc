// The protocols of one node: ZDS (Istio's bytes and our extension), the agent's socket, CNI.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "userspace/codec/cni.h"
#include "userspace/codec/local_frame.h"
#include "userspace/codec/zds.h"

namespace meltemi::codec {
namespace {

// --- ZDS ----------------------------------------------------------------------------------------
using namespace zds;

TEST(Zds, BytesThatIstioSends) {
  EXPECT_EQ(encode(Hello{}), "\x08\x01");
  EXPECT_EQ(encode(Ack{}).value(), std::string("\x0a\x00", 2));
  EXPECT_EQ(encode(Request(SnapshotSent{})).value(), std::string("\x1a\x00", 2));
  EXPECT_EQ(decode_hello(as_bytes("\x08\x01")).value(), Hello{0});
  const std::string add = "\x0a\x13\x0a\x03uid\x12\x0c\x0a\x01n\x12\x02ns\x1a\x03sa1";
  EXPECT_EQ(encode(Request(Add{"uid", {"n", "ns", "sa1"}})).value(), add);
  EXPECT_EQ(decode_request(as_bytes(add), 1).value(), Request(Add{"uid", {"n", "ns", "sa1"}}));
  EXPECT_EQ(encode(Request(Del{"u"})).value(), "\x12\x03\x12\x01u");
  EXPECT_EQ(encode(Request(Keep{"u"})).value(), "\x2a\x03\x0a\x01u");
}

TEST(Zds, RoundTrip) {
  const Request requests[] = {
      Add{"u1", {"web", "shop", "web"}},
      Add{"u1",
          {"web", "shop", "web"},
          {FdKind::kNetns, FdKind::kOutbound, FdKind::kInbound, FdKind::kHbone}},
      Add{"u1", {}, {FdKind::kNetns, FdKind::kHbone}},
      Keep{"u2"},
      Del{"u3"},
      SnapshotSent{},
      GetListeners{"u4"}};
  for (const Request& r : requests) {
    const auto* add = std::get_if<Add>(&r);
    const size_t fds = add == nullptr ? 0 : add->fds.size();
    EXPECT_EQ(decode_request(as_bytes(encode(r).value()), fds).value(), r);
    EXPECT_FALSE(decode_request(as_bytes(encode(r).value()), fds + 1).has_value());
    if (fds > 0) EXPECT_FALSE(decode_request(as_bytes(encode(r).value()), fds - 1).has_value());
  }
  const Ack ack{"", {FdKind::kOutbound, FdKind::kInbound}};
  EXPECT_EQ(decode_ack(as_bytes(encode(ack).value()), 2).value(), ack);
  EXPECT_FALSE(decode_ack(as_bytes(encode(ack).value()), 0).has_value());
  EXPECT_EQ(decode_hello(as_bytes(encode(Hello{kListenerFds}))).value().capabilities, kListenerFds);
}

TEST(Zds, Refusals) {
  for (std::string_view bad :
       {std::string_view("\x00", 1), std::string_view("\xff\xff\xff"), std::string_view(""),
        std::string_view("\x0a\x02\x0a\x00", 4), std::string_view("\x12\x02\x12\x00", 4)}) {
    EXPECT_FALSE(decode_request(as_bytes(bad), 0).has_value());
    EXPECT_FALSE(decode_request(as_bytes(bad), 1).has_value());
  }
  EXPECT_FALSE(decode_hello(as_bytes("")).has_value()) << "version 0";
  EXPECT_FALSE(decode_hello(as_bytes("\x08\x02")).has_value());
  EXPECT_FALSE(decode_ack(as_bytes(""), 0).has_value());
  auto refused = [](Add add) {
    const size_t fds = add.fds.size();
    return !decode_request(as_bytes(encode(Request(add)).value()), fds).has_value();
  };
  EXPECT_TRUE(refused({std::string(254, 'u'), {}}));
  EXPECT_TRUE(refused({"", {}}));
  EXPECT_TRUE(refused({"u", {"a\nb", "ns", "sa"}}));
  EXPECT_TRUE(refused({"u", {}, {FdKind::kOutbound}})) << "no netns";
  EXPECT_TRUE(refused({"u", {}, {FdKind::kNetns, FdKind::kHbone, FdKind::kHbone}}));
  // workload_info is missing: an error, never the end of the process.
  EXPECT_FALSE(decode_request(as_bytes("\x0a\x03\x0a\x01u"), 1).has_value());
}

TEST(Zds, Limits) {
  EXPECT_EQ(encode(Request(Add{"u", {std::string(2000, 'n'), "", ""}})).error().reason,
            Reason::kLimitExceeded);
  EXPECT_LE(encode(Ack{std::string(5000, 'e')}).value().size(), kMaxIstioPacket);
  EXPECT_FALSE(decode_ack(as_bytes(std::string(kMaxPacket + 1, '\0')), 0).has_value());
}

// --- the agent's socket ------------------------------------------------------------------------
namespace pb = meltemi::local::v1;

TEST(LocalFrame, LongListsTravelInPackets) {
  pb::Response list;
  for (int i = 0; i < 2000; ++i) {
    auto* pod = list.add_pods();
    pod->set_uid(std::string(36, 'u') + std::to_string(i));
    pod->set_reason("namespace label istio.io/dataplane-mode=ambient");
  }
  const auto packets = local::encode(list).value();
  EXPECT_GT(packets.size(), 3u);
  local::Assembler assembler;
  std::optional<std::string> whole;
  for (const std::string& p : packets) {
    EXPECT_LE(p.size(), local::kMaxPacket);
    EXPECT_FALSE(whole.has_value());
    whole = assembler.add(as_bytes(p)).value();
  }
  ASSERT_TRUE(whole.has_value());
  EXPECT_EQ(local::decode_response(*whole).value().pods_size(), 2000);
  // The assembler is ready for the next message; an empty one is one packet.
  const auto empty = local::encode(pb::Response()).value();
  ASSERT_EQ(empty.size(), 1u);
  EXPECT_EQ(assembler.add(as_bytes(empty[0])).value(), "");
}

TEST(LocalFrame, Refusals) {
  for (std::string_view bad :
       {std::string_view(""), std::string_view("\x02x"), std::string_view("\x01")}) {
    local::Assembler a;
    EXPECT_EQ(a.add(as_bytes(bad)).error().reason, Reason::kBadRequest);
  }
  local::Assembler a;
  const std::string chunk = "\x01" + std::string(1 << 20, 'x');
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(a.add(as_bytes(chunk)).has_value());
  EXPECT_EQ(a.add(as_bytes("\x01x")).error().reason, Reason::kLimitExceeded);
  EXPECT_FALSE(local::decode_request("").has_value()) << "no call";
  EXPECT_FALSE(local::decode_request("\xff").has_value());
  pb::Request r;
  r.mutable_add()->set_name("web");
  r.mutable_add()->add_addresses("abc");
  EXPECT_FALSE(local::decode_request(r.SerializeAsString()).has_value());
  r.mutable_add()->set_addresses(0, std::string("\x0a\0\0\1", 4));
  EXPECT_TRUE(local::decode_request(r.SerializeAsString()).has_value());
  r.mutable_add()->set_netns_path("/run/netns/\x01");
  EXPECT_FALSE(local::decode_request(r.SerializeAsString()).has_value());
  r.mutable_del()->set_uid(std::string(300, 'u'));
  EXPECT_FALSE(local::decode_request(r.SerializeAsString()).has_value());
  r.mutable_list();
  EXPECT_TRUE(local::decode_request(r.SerializeAsString()).has_value());
}

// --- CNI -----------------------------------------------------------------------------------------
using Env = std::map<std::string, std::string, std::less<>>;
cni::Outcome<cni::Environment> environment(Env env) {
  return cni::parse_environment([env](std::string_view name) -> std::optional<std::string> {
    const auto it = env.find(name);
    if (it == env.end()) return std::nullopt;
    return it->second;
  });
}
Env add_env() {
  return {{"CNI_COMMAND", "ADD"},
          {"CNI_CONTAINERID", "abc123"},
          {"CNI_NETNS", "/run/netns/x"},
          {"CNI_IFNAME", "eth0"},
          {"CNI_PATH", "/opt/cni/bin"},
          {"CNI_ARGS",
           "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;"
           "K8S_POD_INFRA_CONTAINER_ID=abc123;K8S_POD_UID=u-1"}};
}

TEST(Cni, Environment) {
  const auto env = environment(add_env());
  ASSERT_TRUE(env.has_value()) << env.error().message;
  EXPECT_EQ(env->command, cni::Command::kAdd);
  EXPECT_EQ(env->pod_name, "web-0");
  EXPECT_EQ(env->pod_namespace, "shop");
  EXPECT_EQ(env->pod_uid, "u-1");
  EXPECT_EQ(environment({{"CNI_COMMAND", "VERSION"}})->command, cni::Command::kVersion);
  Env del = add_env();
  del["CNI_COMMAND"] = "DEL";
  del.erase("CNI_NETNS");
  EXPECT_TRUE(environment(del).has_value()) << "the netns may be gone";
}

TEST(Cni, EnvironmentRefusals) {
  for (auto [name, value] : std::initializer_list<std::pair<const char*, const char*>>{
           {"CNI_COMMAND", ""},
           {"CNI_COMMAND", "add"},
           {"CNI_CONTAINERID", ""},
           {"CNI_CONTAINERID", "../x"},
           {"CNI_IFNAME", ""},
           {"CNI_IFNAME", "a/b"},
           {"CNI_IFNAME", "sixteen-bytes-xx"},
           {"CNI_NETNS", ""},
           {"CNI_NETNS", "relative"},
           {"CNI_ARGS", "K8S_POD_NAME=a\nb"}}) {
    Env env = add_env();
    env[name] = value;
    const auto got = environment(env);
    ASSERT_FALSE(got.has_value()) << name << "=" << value;
    EXPECT_EQ(got.error().code, cni::Code::kInvalidEnvironment);
    EXPECT_NE(got.error().message.find(name), std::string::npos);
  }
}

const std::string kConfig = R"({"cniVersion":"1.0.0","name":"mesh","type":"meltemi-cni",
  "agentSocket":"/run/meltemi/agent.sock","other":{"plugin":"field"},
  "prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}],
  "ips":[{"address":"10.0.0.5/24","interface":0},{"address":"fd00::5/64"}],"dns":{}}})";

TEST(Cni, ConfigAndPassedThroughResult) {
  const auto config = cni::parse_config(kConfig, cni::Command::kAdd);
  ASSERT_TRUE(config.has_value()) << config.error().message;
  EXPECT_EQ(config->agent_socket, "/run/meltemi/agent.sock");
  ASSERT_EQ(config->addresses.size(), 2u);
  EXPECT_EQ(config->addresses[0].to_string(), "10.0.0.5");
  EXPECT_EQ(config->addresses[1].to_string(), "fd00::5");
  using nlohmann::json;
  EXPECT_EQ(json::parse(cni::print_add_result(*config)), json::parse(kConfig)["prevResult"]);
  cni::Config none;
  none.cni_version = "0.4.0";
  EXPECT_EQ(cni::print_add_result(none), R"({"cniVersion":"0.4.0"})");
  EXPECT_EQ(cni::print_version_result("1.0.0"),
            R"({"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0"]})");
}

TEST(Cni, ConfigRefusals) {
  auto code = [](std::string_view text, cni::Command command = cni::Command::kAdd) {
    const auto got = cni::parse_config(text, command);
    return got ? 0u : static_cast<unsigned>(got.error().code);
  };
  EXPECT_EQ(code(""), 6u);
  EXPECT_EQ(code("[]"), 6u);
  EXPECT_EQ(code("{"), 6u);
  EXPECT_EQ(code(std::string(100'000, '[')), 6u);
  EXPECT_EQ(code(R"({"cniVersion":"2.0.0","name":"m","agentSocket":"/s"})"), 1u);
  EXPECT_EQ(code(R"({"name":"m","agentSocket":"/s"})"), 1u);
  EXPECT_EQ(code(R"({"cniVersion":"1.0.0","agentSocket":"/s"})"), 7u);
  EXPECT_EQ(code(R"({"cniVersion":"1.0.0","name":"m"})"), 7u);
  EXPECT_EQ(code(R"({"cniVersion":"1.0.0","name":"m","agentSocket":"s"})"), 7u);
  EXPECT_EQ(code(R"({"cniVersion":"1.0.0","name":"m","agentSocket":1})"), 7u);
  EXPECT_EQ(code(R"({"cniVersion":1,"name":"m","agentSocket":"/s"})"), 7u);
  EXPECT_EQ(code(R"({"cniVersion":"1.0.0","name":"m","agentSocket":"/s","prevResult":[]})"), 7u);
  const char* odd = R"({"cniVersion":"1.0.0","name":"m","agentSocket":"/s",
                        "prevResult":{"ips":[{"address":"x"}]}})";
  EXPECT_EQ(code(odd), 7u);
  EXPECT_EQ(code(odd, cni::Command::kDel), 0u) << "DEL must not fail on it";
  const char* bare = R"({"cniVersion":"1.0.0","name":"m","agentSocket":"/s"})";
  EXPECT_EQ(code(bare), 0u);
  EXPECT_EQ(code(bare, cni::Command::kCheck), 7u);
  EXPECT_EQ(code(R"({"cniVersion":"9.9.9"})", cni::Command::kVersion), 0u);
}

TEST(Cni, FailuresAreJsonWhateverTheyHold) {
  const std::string out =
      cni::print_failure({cni::Code::kAgentUnavailable, "no \"agent\"\n\xff", "start it"}, "1.0.0");
  const auto json = nlohmann::json::parse(out);
  EXPECT_EQ(json["code"], 100);
  EXPECT_EQ(json["cniVersion"], "1.0.0");
  EXPECT_EQ(json["details"], "start it");
}

}  // namespace
}  // namespace meltemi::codec
