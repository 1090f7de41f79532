// RouteConfiguration to RouteTable. Everything that can be wrong in a route is found here.
#include <fmt/format.h>

#include <algorithm>

#include "envoy/config/route/v3/route.pb.h"
#include "waypoint/route/table.h"
#include "waypoint/xds/convert.h"

namespace meltemi::waypoint {
namespace {

namespace pb = envoy::config::route::v3;
namespace core = envoy::config::core::v3;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}
std::unexpected<Error> unsupported(std::string detail) {
  return fail(Reason::kUnsupported, Fault::kConfig, std::move(detail));
}
std::unexpected<Error> at(std::string place, Error error) {
  error.detail = place + ": " + error.detail;
  return fail(std::move(error));
}

HeaderOp::Action action_of(const core::HeaderValueOption& option) {
  using Proto = core::HeaderValueOption;
  if (option.has_append()) {  // the older form
    return option.append().value() ? HeaderOp::Action::kAppend : HeaderOp::Action::kOverwrite;
  }
  switch (option.append_action()) {
    case Proto::ADD_IF_ABSENT: return HeaderOp::Action::kAddIfAbsent;
    case Proto::OVERWRITE_IF_EXISTS_OR_ADD: return HeaderOp::Action::kOverwrite;
    case Proto::OVERWRITE_IF_EXISTS: return HeaderOp::Action::kOverwriteIfExists;
    default: return HeaderOp::Action::kAppend;
  }
}

// `host` receives a change of :authority, which is a rewrite and no header.
Status add_changes(HeaderOps& ops, const auto& options, std::string* host) {
  for (const core::HeaderValueOption& o : options) {
    const std::string& name = o.header().key();
    std::string value = MELTEMI_TRY(literal_value(o.header().value()));
    if (host && (name == ":authority" || name_is(name, "host"))) {
      if (value.empty()) return bad("header \":authority\": empty value");
      *host = std::move(value);
      continue;
    }
    MELTEMI_TRY(check_header_change(name, value));
    if (value.empty() && !o.keep_empty_value()) continue;
    ops.change.push_back({action_of(o), name, std::move(value)});
  }
  return {};
}

Status add_removals(HeaderOps& ops, const auto& names) {
  for (const std::string& name : names) {
    MELTEMI_TRY(check_header_removal(name));
    ops.remove.push_back(name);
  }
  return {};
}

// The four header lists that configuration, virtual host, route and weighted cluster have alike.
struct OpsOf {
  HeaderOps request, response;
  std::string host;
};
Result<OpsOf> header_ops(const auto& proto) {
  OpsOf ops;
  MELTEMI_TRY(add_changes(ops.request, proto.request_headers_to_add(), &ops.host));
  MELTEMI_TRY(add_removals(ops.request, proto.request_headers_to_remove()));
  MELTEMI_TRY(add_changes(ops.response, proto.response_headers_to_add(), nullptr));
  MELTEMI_TRY(add_removals(ops.response, proto.response_headers_to_remove()));
  return ops;
}

Result<RegexRewrite> regex_rewrite(const envoy::type::matcher::v3::RegexMatchAndSubstitute& p) {
  RegexRewrite r{MELTEMI_TRY(Regex::compile(p.pattern().regex())), p.substitution()};
  MELTEMI_TRY(r.pattern.check_substitution(r.substitution));
  return r;
}

Result<PathMatch> path_match(const pb::RouteMatch& proto) {
  PathMatch m;
  switch (proto.path_specifier_case()) {
    case pb::RouteMatch::kPrefix:
      m.kind = PathMatch::Kind::kPrefix;
      m.text = proto.prefix();
      break;
    case pb::RouteMatch::kPath:
      m.kind = PathMatch::Kind::kExact;
      m.text = proto.path();
      break;
    case pb::RouteMatch::kPathSeparatedPrefix:
      m.kind = PathMatch::Kind::kSegmentPrefix;
      m.text = proto.path_separated_prefix();
      if (!m.text.starts_with('/') || m.text.ends_with('/')) {
        return bad("path_separated_prefix must start with '/' and not end with it");
      }
      break;
    case pb::RouteMatch::kSafeRegex:
      m.kind = PathMatch::Kind::kRegex;
      m.regex = MELTEMI_TRY(Regex::compile(proto.safe_regex().regex()));
      break;
    case pb::RouteMatch::PATH_SPECIFIER_NOT_SET:
      return bad("match: one of prefix, path, safe_regex and path_separated_prefix must be set");
  }
  if (proto.has_case_sensitive() && !proto.case_sensitive().value()) {
    m.ignore_case = true;
    for (char& c : m.text) c = ascii_lower(c);
    if (m.regex) m.regex = MELTEMI_TRY(Regex::compile("(?i)" + proto.safe_regex().regex()));
  }
  return m;
}

Status check_path_rewrite(std::string_view path) {
  for (const char c : path) {
    if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f || c == '#') {
      return bad(fmt::format("rewrite \"{}\": forbidden character", path));
    }
  }
  return {};
}

Status check_host(std::string_view host) {
  Arena arena;
  if (const auto h = normalise_host(host, arena); !h) {
    return bad(fmt::format("host rewrite \"{}\": {}", host, h.error().detail));
  }
  return {};
}

Result<std::vector<ClusterChoice>> cluster_choices(const pb::RouteAction& proto) {
  std::vector<ClusterChoice> out;
  if (proto.cluster_specifier_case() == pb::RouteAction::kCluster) {
    if (proto.cluster().empty()) return bad("cluster: empty name");
    out.emplace_back().cluster = model::Symbol(proto.cluster());
    out.back().up_to = 1;
    return out;
  }
  if (proto.cluster_specifier_case() != pb::RouteAction::kWeightedClusters) {
    return bad("route: one of cluster and weighted_clusters must be set");
  }
  uint64_t sum = 0;
  for (const auto& c : proto.weighted_clusters().clusters()) {
    if (c.name().empty()) return bad("weighted_clusters: empty cluster name");
    auto ops = header_ops(c);
    if (!ops) return at("weighted cluster " + c.name(), ops.error());
    sum += c.weight().value();
    if (c.weight().value() == 0) continue;  // never chosen
    ClusterChoice& choice = out.emplace_back();
    choice.cluster = model::Symbol(c.name());
    choice.up_to = sum;
    choice.request = std::move(ops->request);
    choice.response = std::move(ops->response);
    choice.host_rewrite =
        c.host_rewrite_literal().empty() ? std::move(ops->host) : c.host_rewrite_literal();
    if (!choice.host_rewrite.empty()) MELTEMI_TRY(check_host(choice.host_rewrite));
  }
  if (sum == 0) return bad("weighted_clusters: the sum of the weights is 0");
  return out;
}

Result<ForwardAction> forward_action(const pb::RouteAction& proto,
                                     const pb::VirtualHost& host) {
  ForwardAction a;
  a.clusters = MELTEMI_TRY(cluster_choices(proto));
  if (!proto.prefix_rewrite().empty()) {
    if (proto.has_regex_rewrite()) return bad("prefix_rewrite and regex_rewrite are both set");
    MELTEMI_TRY(check_path_rewrite(proto.prefix_rewrite()));
    a.prefix_rewrite = proto.prefix_rewrite();
  }
  if (proto.has_regex_rewrite()) a.regex_rewrite = MELTEMI_TRY(regex_rewrite(proto.regex_rewrite()));
  if (!proto.host_rewrite_literal().empty()) {
    MELTEMI_TRY(check_host(proto.host_rewrite_literal()));
    a.host_rewrite = proto.host_rewrite_literal();
  }
  a.append_x_forwarded_host = proto.append_x_forwarded_host();
  if (proto.has_timeout()) a.timeout = MELTEMI_TRY(duration_of(proto.timeout(), "timeout"));
  if (proto.has_idle_timeout()) {
    a.idle_timeout = MELTEMI_TRY(duration_of(proto.idle_timeout(), "idle_timeout"));
  }
  if (proto.has_max_grpc_timeout()) {
    a.grpc_timeout_max = MELTEMI_TRY(duration_of(proto.max_grpc_timeout(), "max_grpc_timeout"));
  }
  if (proto.has_max_stream_duration()) {
    const auto& d = proto.max_stream_duration();
    if (d.has_max_stream_duration()) {
      a.max_stream_duration =
          MELTEMI_TRY(duration_of(d.max_stream_duration(), "max_stream_duration"));
    }
    if (d.has_grpc_timeout_header_max()) {
      a.grpc_timeout_max =
          MELTEMI_TRY(duration_of(d.grpc_timeout_header_max(), "grpc_timeout_header_max"));
    }
  }
  if (proto.has_retry_policy()) {
    a.retry = MELTEMI_TRY(RetryPolicy::compile(proto.retry_policy()));
  } else if (host.has_retry_policy()) {
    a.retry = MELTEMI_TRY(RetryPolicy::compile(host.retry_policy()));
  }
  for (const auto& u : proto.upgrade_configs()) {
    if (!name_is(u.upgrade_type(), "websocket")) {
      return unsupported(fmt::format("upgrade \"{}\" is not supported", u.upgrade_type()));
    }
    a.websocket = !u.has_enabled() || u.enabled().value();
  }
  switch (proto.cluster_not_found_response_code()) {
    case pb::RouteAction::NOT_FOUND: a.not_found_status = 404; break;
    case pb::RouteAction::INTERNAL_SERVER_ERROR: a.not_found_status = 500; break;
    default: a.not_found_status = 503; break;
  }
  return a;
}

Result<RedirectAction> redirect_action(const pb::RedirectAction& proto) {
  RedirectAction a;
  static constexpr uint16_t kStatus[] = {301, 302, 303, 307, 308};
  a.status = kStatus[proto.response_code()];
  if (proto.https_redirect()) a.scheme = "https";
  if (!proto.scheme_redirect().empty()) {
    for (const char c : proto.scheme_redirect()) a.scheme += ascii_lower(c);
  }
  if (!proto.host_redirect().empty()) {
    MELTEMI_TRY(check_host(proto.host_redirect()));
    a.host = proto.host_redirect();
  }
  if (proto.port_redirect() > 65535) return bad("port_redirect: not in 0..65535");
  a.port = static_cast<uint16_t>(proto.port_redirect());
  switch (proto.path_rewrite_specifier_case()) {
    case pb::RedirectAction::kPathRedirect:
      MELTEMI_TRY(check_path_rewrite(proto.path_redirect()));
      a.path = proto.path_redirect();
      break;
    case pb::RedirectAction::kPrefixRewrite:
      MELTEMI_TRY(check_path_rewrite(proto.prefix_rewrite()));
      a.prefix_rewrite = proto.prefix_rewrite();
      break;
    case pb::RedirectAction::kRegexRewrite:
      a.regex_rewrite = MELTEMI_TRY(regex_rewrite(proto.regex_rewrite()));
      break;
    case pb::RedirectAction::PATH_REWRITE_SPECIFIER_NOT_SET: break;
  }
  a.strip_query = proto.strip_query();
  return a;
}

Result<DirectAction> direct_action(const pb::DirectResponseAction& proto, size_t max_body) {
  DirectAction a;
  if (proto.status() < 200 || proto.status() > 599) {
    return bad(fmt::format("direct_response: status {} is not in 200..599", proto.status()));
  }
  a.status = static_cast<uint16_t>(proto.status());
  a.body = proto.body().specifier_case() == core::DataSource::kInlineBytes
               ? proto.body().inline_bytes()
               : proto.body().inline_string();
  if (a.body.size() > max_body) {
    return bad(fmt::format("direct_response: body of {} bytes, at most {} (max_direct_response_"
                           "body_size_bytes)", a.body.size(), max_body));
  }
  return a;
}

struct Context {
  const pb::VirtualHost& host;
  const OpsOf& host_ops;
  const OpsOf& table_ops;
  size_t max_direct_body;
};

Result<Route> compile_route(const pb::Route& proto, const Context& context) {
  Route route;
  route.name = proto.name();
  route.path = MELTEMI_TRY(path_match(proto.match()));
  for (const auto& h : proto.match().headers()) {
    route.headers.push_back(MELTEMI_TRY(HeaderMatcher::compile(h)));
  }
  for (const auto& q : proto.match().query_parameters()) {
    route.query.push_back(MELTEMI_TRY(QueryMatcher::compile(q)));
  }
  OpsOf own = MELTEMI_TRY(header_ops(proto));
  for (const OpsOf* outer : {&context.host_ops, &context.table_ops}) {
    own.request.append(outer->request);
    own.response.append(outer->response);
    if (own.host.empty()) own.host = outer->host;
  }
  route.request = std::move(own.request);
  route.response = std::move(own.response);
  route.attempt_count = context.host.include_request_attempt_count();
  switch (proto.action_case()) {
    case pb::Route::kRoute: {
      ForwardAction a = MELTEMI_TRY(forward_action(proto.route(), context.host));
      if (!own.host.empty() && a.host_rewrite.empty()) {
        MELTEMI_TRY(check_host(own.host));
        a.host_rewrite = std::move(own.host);
      }
      route.action = std::move(a);
      break;
    }
    case pb::Route::kRedirect: route.action = MELTEMI_TRY(redirect_action(proto.redirect())); break;
    case pb::Route::kDirectResponse:
      route.action =
          MELTEMI_TRY(direct_action(proto.direct_response(), context.max_direct_body));
      break;
    case pb::Route::ACTION_NOT_SET:
      return bad("one of route, redirect and direct_response must be set");
  }
  return route;
}

std::string lower(std::string_view text) {
  std::string s(text);
  for (char& c : s) c = ascii_lower(c);
  return s;
}

}  // namespace

Status RouteTable::add_domain(const std::string& domain, size_t index) {
  const std::string d = lower(domain);
  if (d.empty()) return bad("domains: empty entry");
  bool fresh = true;
  if (d == "*") {
    fresh = !any_.has_value();
    any_ = index;
  } else if (d[0] == '*') {
    suffixes_.emplace_back(d.substr(1), index);
  } else if (d.back() == '*') {
    prefixes_.emplace_back(d.substr(0, d.size() - 1), index);
  } else if (d.find('*') != std::string::npos) {
    return bad(fmt::format("domains: \"{}\": '*' only at the start or the end", domain));
  } else {
    fresh = exact_.emplace(d, index).second;
  }
  if (!fresh) return bad(fmt::format("domains: \"{}\" is in two virtual hosts", domain));
  return {};
}

Result<std::shared_ptr<const RouteTable>> RouteTable::compile(
    const pb::RouteConfiguration& proto) {
  auto table = std::make_shared<RouteTable>();
  table->name_ = proto.name();
  table->ignore_port_ = proto.ignore_port_in_host_matching();
  if (proto.has_validate_clusters() && proto.validate_clusters().value()) {
    return unsupported("validate_clusters: clusters may always come later");
  }
  const size_t max_body = proto.has_max_direct_response_body_size_bytes()
                              ? proto.max_direct_response_body_size_bytes().value()
                              : kMaxDirectBody;
  const OpsOf table_ops = MELTEMI_TRY(header_ops(proto));
  for (int h = 0; h < proto.virtual_hosts_size(); ++h) {
    const pb::VirtualHost& host = proto.virtual_hosts(h);
    const std::string place = fmt::format("virtual_hosts[{}]", h);
    const auto host_ops = header_ops(host);
    if (!host_ops) return at(place, host_ops.error());
    if (host.domains_size() == 0) return bad(place + ": domains is empty");
    Routes& routes = table->hosts_.emplace_back();
    for (int r = 0; r < host.routes_size(); ++r) {
      auto route =
          compile_route(host.routes(r), Context{host, *host_ops, table_ops, max_body});
      if (!route) return at(fmt::format("{}.routes[{}]", place, r), route.error());
      routes.push_back(std::move(*route));
    }
    for (const std::string& domain : host.domains()) {
      if (const auto ok = table->add_domain(domain, table->hosts_.size() - 1); !ok) {
        return at(place, ok.error());
      }
    }
  }
  const auto longer = [](const auto& a, const auto& b) {
    return a.first.size() != b.first.size() ? a.first.size() > b.first.size() : a.second < b.second;
  };
  std::sort(table->suffixes_.begin(), table->suffixes_.end(), longer);
  std::sort(table->prefixes_.begin(), table->prefixes_.end(), longer);
  return table;
}

}  // namespace meltemi::waypoint
