// Requests that would go round between waypoints, and destinations whose waypoint is not there.
#include "waypoint/http/waypoints.h"

#include <gtest/gtest.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "protos.h"
#include "waypoint/cluster/cluster.h"
#include "waypoint/http/forward.h"

namespace meltemi::waypoint {
namespace {

namespace pb = envoy::config::cluster::v3;
namespace ep = envoy::config::endpoint::v3;

TEST(WaypointsTest, EachAddsItself) {
  EXPECT_EQ(*waypoints_for("", "shop/a", "far/b"), "shop/a");
  EXPECT_EQ(*waypoints_for("shop/a", "far/b", "far/c"), "shop/a, far/b");
  EXPECT_EQ(*waypoints_for(" shop/a ,,far/b", "far/c", "x/y"), "shop/a, far/b, far/c");
}

TEST(WaypointsTest, NeverToItselfNorBackNorRound) {
  const auto reason = [](std::string_view passed, std::string_view own, std::string_view next) {
    const auto way = waypoints_for(passed, own, next);
    return way ? Reason::kOk : way.error().reason;
  };
  EXPECT_EQ(reason("", "shop/a", "shop/a"), Reason::kSelfCall);
  EXPECT_EQ(reason("far/b", "shop/a", "far/b"), Reason::kSelfCall);
  EXPECT_EQ(reason("x/y, far/b, z/z", "shop/a", "x/y"), Reason::kSelfCall);
  EXPECT_EQ(reason("shop/a, far/b", "shop/a", "x/y"), Reason::kSelfCall) << "here again";
  EXPECT_EQ(reason("shop/ab", "shop/a", "shop/abc"), Reason::kOk) << "names, not prefixes";
}

TEST(WaypointsTest, AWayHasALimit) {
  std::string passed;
  for (size_t i = 1; i < kMaxWaypoints; ++i) passed += "n/w" + std::to_string(i) + ",";
  EXPECT_TRUE(waypoints_for(passed, "shop/a", "far/b"));
  const auto way = waypoints_for(passed + "n/more", "shop/a", "far/b");
  ASSERT_FALSE(way);
  EXPECT_EQ(way.error().reason, Reason::kLimitExceeded);
}

TEST(WaypointsTest, TheHeaderGoesToWaypointsOnlyAndIsNeverAClients) {
  Fields fields;
  fields.add("host", "a");
  fields.add("X-Meltemi-Waypoints", "forged/one");
  fields.add("x-meltemi-other", "forged too");
  RequestHead head;
  head.method = "GET";
  head.target = "/";
  head.fields = &fields;
  ForwardInfo info;
  info.target = "/";
  info.authority = "a";
  for (const bool to_waypoint : {false, true}) {
    info.waypoints = to_waypoint ? "shop/a" : "";
    Fields h1, h2;
    build_h1_request(head, info, h1);
    build_h2_request(head, info, h2);
    EXPECT_EQ(h1.joined(kWaypointsHeader), info.waypoints);
    EXPECT_EQ(h2.joined(kWaypointsHeader), info.waypoints);
    EXPECT_FALSE(h1.has("x-meltemi-other"));
  }
}

ep::ClusterLoadAssignment through(const std::string& waypoint) {
  return from_json<ep::ClusterLoadAssignment>(R"({"endpoints": [{"lb_endpoints": [{
    "endpoint": {"address": {"envoy_internal_address": {"server_listener_name": "connect_originate",
                                                        "endpoint_id": "10.96.0.2:80"}}},
    "metadata": {"filter_metadata": {
      "envoy.filters.listener.original_dst": {"local": "10.96.0.2:80", "waypoint": ")" +
                                              waypoint + R"("},
      "meltemi": {"waypoint": "far/b"}}}}]}]})");
}

TEST(WaypointsTest, EndpointsBehindAWaypoint) {
  const auto set = EndpointSet::compile(through("10.1.0.2:15008"));
  ASSERT_TRUE(set);
  const Endpoint& e = (*set)->endpoints()[0];
  EXPECT_EQ(e.address.to_string(), "10.96.0.2:80");
  EXPECT_EQ(e.tunnel->to_string(), "10.1.0.2:15008");
  EXPECT_EQ(e.waypoint.view(), "far/b");
  EXPECT_FALSE(EndpointSet::compile(through("far/b")));
}

TEST(WaypointsTest, ClustersSayWhyTheyAreClosed) {
  const auto compile = [](const std::string& own) {
    return Cluster::compile(from_json<pb::Cluster>(
        R"({"name": "c", "type": "EDS", "lb_policy": "RANDOM", "metadata": {"filter_metadata": {)"
        R"("istio": {"services": [{"host": "back.far"}]}, "meltemi": )" + own + "}}}"));
  };
  auto unready = compile(R"({"waypoint": "far/b"})");
  ASSERT_TRUE(unready);
  EXPECT_EQ((*unready)->closed, Reason::kWaypointUnready);
  EXPECT_EQ((*unready)->closed_detail, "waypoint far/b of back.far has no ready pod");
  auto refused = compile(R"({"waypoint": "far/b", "refused": "waypoint_unknown", "message": "gone"})");
  ASSERT_TRUE(refused);
  EXPECT_EQ((*refused)->closed, Reason::kWaypointUnknown);
  EXPECT_EQ((*refused)->closed_detail, "gone");
  EXPECT_FALSE(compile(R"({"waypoint": "far/b", "refused": "ok"})"));
  EXPECT_FALSE(compile(R"({"waypoint": "far/b", "refused": "no such reason"})"));
}

TEST(WaypointsTest, ClustersBringThePoliciesOfTheirService) {
  const auto compile = [](const std::string& own) {
    return Cluster::compile(from_json<pb::Cluster>(
        R"({"name": "c", "type": "EDS", "lb_policy": "RANDOM", "metadata": {"filter_metadata": )"
        R"({"meltemi": )" + own + "}}}"));
  };
  const auto c = compile(R"({"address": "10.96.0.2:81", "rbac": [{"rules": {"action": "DENY",
      "policies": {"ns[far]-policy[p]-rule[0]": {"principals": [{"any": true}],
                   "permissions": [{"destination_port": 81}]}}}}]})");
  ASSERT_TRUE(c) << c.error().to_string();
  model::PolicyInput input;
  input.destination = (*c)->service_address;
  EXPECT_EQ(authorize((*c)->rbac, input).reason, Reason::kPolicyDeny);
  input.destination.port = 80;
  EXPECT_TRUE(authorize((*c)->rbac, input).allowed);
  EXPECT_FALSE(compile(R"({"rbac": [{"rules": {"action": "DENY"}}]})")) << "no address";
  EXPECT_FALSE(compile(R"({"address": "10.96.0.2:81", "rbac": [{"rulez": {}}]})"));
  EXPECT_FALSE(compile(R"({"address": "10.96.0.2:81", "rbac": ["x"]})"));
  EXPECT_FALSE(compile(R"({"address": "10.96.0.2:81", "rbac": "x"})"));
}

}  // namespace
}  // namespace meltemi::waypoint
