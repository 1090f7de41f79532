// The one normaliser of request targets and hosts. Authorization, routing and forwarding all use its
// output, so that no two of them can read one request differently (path confusion, host confusion).
// Idempotent: normalising a normalised target changes nothing. Must never guess: what is ambiguous
// (broken escapes, fragments, dot segments with parameters) is refused.
#pragma once

#include "userspace/base/error.h"
#include "waypoint/http/arena.h"

namespace meltemi::waypoint {

// What to do with %2F and %5C in a path.
enum class EscapedSlashes : uint8_t { kReject, kKeep, kUnescape };

struct PathRules {
  EscapedSlashes escaped_slashes = EscapedSlashes::kKeep;  // Envoy's default
  bool merge_slashes = false;
  bool normalize = true;  // false: only what no path may hold is refused, all else stays as it came
  bool operator==(const PathRules&) const = default;
};

struct Target {
  std::string_view path;   // starts with '/', or is "*"
  std::string_view query;  // without '?'
  bool has_query = false;  // "/a?" has an empty one
  // The target as it is forwarded: path[?query], one piece of memory.
  std::string_view full;
};

// RFC 3986 section 6.2.2: resolves dot segments, turns '\' into '/', decodes escaped unreserved
// characters, upper-cases the other escapes. `raw` is in origin form ("/a?b") or "*" and must live as
// long as the result, which may point into it. Error: kBadRequest.
Result<Target> normalise_target(std::string_view raw, const PathRules& rules, Arena& arena);

struct HostName {
  std::string_view name;  // lower case, no port, no trailing dot; IPv6 without brackets
  uint16_t port = 0;      // 0: none given
};
// `authority` as in Host or :authority. Error: kBadRequest (user info, empty, characters that no host
// has, a bad port, more than 255 bytes).
Result<HostName> normalise_host(std::string_view authority, Arena& arena);

}  // namespace meltemi::waypoint
