// The whole server against clients that others wrote: curl, nghttp and h2load; and against those
// who only want to hold it up.
#include "userspace/http/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

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
    server_ = std::make_unique<Server>(nullptr, options);
    for (const char* ip : {"127.0.0.1", "::1"}) {
      auto at = server_->listen(router_, {*IpAddress::parse(ip), 0});
      ASSERT_TRUE(at) << at.error().to_string();
      addresses_.push_back(*at);
    }
    ASSERT_TRUE(server_->start());
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
