// One HTTP route of a VirtualService: what may stand together, and every part of it, in istiod's
// words. What this mesh does not act on yet is an explicit error.
#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <charconv>

#include "userspace/base/address.h"
#include "userspace/config/check.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;

constexpr size_t kMaxRegex = 1024;              // istiod's limit
constexpr size_t kMaxDirectResponse = 1 << 20;  // istiod's limit, bytes
constexpr size_t kLargeDirectResponse = 100 << 10;

bool is_ip(std::string_view text) {
  return IpAddress::parse(text).has_value();
}

void check_regex(Check& check, const std::string& field, const std::string& regex,
                 std::string_view what) {
  if (regex.empty()) {
    check.error(field, fmt::format("\"{}\": regex string match should not be empty", what),
                "Give a regular expression");
    return;
  }
  if (regex.size() > kMaxRegex) {
    check.error(field, fmt::format("\"{}\": regex is too large, max length allowed is 1024", what),
                "Shorten it");
    return;
  }
  RE2 compiled(regex, RE2::Quiet);
  if (!compiled.ok()) {
    check.error(field,
                fmt::format("\"{}\": {}; Istio uses RE2 style regex-based match "
                            "(https://github.com/google/re2/wiki/Syntax)",
                            what, compiled.error()),
                "Correct the expression");
  }
}

void check_string_match(Check& check, const std::string& field, const net::StringMatch& match,
                        std::string_view what) {
  if (match.match_type_case() == net::StringMatch::kPrefix && match.prefix().empty()) {
    check.error(field + ".prefix",
                fmt::format("\"{}\": prefix string match should not be empty", what),
                "Give a prefix, or `{}` for presence");
  } else if (match.match_type_case() == net::StringMatch::kRegex) {
    check_regex(check, field + ".regex", match.regex(), what);
  }
}

void check_header_name(Check& check, const std::string& field, const std::string& name) {
  if (name.empty()) {
    check.error(field, "header name cannot be empty", "Name the header");
  } else if (!is_http_token(name.starts_with(':') ? std::string_view(name).substr(1) : name)) {
    check.error(field, fmt::format("header name {} is not a valid header name", name),
                "Use letters, digits and -_. only");
  }
}

void check_http_match(Check& check, const std::string& field, const net::HTTPMatchRequest& match) {
  if (match.has_uri()) check_string_match(check, field + ".uri", match.uri(), "uri");
  if (match.has_scheme()) check_string_match(check, field + ".scheme", match.scheme(), "scheme");
  if (match.has_method()) check_string_match(check, field + ".method", match.method(), "method");
  if (match.has_authority()) {
    check_string_match(check, field + ".authority", match.authority(), "authority");
  }
  for (const auto* headers : {&match.headers(), &match.without_headers()}) {
    std::string map = headers == &match.headers() ? "headers" : "withoutHeaders";
    for (const auto& [name, value] : *headers) {
      std::string inner = fmt::format("{}.{}[{}]", field, map, name);
      if (name.starts_with("@request.auth.claims")) {
        check.unsupported(inner, "matching on JWT claims");
        continue;
      }
      check_header_name(check, inner, name);
      check_string_match(check, inner, value, "headers");
    }
  }
  for (const auto& [name, value] : match.query_params()) {
    std::string inner = fmt::format("{}.queryParams[{}]", field, name);
    if (name.empty()) check.error(inner, "query parameter name cannot be empty", "Name it");
    check_string_match(check, inner, value, "queryParams");
  }
  if (match.port() != 0) check.port(field + ".port", match.port());
  check.labels(field + ".sourceLabels", match.source_labels());
  if (!match.source_labels().empty()) {
    check.warn(field + ".sourceLabels",
               "a waypoint cannot match on the caller's labels, so this match is dropped",
               "Match on a header, or move the decision to an AuthorizationPolicy");
  }
  if (!match.source_namespace().empty() && !is_dns_label(match.source_namespace())) {
    check.error(field + ".sourceNamespace",
                fmt::format("sourceNamespace match {} is invalid", match.source_namespace()),
                "Write the name of a namespace");
  }
}

void check_header_value(Check& check, const std::string& field, const std::string& value) {
  for (size_t at = value.find('%'); at != std::string::npos; at = value.find('%', at + 2)) {
    if (at + 1 < value.size() && value[at + 1] == '%') continue;  // a literal one
    check.error(
        field,
        fmt::format("header value configuration: format commands (\"{}\") are not supported yet",
                    value),
        "Write a literal value, with %% for a percent sign", kCodeUnsupported);
    break;
  }
  if (value.find_first_of("\r\n") != std::string::npos) {
    check.error(field, "header value configuration: a header value has no line breaks",
                "Remove them");
  }
}

void check_header_map(Check& check, const std::string& field,
                      const google::protobuf::Map<std::string, std::string>& headers, bool is_set) {
  for (const auto& [name, value] : headers) {
    std::string inner = fmt::format("{}[{}]", field, name);
    check_header_name(check, inner, name);
    if (name.starts_with(':') && !(is_set && name == ":authority")) {
      check.error(inner, fmt::format("pseudo header {} cannot be changed", name),
                  "Only :authority may be set, in `set`");
    }
    check_header_value(check, inner, value);
  }
}

void check_header_operations(Check& check, const std::string& field,
                             const net::Headers::HeaderOperations& operations) {
  check_header_map(check, field + ".set", operations.set(), true);
  check_header_map(check, field + ".add", operations.add(), false);
  for (int i = 0; i < operations.remove_size(); ++i) {
    std::string inner = fmt::format("{}.remove[{}]", field, i);
    check_header_name(check, inner, operations.remove(i));
    if (operations.remove(i).starts_with(':')) {
      check.error(inner, fmt::format("pseudo header {} cannot be removed", operations.remove(i)),
                  "Remove the entry");
    }
  }
}

void check_headers(Check& check, const std::string& field, const net::Headers& headers) {
  check_header_operations(check, field + ".request", headers.request());
  check_header_operations(check, field + ".response", headers.response());
  for (const auto* map : {&headers.response().set(), &headers.response().add()}) {
    if (map->contains(":authority")) {
      check.error(field + ".response", "a response has no :authority", "Set it in headers.request");
    }
  }
}

// The values that would all become the request's authority, from every place that can set it.
void collect_authority(const google::protobuf::Map<std::string, std::string>& set,
                       std::vector<std::string>* out) {
  for (const auto& [name, value] : set) {
    std::string lower = name;
    std::transform(lower.begin(), lower.end(), lower.begin(), ::tolower);
    if (lower == ":authority" || lower == "host") out->push_back(value);
  }
}

void check_single_authority(Check& check, const std::string& field, const net::HTTPRoute& route,
                            const net::HTTPRouteDestination& destination) {
  std::vector<std::string> values;
  if (!route.rewrite().authority().empty()) values.push_back(route.rewrite().authority());
  collect_authority(route.headers().request().set(), &values);
  collect_authority(destination.headers().request().set(), &values);
  if (values.size() > 1) {
    check.error(field,
                fmt::format("authority header cannot be set multiple times: have \"{}\", "
                            "attempting to set \"{}\"",
                            values[0], values[1]),
                "Set it in one place");
  }
}

void check_http_destinations(Check& check, const std::string& field, const net::HTTPRoute& route) {
  std::vector<int32_t> weights;
  for (int i = 0; i < route.route_size(); ++i) {
    const auto& destination = route.route(i);
    std::string inner = fmt::format("{}.route[{}]", field, i);
    validate_destination(check, inner + ".destination", destination.has_destination(),
                         destination.destination());
    check_headers(check, inner + ".headers", destination.headers());
    check_single_authority(check, inner, route, destination);
    weights.push_back(destination.weight());
  }
  validate_weights(check, field + ".route", weights);
}

bool is_http_status(std::string_view text) {
  int code = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), code);
  return error == std::errc() && end == text.data() + text.size() && code >= 100 && code <= 599;
}

void check_retries(Check& check, const std::string& field, const net::HTTPRetry& retries) {
  static constexpr std::string_view kPolicies[] = {"5xx",
                                                   "gateway-error",
                                                   "reset",
                                                   "reset-before-request",
                                                   "connect-failure",
                                                   "retriable-4xx",
                                                   "refused-stream",
                                                   "retriable-status-codes",
                                                   "retriable-headers",
                                                   "envoy-ratelimited",
                                                   "http3-post-connect-failure",
                                                   "cancelled",
                                                   "deadline-exceeded",
                                                   "internal",
                                                   "resource-exhausted",
                                                   "unavailable"};
  if (retries.attempts() < 0) {
    check.error(field + ".attempts", "attempts cannot be negative", "Give 0 or more");
  }
  bool configured = retries.has_per_try_timeout() || !retries.retry_on().empty() ||
                    retries.has_retry_remote_localities();
  if (retries.attempts() == 0 && configured) {
    check.error(field, "http retry policy configured when attempts are set to 0 (disabled)",
                "Set attempts, or remove the other fields");
  }
  if (retries.has_per_try_timeout()) {
    check.duration(field + ".perTryTimeout", retries.per_try_timeout());
  }
  if (retries.has_backoff()) check.duration(field + ".backoff", retries.backoff());
  if (retries.retry_remote_localities().value()) {
    check.untuned(field + ".retryRemoteLocalities", "retryRemoteLocalities");
  }
  std::string_view rest = retries.retry_on();
  while (!rest.empty()) {
    size_t comma = rest.find(',');
    std::string_view policy = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    while (policy.starts_with(' ')) policy.remove_prefix(1);
    while (policy.ends_with(' ')) policy.remove_suffix(1);
    bool known =
        std::find(std::begin(kPolicies), std::end(kPolicies), policy) != std::end(kPolicies);
    if (known || is_http_status(policy)) continue;
    std::string_view near = did_you_mean(policy, {std::begin(kPolicies), std::end(kPolicies)});
    check.error(field + ".retryOn", fmt::format("\"{}\" is not a valid retryOn policy", policy),
                near.empty() ? "Use 5xx, gateway-error, reset, connect-failure, a status code, ..."
                             : fmt::format("Did you mean `{}`?", near));
  }
}

void check_redirect(Check& check, const std::string& field, const net::HTTPRoute& route) {
  const net::HTTPRedirect& redirect = route.redirect();
  if (!redirect.uri().empty() && !redirect.prefix_rewrite().empty()) {
    check.error(field, "redirect may only specify one of uri or prefix_rewrite", "Keep one");
  }
  if (!redirect.prefix_rewrite().empty()) {
    for (const auto& match : route.match()) {
      if (match.uri().match_type_case() == net::StringMatch::kPrefix) continue;
      check.error(field + ".prefixRewrite",
                  "redirect prefix_rewrite requires all URI matches to use prefix match type",
                  "Match on uri.prefix, or use redirect.uri");
      break;
    }
  }
  bool port = redirect.redirect_port_case() != net::HTTPRedirect::REDIRECT_PORT_NOT_SET;
  if (redirect.uri().empty() && redirect.prefix_rewrite().empty() && redirect.authority().empty() &&
      redirect.scheme().empty() && !port) {
    check.error(field, "redirect must specify URI, authority, scheme, or port", "Add one of them");
  }
  if (redirect.redirect_port_case() == net::HTTPRedirect::kPort) {
    check.port(field + ".port", redirect.port());
  }
  uint32_t code = redirect.redirect_code();
  if (code != 0 && (code < 300 || code > 399)) {
    check.error(field + ".redirectCode",
                fmt::format("{} is not a valid redirect code, must be 3xx", code),
                "Use 301 or 302");
  } else if (code != 0 && code != 301 && code != 302 && code != 303 && code != 307 && code != 308) {
    check.error(field + ".redirectCode", fmt::format("redirect code {} is not supported", code),
                "Use 301, 302, 303, 307 or 308", kCodeUnsupported);
  }
  if (!redirect.scheme().empty() && redirect.scheme() != "http" && redirect.scheme() != "https") {
    check.error(field + ".scheme", "invalid redirect scheme, must be \"http\" or \"https\"",
                "Write http or https");
  }
}

void check_direct_response(Check& check, const std::string& field,
                           const net::HTTPDirectResponse& response) {
  if (response.status() < 200 || response.status() > 599) {
    check.error(field + ".status",
                fmt::format("HTTP status {} is not in range 200-599", response.status()),
                "Give a status from 200 to 599");
  }
  size_t size = std::max(response.body().string().size(), response.body().bytes().size());
  if (size > kMaxDirectResponse) {
    check.error(
        field + ".body",
        "large direct_responses may impact control plane performance, must be less than 1MB",
        "Serve it from a workload");
  } else if (size > kLargeDirectResponse) {
    check.warn(field + ".body", "large direct_responses may impact control plane performance",
               "Serve it from a workload");
  }
}

void check_rewrite(Check& check, const std::string& field, const net::HTTPRewrite& rewrite) {
  bool regex = rewrite.has_uri_regex_rewrite();
  if (rewrite.uri().empty() && rewrite.authority().empty() && !regex) {
    check.error(field,
                "rewrite must specify at least one of URI, UriRegexRewrite, or authority. Only one "
                "of URI or UriRegexRewrite may be specified",
                "Add `uri`, `uriRegexRewrite` or `authority`");
  }
  if (!regex) return;
  if (!rewrite.uri().empty()) {
    check.error(field, "rewrite may only contain one of URI or UriRegexRewrite", "Keep one");
  }
  const auto& pattern = rewrite.uri_regex_rewrite();
  if (pattern.match().empty() || pattern.rewrite().empty()) {
    check.error(field + ".uriRegexRewrite",
                "UriRegexRewrite requires both Rewrite and Match fields to be specified",
                "Give both");
    return;
  }
  RE2 compiled(pattern.match(), RE2::Quiet);
  std::string why;
  if (!compiled.ok()) {
    why = compiled.error();
  } else if (!compiled.CheckRewriteString(pattern.rewrite(), &why) && why.empty()) {
    why = "the rewrite does not fit the match";
  }
  if (!why.empty()) {
    check.error(field + ".uriRegexRewrite", fmt::format("UriRegexRewrite has errors: {}", why),
                "Correct the expression");
  }
}

void check_percentage(Check& check, const std::string& field, double value) {
  if (value == 0.0 || (value >= 0.0001 && value <= 100.0)) return;
  check.error(field,
              fmt::format("percentage {} is neither 0.0, nor in range [0.0001, 100.0]", value),
              "Give a percentage");
}

void check_fault(Check& check, const std::string& field, const net::HTTPFaultInjection& fault) {
  if (!fault.has_abort() && !fault.has_delay()) {
    check.error(field, "HTTP fault injection must have an abort and/or a delay", "Add one");
    return;
  }
  if (fault.has_delay()) {
    const auto& delay = fault.delay();
    if (delay.has_percentage()) {
      check_percentage(check, field + ".delay.percentage", delay.percentage().value());
    }
    if (delay.has_exponential_delay()) {
      check.error(field + ".delay.exponentialDelay", "exponentialDelay not supported yet",
                  "Use fixedDelay");
    }
    if (delay.has_fixed_delay()) check.duration(field + ".delay.fixedDelay", delay.fixed_delay());
  }
  if (fault.has_abort()) {
    const auto& abort = fault.abort();
    if (abort.has_percentage()) {
      check_percentage(check, field + ".abort.percentage", abort.percentage().value());
    }
    switch (abort.error_type_case()) {
      case net::HTTPFaultInjection::Abort::kHttp2Error:
        check.error(field + ".abort.http2Error", "HTTP/2 abort fault injection not supported yet",
                    "Use httpStatus");
        break;
      case net::HTTPFaultInjection::Abort::kHttpStatus:
        if (abort.http_status() < 200 || abort.http_status() > 599) {
          check.error(field + ".abort.httpStatus",
                      fmt::format("HTTP status {} is not in range 200-599", abort.http_status()),
                      "Give a status from 200 to 599");
        }
        break;
      case net::HTTPFaultInjection::Abort::kGrpcStatus:
        break;
      case net::HTTPFaultInjection::Abort::ERROR_TYPE_NOT_SET:
        check.warn(field + ".abort", "abort configured, but error type not set", "Set httpStatus");
        break;
    }
  }
  check.unsupported(field, "fault injection");
}

void check_mirrors(Check& check, const std::string& field, const net::HTTPRoute& route) {
  if (route.has_mirror()) {
    validate_destination(check, field + ".mirror", true, route.mirror());
  }
  for (int i = 0; i < route.mirrors_size(); ++i) {
    std::string inner = fmt::format("{}.mirrors[{}]", field, i);
    if (!route.mirrors(i).has_destination()) {
      check.error(inner + ".destination", "destination is required for mirrors", "Add it");
    }
    double percentage = route.mirrors(i).percentage().value();
    if (percentage > 100) {
      check.error(inner + ".percentage", "mirror_percentage must have a max value of 100",
                  "Give at most 100");
    } else if (percentage < 0) {
      check.error(inner + ".percentage", "mirror_percentage must have a min value of 0",
                  "Give at least 0");
    }
  }
  if (route.has_mirror_percent()) {
    check.warn(field + ".mirrorPercent",
               "using deprecated setting \"mirrorPercent\", use \"mirrorPercentage\" instead",
               "Rename it", kCodeDeprecated);
    if (route.mirror_percent().value() > 100) {
      check.error(field + ".mirrorPercent", "mirror_percent must have a max value of 100",
                  "Give at most 100");
    }
  }
  if (route.mirror_percentage().value() > 100) {
    check.error(field + ".mirrorPercentage", "mirror_percentage must have a max value of 100",
                "Give at most 100");
  }
  if (route.has_mirror() || !route.mirrors().empty()) {
    check.unsupported(field + (route.has_mirror() ? ".mirror" : ".mirrors"), "mirroring");
  }
}

void check_cors(Check& check, const std::string& field, const net::CorsPolicy& cors) {
  static constexpr std::string_view kMethods[] = {"GET",    "HEAD",    "POST",    "PUT",   "PATCH",
                                                  "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"};
  for (int i = 0; i < cors.allow_methods_size(); ++i) {
    const std::string& method = cors.allow_methods(i);
    if (std::find(std::begin(kMethods), std::end(kMethods), method) == std::end(kMethods)) {
      check.error(fmt::format("{}.allowMethods[{}]", field, i),
                  fmt::format("\"{}\" is not a supported HTTP method", method),
                  "Write it in capitals");
    }
  }
  for (int i = 0; i < cors.allow_origins_size(); ++i) {
    std::string inner = fmt::format("{}.allowOrigins[{}]", field, i);
    if (cors.allow_origins(i).match_type_case() == net::StringMatch::MATCH_TYPE_NOT_SET) {
      check.error(inner, "'{}' is not a valid match type for CORS allow origins",
                  "Give exact, prefix or regex");
    } else {
      check_string_match(check, inner, cors.allow_origins(i), "corsPolicy.allowOrigins");
    }
  }
  if (cors.has_max_age() && cors.max_age().nanos() != 0) {
    check.error(field + ".maxAge", "max_age duration is accurate only to seconds precision",
                "Round it to seconds");
  }
  check.unsupported(field, "corsPolicy");
}

// What one route may not have together, in istiod's words.
void check_route_conflicts(Check& check, const std::string& field, const net::HTTPRoute& route) {
  bool destinations = !route.route().empty();
  bool redirect = route.has_redirect();
  bool direct = route.has_direct_response();
  auto conflict = [&](bool both, std::string message) {
    if (both) check.error(field, std::move(message), "Remove one of the two, or split the route");
  };
  conflict(redirect && destinations, "HTTP route cannot contain both route and redirect");
  conflict(redirect && route.has_fault(), "HTTP route cannot contain both fault and redirect");
  conflict(redirect && route.has_rewrite(),
           "HTTP route rule cannot contain both rewrite and redirect");
  conflict(redirect && direct, "HTTP route rule cannot contain both direct_response and redirect");
  conflict(direct && destinations, "HTTP route cannot contain both route and direct_response");
  conflict(direct && route.has_fault(), "HTTP route cannot contain both fault and direct_response");
  conflict(direct && route.has_rewrite(),
           "HTTP route rule cannot contain both rewrite and direct_response");
  conflict(route.has_mirror() && !route.mirrors().empty(),
           "HTTP route cannot contain both mirror and mirrors");
  if (route.has_delegate()) {
    conflict(redirect, fmt::format("root HTTP route {} must not specify redirect", route.name()));
    conflict(destinations, fmt::format("root HTTP route {} must not specify route", route.name()));
    check.unsupported(field + ".delegate", "delegation to another VirtualService");
  } else if (!destinations && !redirect && !direct) {
    check.error(field, "HTTP route, redirect or direct_response is required",
                "Add `route` with a destination");
  }
}

}  // namespace

void validate_destination(Check& check, const std::string& field, bool present,
                          const net::Destination& destination) {
  if (!present) {
    check.error(field, "destination is required", "Add destination.host");
    return;
  }
  const std::string& host = destination.host();
  if (host == "*" || host.empty()) {
    check.error(field + ".host", fmt::format("invalid destination host {}", host),
                "Name one service, e.g. catalog.shop.svc.cluster.local");
  } else if (!is_fqdn(host) && !is_ip(host)) {
    check.error(field + ".host", fmt::format("invalid destination host {}", host),
                "Write a DNS name");
  }
  if (!destination.subset().empty() && !is_dns_label(destination.subset())) {
    check.error(field + ".subset", fmt::format("subset name is invalid: {}", destination.subset()),
                "Use lower-case letters, digits and '-'");
  }
  if (destination.has_port()) check.port(field + ".port.number", destination.port().number());
}

void validate_weights(Check& check, const std::string& field, const std::vector<int32_t>& weights) {
  int64_t total = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] < 0) {
      check.error(fmt::format("{}[{}].weight", field, i), fmt::format("weight {} < 0", weights[i]),
                  "Give 0 or more");
    }
    total += weights[i];
  }
  if (weights.size() > 1 && total == 0) {
    check.error(field, "total destination weight = 0", "Give at least one destination a weight");
  }
}

void validate_http_route(Check& check, const std::string& field, const net::HTTPRoute& route) {
  check_route_conflicts(check, field, route);
  for (int i = 0; i < route.match_size(); ++i) {
    check_http_match(check, fmt::format("{}.match[{}]", field, i), route.match(i));
  }
  check_http_destinations(check, field, route);
  check_headers(check, field + ".headers", route.headers());
  if (route.has_timeout() && (route.timeout().seconds() != 0 || route.timeout().nanos() != 0)) {
    check.duration(field + ".timeout", route.timeout());
  }
  if (route.has_retries()) check_retries(check, field + ".retries", route.retries());
  if (route.has_redirect()) check_redirect(check, field + ".redirect", route);
  if (route.has_direct_response()) {
    check_direct_response(check, field + ".directResponse", route.direct_response());
  }
  if (route.has_rewrite()) check_rewrite(check, field + ".rewrite", route.rewrite());
  if (route.has_fault()) check_fault(check, field + ".fault", route.fault());
  check_mirrors(check, field, route);
  if (route.has_cors_policy()) check_cors(check, field + ".corsPolicy", route.cors_policy());
}

}  // namespace meltemi::config
