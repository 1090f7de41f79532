// The whole server against clients that others wrote: curl, nghttp and h2load; and against those
// who only want to hold it up.
#include "tests/support/few_descriptors.h"
#include "userspace/http/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>

namespace meltemi::http {
namespace {

using testing::HasSubstr;

constexpr size_t kStreamed = 20 << 20;

class Long final : public BodySource {
 public:
  bool more(std::string& out) override {
    out.append(64 * 1024, 'y');
    return (left_ -= 64 * 1024) > 0;
  }

 private:
  size_t left_ = kStreamed;
};

class ServerTest : public testing::Test {
 protected:
  void start(ServerOptions options = {}) {
    add_routes();
    server_ = std::make_unique<Server>(nullptr, options);
    for (const char* ip : {"127.0.0.1", "::1"}) {
      auto at = server_->listen(router_, {*IpAddress::parse(ip), 0});
      ASSERT_TRUE(at) << at.error().to_string();
      addresses_.push_back(*at);
    }
    ASSERT_TRUE(server_->start());
  }
  void add_routes() {
    router_.route("/hello", "GET", [](const Request& r) {
      const std::string* who = r.param("who");
      return Response{200, "hello " + (who ? *who : "you") + "\n"};
    });
    router_.route("/set", "POST", [this](const Request& r) {
      last_body_ = r.body;
      return Response{200, "set\n"};
    });
    router_.route("/long", "GET", [](const Request&) {
      Response out;
      out.source = std::make_shared<Long>();
      return out;
    });
    router_.route("/local", "GET", [](const Request&) { return Response{200, "secret\n"}; },
                  Access::kLoopback);
  }
  static std::string run(const std::string& command) {
    FILE* pipe = popen(command.c_str(), "r");
    std::string out;
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  std::string url(const std::string& path, size_t address = 0) {
    return "'http://" + addresses_[address].to_string() + path + "'";
  }
  std::string curl(const std::string& arguments, const std::string& path, size_t address = 0) {
    return run("curl -sS -g --max-time 60 -w '\\n%{http_code} %{http_version}' " + arguments + " " +
               url(path, address) + " 2>&1");
  }
  UniqueFd connect() {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage storage;
    const socklen_t length = addresses_[0].to_sockaddr(storage);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&storage), length), 0);
    return fd;
  }
  Router router_;
  std::string last_body_;
  std::vector<SocketAddress> addresses_;
  std::unique_ptr<Server> server_;
};

// The other end closed or reset within `ms`.
bool ended(const UniqueFd& fd, int ms) {
  pollfd p{fd.get(), POLLIN, 0};
  if (::poll(&p, 1, ms) != 1) return false;
  char byte;
  return ::recv(fd.get(), &byte, 1, 0) <= 0;
}

TEST_F(ServerTest, AnswersCurlInBothVersionsOnBothFamilies) {
  start();
  EXPECT_EQ(curl("", "/hello?who=me"), "hello me\n\n200 1.1");
  EXPECT_EQ(curl("--http2-prior-knowledge", "/hello?who=me"), "hello me\n\n200 2");
  EXPECT_EQ(curl("--http2", "/hello"), "hello you\n\n200 1.1") << "an offered upgrade is declined";
  EXPECT_EQ(curl("--http1.0", "/hello", 1), "hello you\n\n200 1.1");
  EXPECT_EQ(curl("-X POST", "/hello"), "use GET\n\n405 1.1");
  EXPECT_EQ(curl("", "/nothing"), "not found\n\n404 1.1");
  for (const char* version : {"--http1.1", "--http2-prior-knowledge"}) {
    EXPECT_THAT(curl(std::string(version) + " -d a=b", "/set"), HasSubstr("set\n\n200"));
    EXPECT_EQ(last_body_, "a=b");
    EXPECT_THAT(curl(std::string(version) + " -I", "/hello"), HasSubstr("content-length: 10"));
    EXPECT_THAT(run("curl -sS " + std::string(version) + " " + url("/long") + " | wc -c"),
                HasSubstr(std::to_string(kStreamed)));
  }
}

TEST_F(ServerTest, ABodyThatIsTooLargeGetsItsStatusInBothVersions) {
  start();
  EXPECT_THAT(curl("--data-binary @/bin/bash", "/set"), HasSubstr("too large\n\n413"));
  EXPECT_THAT(run("nghttp -v -d /bin/bash " + url("/set") + " 2>&1"), HasSubstr(":status: 413"));
  EXPECT_EQ(last_body_, "");
}

TEST_F(ServerTest, ServesManyStreamsAtOnce) {
  start();
  const std::string h2load = run("h2load -n 2000 -c 4 -m 10 " + url("/hello") + " 2>&1");
  EXPECT_THAT(h2load, HasSubstr("2000 succeeded, 0 failed"));
  const std::string h1 = run("h2load --h1 -n 500 -c 4 " + url("/hello") + " 2>&1");
  EXPECT_THAT(h1, HasSubstr("500 succeeded, 0 failed"));
  EXPECT_THAT(run("nghttp " + url("/hello") + " 2>&1"), HasSubstr("hello you"));
}

TEST_F(ServerTest, SilentConnectionsGiveWayToOneThatAsks) {
  start({.connections = 64});
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 300; ++i) silent.push_back(connect());
  EXPECT_EQ(curl("", "/hello"), "hello you\n\n200 1.1");
}

TEST_F(ServerTest, AReaderThatNeverReadsHoldsNoMemoryAndIsCut) {
  start({.deadlines = {.stall = std::chrono::milliseconds(200)}});
  const UniqueFd fd = connect();
  const int small = 4096;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
  const std::string_view ask = "GET /long HTTP/1.1\r\nHost: h\r\n\r\n";
  ASSERT_EQ(::send(fd.get(), ask.data(), ask.size(), 0), static_cast<ssize_t>(ask.size()));
  for (int i = 0; i < 600 && server_->cuts().empty(); ++i) ::usleep(50'000);
  ASSERT_FALSE(server_->cuts().empty());
  EXPECT_EQ(server_->cuts()[0].why, "slow_reader");
}

TEST_F(ServerTest, HalfARequestHasADeadline) {
  start({.deadlines = {.request = std::chrono::milliseconds(200)}});
  const UniqueFd fd = connect();
  ASSERT_EQ(::send(fd.get(), "GET /hel", 8, 0), 8);
  EXPECT_TRUE(ended(fd, 30'000));
  EXPECT_EQ(server_->cuts()[0].why, "request_deadline");
}

TEST_F(ServerTest, GarbageEndsOnlyItsOwnConnection) {
  start();
  const UniqueFd fd = connect();
  ASSERT_EQ(::send(fd.get(), "\x16\x03\x01\xff\r\n\r\n", 8, 0), 8);
  char answer[64] = {};
  ASSERT_GT(::recv(fd.get(), answer, sizeof answer - 1, 0), 0);
  EXPECT_THAT(answer, HasSubstr("HTTP/1.1 400"));
  EXPECT_EQ(curl("", "/hello"), "hello you\n\n200 1.1");
}

TEST_F(ServerTest, APortInUseIsAnErrorThatNamesIt) {
  start();
  Server other;
  const auto refused = other.listen(router_, addresses_[0]);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().detail, HasSubstr(addresses_[0].to_string()));
}

// Gives back what it gets, until the other side has enough.
class Echo final : public net::StreamEvents {
 public:
  void take(net::StreamPtr stream, rt::Lease lease) {
    EXPECT_TRUE(lease) << "it is counted as long as it lives";
    lease_ = std::move(lease);
    stream_ = std::move(stream);
    stream_->set_events(this);
    stream_->resume_read();
  }
  void on_data(const net::Slices& data) override { stream_->write(data); }
  void on_read_end() override { stream_->close(); }
  void on_writable() override {}
  void on_closed(const net::StreamEnd&) override {
    stream_.reset();
    lease_.release();
    closed_ = true;
    closed_.notify_all();
  }
  void wait_until_closed() { closed_.wait(false); }

 private:
  rt::Lease lease_;
  net::StreamPtr stream_;
  std::atomic<bool> closed_{false};
};

class TlsServerTest : public ServerTest {
 protected:
  TlsServerTest() : directory_(testing::TempDir() + "http-tls-" + std::to_string(getpid())) {
    run("mkdir -p " + directory_);
    make_certificate("server");
  }
  ~TlsServerTest() override {
    server_.reset();
    run("rm -r " + directory_);
  }
  void make_certificate(const std::string& name) {
    run("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=" +
        name + " -addext subjectAltName=IP:127.0.0.1 -keyout " + file(name + ".key") + " -out " +
        file(name + ".pem") + " 2>&1");
  }
  std::string file(const std::string& name) { return directory_ + "/" + name; }
  CertificatePaths paths(const std::string& client_roots = "") {
    return {file("server.pem"), file("server.key"), client_roots};
  }
  void start_tls(const std::string& client_roots = "", rt::Admission* admission = nullptr) {
    add_routes();
    router_.route("/up", "GET", [this](const Request&) {
      Response out{101};
      out.headers = {{"upgrade", "echo"}};
      out.upgrade = [this](net::StreamPtr stream, std::string, rt::Lease lease) {
        echo_.take(std::move(stream), std::move(lease));
      };
      return out;
    });
    auto certificate = CertificateFiles::open(paths(client_roots));
    ASSERT_TRUE(certificate) << certificate.error().to_string();
    server_ = std::make_unique<Server>(admission);
    auto at = server_->listen(router_, {*IpAddress::parse("127.0.0.1"), 0},
                              *std::move(certificate));
    ASSERT_TRUE(at) << at.error().to_string();
    addresses_.push_back(*at);
    ASSERT_TRUE(server_->start());
  }
  std::string tls_curl(const std::string& arguments, const std::string& path) {
    return run("curl -sS --max-time 60 -w '\\n%{http_code} %{http_version}' --cacert " +
               file("server.pem") + " " + arguments + " https://" + addresses_[0].to_string() +
               path + " 2>&1");
  }

  std::string directory_;
  std::unique_ptr<rt::Admission> admission_;  // outlives the server, which the destructor ends first
  Echo echo_;
};

TEST_F(TlsServerTest, AnswersCurlInTheVersionThatAlpnChose) {
  start_tls();
  EXPECT_EQ(tls_curl("", "/hello?who=me"), "hello me\n\n200 2");
  EXPECT_EQ(tls_curl("--http1.1", "/hello?who=me"), "hello me\n\n200 1.1");
  EXPECT_EQ(tls_curl("--no-alpn", "/hello"), "hello you\n\n200 1.1");
  for (const char* version : {"--http1.1", "--http2"}) {
    EXPECT_THAT(tls_curl(std::string(version) + " -d a=b", "/set"), HasSubstr("set\n\n200"));
    EXPECT_EQ(last_body_, "a=b");
    EXPECT_THAT(tls_curl(std::string(version) + " -o /dev/null -w '%{size_download}'", "/long"),
                HasSubstr(std::to_string(kStreamed)));
  }
  const std::string h2load =
      run("h2load -n 500 -c 4 -m 10 https://" + addresses_[0].to_string() + "/hello 2>&1");
  EXPECT_THAT(h2load, HasSubstr("500 succeeded, 0 failed"));
}

TEST_F(TlsServerTest, WhoDoesNotSpeakItsTlsIsTurnedAwayAlone) {
  start_tls();
  EXPECT_THAT(tls_curl("--tls-max 1.2", "/hello"), HasSubstr("000"));
  EXPECT_THAT(curl("--http0.9", "/hello"), testing::Not(HasSubstr("hello"))) << "in the clear";
  const UniqueFd noise = connect();
  const std::string bytes(4096, 'z');
  (void)::send(noise.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  char alert[64];
  while (::recv(noise.get(), alert, sizeof alert, 0) > 0) continue;  // and then the end
  EXPECT_EQ(tls_curl("", "/hello"), "hello you\n\n200 2");
  uint64_t refused = 0;
  for (const Server::Cut& cut : server_->cuts()) {
    if (cut.why == "tls_handshake") refused += cut.count;
  }
  EXPECT_GE(refused, 2u) << "and is counted";
}

TEST_F(TlsServerTest, AClientCertificateIsAskedForOnlyWhereRootsAreNamed) {
  make_certificate("friend");
  make_certificate("stranger");
  start_tls(file("friend.pem"));
  const auto as = [this](const std::string& who) {
    return "--cert " + file(who + ".pem") + " --key " + file(who + ".key");
  };
  EXPECT_EQ(tls_curl(as("friend"), "/hello"), "hello you\n\n200 2");
  EXPECT_THAT(tls_curl("", "/hello"), testing::Not(HasSubstr("hello you")));
  EXPECT_THAT(tls_curl(as("stranger"), "/hello"), testing::Not(HasSubstr("hello you")));
}

TEST_F(TlsServerTest, HalfAHandshakeEndsByTheAdmissionsDeadline) {
  rt::AdmissionOptions options;
  options.descriptors = 128;
  admission_ = std::make_unique<rt::Admission>(options);
  start_tls("", admission_.get());
  const UniqueFd half = connect();
  ASSERT_EQ(::send(half.get(), "\x16\x03\x01\x02\x00\x01", 6, 0), 6);
  EXPECT_EQ(tls_curl("", "/hello"), "hello you\n\n200 2");  // later than the six bytes
  admission_->sweep(MonoClock::now() + options.handshake + std::chrono::seconds(1));
  EXPECT_TRUE(ended(half, 10'000));
  const auto cuts = server_->cuts();
  EXPECT_TRUE(std::any_of(cuts.begin(), cuts.end(), [](const Server::Cut& cut) {
    return cut.why == rt::to_string(rt::GiveWay::kHandshake);
  }));
}

TEST_F(TlsServerTest, AnUpgradeHandsOverTheStreamInsideOfTls) {
  start_tls();
  const std::string script = file("upgrade.py");
  FILE* out = fopen(script.c_str(), "w");
  fputs(R"(import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.set_alpn_protocols(["http/1.1"])
peer = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[2])), 20),
                           server_hostname="127.0.0.1")
peer.sendall(b"GET /up HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
head = b""
while not head.endswith(b"\r\n\r\n"):
    head += peer.recv(1)
peer.sendall(b"p" * 100000)
got = 0
while got < 100000:
    got += len(peer.recv(65536))
print(head.split(b"\r\n")[0].decode(), got)
)", out);
  fclose(out);
  EXPECT_THAT(run("/usr/bin/python3 " + script + " " + file("server.pem") + " " +
                  std::to_string(addresses_[0].port) + " 2>&1"),
              HasSubstr("HTTP/1.1 101 Switching Protocols 100000"));
  echo_.wait_until_closed();
}

TEST_F(TlsServerTest, ARenewedCertificateIsServedFromTheNextLookOn) {
  auto files = CertificateFiles::open(paths());
  ASSERT_TRUE(files) << files.error().to_string();
  MonoTime now{};
  const auto first = (*files)->current(now);
  ASSERT_NE(first, nullptr);
  make_certificate("next");
  run("mv " + file("next.pem") + " " + file("server.pem"));
  EXPECT_EQ((*files)->current(now), first) << "looked at a moment ago";
  now += CertificateFiles::kLook;
  EXPECT_EQ((*files)->current(now), first) << "the key is still that of before";
  EXPECT_EQ((*files)->failures(), 1u);
  run("mv " + file("next.key") + " " + file("server.key"));
  now += CertificateFiles::kLook;
  const auto second = (*files)->current(now);
  EXPECT_NE(second, first);
  EXPECT_EQ((*files)->failures(), 1u);
  run("rm " + file("server.key"));
  now += CertificateFiles::kLook;
  EXPECT_EQ((*files)->current(now), second) << "and never none";
}

TEST_F(TlsServerTest, ARenewedCertificateThatCouldNotBeReadIsReadAgainThoughItLooksTheSame) {
  auto files = CertificateFiles::open(paths());
  ASSERT_TRUE(files) << files.error().to_string();
  MonoTime now{};
  const auto first = (*files)->current(now);
  make_certificate("next");
  run("mv " + file("next.pem") + " " + file("server.pem"));
  run("mv " + file("next.key") + " " + file("server.key"));
  {
    const test::FewDescriptors none(0);
    now += CertificateFiles::kLook;
    EXPECT_EQ((*files)->current(now), first);
  }
  EXPECT_EQ((*files)->failures(), 1u);
  now += CertificateFiles::kLook;
  EXPECT_NE((*files)->current(now), first);
}

TEST_F(TlsServerTest, FilesThatCannotBeServedAreAnErrorThatNamesThem) {
  EXPECT_THAT(CertificateFiles::open({file("server.pem"), "", ""}).error().to_string(),
              HasSubstr("give both, or neither"));
  EXPECT_THAT(CertificateFiles::open({file("nothing.pem"), file("server.key"), ""}).error().detail,
              HasSubstr("nothing.pem"));
  make_certificate("other");
  EXPECT_THAT(CertificateFiles::open({file("server.pem"), file("other.key"), ""}).error().detail,
              HasSubstr("private key does not belong to the leaf certificate"));
}

TEST(Router, WhatIsForLoopbackIsRefusedToOthers) {
  Router router;
  router.route("/debug/", "GET", [](const Request&) { return Response{200, "names\n"}; },
               Access::kLoopback);
  Request request;
  request.method = "GET";
  request.path = "/debug/syncz";
  for (const char* own : {"127.0.0.1", "::1", "127.3.2.1"}) {
    request.peer.ip = *IpAddress::parse(own);
    EXPECT_EQ(router.dispatch(request).status, 200) << own;
  }
  for (const char* other : {"10.0.0.1", "fd00::1", "fe80::1", "0.0.0.0"}) {
    request.peer.ip = *IpAddress::parse(other);
    EXPECT_EQ(router.dispatch(request).status, 403) << other;
  }
}

}  // namespace
}  // namespace meltemi::http
