#include "userspace/config/routes.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <algorithm>
#include <charconv>

#include "userspace/config/istio_defaults.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;
namespace rt = ::envoy::config::route::v3;
namespace core = ::envoy::config::core::v3;
using Strings = google::protobuf::RepeatedPtrField<std::string>;
using StringMap = google::protobuf::Map<std::string, std::string>;

constexpr std::string_view kDefaultRetryOn =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

bool bound_to_mesh(const Strings& gateways) {
  return gateways.empty() || std::find(gateways.begin(), gateways.end(), "mesh") != gateways.end();
}

// 0: no host matches, 1: a wildcard does, 2: the very host.
int host_rank(const Object& vs, std::string_view host, const MeshNames& names) {
  int rank = 0;
  for (const std::string& pattern : vs.as<kube::VirtualService>().spec().hosts()) {
    std::string full = expand_host(pattern, vs.ns(), names.cluster_domain);
    if (full == host) return 2;
    if (host_matches(full, host)) rank = 1;
  }
  return rank;
}

// --- clusters -----------------------------------------------------------------------------------

// The cluster of a destination. Asked for even when nothing is known of it: the waypoint answers
// 503 for a cluster that does not exist, and analysis says why.
std::string cluster_for(View& view, const RouteTarget& target, const Object& vs,
                        const net::Destination& destination, bool http, Outputs* out) {
  const MeshNames& names = view.names();
  ClusterRequest request;
  request.scope = waypoint_scope(target.waypoint.ns, target.waypoint.gateway);
  request.waypoint_ns = target.waypoint.ns;
  request.subset = destination.subset();
  request.http = http;
  std::string host = expand_host(destination.host(), vs.ns(), names.cluster_domain);
  std::string suffix = fmt::format(".svc.{}", names.cluster_domain);
  std::string_view rest = host;
  ObjectPtr service;
  if (rest.ends_with(suffix)) {
    rest.remove_suffix(suffix.size());
    size_t dot = rest.find('.');
    if (dot != std::string_view::npos) {
      request.service = std::string(rest.substr(0, dot));
      request.service_ns = std::string(rest.substr(dot + 1));
      service = view.object(Kind::kService, request.service_ns, request.service);
    }
  }
  request.port = destination.port().number();
  if (!service) {
    return fmt::format("outbound|{}|{}|{}", request.port ? request.port : target.port,
                       request.subset, host);
  }
  if (request.port == 0) {
    const auto& ports = service->as<kube::Service>().spec().ports();
    request.port = ports.size() == 1 ? static_cast<uint32_t>(ports[0].port()) : target.port;
  }
  request.owned = service->key() == target.service.key() && request.port == target.port;
  if (!request.owned) request.http = true;  // outbound names do not tell the protocol
  std::string name = request.name(names);
  out->want(std::move(request));
  return name;
}

std::string own_cluster(View& view, const RouteTarget& target, bool http, Outputs* out) {
  ClusterRequest request;
  request.scope = waypoint_scope(target.waypoint.ns, target.waypoint.gateway);
  request.waypoint_ns = target.waypoint.ns;
  request.service_ns = target.service.ns();
  request.service = target.service.name();
  request.port = target.port;
  request.http = http;
  std::string name = request.name(view.names());
  out->want(std::move(request));
  return name;
}

// --- matches ------------------------------------------------------------------------------------

void fill_string(const net::StringMatch& match, bool ignore_case,
                 ::envoy::type::matcher::v3::StringMatcher* out) {
  switch (match.match_type_case()) {
    case net::StringMatch::kExact:
      out->set_exact(match.exact());
      break;
    case net::StringMatch::kPrefix:
      out->set_prefix(match.prefix());
      break;
    case net::StringMatch::kRegex:
      out->mutable_safe_regex()->set_regex(match.regex());
      return;
    case net::StringMatch::MATCH_TYPE_NOT_SET:
      break;
  }
  out->set_ignore_case(ignore_case);
}

rt::HeaderMatcher* add_header(const std::string& name, const net::StringMatch& match,
                              rt::RouteMatch* out) {
  rt::HeaderMatcher* header = out->add_headers();
  header->set_name(name);
  if (match.match_type_case() == net::StringMatch::MATCH_TYPE_NOT_SET) {
    header->set_present_match(true);
  } else {
    fill_string(match, false, header->mutable_string_match());
  }
  return header;
}

template <typename Map>
std::vector<const typename Map::value_type*> sorted(const Map& map) {
  std::vector<const typename Map::value_type*> out;
  for (const auto& pair : map) out.push_back(&pair);
  std::sort(out.begin(), out.end(), [](auto* a, auto* b) { return a->first < b->first; });
  return out;
}

void fill_path(const net::HTTPMatchRequest& match, rt::RouteMatch* out) {
  const net::StringMatch& uri = match.uri();
  switch (uri.match_type_case()) {
    case net::StringMatch::kExact:
      out->set_path(uri.exact());
      break;
    case net::StringMatch::kPrefix:
      out->set_prefix(uri.prefix());
      break;
    case net::StringMatch::kRegex:
      out->mutable_safe_regex()->set_regex(uri.regex());
      break;
    case net::StringMatch::MATCH_TYPE_NOT_SET:
      out->set_prefix("/");
      break;
  }
  if (match.ignore_uri_case()) out->mutable_case_sensitive()->set_value(false);
}

void fill_match(const net::HTTPMatchRequest& match, rt::RouteMatch* out) {
  fill_path(match, out);
  if (match.has_method()) add_header(":method", match.method(), out);
  if (match.has_authority()) add_header(":authority", match.authority(), out);
  if (match.has_scheme()) add_header(":scheme", match.scheme(), out);
  for (const auto* pair : sorted(match.headers())) add_header(pair->first, pair->second, out);
  for (const auto* pair : sorted(match.without_headers())) {
    rt::HeaderMatcher* header = add_header(pair->first, pair->second, out);
    header->set_invert_match(true);
    if (!header->present_match()) header->set_treat_missing_header_as_empty(true);
  }
  for (const auto* pair : sorted(match.query_params())) {
    rt::QueryParameterMatcher* query = out->add_query_parameters();
    query->set_name(pair->first);
    if (pair->second.match_type_case() == net::StringMatch::MATCH_TYPE_NOT_SET) {
      query->set_present_match(true);
    } else {
      fill_string(pair->second, false, query->mutable_string_match());
    }
  }
}

// Whether a match can hold at this waypoint and port at all.
bool applies(const net::HTTPMatchRequest& match, const RouteTarget& target) {
  if (match.port() != 0 && match.port() != target.port) return false;
  if (!match.gateways().empty() && !bound_to_mesh(match.gateways())) return false;
  if (!match.source_labels().empty()) return false;
  return match.source_namespace().empty() || match.source_namespace() == target.waypoint.ns;
}

// --- actions ------------------------------------------------------------------------------------

template <typename List>
void add_headers(const StringMap& headers, core::HeaderValueOption::HeaderAppendAction action,
                 List* out) {
  for (const auto* pair : sorted(headers)) {
    core::HeaderValueOption* option = out->Add();
    option->mutable_header()->set_key(pair->first);
    option->mutable_header()->set_value(pair->second);
    option->set_append_action(action);
    option->set_keep_empty_value(true);
  }
}

// Route and weighted cluster have the same four lists.
template <typename T>
void fill_headers(const net::Headers& headers, T* out) {
  using Option = core::HeaderValueOption;
  add_headers(headers.request().set(), Option::OVERWRITE_IF_EXISTS_OR_ADD,
              out->mutable_request_headers_to_add());
  add_headers(headers.request().add(), Option::APPEND_IF_EXISTS_OR_ADD,
              out->mutable_request_headers_to_add());
  for (const std::string& name : headers.request().remove())
    out->add_request_headers_to_remove(name);
  add_headers(headers.response().set(), Option::OVERWRITE_IF_EXISTS_OR_ADD,
              out->mutable_response_headers_to_add());
  add_headers(headers.response().add(), Option::APPEND_IF_EXISTS_OR_ADD,
              out->mutable_response_headers_to_add());
  for (const std::string& name : headers.response().remove())
    out->add_response_headers_to_remove(name);
}

void fill_redirect(const net::HTTPRedirect& redirect, const RouteTarget& target,
                   rt::RedirectAction* out) {
  out->set_host_redirect(redirect.authority());
  if (!redirect.uri().empty()) out->set_path_redirect(redirect.uri());
  if (!redirect.prefix_rewrite().empty()) out->set_prefix_rewrite(redirect.prefix_rewrite());
  if (!redirect.scheme().empty()) out->set_scheme_redirect(redirect.scheme());
  switch (redirect.redirect_port_case()) {
    case net::HTTPRedirect::kPort:
      out->set_port_redirect(redirect.port());
      break;
    case net::HTTPRedirect::kDerivePort:
      if (redirect.derive_port() == net::HTTPRedirect::FROM_REQUEST_PORT) {
        out->set_port_redirect(target.port);
      } else if (!redirect.scheme().empty()) {
        out->set_port_redirect(redirect.scheme() == "https" ? 443 : 80);
      }
      break;
    case net::HTTPRedirect::REDIRECT_PORT_NOT_SET:
      break;
  }
  switch (redirect.redirect_code()) {
    case 302:
      out->set_response_code(rt::RedirectAction::FOUND);
      break;
    case 303:
      out->set_response_code(rt::RedirectAction::SEE_OTHER);
      break;
    case 307:
      out->set_response_code(rt::RedirectAction::TEMPORARY_REDIRECT);
      break;
    case 308:
      out->set_response_code(rt::RedirectAction::PERMANENT_REDIRECT);
      break;
    default:
      out->set_response_code(rt::RedirectAction::MOVED_PERMANENTLY);
      break;
  }
}

// Istio's `retryOn` has conditions and status codes in one list; Envoy has two fields.
void fill_retry_on(std::string_view text, rt::RetryPolicy* out) {
  std::vector<std::string_view> conditions;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view word = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    while (word.starts_with(' ')) word.remove_prefix(1);
    while (word.ends_with(' ')) word.remove_suffix(1);
    uint32_t code = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), code);
    if (error == std::errc() && end == word.data() + word.size()) {
      out->add_retriable_status_codes(code);
    } else if (!word.empty()) {
      conditions.push_back(word);
    }
  }
  constexpr std::string_view kCodes = "retriable-status-codes";
  if (out->retriable_status_codes_size() > 0 &&
      std::find(conditions.begin(), conditions.end(), kCodes) == conditions.end()) {
    conditions.push_back(kCodes);
  }
  out->set_retry_on(fmt::format("{}", fmt::join(conditions, ",")));
}

void fill_retries(const net::HTTPRetry& retries, rt::RetryPolicy* out) {
  out->mutable_num_retries()->set_value(static_cast<uint32_t>(std::max(0, retries.attempts())));
  fill_retry_on(retries.retry_on().empty() ? kDefaultRetryOn : std::string_view(retries.retry_on()),
                out);
  if (retries.has_per_try_timeout()) *out->mutable_per_try_timeout() = retries.per_try_timeout();
  if (retries.has_backoff())
    *out->mutable_retry_back_off()->mutable_base_interval() = retries.backoff();
  bool avoid =
      !retries.has_retry_ignore_previous_hosts() || retries.retry_ignore_previous_hosts().value();
  if (avoid) avoid_previous_hosts(out);
}

void fill_rewrite(const net::HTTPRewrite& rewrite, const rt::RouteMatch& match,
                  rt::RouteAction* out) {
  if (!rewrite.authority().empty()) out->set_host_rewrite_literal(rewrite.authority());
  if (rewrite.has_uri_regex_rewrite()) {
    auto* regex = out->mutable_regex_rewrite();
    regex->mutable_pattern()->set_regex(rewrite.uri_regex_rewrite().match());
    regex->set_substitution(rewrite.uri_regex_rewrite().rewrite());
  } else if (!rewrite.uri().empty()) {
    if (match.path_specifier_case() == rt::RouteMatch::kSafeRegex) {
      // No prefix was matched, so the whole path is replaced.
      auto* regex = out->mutable_regex_rewrite();
      regex->mutable_pattern()->set_regex("^[^?]*");
      std::string literal = rewrite.uri();
      RE2::GlobalReplace(&literal, R"(\\)", R"(\\\\)");
      regex->set_substitution(literal);
    } else {
      out->set_prefix_rewrite(rewrite.uri());
    }
  }
}

void fill_clusters(View& view, const RouteTarget& target, const Object& vs,
                   const net::HTTPRoute& route, rt::RouteAction* action, Outputs* out) {
  if (route.route_size() == 1 && !route.route(0).has_headers()) {
    action->set_cluster(cluster_for(view, target, vs, route.route(0).destination(), true, out));
    return;
  }
  for (const auto& destination : route.route()) {
    // A single destination without a weight takes all.
    int32_t weight = route.route_size() == 1 ? 1 : destination.weight();
    if (weight <= 0) continue;
    auto* choice = action->mutable_weighted_clusters()->add_clusters();
    choice->set_name(cluster_for(view, target, vs, destination.destination(), true, out));
    choice->mutable_weight()->set_value(static_cast<uint32_t>(weight));
    fill_headers(destination.headers(), choice);
  }
}

void fill_action(View& view, const RouteTarget& target, const Object& vs,
                 const net::HTTPRoute& route, rt::Route* out, Outputs* outputs) {
  name_config("virtual-service", vs, out->mutable_metadata());
  fill_headers(route.headers(), out);
  if (route.has_redirect()) {
    fill_redirect(route.redirect(), target, out->mutable_redirect());
    return;
  }
  if (route.has_direct_response()) {
    auto* direct = out->mutable_direct_response();
    direct->set_status(route.direct_response().status());
    const auto& body = route.direct_response().body();
    if (body.specifier_case() == net::HTTPBody::kString) {
      direct->mutable_body()->set_inline_string(body.string());
    } else if (body.specifier_case() == net::HTTPBody::kBytes) {
      direct->mutable_body()->set_inline_bytes(body.bytes());
    }
    return;
  }
  rt::RouteAction* action = out->mutable_route();
  fill_clusters(view, target, vs, route, action, outputs);
  // Envoy's 15 s are not Istio's default: no timeout.
  *action->mutable_timeout() = route.timeout();
  *action->mutable_max_grpc_timeout() = route.timeout();
  if (route.has_retries()) {
    fill_retries(route.retries(), action->mutable_retry_policy());
  } else {
    set_safe_retries(action->mutable_retry_policy());
  }
  if (route.has_rewrite()) fill_rewrite(route.rewrite(), out->match(), action);
}

// Adds the routes of one rule; true if one of them takes every request.
bool add_rule(View& view, const RouteTarget& target, const Object& vs, int index,
              rt::VirtualHost* host, Outputs* out) {
  const net::HTTPRoute& rule = vs.as<kube::VirtualService>().spec().http(index);
  std::string name =
      rule.name().empty() ? fmt::format("{}/{}/http[{}]", vs.ns(), vs.name(), index) : rule.name();
  if (rule.match().empty()) {
    rt::Route* route = host->add_routes();
    route->set_name(name);
    route->mutable_match()->set_prefix("/");
    fill_action(view, target, vs, rule, route, out);
    return true;
  }
  for (const auto& match : rule.match()) {
    if (!applies(match, target)) continue;
    rt::Route* route = host->add_routes();
    route->set_name(match.name().empty() ? name : fmt::format("{}.{}", name, match.name()));
    route->set_stat_prefix(match.stat_prefix());
    fill_match(match, route->mutable_match());
    fill_action(view, target, vs, rule, route, out);
  }
  return false;
}

bool takes_everything(const rt::RouteMatch& match) {
  if (!match.headers().empty() || !match.query_parameters().empty()) return false;
  return match.prefix() == "/" || match.safe_regex().regex() == ".*";
}

// Several objects for one host are as one: what takes everything comes after what is more specific,
// wherever it was written. The first of those is the one in force.
void catch_all_last(rt::VirtualHost* host) {
  auto& routes = *host->mutable_routes();
  const auto takes_all = [](const rt::Route& route) { return takes_everything(route.match()); };
  const auto first = std::find_if(routes.begin(), routes.end(), takes_all);
  if (first == routes.end()) return;
  rt::Route last = *first;
  routes.erase(std::remove_if(first, routes.end(), takes_all), routes.end());
  *routes.Add() = std::move(last);
}

}  // namespace

std::vector<ObjectPtr> virtual_services_for(View& view, const RouteTarget& target) {
  struct Candidate {
    int rank;
    ObjectPtr vs;
  };
  std::vector<Candidate> found;
  std::string host =
      service_host(target.service.name(), target.service.ns(), view.names().cluster_domain);
  std::set<std::string> namespaces = {target.waypoint.ns, target.service.ns()};
  for (const std::string& ns : namespaces) {
    for (const ObjectPtr& vs : view.list(Kind::kVirtualService, ns)) {
      const auto& spec = vs->as<kube::VirtualService>().spec();
      if (!bound_to_mesh(spec.gateways())) continue;
      if (!exported_to(spec.export_to(), vs->ns(), target.waypoint.ns)) continue;
      if (int rank = host_rank(*vs, host, view.names()); rank > 0) found.push_back({rank, vs});
    }
  }
  std::sort(found.begin(), found.end(), [](const Candidate& a, const Candidate& b) {
    if (a.rank != b.rank) return a.rank > b.rank;
    const auto& at = a.vs->meta().creation_timestamp();
    const auto& bt = b.vs->meta().creation_timestamp();
    if (at != bt) return at < bt;
    return std::pair(a.vs->name(), a.vs->ns()) < std::pair(b.vs->name(), b.vs->ns());
  });
  std::vector<ObjectPtr> out;
  for (Candidate& one : found) out.push_back(std::move(one.vs));
  return out;
}

void build_http_routes(View& view, const RouteTarget& target, Protocol protocol,
                       rt::RouteConfiguration* config, Outputs* out) {
  rt::VirtualHost* host = config->add_virtual_hosts();
  host->set_name(fmt::format("inbound|http|{}", target.port));
  host->add_domains("*");
  bool any = false;
  for (const ObjectPtr& vs : virtual_services_for(view, target)) {
    const auto& spec = vs->as<kube::VirtualService>().spec();
    any |= !spec.http().empty();
    for (int i = 0; i < spec.http_size(); ++i) {
      if (add_rule(view, target, *vs, i, host, out)) break;  // of this object: the next has its turn
    }
  }
  catch_all_last(host);
  if (any) return;  // requests that no rule takes get 404, as the author said which ones to take
  rt::Route* route = host->add_routes();
  route->set_name("default");
  route->mutable_match()->set_prefix("/");
  route->mutable_route()->set_cluster(own_cluster(view, target, true, out));
  route->mutable_route()->mutable_timeout();
  route->mutable_route()->mutable_max_grpc_timeout();
  set_safe_retries(route->mutable_route()->mutable_retry_policy());
}

std::vector<WeightedTcpCluster> build_tcp_route(View& view, const RouteTarget& target,
                                                Outputs* out) {
  for (const ObjectPtr& vs : virtual_services_for(view, target)) {
    for (const net::TCPRoute& route : vs->as<kube::VirtualService>().spec().tcp()) {
      bool matches = route.match().empty();
      for (const auto& match : route.match()) {
        if (match.port() != 0 && match.port() != target.port) continue;
        if (!match.gateways().empty() && !bound_to_mesh(match.gateways())) continue;
        if (!match.source_labels().empty() || !match.source_namespace().empty() ||
            !match.source_subnet().empty()) {
          continue;
        }
        matches = true;
      }
      if (!matches) continue;
      std::vector<WeightedTcpCluster> clusters;
      for (const auto& destination : route.route()) {
        int32_t weight = route.route_size() == 1 ? 1 : destination.weight();
        if (weight <= 0) continue;
        clusters.push_back({cluster_for(view, target, *vs, destination.destination(), false, out),
                            static_cast<uint32_t>(weight)});
      }
      if (!clusters.empty()) return clusters;
    }
  }
  return {{own_cluster(view, target, false, out), 1}};
}

}  // namespace meltemi::config
