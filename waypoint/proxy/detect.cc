#include "waypoint/proxy/detect.h"

#include <algorithm>

namespace meltemi::waypoint {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

bool method_char(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '-' || c == '_';
}

// Whether one of the two begins with the other: as far as can be seen, they agree.
bool agree(std::string_view text, std::string_view wanted) {
  const size_t n = std::min(text.size(), wanted.size());
  return text.substr(0, n) == wanted.substr(0, n);
}

// Origin form, absolute form, asterisk form; the target of a CONNECT is no more than a word.
bool may_be_target(std::string_view method, std::string_view text) {
  if (method == "CONNECT") return true;
  return agree(text, "/") || agree(text, "*") || agree(text, "http://") || agree(text, "https://");
}

Detected by_line(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line.ends_with(" HTTP/1.1") || line.ends_with(" HTTP/1.0") ? Detected::kHttp1
                                                                     : Detected::kOther;
}

}  // namespace

std::optional<Detected> detect_protocol(ByteView first) {
  const std::string_view text = as_text(first);
  if (agree(text, kPreface)) {
    if (text.size() >= kPreface.size()) return Detected::kH2;
    return std::nullopt;
  }
  const size_t word = static_cast<size_t>(std::ranges::find_if_not(text, method_char) - text.begin());
  if (word > kDetectMethodMax) return Detected::kOther;
  if (word == text.size()) return std::nullopt;
  if (word == 0 || text[word] != ' ') return Detected::kOther;
  const std::string_view rest = text.substr(word + 1);
  if (!may_be_target(text.substr(0, word), rest)) return Detected::kOther;
  const size_t end = rest.find('\n');
  if (end != std::string_view::npos) return by_line(rest.substr(0, end));
  if (text.size() >= kDetectLineMax) return Detected::kHttp1;
  return std::nullopt;
}

std::optional<Detected> detect_http(ByteView first) {
  const std::string_view text = as_text(first);
  if (!agree(text, kPreface)) return Detected::kHttp1;
  if (text.size() >= kPreface.size()) return Detected::kH2;
  return std::nullopt;
}

}  // namespace meltemi::waypoint
