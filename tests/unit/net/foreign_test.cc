// Our ends against peers that none of us wrote: Python's ssl and h2, openssl s_client.
#include <fcntl.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/unit/net/certs.h"
#include "tests/unit/net/pair.h"
#include "tests/unit/rt/backends.h"

extern char** environ;

namespace meltemi::net::test {
namespace {

constexpr char kClient[] = "spiffe://cluster.local/ns/shop/sa/webapp";
constexpr char kServer[] = "spiffe://cluster.local/ns/shop/sa/catalog";
constexpr char kPython[] = "/usr/bin/python3";

// A child with its stdout on a pipe; ended with the object.
class Child {
 public:
  explicit Child(std::vector<std::string> argv) {
    int p[2];
    EXPECT_EQ(pipe2(p, O_CLOEXEC), 0);
    out_ = UniqueFd(p[0]);
    UniqueFd write_end(p[1]);
    std::vector<char*> args;
    for (auto& a : argv) args.push_back(a.data());
    args.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, p[1], 1);
    EXPECT_EQ(posix_spawnp(&pid_, args[0], &actions, nullptr, args.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~Child() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  std::string line() {
    std::string s;
    for (char c; read(out_.get(), &c, 1) == 1 && c != '\n';) s += c;
    return s;
  }
  // True with the exit code once it has ended.
  bool ended(int& code) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
    pid_ = 0;
    code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    return true;
  }

 private:
  pid_t pid_ = 0;
  UniqueFd out_;
};

class ForeignTest : public rt::BackendTest {
 protected:
  void SetUp() override {
    rt::BackendTest::SetUp();
    if (std::system("/usr/bin/python3 -c 'import h2, ssl' 2>/dev/null") != 0)
      GTEST_SKIP() << "needs python3-h2";
    char name[] = "/tmp/meltemi-foreign-XXXXXX";
    dir_ = mkdtemp(name);
    write("near", ca_.issue(kClient));
    write("far", ca_.issue(kServer));
    const char* source = getenv("MELTEMI_SOURCE_DIR");
    script_ = std::string(source ? source : ".") + "/tests/unit/net/foreign_peer.py";
    if (!std::filesystem::exists(script_)) GTEST_SKIP() << "MELTEMI_SOURCE_DIR is not set";
  }
  void TearDown() override {
    if (!dir_.empty()) std::filesystem::remove_all(dir_);
  }
  void write(const char* end, const TlsContext::Material& m) {
    std::ofstream(dir_ + "/" + end + ".crt") << m.cert_chain_pem;
    std::ofstream(dir_ + "/" + end + ".key") << m.private_key_pem;
    std::ofstream(dir_ + "/root.crt") << m.roots_pem;
  }
  // Runs the loop until the child has ended; its exit code.
  int finish(Child& child) {
    int code = -1;
    FnTimer tick(loop());
    EXPECT_TRUE(run_until([&] { return child.ended(code); }));
    return code;
  }
  struct FnTimer {  // wakes the loop now and then, so that it looks after the child
    explicit FnTimer(rt::Loop& loop)
        : timer([this, &loop] { loop.start(timer, loop.now() + std::chrono::milliseconds(5)); }) {
      loop.start(timer, loop.now());
    }
    rt::FnTimer timer;
  };
  TestCa ca_;
  std::string dir_, script_;
};
MELTEMI_ALL_BACKENDS(ForeignTest);

// An upstream that echoes, on the loop itself.
class Echo final : public StreamEvents {
 public:
  Echo(rt::Loop& loop, StreamPtr s) : stream(std::move(s)) {
    stream->set_events(this);
    stream->resume_read();
  }
  void on_data(const Slices& d) override {
    if (!stream->write(d)) stream->pause_read();
  }
  void on_read_end() override { stream->shutdown_write(); }
  void on_writable() override { stream->resume_read(); }
  void on_closed(const StreamEnd&) override {}
  StreamPtr stream;
};

TEST_P(ForeignTest, ClientsOfOurServer) {
  std::vector<std::unique_ptr<Echo>> echoes;
  auto fd = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto upstream = *rt::local_address(fd->get());
  rt::Listener app(loop(), std::move(*fd), [&](UniqueFd c) {
    echoes.push_back(std::make_unique<Echo>(loop(), make_tcp_stream(loop(), std::move(c))));
  });
  Far far(loop(), ca_.context(kServer), upstream);
  for (const char* mode : {"echo", "halfclose", "cancel", "ping", "flood"}) {
    Child client({kPython, script_, "client", dir_, std::to_string(far.address.port), mode});
    EXPECT_EQ(finish(client), 0) << mode;
  }
  EXPECT_EQ(far.last_peer.uri(), kClient);
  EXPECT_EQ(far.last_authority, "10.1.2.3:80");
  EXPECT_TRUE(run_until([&] { return far.server.tunnels() == 0; }));
  EXPECT_EQ(far.failures.size(), 0u);
}

// Python's ssl shows what it is given; what is no SVID gets no tunnel, whichever end it is.
TEST_P(ForeignTest, APeerWhoseCertificateIsNoSvidIsRefused) {
  struct Case {
    const char* what;
    LeafOptions leaf;
    const char* why;
  };
  const Case cases[] = {
      {"two names", {.extra_san = "URI:spiffe://cluster.local/ns/shop/sa/admin"}, "2 URI names"},
      {"a CA", {.key_usage = "critical,digitalSignature,keyCertSign",
                .basic_constraints = "critical,CA:TRUE"}, "no workload's"},
      {"a signer of CRLs", {.key_usage = "critical,digitalSignature,cRLSign"}, "cRLSign"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    write("near", ca_.issue(kClient, c.leaf));
    write("far", ca_.issue(kServer, c.leaf));
    Far far(loop(), ca_.context(kServer), *SocketAddress::parse("127.0.0.1:1"));
    Child client({kPython, script_, "client", dir_, std::to_string(far.address.port), "echo"});
    EXPECT_TRUE(run_until([&] { return !far.failures.empty(); }));
    ASSERT_EQ(far.failures.size(), 1u);
    EXPECT_EQ(far.failures[0].reason, Reason::kPeerIdentityMismatch);
    EXPECT_NE(far.failures[0].detail.find(c.why), std::string::npos) << far.failures[0].detail;

    Child server({kPython, script_, "server", dir_});
    const SocketAddress address{*IpAddress::parse("127.0.0.1"),
                                static_cast<uint16_t>(std::stoi(server.line()))};
    Near near(loop(), ca_.context(kClient), address, {id(kServer)});
    auto fd = rt::make_tcp_socket(near.address);
    sockaddr_storage storage;
    const socklen_t length = near.address.to_sockaddr(storage);
    ASSERT_EQ(connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    EXPECT_TRUE(run_until([&] { return !near.failures.empty(); }));
    ASSERT_EQ(near.failures.size(), 1u);
    EXPECT_EQ(near.failures[0].reason, Reason::kPeerIdentityMismatch);
    EXPECT_NE(near.failures[0].detail.find(c.why), std::string::npos) << near.failures[0].detail;
  }
}

// A peer that opens streams on and on finds out as soon as its certificate ends, by the one refusal that
// says "not processed: try elsewhere"; what it has open goes on.
TEST_P(ForeignTest, AStreamAfterTheCertificatesEndIsRefusedUnprocessed) {
  WallTime clock = std::chrono::system_clock::now();
  std::vector<std::unique_ptr<Echo>> echoes;
  auto fd = rt::make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto upstream = *rt::local_address(fd->get());
  rt::Listener app(loop(), std::move(*fd), [&](UniqueFd c) {
    clock += std::chrono::hours(25);  // the root of TestCa, too, is over; the grace is longer
    echoes.push_back(std::make_unique<Echo>(loop(), make_tcp_stream(loop(), std::move(c))));
  });
  HboneOptions options;
  options.wall_clock = [&] { return clock; };
  options.credential_grace = std::chrono::hours(24);
  Far far(loop(), ca_.context(kServer), upstream, options);
  Child client({kPython, script_, "client", dir_, std::to_string(far.address.port), "outlive"});
  EXPECT_EQ(finish(client), 0);
  EXPECT_EQ(echoes.size(), 1u);
  EXPECT_EQ(far.stats.credential_ends, 1u);
}

TEST_P(ForeignTest, OurClientOfAServer) {
  Child server({kPython, script_, "server", dir_});
  const SocketAddress address{*IpAddress::parse("127.0.0.1"),
                              static_cast<uint16_t>(std::stoi(server.line()))};
  Near near(loop(), ca_.context(kClient), address, {id(kServer)});
  std::string up(300'000, 'u'), down;
  std::atomic<bool> done{false};
  std::thread client([&] {
    auto fd = rt::make_tcp_socket(near.address);
    sockaddr_storage storage;
    const socklen_t length = near.address.to_sockaddr(storage);
    EXPECT_EQ(connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    std::thread writer([&] {
      EXPECT_EQ(send(fd->get(), up.data(), up.size(), MSG_NOSIGNAL), static_cast<ssize_t>(up.size()));
      shutdown(fd->get(), SHUT_WR);
    });
    char b[65536];
    for (ssize_t n; (n = recv(fd->get(), b, sizeof b, 0)) > 0;) down.append(b, static_cast<size_t>(n));
    writer.join();
    done = true;
    loop().post([] {});
  });
  EXPECT_TRUE(run_until([&] { return done.load(); }));
  client.join();
  EXPECT_TRUE(down == up) << down.size() << " of " << up.size();
  ASSERT_EQ(near.last_answer.headers.size(), 1u);
  EXPECT_EQ(near.last_answer.headers[0].value, "k=v");
  EXPECT_TRUE(run_until([&] { return near.flows.ended == 1; }));
  EXPECT_EQ(near.flows.reports[0].reason, Reason::kOk);
}

// `count` connections at once through a pool to a server of this mode: each says a word, and hears it.
class ForeignServer : public ForeignTest {
 protected:
  void echo_at_once(int count, const char* mode, const char* number) {
    Child server({kPython, script_, "server", dir_, mode, number});
    const SocketAddress address{*IpAddress::parse("127.0.0.1"),
                                static_cast<uint16_t>(std::stoi(server.line()))};
    Near near(loop(), ca_.context(kClient), address, {id(kServer)});
    sockaddr_storage storage;
    const socklen_t length = near.address.to_sockaddr(storage);
    std::vector<UniqueFd> apps(static_cast<size_t>(count));
    for (UniqueFd& app : apps) {
      app = std::move(*rt::make_tcp_socket(near.address));
      ASSERT_EQ(connect(app.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
      ASSERT_EQ(send(app.get(), "word", 4, 0), 4);
    }
    FnTimer tick(loop());
    size_t heard = 0;
    EXPECT_TRUE(run_until([&] {
      for (UniqueFd& app : apps) {
        char b[4];
        if (!app || recv(app.get(), b, 4, MSG_DONTWAIT) < 0) continue;
        heard += std::string_view(b, 4) == "word";
        app.reset();
      }
      return heard == apps.size() || !near.failures.empty();
    }));
    EXPECT_EQ(heard, apps.size());
    for (const Error& e : near.failures) ADD_FAILURE() << e.detail;
    EXPECT_TRUE(run_until([&] { return near.flows.running() == 0; }));
  }
};
MELTEMI_ALL_BACKENDS(ForeignServer);

TEST_P(ForeignServer, WhatIsRefusedForWantOfRoomWaitsForIt) { echo_at_once(60, "busy", "5"); }

TEST_P(ForeignServer, WhatAGoawayLeftUnprocessedGoesToTheNextTunnel) {
  echo_at_once(20, "leaving", "3");
}

TEST_P(ForeignTest, OpensslWithKeyUpdatesIsUnderstood) {
  // s_client: 'K' asks both sides to change keys; then garbage that is no HTTP/2 preface.
  Far far(loop(), ca_.context(kServer), *SocketAddress::parse("127.0.0.1:1"));
  const std::string command =
      "(sleep 0.3; echo K; sleep 0.2; echo 'not a preface'; sleep 0.5) | openssl s_client -connect "
      "127.0.0.1:" + std::to_string(far.address.port) + " -cert " + dir_ + "/near.crt -key " + dir_ +
      "/near.key -CAfile " + dir_ + "/root.crt -alpn h2 2>&1; true";
  Child client({"/bin/sh", "-c", command});
  std::string all;
  std::thread reader([&] {
    for (std::string l; !(l = client.line()).empty() || all.size() < 10; all += l + "\n")
      if (all.size() > 100'000) break;
  });
  EXPECT_EQ(finish(client), 0);
  reader.join();
  EXPECT_EQ(far.stats.tunnels_opened.load(), 1u);
  EXPECT_TRUE(run_until([&] { return far.server.tunnels() == 0; }));
}

}  // namespace
}  // namespace meltemi::net::test
