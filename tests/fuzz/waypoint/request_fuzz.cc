// Targets, hosts and headers of a client, through the normaliser, the route table and the builders of
// forwarded heads. What must hold: normalising is idempotent, the path that was matched is the path
// that is forwarded, and nothing that is forwarded could end its line.
#include <cstdlib>

#include "envoy/config/route/v3/route.pb.h"
#include "google/protobuf/util/json_util.h"
#include "waypoint/http/forward.h"
#include "waypoint/proxy/detect.h"
#include "waypoint/route/table.h"

namespace {

using namespace meltemi;
using namespace meltemi::waypoint;

void require(bool holds) {
  if (!holds) abort();
}

std::shared_ptr<const RouteTable> make_table() {
  envoy::config::route::v3::RouteConfiguration proto;
  require(google::protobuf::util::JsonStringToMessage(R"json({"virtual_hosts":[
    {"name":"a","domains":["shop","*.example","api.*"],"routes":[
      {"match":{"safe_regex":{"regex":"/v[0-9]+/.*"}},"route":{"cluster":"c","regex_rewrite":{
         "pattern":{"regex":"/v([0-9]+)"},"substitution":"/x\\1"}}},
      {"match":{"path_separated_prefix":"/seg"},"route":{"cluster":"c","prefix_rewrite":"/new/"}},
      {"match":{"prefix":"/","headers":[{"name":"x","string_match":{"contains":"y"}}],
        "query_parameters":[{"name":"q","string_match":{"prefix":"1"}}]},"redirect":{"prefix_rewrite":"/r"}}]},
    {"name":"b","domains":["*"],"routes":[{"match":{"prefix":"/"},"route":{"cluster":"c"}}]}]})json",
                                                      &proto).ok());
  auto table = RouteTable::compile(proto);
  require(table.has_value());
  return *table;
}

// Up to the next newline.
std::string_view take_line(std::string_view& in) {
  const size_t end = in.find('\n');
  const std::string_view line = in.substr(0, end);
  in.remove_prefix(end == std::string_view::npos ? in.size() : end + 1);
  return line;
}

bool one_line(std::string_view text) { return text.find_first_of("\r\n") == std::string_view::npos; }

void check_target(const RouteTable& table, std::string_view raw, std::string_view authority,
                  const Fields& fields, const PathRules& rules) {
  Arena arena;
  const auto target = normalise_target(raw, rules, arena);
  const auto host = normalise_host(authority, arena);
  if (!target || !host) return;
  const auto again = normalise_target(target->full, rules, arena);
  require(again && again->full == target->full && one_line(target->full));
  require(target->full.starts_with(target->path));
  RequestView view;
  view.method = "GET";
  view.scheme = "http";
  view.authority = authority;
  view.host = host->name;
  view.port = host->port;
  view.path = target->path;
  view.query = target->query;
  view.fields = &fields;
  const Route* route = table.find(view, arena);
  if (!route) return;
  if (const auto* forward = std::get_if<ForwardAction>(&route->action)) {
    const std::string_view out = rewritten_target(*forward, route->path, *target, arena);
    require(one_line(out) && (out.starts_with('/') || out == "*"));
    if (!forward->prefix_rewrite && !forward->regex_rewrite) require(out == target->full);
  } else if (const auto* redirect = std::get_if<RedirectAction>(&route->action)) {
    require(one_line(redirect_location(*redirect, route->path, view, *target, arena)));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto table = make_table();
  std::string_view in(reinterpret_cast<const char*>(data), size);
  (void)detect_protocol({data, size});
  const std::string_view target = take_line(in);
  const std::string_view authority = take_line(in);
  Fields fields;
  while (!in.empty() && fields.size() < 64) {
    const std::string_view line = take_line(in);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view name = line.substr(0, colon), value = line.substr(colon + 1);
    if (codec::valid_header_name(name) && codec::valid_header_value(value)) fields.add(name, value);
  }
  for (const auto escaped :
       {EscapedSlashes::kReject, EscapedSlashes::kKeep, EscapedSlashes::kUnescape}) {
    for (const bool merge : {false, true}) {
      check_target(*table, target, authority, fields, {escaped, merge});
    }
  }
  RequestHead head;
  head.method = "GET";
  head.fields = &fields;
  ForwardInfo info;
  info.target = "/";
  info.authority = "a";
  info.client_ip = "10.0.0.1";
  Fields out;
  build_h1_request(head, info, out);
  require(!out.has("x-forwarded-client-cert") && out.count("host") == 1);
  std::string bytes;
  require(codec::append_request_head(bytes, "GET", "/", out).has_value());
  build_h2_request(head, info, out);
  for (const Field f : out) {
    for (const char c : f.name) require(!(c >= 'A' && c <= 'Z'));
  }
  Fields trailers;
  build_trailers(fields, true, trailers);
  return 0;
}
