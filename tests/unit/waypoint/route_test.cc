#include "waypoint/route/table.h"

#include <gtest/gtest.h>

#include "envoy/config/route/v3/route.pb.h"
#include "protos.h"

namespace meltemi::waypoint {
namespace {

using Proto = envoy::config::route::v3::RouteConfiguration;

std::shared_ptr<const RouteTable> table(const std::string& json) {
  auto t = RouteTable::compile(from_json<Proto>(json));
  EXPECT_TRUE(t) << t.error().detail;
  return t ? *t : nullptr;
}
std::string refusal(const std::string& json) {
  auto t = RouteTable::compile(from_json<Proto>(json));
  return t ? "accepted" : t.error().detail;
}
// One virtual host "*" with these routes.
std::string routes(const std::string& list) {
  return R"({"virtual_hosts":[{"name":"v","domains":["*"],"routes":[)" + list + "]}]}";
}
std::string route_to(const std::string& match, const std::string& name) {
  return R"({"name":")" + name + R"(","match":)" + match + R"(,"route":{"cluster":"c"}})";
}

struct Request {
  Request(std::string_view target, std::initializer_list<std::pair<const char*, const char*>> h = {},
          std::string_view method = "GET", std::string_view host = "shop", uint16_t port = 0) {
    for (const auto& [n, v] : h) fields.add(n, v);
    normal = *normalise_target(target, {}, arena);
    view.method = method;
    view.scheme = "http";
    view.authority = view.host = host;
    view.port = port;
    view.path = normal.path;
    view.query = normal.query;
    view.fields = &fields;
  }
  std::string on(const RouteTable& t) {
    const Route* r = t.find(view, arena);
    return r ? r->name : "none";
  }
  Arena arena;
  Fields fields;
  Target normal;
  RequestView view;
};

TEST(RouteMatch, PathKinds) {
  const auto t = table(routes(route_to(R"({"path":"/exact"})", "exact") + "," +
                              route_to(R"({"path_separated_prefix":"/seg"})", "segment") + "," +
                              route_to(R"({"safe_regex":{"regex":"/v[0-9]+/.*"}})", "regex") + "," +
                              route_to(R"({"path":"/CASE","case_sensitive":false})", "case") + "," +
                              route_to(R"({"prefix":"/pre"})", "prefix")));
  EXPECT_EQ(Request("/exact").on(*t), "exact");
  EXPECT_EQ(Request("/exact?x=1").on(*t), "exact");
  EXPECT_EQ(Request("/exact/").on(*t), "none");
  EXPECT_EQ(Request("/seg").on(*t), "segment");
  EXPECT_EQ(Request("/seg/a").on(*t), "segment");
  EXPECT_EQ(Request("/segment").on(*t), "none");
  EXPECT_EQ(Request("/v12/x").on(*t), "regex");
  EXPECT_EQ(Request("/x/v12/x").on(*t), "none") << "the whole path must match";
  EXPECT_EQ(Request("/case").on(*t), "case");
  EXPECT_EQ(Request("/prefix").on(*t), "prefix");
  EXPECT_EQ(Request("/a/../pre").on(*t), "prefix") << "matched after normalisation";
}

TEST(RouteMatch, FirstMatchWins) {
  const auto t = table(routes(route_to(R"({"prefix":"/"})", "first") + "," +
                              route_to(R"({"path":"/a"})", "second")));
  EXPECT_EQ(Request("/a").on(*t), "first");
}

TEST(RouteMatch, HeaderTruthTable) {
  const auto match = [](const std::string& matcher, Request request) {
    const auto t = table(routes(route_to(R"({"prefix":"/","headers":[)" + matcher + "]}", "yes")));
    return request.on(*t) == "yes";
  };
  const std::string exact = R"({"name":"X-Dark-Launch","string_match":{"exact":"v2"}})";
  EXPECT_TRUE(match(exact, Request("/", {{"x-dark-launch", "v2"}})));
  EXPECT_FALSE(match(exact, Request("/", {{"x-dark-launch", "v1"}})));
  EXPECT_FALSE(match(exact, Request("/")));
  EXPECT_FALSE(match(exact, Request("/", {{"x-dark-launch", "v2"}, {"X-Dark-Launch", "v3"}})))
      << "a repeated field is its values joined";
  const std::string not_exact =
      R"({"name":"x","string_match":{"exact":"v"},"invert_match":true})";
  EXPECT_TRUE(match(not_exact, Request("/")));
  EXPECT_FALSE(match(not_exact, Request("/", {{"x", "v"}})));
  const std::string present = R"({"name":"x","present_match":true})";
  EXPECT_TRUE(match(present, Request("/", {{"x", ""}})));
  EXPECT_FALSE(match(present, Request("/")));
  const std::string absent = R"({"name":"x","present_match":true,"invert_match":true})";
  EXPECT_TRUE(match(absent, Request("/")));
  const std::string range = R"({"name":"x","range_match":{"start":"1","end":"10"}})";
  EXPECT_TRUE(match(range, Request("/", {{"x", "9"}})));
  EXPECT_FALSE(match(range, Request("/", {{"x", "10"}})));
  EXPECT_FALSE(match(range, Request("/", {{"x", "9x"}})));
  EXPECT_TRUE(match(R"({"name":":method","string_match":{"exact":"POST"}})",
                    Request("/", {}, "POST")));
  EXPECT_TRUE(match(R"({"name":":authority","string_match":{"exact":"shop:8080"}})",
                    Request("/", {}, "GET", "shop", 8080)));
  EXPECT_TRUE(match(R"({"name":":authority","string_match":{"exact":"shop"}})",
                    Request("/", {}, "GET", "shop", 8080)));
  EXPECT_FALSE(match(R"({"name":":authority","string_match":{"prefix":"shop."}})", Request("/")));
  EXPECT_TRUE(match(R"({"name":"x","string_match":{"safe_regex":{"regex":"a+"}}})",
                    Request("/", {{"x", "aaa"}})));
  EXPECT_TRUE(match(R"({"name":"x","string_match":{"contains":"MID","ignore_case":true}})",
                    Request("/", {{"x", "aMida"}})));
}

TEST(RouteMatch, QueryParameters) {
  const auto t = table(routes(
      route_to(R"({"prefix":"/","query_parameters":[{"name":"v","string_match":{"exact":"a b"}}]})",
               "yes")));
  EXPECT_EQ(Request("/?v=a%20b").on(*t), "yes");
  EXPECT_EQ(Request("/?x=1&v=a%20b&v=c").on(*t), "yes");
  EXPECT_EQ(Request("/?v=c&v=a%20b").on(*t), "none") << "the first one decides";
  EXPECT_EQ(Request("/?vv=a%20b").on(*t), "none");
  EXPECT_EQ(Request("/").on(*t), "none");
}

TEST(RouteHosts, BestDomainWins) {
  const auto host = [](const char* domain, const char* name) {
    return std::string(R"({"name":"n","domains":[")") + domain + R"("],"routes":[)" +
           route_to(R"({"prefix":"/"})", name) + "]}";
  };
  const auto t = table(R"({"virtual_hosts":[)" + host("*", "any") + "," + host("*.example", "suffix") +
                       "," + host("*.shop.example", "longer") + "," + host("api.*", "prefix") + "," +
                       host("www.shop.example", "exact") + "," + host("ported:81", "ported") + "]}");
  const auto on = [&](std::string_view h, uint16_t port = 0) {
    return Request("/", {}, "GET", h, port).on(*t);
  };
  EXPECT_EQ(on("www.shop.example"), "exact");
  EXPECT_EQ(on("www.shop.example", 8080), "exact");
  EXPECT_EQ(on("a.shop.example"), "longer");
  EXPECT_EQ(on("b.example"), "suffix");
  EXPECT_EQ(on("api.test"), "prefix");
  EXPECT_EQ(on("ported", 81), "ported");
  EXPECT_EQ(on("ported", 82), "any");
  EXPECT_EQ(on(".example"), "any") << "'*' stands for at least one character";
}

TEST(RouteAction, WeightsAreKept) {
  const auto t = table(routes(R"({"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[
    {"name":"a","weight":90},{"name":"off","weight":0},{"name":"b","weight":10}]}}})"));
  Request request("/");
  const auto& action = std::get<ForwardAction>(t->find(request.view, request.arena)->action);
  model::Random random{7};
  std::map<std::string, int> count;
  for (int i = 0; i < 100'000; ++i) ++count[action.choose(random.next()).cluster.str()];
  EXPECT_NEAR(count["a"], 90'000, 1000);
  EXPECT_NEAR(count["b"], 10'000, 1000);
  EXPECT_EQ(count.count("off"), 0u);
}

std::string rewritten(const std::string& route, std::string_view target) {
  const auto t = table(routes(route));
  Request request(target);
  const Route* r = t->find(request.view, request.arena);
  if (!r) return "none";
  return std::string(rewritten_target(std::get<ForwardAction>(r->action), r->path, request.normal,
                                      request.arena));
}

TEST(RouteMatch, WhatOnlyProxiesMaySayMatchesFromProxiesAlone) {
  const auto t = table(
      routes(route_to(R"({"prefix":"/","headers":[{"name":"x-forwarded-proto",
                          "string_match":{"exact":"https"}}]})", "secure") + "," +
             route_to(R"({"prefix":"/","headers":[{"name":"X-Envoy-Internal",
                          "present_match":true}]})", "internal") + "," +
             route_to(R"({"prefix":"/"})", "default")));
  Request request("/", {{"X-Forwarded-Proto", "https"}, {"x-envoy-internal", "true"}});
  EXPECT_EQ(request.on(*t), "default");
  request.view.believed = true;
  EXPECT_EQ(request.on(*t), "secure");
}

TEST(RouteAction, TheAsteriskIsNeverRewritten) {
  const auto t = table(routes(R"({"name":"r","match":{"prefix":"/"},
                                  "route":{"cluster":"a","prefix_rewrite":"/new/"}})"));
  Request request("/");
  const Route* r = t->find(request.view, request.arena);
  const Target all = *normalise_target("*", {}, request.arena);
  EXPECT_EQ(rewritten_target(std::get<ForwardAction>(r->action), r->path, all, request.arena), "*");
}

TEST(RouteAction, AGrpcTimeoutOfEightDigitsIsALongOne) {
  for (const char* text : {"99999999H", "99999999M", "99999999S"}) {
    const auto timeout = parse_grpc_timeout(text);
    ASSERT_TRUE(timeout) << text;
    EXPECT_GE(*timeout, std::chrono::hours(24 * 365)) << text;
  }
  EXPECT_EQ(*parse_grpc_timeout("99999999m"), std::chrono::milliseconds(99999999));
}

TEST(RouteAction, AnIdleTimeoutOfNothingMeansNone) {
  const auto idle = [](const std::string& extra) {
    const auto t = table(routes(R"({"name":"r","match":{"prefix":"/"},"route":{"cluster":"a")" +
                                extra + "}}"));
    Request request("/");
    return std::get<ForwardAction>(t->find(request.view, request.arena)->action).idle_timeout;
  };
  EXPECT_EQ(idle(""), std::nullopt) << "the listener's holds";
  EXPECT_EQ(idle(R"(,"idle_timeout":"0s")"), Duration::zero());
  EXPECT_EQ(idle(R"(,"idle_timeout":"3s")"), std::chrono::seconds(3));
}

TEST(RouteAction, Rewrites) {
  const auto prefix = [](const char* match, const char* to) {
    return std::string(R"({"match":{)") + match + R"(},"route":{"cluster":"c","prefix_rewrite":")" +
           to + R"("}})";
  };
  EXPECT_EQ(rewritten(prefix(R"("prefix":"/api/")", "/"), "/api/x?q=1"), "/x?q=1");
  EXPECT_EQ(rewritten(prefix(R"("prefix":"/api")", "/"), "/api/x"), "/x");
  EXPECT_EQ(rewritten(prefix(R"("path_separated_prefix":"/api")", "/v2"), "/api"), "/v2");
  EXPECT_EQ(rewritten(prefix(R"("path_separated_prefix":"/api")", "/v2"), "/api/a"), "/v2/a");
  EXPECT_EQ(rewritten(prefix(R"("path":"/a")", "/b"), "/a?"), "/b?");
  EXPECT_EQ(rewritten(prefix(R"("safe_regex":{"regex":"/x.*"})", "/y"), "/xyz"), "/y");
  EXPECT_EQ(rewritten(R"({"match":{"prefix":"/"},"route":{"cluster":"c","regex_rewrite":{
    "pattern":{"regex":"^/service/([^/]+)(/.*)$"},"substitution":"\\2/instance/\\1"}}})",
                      "/service/foo/v1?q"),
            "/v1/instance/foo?q");
}

std::string location(const std::string& redirect, std::string_view target, uint16_t port = 0) {
  const auto t = table(routes(R"({"match":{"prefix":"/old"},"redirect":)" + redirect + "}"));
  Request request(target, {}, "GET", "shop", port);
  const Route* r = t->find(request.view, request.arena);
  return std::string(redirect_location(std::get<RedirectAction>(r->action), r->path, request.view,
                                       request.normal, request.arena));
}

TEST(RouteAction, Redirects) {
  EXPECT_EQ(location(R"({"https_redirect":true})", "/old?q=1", 8080), "https://shop/old?q=1");
  EXPECT_EQ(location(R"({"host_redirect":"new.example"})", "/old"), "http://new.example/old");
  EXPECT_EQ(location(R"({"port_redirect":81})", "/old"), "http://shop:81/old");
  EXPECT_EQ(location(R"({"path_redirect":"/new"})", "/old?q", 81), "http://shop:81/new?q");
  EXPECT_EQ(location(R"({"path_redirect":"/new?a=b"})", "/old?q"), "http://shop/new?a=b");
  EXPECT_EQ(location(R"({"prefix_rewrite":"/new","strip_query":true})", "/old/x?q"),
            "http://shop/new/x");
}

TEST(RouteAction, Timeouts) {
  ForwardAction action;
  Fields fields;
  EXPECT_EQ(effective_timeout(action, fields, false), ForwardAction::kDefaultTimeout);
  action.timeout = Duration::zero();
  EXPECT_EQ(effective_timeout(action, fields, false), Duration::zero());
  action.max_stream_duration = std::chrono::seconds(3);
  EXPECT_EQ(effective_timeout(action, fields, false), std::chrono::seconds(3));
  fields.add("grpc-timeout", "100m");
  EXPECT_EQ(effective_timeout(action, fields, true), std::chrono::seconds(3));
  action.grpc_timeout_max = Duration::zero();
  EXPECT_EQ(effective_timeout(action, fields, true), std::chrono::milliseconds(100));
  action.grpc_timeout_max = std::chrono::milliseconds(50);
  EXPECT_EQ(effective_timeout(action, fields, true), std::chrono::milliseconds(50));
  EXPECT_EQ(effective_timeout(action, Fields(), true), std::chrono::milliseconds(50));
  action.grpc_timeout_max = Duration::zero();
  action.timeout = std::chrono::seconds(1);
  action.max_stream_duration = Duration::zero();
  EXPECT_EQ(effective_timeout(action, Fields(), true), Duration::zero())
      << "without a deadline of its own a call has none, as in Envoy";
  EXPECT_EQ(effective_timeout(action, fields, false), std::chrono::seconds(1));
  EXPECT_FALSE(parse_grpc_timeout("123456789S"));
  EXPECT_FALSE(parse_grpc_timeout("S"));
  EXPECT_FALSE(parse_grpc_timeout("-1S"));
  EXPECT_EQ(*parse_grpc_timeout("2H"), std::chrono::hours(2));
}

TEST(RouteCompile, MaxGrpcTimeoutIsHowLongACallMayAskFor) {
  const auto most = [](const std::string& field) {
    const auto t = table(routes(R"({"match":{"prefix":"/"},"route":{"cluster":"c")" + field + "}}"));
    Request request("/");
    return std::get<ForwardAction>(t->find(request.view, request.arena)->action).grpc_timeout_max;
  };
  EXPECT_EQ(most(""), std::nullopt);
  EXPECT_EQ(most(R"(,"max_grpc_timeout":"0s")"), Duration::zero());
  EXPECT_EQ(most(R"(,"max_grpc_timeout":"7s")"), std::chrono::seconds(7));
}

TEST(RouteCompile, RefusesWithThePlace) {
  EXPECT_EQ(refusal(routes(R"({"match":{"prefix":"/"}})")),
            "virtual_hosts[0].routes[0]: one of route, redirect and direct_response must be set");
  EXPECT_EQ(refusal(routes(R"({"match":{},"route":{"cluster":"c"}})")),
            "virtual_hosts[0].routes[0]: match: one of prefix, path, safe_regex and "
            "path_separated_prefix must be set");
  for (const char* bad : {
           R"({"match":{"safe_regex":{"regex":"("}},"route":{"cluster":"c"}})",
           R"({"match":{"prefix":"/"},"route":{}})",
           R"({"match":{"prefix":"/"},"route":{"weighted_clusters":{"clusters":[{"name":"a"}]}}})",
           R"({"match":{"prefix":"/"},"direct_response":{"status":42}})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c","timeout":"-1s"}})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c","host_rewrite_literal":"a b"}})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c","prefix_rewrite":"/a b"}})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c","regex_rewrite":{"pattern":{"regex":"a"},"substitution":"\\3"}}})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c","retry_policy":{"retry_on":"whenever"}}})",
           R"({"match":{"prefix":"/","headers":[{"name":":foo","present_match":true}]},"route":{"cluster":"c"}})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c"},"request_headers_to_add":[{"header":{"key":"x","value":"%REQ(y)%"}}]})",
           R"({"match":{"prefix":"/"},"route":{"cluster":"c","upgrade_configs":[{"upgrade_type":"foo"}]}})",
           R"({"match":{"path_separated_prefix":"/a/"},"route":{"cluster":"c"}})"}) {
    EXPECT_TRUE(refusal(routes(bad)).starts_with("virtual_hosts[0].routes[0]: ")) << bad;
  }
  EXPECT_EQ(refusal(R"({"virtual_hosts":[{"name":"v","domains":["a"]},{"name":"w","domains":["A"]}]})"),
            "virtual_hosts[1]: domains: \"A\" is in two virtual hosts");
}

TEST(RouteCompile, AuthorityInHeadersIsARewrite) {
  const auto t = table(routes(R"({"match":{"prefix":"/"},"route":{"cluster":"c"},
    "request_headers_to_add":[{"header":{"key":":authority","value":"other"},"append":false},
                              {"header":{"key":"x","value":"1"}}]})"));
  Request request("/");
  const Route* r = t->find(request.view, request.arena);
  EXPECT_EQ(std::get<ForwardAction>(r->action).host_rewrite, "other");
  ASSERT_EQ(r->request.change.size(), 1u);
  EXPECT_EQ(r->request.change[0].name, "x");
}

}  // namespace
}  // namespace meltemi::waypoint
