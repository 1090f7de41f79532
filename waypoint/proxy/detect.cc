#include "waypoint/proxy/detect.h"

namespace meltemi::waypoint {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

bool method_char(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '_';
}

}  // namespace

std::optional<Detected> detect_protocol(ByteView first) {
  const std::string_view text = as_text(first);
  const size_t n = std::min(text.size(), kPreface.size());
  if (text.substr(0, n) == kPreface.substr(0, n)) {
    if (n == kPreface.size()) return Detected::kH2;
    return std::nullopt;
  }
  for (size_t i = 0; i < text.size() && i < kDetectMax; ++i) {
    if (text[i] == ' ' && i > 0) return Detected::kHttp1;
    if (!method_char(text[i])) return Detected::kOther;
  }
  if (text.size() < kDetectMax) return std::nullopt;
  return Detected::kOther;
}

}  // namespace meltemi::waypoint
