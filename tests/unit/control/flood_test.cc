// meltemid under a flood of connections that bring nothing, with few descriptors: it goes on answering
// others, and when it has had no descriptor at all it answers again by itself. The client is curl.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "userspace/base/fd.h"
#include "userspace/pki/key.h"
#include "userspace/rt/socket_options.h"

namespace meltemi::control {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr auto kPatience = 60s;
constexpr rlim_t kDescriptors = 256;

uint16_t free_port() {
  const auto fd = rt::make_tcp_listener({*IpAddress::parse("127.0.0.1"), 0}, {});
  return fd ? rt::local_address(fd->get())->port : 0;
}

struct FloodTest : ::testing::Test {
  FloodTest() {
    std::string name = "/tmp/meltemi-flood-XXXXXX";
    root = mkdtemp(name.data());
    std::filesystem::create_directories(root + "/config");
    std::ofstream(root + "/config/shop.yaml")
        << "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    std::ofstream(root + "/token.pub") << pki::PrivateKey::generate()->public_key_pem();
  }
  void SetUp() override {
    const char* bin = std::getenv("MELTEMI_BIN_DIR");
    if (bin == nullptr) GTEST_SKIP() << "MELTEMI_BIN_DIR is not set";
    const std::string program = std::string(bin) + "/meltemid";
    xds = free_port();
    pages = free_port();
    pid = fork();
    if (pid == 0) {
      const rlimit few{kDescriptors, kDescriptors};
      setrlimit(RLIMIT_NOFILE, &few);
      execl(program.c_str(), "meltemid", "--config-dir", (root + "/config").c_str(), "--ca-dir",
            (root + "/ca").c_str(), "--token-public-key", (root + "/token.pub").c_str(),
            "--xds-listen", fmt::format("127.0.0.1:{}", xds).c_str(), "--monitoring-listen",
            fmt::format("127.0.0.1:{}", pages).c_str(), "--drain", "0s", nullptr);
      _exit(127);
    }
    ASSERT_TRUE(eventually([&] { return ready(); }));
  }
  ~FloodTest() override {
    if (pid > 0) {
      kill(pid, SIGTERM);
      waitpid(pid, nullptr, 0);
    }
    std::filesystem::remove_all(root);
  }

  template <typename F>
  static bool eventually(F&& condition) {
    for (const auto end = std::chrono::steady_clock::now() + kPatience;
         std::chrono::steady_clock::now() < end; std::this_thread::sleep_for(20ms)) {
      if (condition()) return true;
    }
    return false;
  }
  static std::string output_of(const std::string& command) {
    FILE* const pipe = popen(command.c_str(), "r");
    std::string out;
    char buffer[4096];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  bool ready() const {
    return output_of(fmt::format("curl -s --max-time 5 --noproxy '*' http://127.0.0.1:{}/ready", pages))
        .starts_with("ready");
  }
  // A call without a token that comes from `source`: gRPC's refusal is an answer.
  bool answers(const std::string& source, int patience = 10) const {
    const std::string heard = output_of(
        fmt::format("curl -sk --http2 --max-time {} --noproxy '*' --interface {} -X POST -D - "
                    "-o /dev/null -H 'te: trailers' -H 'content-type: application/grpc' "
                    "https://127.0.0.1:{}/istio.v1.auth.IstioCertificateService/CreateCertificate",
                    patience, source, xds));
    return heard.find("grpc-status: 16") != std::string::npos;
  }
  std::vector<UniqueFd> connect_idle(size_t count) const {
    std::vector<UniqueFd> out;
    const SocketAddress to{*IpAddress::parse("127.0.0.1"), xds};
    sockaddr_storage storage{};
    const socklen_t length = to.to_sockaddr(storage);
    for (size_t i = 0; i < count; ++i) {
      auto fd = rt::make_tcp_socket(to);
      if (!fd || ::connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length) != 0) break;
      out.push_back(std::move(*fd));
    }
    return out;
  }
  void set_descriptors(rlim_t count) const {
    const rlimit limit{count, kDescriptors};
    ASSERT_EQ(prlimit(pid, RLIMIT_NOFILE, &limit, nullptr), 0);
  }

  std::string root;
  uint16_t xds = 0, pages = 0;
  pid_t pid = -1;
};

TEST_F(FloodTest, AFloodOfIdleConnectionsLocksNobodyOutAndLeavesNothingBehind) {
  {
    const auto flood = connect_idle(400);
    ASSERT_EQ(flood.size(), 400u);
    EXPECT_TRUE(answers("127.0.0.2")) << "one source cannot lock out another";
    EXPECT_TRUE(ready());
  }
  EXPECT_TRUE(answers("127.0.0.1"));
  EXPECT_TRUE(ready());
}

TEST_F(FloodTest, AProcessThatHadNoDescriptorAnswersAgainByItself) {
  set_descriptors(5);
  auto waiting = connect_idle(40);  // they stand in the listener's queue
  ASSERT_EQ(waiting.size(), 40u);
  EXPECT_FALSE(answers("127.0.0.2", 2));
  waiting.clear();
  set_descriptors(kDescriptors);
  EXPECT_TRUE(eventually([&] { return answers("127.0.0.2"); }));
  EXPECT_TRUE(eventually([&] { return ready(); }));
}

// The manifest of a policy that comes while no descriptor is left is in force once there are some.
TEST_F(FloodTest, APolicyThatCouldNotBeReadIsInForceOnceItCan) {
  const auto page = [&](const std::string& path) {
    return output_of(
        fmt::format("curl -s --max-time 5 --noproxy '*' http://127.0.0.1:{}{}", pages, path));
  };
  set_descriptors(5);
  std::ofstream(root + "/config/deny.yaml")
      << "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
         "metadata: {name: deny, namespace: shop}\nspec: {action: DENY, rules: [{}]}\n";
  std::this_thread::sleep_for(100ms);  // its event has passed; without a descriptor nobody can ask
  set_descriptors(kDescriptors);
  EXPECT_TRUE(eventually(
      [&] { return page("/debug/config_dump").find("shop/deny") != std::string::npos; }));
  EXPECT_TRUE(eventually([&] { return page("/ready") == "ready\n"; }));
}

}  // namespace
}  // namespace meltemi::control
