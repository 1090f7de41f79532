// The operators' HTTP server: the parser byte by byte, the server against curl.
#include "userspace/telemetry/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>

#include "userspace/telemetry/exposition.h"

namespace meltemi::telemetry {
namespace {

using testing::HasSubstr;

TEST(HttpParse, SplitAtEveryByte) {
  const std::string text =
      "POST /logging?level=a%3Db&reset&x=1+2 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nAccept: t/x \r\n\r\nhello";
  for (size_t n = 0; n < text.size(); ++n) {
    int status = 0;
    const auto r = parse_http_request(std::string_view(text).substr(0, n), &status);
    ASSERT_FALSE(r.has_value()) << n;
    EXPECT_EQ(r.error().reason, Reason::kNotFound) << n;
  }
  int status = 0;
  const auto r = parse_http_request(text, &status);
  ASSERT_TRUE(r.has_value());
  EXPECT_EQ(r->method, "POST");
  EXPECT_EQ(r->path, "/logging");
  EXPECT_EQ(*r->param("level"), "a=b");
  EXPECT_EQ(*r->param("reset"), "");
  EXPECT_EQ(*r->param("x"), "1 2");
  EXPECT_EQ(r->param("y"), nullptr);
  EXPECT_EQ(r->body, "hello");
  EXPECT_EQ(r->accept, "t/x");
}

TEST(HttpParse, RefusesWhatItMust) {
  const std::pair<std::string, int> cases[] = {
      {"BREW / HTTP/1.1\r\n\r\n", 405},
      {"GET / HTTP/2.0\r\n\r\n", 505},
      {"GET /\r\n\r\n", 400},
      {"GET relative HTTP/1.1\r\n\r\n", 400},
      {"GET /%zz HTTP/1.1\r\n\r\n", 400},
      {"GET /%2 HTTP/1.1\r\n\r\n", 400},
      {"GET /%00 HTTP/1.1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n folded: x\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400},
      {"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413},
      {"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501},
      {"GET /" + std::string(9000, 'a'), 431},
      {"GET / HTTP/1.1\r\nA: " + std::string(9000, 'a') + "\r\n\r\n", 431}};
  for (const auto& [text, want] : cases) {
    int status = 0;
    const auto r = parse_http_request(text, &status);
    ASSERT_FALSE(r.has_value()) << text.substr(0, 60);
    EXPECT_EQ(status, want) << text.substr(0, 60);
  }
}

class Server : public testing::Test {
 protected:
  void SetUp() override {
    server_.route("/hello", "GET", [](const HttpRequest& r) {
      const std::string* who = r.param("who");
      return HttpResponse{200, "hello " + (who ? *who : "you") + "\n"};
    });
    server_.route("/set", "POST", [this](const HttpRequest& r) {
      last_body_ = r.body;
      return HttpResponse{200, "set\n"};
    });
    server_.route("/big", "GET", [](const HttpRequest&) { return HttpResponse{200, std::string(5 << 20, 'x')}; });
    add_readiness_route(server_, readiness_);
    add_admin_routes(server_, "info", [this] { ++quits_; });
    ASSERT_TRUE(server_.start({{*IpAddress::parse("127.0.0.1"), 0}, {*IpAddress::parse("::1"), 0}}));
  }
  std::string curl(const std::string& arguments, const std::string& path, size_t address = 0) {
    const std::string command = "curl -sS -g --max-time 20 -w '\\n%{http_code}' " + arguments + " 'http://" +
                                server_.addresses()[address].to_string() + path + "' 2>&1";
    FILE* pipe = popen(command.c_str(), "r");
    std::string out;
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
    pclose(pipe);
    return out;
  }
  HttpServer server_;
  Readiness readiness_;
  std::string last_body_;
  int quits_ = 0;
};

TEST_F(Server, AnswersCurlOnBothFamilies) {
  EXPECT_EQ(curl("", "/hello?who=me"), "hello me\n\n200");
  EXPECT_EQ(curl("", "/hello", 1), "hello you\n\n200");
  EXPECT_EQ(curl("-X POST", "/hello"), "use GET\n\n405");
  EXPECT_EQ(curl("", "/nothing"), "not found\n\n404");
  EXPECT_EQ(curl("-d a=b", "/set"), "set\n\n200");
  EXPECT_EQ(last_body_, "a=b");
  EXPECT_THAT(curl("-I", "/hello"), HasSubstr("content-length: 10"));
  EXPECT_EQ(curl("", "/big").size(), (5u << 20) + 4);
}

TEST_F(Server, ReadinessNamesWhatIsPending) {
  readiness_.pending("state manager");
  readiness_.pending("a");
  EXPECT_EQ(curl("", "/healthz/ready"), "not ready, pending: a, state manager\n\n500");
  readiness_.done("a");
  readiness_.done("state manager");
  EXPECT_EQ(curl("", "/healthz/ready"), "ready\n\n200");
}

TEST_F(Server, AdminRoutes) {
  EXPECT_EQ(curl("", "/logging"), "use POST\n\n405");
  EXPECT_THAT(curl("-X POST", "/logging?level=nonsense"), HasSubstr("\n400"));
  EXPECT_THAT(curl("-X POST", "/logging?level=warn,access=info"), HasSubstr("\n200"));
  EXPECT_THAT(curl("-X POST", "/logging?reset"), HasSubstr("\n200"));
  EXPECT_EQ(curl("-X POST", "/quitquitquit"), "shutdown now\n\n200");
  EXPECT_EQ(curl("-X POST", "/quitquitquit"), "shutdown now\n\n200");
  EXPECT_EQ(quits_, 1);
}

TEST_F(Server, SilentAndGarbageClientsDoNotDisturb) {
  std::vector<int> silent;
  const SocketAddress to = server_.addresses()[0];
  for (size_t i = 0; i < kMaxConnections / 2; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_storage storage;
    const socklen_t length = to.to_sockaddr(storage);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&storage), length), 0);
    if (i % 2) EXPECT_EQ(send(fd, "\x16\x03\x01\xff", 4, 0), 4);
    silent.push_back(fd);
  }
  EXPECT_EQ(curl("", "/hello"), "hello you\n\n200");
  for (int fd : silent) close(fd);
}

TEST_F(Server, APortInUseIsAnErrorThatNamesIt) {
  HttpServer other;
  const SocketAddress taken = server_.addresses()[0];
  const Status s = other.start({taken});
  ASSERT_FALSE(s.has_value());
  EXPECT_THAT(s.error().detail, HasSubstr(taken.to_string()));
}

}  // namespace
}  // namespace meltemi::telemetry
