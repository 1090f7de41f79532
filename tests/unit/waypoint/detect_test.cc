#include "waypoint/proxy/detect.h"

#include <gtest/gtest.h>

namespace meltemi::waypoint {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

TEST(Detect, TellsProtocolsApart) {
  const auto of = [](std::string_view text) { return detect_protocol(as_bytes(text)); };
  EXPECT_EQ(of("GET / HTTP/1.1\r\n"), Detected::kHttp1);
  EXPECT_EQ(of("PROPFIND "), Detected::kHttp1);
  EXPECT_EQ(of("PRINT / HTTP/1.1"), Detected::kHttp1);
  EXPECT_EQ(of(kPreface), Detected::kH2);
  EXPECT_EQ(of("\x16\x03\x01"), Detected::kOther);
  EXPECT_EQ(of(std::string(1, '\0')), Detected::kOther);
  EXPECT_EQ(of("*3\r\n$3\r\nSET"), Detected::kOther);
  EXPECT_EQ(of(" GET"), Detected::kOther);
  EXPECT_EQ(of(std::string(40, 'A')), Detected::kOther);
}

TEST(Detect, WaitsForNoMoreThanItNeeds) {
  EXPECT_EQ(detect_protocol({}), std::nullopt);
  for (size_t n = 1; n < kPreface.size(); ++n) {
    EXPECT_EQ(detect_protocol(as_bytes(kPreface.substr(0, n))), std::nullopt) << n;
  }
  EXPECT_EQ(detect_protocol(as_bytes("GE")), std::nullopt);
}

}  // namespace
}  // namespace meltemi::waypoint
