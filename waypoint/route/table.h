// A route configuration, compiled: which route a request takes and what the route does with it. Made
// once per xDS change, immutable, shared by all workers. Matching allocates only from the request's
// arena. Must never look at a target or host that was not normalised (http/normalise.h).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/model/symbol.h"
#include "waypoint/http/header_ops.h"
#include "waypoint/http/normalise.h"
#include "waypoint/route/matcher.h"
#include "waypoint/route/retry.h"

namespace envoy::config::route::v3 {
class RouteConfiguration;
}

namespace meltemi::waypoint {

struct PathMatch {
  enum class Kind : uint8_t { kPrefix, kExact, kSegmentPrefix, kRegex };
  Kind kind = Kind::kPrefix;
  bool ignore_case = false;
  std::string text;  // lower case if ignore_case
  std::optional<Regex> regex;

  bool matches(std::string_view path) const;
  // How much of the path a prefix rewrite replaces.
  size_t matched_length(std::string_view path) const;
};

struct ClusterChoice {
  model::Symbol cluster;
  uint64_t up_to = 0;  // sum of the weights up to and including this one
  HeaderOps request, response;
  std::string host_rewrite;
};

struct RegexRewrite {
  Regex pattern;
  std::string substitution;
};

struct ForwardAction {
  static constexpr Duration kDefaultTimeout = std::chrono::seconds(15);  // Envoy's, when absent

  std::vector<ClusterChoice> clusters;  // at least one
  std::optional<std::string> prefix_rewrite;
  std::optional<RegexRewrite> regex_rewrite;
  std::string host_rewrite;
  bool append_x_forwarded_host = false;
  Duration timeout = kDefaultTimeout;   // of request and response; 0: none
  Duration max_stream_duration{};       // 0: none
  // gRPC calls take what their grpc-timeout says, up to this, 0: any. Unset: as others.
  std::optional<Duration> grpc_timeout_max;
  std::optional<Duration> idle_timeout; // 0: none; unset: the listener's
  std::optional<RetryPolicy> retry;
  std::optional<bool> websocket;        // unset: the listener's choice
  uint16_t not_found_status = 503;

  // `random` is uniform over 64 bits.
  const ClusterChoice& choose(uint64_t random) const;
};

struct RedirectAction {
  uint16_t status = 301;
  std::string scheme, host;  // empty: the request's
  uint16_t port = 0;         // 0: the request's, unless the scheme changes
  std::optional<std::string> path, prefix_rewrite;
  std::optional<RegexRewrite> regex_rewrite;
  bool strip_query = false;
};

struct DirectAction {
  uint16_t status = 200;
  std::string body;
};

struct Route {
  std::string name;
  PathMatch path;
  std::vector<HeaderMatcher> headers;
  std::vector<QueryMatcher> query;
  std::variant<ForwardAction, RedirectAction, DirectAction> action;
  HeaderOps request, response;  // of the route, its virtual host and the configuration, in this order
  bool attempt_count = false;   // tell the endpoint which attempt this is

  bool matches(const RequestView& request, Arena& arena) const;
};

class RouteTable {
 public:
  static constexpr size_t kMaxDirectBody = 4096;  // bytes, Envoy's default

  // Errors: kBadConfig or kUnsupported, with the place ("virtual_hosts[0].routes[2]: ...").
  static Result<std::shared_ptr<const RouteTable>> compile(
      const envoy::config::route::v3::RouteConfiguration& proto);

  // The first route of the best virtual host that matches, or null. Virtual hosts: exact domain,
  // then "*.suffix" (longest), then "prefix.*" (longest), then "*"; with the port before without.
  const Route* find(const RequestView& request, Arena& arena) const;
  const std::string& name() const { return name_; }
  // Clusters that routes name, for the config dump and the warning about unknown ones.
  std::vector<model::Symbol> clusters() const;

 private:
  using Routes = std::vector<Route>;
  const Routes* find_host(std::string_view host) const;
  Status add_domain(const std::string& domain, size_t index);

  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return model::hash_text(s); }
  };
  std::string name_;
  bool ignore_port_ = false;
  std::vector<Routes> hosts_;
  std::unordered_map<std::string, size_t, TextHash, std::equal_to<>> exact_;
  std::vector<std::pair<std::string, size_t>> suffixes_, prefixes_;  // longest first
  std::optional<size_t> any_;
};

// The target to forward ("path[?query]"), rewritten as the action says; may be `target.full` itself.
std::string_view rewritten_target(const ForwardAction& action, const PathMatch& match,
                                  const Target& target, Arena& arena);
// The Location of a redirect.
std::string_view redirect_location(const RedirectAction& action, const PathMatch& match,
                                   const RequestView& request, const Target& target, Arena& arena);
// How long the request may take in all: the route's timeout, for gRPC perhaps its own deadline.
// 0: unlimited.
Duration effective_timeout(const ForwardAction& action, const Fields& fields, bool grpc);
// "500m", "2S" (gRPC over HTTP/2). nullopt if malformed.
std::optional<Duration> parse_grpc_timeout(std::string_view text);

}  // namespace meltemi::waypoint
