#include "waypoint/route/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace meltemi::waypoint {
namespace {

bool prefix_is(std::string_view text, std::string_view prefix, bool ignore_case) {
  if (!ignore_case) return text.starts_with(prefix);
  return text.size() >= prefix.size() && name_is(text.substr(0, prefix.size()), prefix);
}

std::string_view digits(uint32_t number, Arena& arena) {
  char* p = arena.bytes(10);
  char* end = std::to_chars(p, p + 10, number).ptr;
  arena.shrink_last(p, static_cast<size_t>(end - p));
  return {p, static_cast<size_t>(end - p)};
}

// "/base/" + "/rest" would make an empty segment that nobody asked for.
std::string_view join_paths(std::string_view head, std::string_view rest, Arena& arena) {
  if (head.ends_with('/') && rest.starts_with('/')) rest.remove_prefix(1);
  if (head.empty() && !rest.starts_with('/')) head = "/";
  return arena.join(head, rest);
}

std::string_view rewritten_path(const std::optional<std::string>& prefix,
                                const std::optional<RegexRewrite>& regex, const PathMatch& match,
                                std::string_view path, Arena& arena) {
  if (prefix) return join_paths(*prefix, path.substr(match.matched_length(path)), arena);
  if (regex) return regex->pattern.replace_all(path, regex->substitution, arena);
  return path;
}

}  // namespace

bool PathMatch::matches(std::string_view path) const {
  switch (kind) {
    case Kind::kPrefix: return prefix_is(path, text, ignore_case);
    case Kind::kExact:
      return path.size() == text.size() && prefix_is(path, text, ignore_case);
    case Kind::kSegmentPrefix:
      return prefix_is(path, text, ignore_case) &&
             (path.size() == text.size() || path[text.size()] == '/');
    case Kind::kRegex: return regex->full_match(path);
  }
  return false;
}

size_t PathMatch::matched_length(std::string_view path) const {
  return kind == Kind::kRegex ? path.size() : text.size();
}

const ClusterChoice& ForwardAction::choose(uint64_t random) const {
  if (clusters.size() == 1) [[likely]] return clusters.front();
  // Multiply-shift maps 64 random bits to [0, total) without a division.
  const uint64_t total = clusters.back().up_to;
  const auto point = static_cast<uint64_t>((static_cast<unsigned __int128>(random) * total) >> 64);
  for (const ClusterChoice& c : clusters) {
    if (point < c.up_to) return c;
  }
  return clusters.back();
}

bool Route::matches(const RequestView& request, Arena& arena) const {
  if (!path.matches(request.path)) return false;
  for (const HeaderMatcher& m : headers) {
    if (!m.matches(request, arena)) return false;
  }
  for (const QueryMatcher& m : query) {
    if (!m.matches(request.query, arena)) return false;
  }
  return true;
}

const RouteTable::Routes* RouteTable::find_host(std::string_view host) const {
  if (!exact_.empty()) {
    if (const auto it = exact_.find(host); it != exact_.end()) return &hosts_[it->second];
  }
  for (const auto& [suffix, index] : suffixes_) {
    // "*" stands for at least one character.
    if (host.size() > suffix.size() && host.ends_with(suffix)) return &hosts_[index];
  }
  for (const auto& [prefix, index] : prefixes_) {
    if (host.size() > prefix.size() && host.starts_with(prefix)) return &hosts_[index];
  }
  return nullptr;
}

const Route* RouteTable::find(const RequestView& request, Arena& arena) const {
  const Routes* routes = nullptr;
  if (!exact_.empty() || !suffixes_.empty() || !prefixes_.empty()) {
    if (request.port != 0 && !ignore_port_) {
      routes = find_host(
          arena.join(request.host, std::string_view(":"), digits(request.port, arena)));
    }
    if (!routes) routes = find_host(request.host);
  }
  if (!routes) {
    if (!any_) return nullptr;
    routes = &hosts_[*any_];
  }
  for (const Route& route : *routes) {
    if (route.matches(request, arena)) return &route;
  }
  return nullptr;
}

std::vector<model::Symbol> RouteTable::clusters() const {
  std::vector<model::Symbol> out;
  for (const Routes& routes : hosts_) {
    for (const Route& route : routes) {
      const auto* forward = std::get_if<ForwardAction>(&route.action);
      if (!forward) continue;
      for (const ClusterChoice& c : forward->clusters) out.push_back(c.cluster);
    }
  }
  return out;
}

std::string_view rewritten_target(const ForwardAction& action, const PathMatch& match,
                                  const Target& target, Arena& arena) {
  if (!action.prefix_rewrite && !action.regex_rewrite) [[likely]] return target.full;
  if (target.path == "*") return target.full;  // there is no path to rewrite
  const std::string_view path =
      rewritten_path(action.prefix_rewrite, action.regex_rewrite, match, target.path, arena);
  if (!target.has_query) return path;
  return arena.join(path, std::string_view("?"), target.query);
}

std::string_view redirect_location(const RedirectAction& action, const PathMatch& match,
                                   const RequestView& request, const Target& target,
                                   Arena& arena) {
  const std::string_view asked = target.path == "*" ? std::string_view("/") : target.path;
  const std::string_view scheme = action.scheme.empty() ? request.scheme : action.scheme;
  const std::string_view host = action.host.empty() ? request.host : action.host;
  uint16_t port = action.port;
  if (port == 0 && action.host.empty() && scheme == request.scheme) port = request.port;
  if ((scheme == "http" && port == 80) || (scheme == "https" && port == 443)) port = 0;

  std::string_view path;
  bool with_query = target.has_query && !action.strip_query;
  if (action.path) {
    path = *action.path;
    with_query = with_query && path.find('?') == std::string_view::npos;
  } else {
    path = rewritten_path(action.prefix_rewrite, action.regex_rewrite, match, asked, arena);
  }
  const bool v6 = host.find(':') != std::string_view::npos && !host.starts_with('[');
  const std::string_view none;
  return arena.join(scheme, std::string_view("://"), v6 ? std::string_view("[") : none, host,
                    v6 ? std::string_view("]") : none, port ? std::string_view(":") : none,
                    port ? digits(port, arena) : none, path,
                    with_query ? std::string_view("?") : none, with_query ? target.query : none);
}

// Nanoseconds in 64 bits hold less than what eight digits of hours can say.
template <typename Unit>
static Duration capped(uint64_t value) {
  constexpr Duration kMost = std::chrono::hours(24 * 365);
  const auto most = static_cast<uint64_t>(std::chrono::duration_cast<Unit>(kMost).count());
  return value >= most ? kMost : Duration(Unit(value));
}

std::optional<Duration> parse_grpc_timeout(std::string_view text) {
  if (text.size() < 2 || text.size() > 9) return std::nullopt;
  uint64_t value = 0;
  const char* const end = text.data() + text.size() - 1;
  if (const auto [p, error] = std::from_chars(text.data(), end, value);
      p != end || error != std::errc()) {
    return std::nullopt;
  }
  switch (text.back()) {
    case 'H': return capped<std::chrono::hours>(value);
    case 'M': return capped<std::chrono::minutes>(value);
    case 'S': return capped<std::chrono::seconds>(value);
    case 'm': return capped<std::chrono::milliseconds>(value);
    case 'u': return capped<std::chrono::microseconds>(value);
    case 'n': return capped<std::chrono::nanoseconds>(value);
    default: return std::nullopt;
  }
}

Duration effective_timeout(const ForwardAction& action, const Fields& fields, bool grpc) {
  Duration timeout = action.timeout;
  const auto limit = [&timeout](Duration other) {
    if (other > Duration::zero() && (timeout == Duration::zero() || other < timeout)) {
      timeout = other;
    }
  };
  if (grpc && action.grpc_timeout_max) {
    timeout = Duration::zero();
    if (const auto asked = parse_grpc_timeout(fields.value("grpc-timeout"))) {
      timeout = std::max(*asked, Duration(std::chrono::milliseconds(1)));  // 0 would mean none
    }
    limit(*action.grpc_timeout_max);
  }
  limit(action.max_stream_duration);
  return timeout;
}

}  // namespace meltemi::waypoint
