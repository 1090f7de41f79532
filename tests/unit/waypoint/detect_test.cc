#include "waypoint/proxy/detect.h"

#include <gtest/gtest.h>

namespace meltemi::waypoint {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

std::optional<Detected> of(std::string_view text) { return detect_protocol(as_bytes(text)); }

TEST(Detect, TellsProtocolsApart) {
  EXPECT_EQ(of("GET / HTTP/1.1\r\n"), Detected::kHttp1);
  EXPECT_EQ(of("GET / HTTP/1.0\nHost: a"), Detected::kHttp1);
  EXPECT_EQ(of("PROPFIND http://a/b HTTP/1.1\r\n"), Detected::kHttp1);
  EXPECT_EQ(of("OPTIONS * HTTP/1.1\r\n"), Detected::kHttp1);
  EXPECT_EQ(of("CONNECT a:443 HTTP/1.1\r\n"), Detected::kHttp1);
  EXPECT_EQ(of(kPreface), Detected::kH2);
  EXPECT_EQ(of("\x16\x03\x01"), Detected::kOther);
  EXPECT_EQ(of(std::string(1, '\0')), Detected::kOther);
  EXPECT_EQ(of("*3\r\n$3\r\nSET"), Detected::kOther);
  EXPECT_EQ(of(" GET"), Detected::kOther);
  EXPECT_EQ(of(std::string(40, 'A')), Detected::kOther);
}

TEST(Detect, ALineProtocolIsNoHttp) {
  for (const std::string_view line :
       {"EHLO mail.example\r\n", "get key\r\n", "USER anna\r\n", "CONNECT {\"verbose\":false}\r\n",
        "SET / 1\r\n", "NICK x\r\n", "GET /\r\n", "GET / HTTP/0.9\r\n", "PING\r\n", "SUB * 1\r\n"}) {
    EXPECT_EQ(of(line), Detected::kOther) << line;
  }
  // As soon as it is seen: such a client waits for its answer.
  EXPECT_EQ(of("EHLO m"), Detected::kOther);
  EXPECT_EQ(of("get k"), Detected::kOther);
}

TEST(Detect, WaitsForNoMoreThanItNeeds) {
  EXPECT_EQ(of({}), std::nullopt);
  for (size_t n = 1; n < kPreface.size(); ++n) {
    EXPECT_EQ(of(kPreface.substr(0, n)), std::nullopt) << n;
  }
  const std::string_view line = "GET http://a/ HTTP/1.1\r\n";
  for (size_t n = 1; n < line.size(); ++n) EXPECT_EQ(of(line.substr(0, n)), std::nullopt) << n;
  const std::string target(kDetectLineMax, 'a');
  EXPECT_EQ(of("GET /" + target), Detected::kHttp1) << "too long a line is HTTP's to refuse";
}

TEST(Detect, WhereOnlyHttpIsSpokenThePrefaceDecides) {
  const auto http = [](std::string_view text) { return detect_http(as_bytes(text)); };
  EXPECT_EQ(http("G"), Detected::kHttp1);
  EXPECT_EQ(http("PRI *"), std::nullopt);
  EXPECT_EQ(http("PRINT"), Detected::kHttp1);
  EXPECT_EQ(http(kPreface), Detected::kH2);
}

}  // namespace
}  // namespace meltemi::waypoint
