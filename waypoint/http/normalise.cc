#include "waypoint/http/normalise.h"

#include <array>

#include "userspace/base/address.h"
#include "waypoint/http/field.h"

namespace meltemi::waypoint {
namespace {

constexpr size_t kMaxHost = 255;

constexpr bool is_alnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}
constexpr bool is_unreserved(char c) {
  return is_alnum(c) || c == '-' || c == '.' || c == '_' || c == '~';
}
constexpr int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

enum : uint8_t { kPlain = 0, kSlash = 1, kSpecial = 2, kRefused = 3 };

// kSpecial: the slow path has to look ('%', '\', '.', ';').
constexpr std::array<uint8_t, 256> kClass = [] {
  std::array<uint8_t, 256> t{};
  for (int c = 0; c < 0x21; ++c) t[c] = kRefused;
  t[0x7f] = kRefused;
  t['#'] = kRefused;
  t['/'] = kSlash;
  t['%'] = t['\\'] = t['.'] = t[';'] = kSpecial;
  return t;
}();

std::unexpected<Error> bad(const char* what) {
  return fail(Reason::kBadRequest, Fault::kDownstream, what);
}

// The path is already in its normal form: the common case, decided in one pass.
enum class Scan { kNormal, kWork, kRefused };
Scan scan(std::string_view path, bool merge) {
  bool after_slash = false;
  for (size_t i = 0; i < path.size(); ++i) {
    const uint8_t k = kClass[static_cast<uint8_t>(path[i])];
    if (k == kPlain) [[likely]] {
      after_slash = false;
      continue;
    }
    if (k == kRefused) return Scan::kRefused;
    if (k == kSlash) {
      if (after_slash && merge) return Scan::kWork;
      after_slash = true;
      continue;
    }
    // A dot inside a segment ("/a.html") changes nothing; ';' only matters after a dot segment.
    if (path[i] == '%' || path[i] == '\\' || (path[i] == '.' && after_slash)) return Scan::kWork;
    after_slash = false;
  }
  return Scan::kNormal;
}

bool is_dots_with_parameter(std::string_view segment) {
  const size_t semicolon = segment.find(';');
  if (semicolon == std::string_view::npos) return false;
  const std::string_view base = segment.substr(0, semicolon);
  return base == "." || base == "..";
}

// Writes the decoded path; escapes that survive are in upper case.
Result<size_t> decode(std::string_view path, const PathRules& rules, char* out) {
  char* p = out;
  for (size_t i = 0; i < path.size(); ++i) {
    const char c = path[i];
    if (kClass[static_cast<uint8_t>(c)] == kRefused) return bad("path: forbidden character");
    if (c == '\\') {
      *p++ = '/';
      continue;
    }
    if (c != '%') {
      *p++ = c;
      continue;
    }
    const int high = i + 2 < path.size() ? hex_value(path[i + 1]) : -1;
    const int low = i + 2 < path.size() ? hex_value(path[i + 2]) : -1;
    if (high < 0 || low < 0) return bad("path: '%' without two hexadecimal digits");
    const char decoded = static_cast<char>(high << 4 | low);
    i += 2;
    if (decoded == '\0') return bad("path: encoded NUL");
    if (is_unreserved(decoded)) {
      *p++ = decoded;
      continue;
    }
    if (decoded == '/' || decoded == '\\') {
      if (rules.escaped_slashes == EscapedSlashes::kReject) return bad("path: encoded slash");
      if (rules.escaped_slashes == EscapedSlashes::kUnescape) {
        *p++ = '/';
        continue;
      }
    }
    static constexpr char kHex[] = "0123456789ABCDEF";
    *p++ = '%';
    *p++ = kHex[high];
    *p++ = kHex[low];
  }
  return static_cast<size_t>(p - out);
}

// RFC 3986 section 5.2.4, in place: the write position never passes the read position.
Result<size_t> resolve_segments(char* path, size_t size, bool merge) {
  size_t write = 0;  // path[0, write) is done; ends without the slash of the segment to come
  size_t read = 0;
  bool trailing_slash = false;
  while (read < size) {
    // REQUIRES: path[read] == '/'
    size_t end = read + 1;
    while (end < size && path[end] != '/') ++end;
    const std::string_view segment(path + read + 1, end - read - 1);
    const bool last = end == size;
    if (is_dots_with_parameter(segment)) return bad("path: dot segment with a parameter");
    if (segment == ".") {
      trailing_slash = last;
    } else if (segment == "..") {
      while (write > 0 && path[--write] != '/') {
      }
      trailing_slash = last;
    } else if (segment.empty() && merge && !last) {
      // drops the slash
    } else {
      path[write++] = '/';
      if (write != read + 1) std::memmove(path + write, segment.data(), segment.size());
      write += segment.size();
      trailing_slash = false;
    }
    read = end;
  }
  if (trailing_slash || write == 0) path[write++] = '/';
  return write;
}

}  // namespace

Result<Target> normalise_target(std::string_view raw, const PathRules& rules, Arena& arena) {
  Target target;
  const size_t mark = raw.find('?');
  std::string_view path = raw.substr(0, mark);
  if (mark != std::string_view::npos) {
    target.has_query = true;
    target.query = raw.substr(mark + 1);
    for (const char c : target.query) {
      if (kClass[static_cast<uint8_t>(c)] == kRefused) return bad("query: forbidden character");
    }
  }
  if (path == "*") {
    target.path = path;
    target.full = raw;
    return target;
  }
  if (path.empty() || path[0] != '/') return bad("path: does not start with '/'");

  switch (scan(path, rules.merge_slashes)) {
    case Scan::kNormal:
      target.path = path;
      target.full = raw;
      return target;
    case Scan::kRefused: return bad("path: forbidden character");
    case Scan::kWork:
      if (rules.normalize) break;
      for (const char c : path) {
        if (kClass[static_cast<uint8_t>(c)] == kRefused) return bad("path: forbidden character");
      }
      target.path = path;
      target.full = raw;
      return target;
  }
  char* out = arena.bytes(raw.size() + 1);
  const size_t decoded = MELTEMI_TRY(decode(path, rules, out));
  size_t size = MELTEMI_TRY(resolve_segments(out, decoded, rules.merge_slashes));
  target.path = {out, size};
  if (target.has_query) {
    out[size++] = '?';
    if (!target.query.empty()) std::memcpy(out + size, target.query.data(), target.query.size());
    target.query = {out + size, target.query.size()};
    size += target.query.size();
  }
  target.full = {out, size};
  arena.shrink_last(out, size);
  return target;
}

Result<HostName> normalise_host(std::string_view authority, Arena& arena) {
  if (authority.empty()) return bad("host: empty");
  if (authority.size() > kMaxHost + 6) return bad("host: longer than 255 bytes");
  const auto parts = split_host_port(authority);
  if (!parts) return bad("host: malformed port or brackets");
  std::string_view name = parts->host;
  if (name.size() > 1 && name.back() == '.') name.remove_suffix(1);
  if (name.empty() || name == ".") return bad("host: empty");
  if (name.front() == '.' || name.back() == '.' || name.find("..") != std::string_view::npos) {
    return bad("host: empty label");
  }
  if (name.size() > kMaxHost) return bad("host: longer than 255 bytes");
  const bool v6 = authority[0] == '[';
  if (v6 && !IpAddress::parse(name)) return bad("host: malformed IPv6 address");
  bool upper = false;
  for (const char c : name) {
    if (is_alnum(c) || c == '-' || c == '.' || c == '_' || (v6 && c == ':')) {
      upper |= c >= 'A' && c <= 'Z';
      continue;
    }
    return bad("host: forbidden character");
  }
  if (upper) {
    char* p = arena.bytes(name.size());
    for (size_t i = 0; i < name.size(); ++i) p[i] = ascii_lower(name[i]);
    name = {p, name.size()};
  }
  return HostName{name, parts->port};
}

}  // namespace meltemi::waypoint
