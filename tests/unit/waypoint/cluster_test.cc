#include "waypoint/cluster/balancer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "protos.h"

namespace meltemi::waypoint {
namespace {

std::vector<Endpoint> endpoints(std::initializer_list<uint32_t> weights) {
  std::vector<Endpoint> out;
  uint32_t n = 0;
  for (const uint32_t w : weights) {
    Endpoint e;
    e.address = {IpAddress::v4(0x0a000001 + n++), 80};
    e.weight = w;
    out.push_back(e);
  }
  return out;
}

struct Lab {
  explicit Lab(std::vector<Endpoint> list) : all(std::move(list)), active(all.size()) {
    balancer.update(all);
  }
  int pick(LbPolicy policy, std::vector<int> avoid = {}) {
    return balancer.pick(policy, 2, active, avoid, random);
  }
  std::map<int, int> draw(LbPolicy policy, int n) {
    std::map<int, int> count;
    for (int i = 0; i < n; ++i) ++count[pick(policy)];
    return count;
  }
  std::vector<Endpoint> all;
  std::vector<uint32_t> active;
  Balancer balancer;
  model::Random random{1};
};

TEST(BalancerTest, RoundRobinTakesTurns) {
  Lab lab(endpoints({1, 1, 1}));
  auto count = lab.draw(LbPolicy::kRoundRobin, 300);
  EXPECT_EQ(count[0], 100);
  EXPECT_EQ(count[1], 100);
  EXPECT_EQ(count[2], 100);
}

TEST(BalancerTest, WeightsHoldForEveryPolicy) {
  for (const LbPolicy policy : {LbPolicy::kRoundRobin, LbPolicy::kRandom}) {
    Lab lab(endpoints({1, 3}));
    auto count = lab.draw(policy, 40'000);
    EXPECT_NEAR(count[1], 30'000, 600);
  }
  Lab spread(endpoints({1, 1, 2}));
  int same = 0, last = -1;
  for (int i = 0; i < 1000; ++i) {
    const int now = spread.pick(LbPolicy::kRoundRobin);
    same += now == last;
    last = now;
  }
  EXPECT_LT(same, 300) << "weighted turns are spread out, not in bursts";
}

TEST(BalancerTest, LeastRequestPrefersTheIdle) {
  Lab lab(endpoints({1, 1}));
  lab.active = {50, 0};
  auto count = lab.draw(LbPolicy::kLeastRequest, 1000);
  EXPECT_GT(count[1], 700);
  lab.active = {0, 0};
  count = lab.draw(LbPolicy::kLeastRequest, 10'000);
  EXPECT_NEAR(count[0], 5000, 500);
}

TEST(BalancerTest, OnlyHealthyOnes) {
  auto list = endpoints({1, 1, 1});
  list[0].health = Health::kUnhealthy;
  list[1].health = Health::kDegraded;
  Lab lab(list);
  EXPECT_EQ(lab.draw(LbPolicy::kRandom, 100)[2], 100);
  list[2].health = Health::kUnhealthy;
  EXPECT_EQ(Lab(list).draw(LbPolicy::kRandom, 100)[1], 100) << "degraded when nothing is healthy";
  list[1].health = Health::kUnhealthy;
  EXPECT_EQ(Lab(list).pick(LbPolicy::kRandom), Balancer::kNone) << "no panic mode";
  EXPECT_EQ(Lab({}).pick(LbPolicy::kRandom), Balancer::kNone);
}

TEST(BalancerTest, PrioritiesFailOver) {
  auto list = endpoints({1, 1});
  list[0].priority = 1;
  EXPECT_EQ(Lab(list).draw(LbPolicy::kRoundRobin, 10)[1], 10);
  list[1].health = Health::kUnhealthy;
  EXPECT_EQ(Lab(list).draw(LbPolicy::kRoundRobin, 10)[0], 10);
}

TEST(BalancerTest, RetriesAvoidWhatFailed) {
  Lab lab(endpoints({1, 1, 1}));
  for (int i = 0; i < 200; ++i) {
    EXPECT_EQ(lab.pick(LbPolicy::kRandom, {0, 2}), 1);
    const int any = lab.pick(LbPolicy::kRandom, {0, 1, 2});
    EXPECT_TRUE(any >= 0 && any < 3) << "all failed: one of them has to do";
  }
  // Even where the draws are nearly all bad luck.
  Lab skewed(endpoints({1'000'000, 1}));
  EXPECT_EQ(skewed.pick(LbPolicy::kRandom, {0}), 1);
}

// --- a client keeps to an endpoint -----------------------------------------------------------------

IpAddress client_of(uint32_t n) { return IpAddress::v4(0x0af40000 + n); }

TEST(BalancerTest, AClientKeepsToItsEndpointWhileOthersComeAndGo) {
  constexpr uint32_t kClients = 10'000;
  auto list = endpoints({1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  Lab lab(list);
  std::vector<IpAddress> before;
  std::map<IpAddress, int> share;
  for (uint32_t c = 0; c < kClients; ++c) {
    before.push_back(list[static_cast<size_t>(lab.balancer.pick_for(client_of(c), {}))].address.ip);
    ++share[before.back()];
  }
  for (const auto& [ip, n] : share) EXPECT_NEAR(n, kClients / 10, 150) << ip.to_string();
  ASSERT_EQ(share.size(), 10u);

  // The same ones in another order, told to another waypoint.
  std::reverse(list.begin(), list.end());
  Lab other(list);
  // One leaves for a while: only its own clients move, and they come back.
  const IpAddress left = list[3].address.ip;
  auto fewer = list;
  fewer[3].health = Health::kUnhealthy;
  Lab short_of_one(fewer);
  // One more comes: it takes its share, and nobody moves among the others.
  auto more = list;
  more.push_back(endpoints({1}).front());
  more.back().address.ip = IpAddress::v4(0x0a0000ff);
  Lab with_one_more(more);
  uint32_t moved = 0;
  for (uint32_t c = 0; c < kClients; ++c) {
    const auto at = [&](Lab& l) {
      return l.all[static_cast<size_t>(l.balancer.pick_for(client_of(c), {}))].address.ip;
    };
    EXPECT_EQ(at(other), before[c]);
    const IpAddress now = at(short_of_one);
    EXPECT_TRUE(before[c] == left ? now != left : now == before[c]);
    const IpAddress then = at(with_one_more);
    EXPECT_TRUE(then == before[c] || then == more.back().address.ip);
    moved += then != before[c];
  }
  EXPECT_NEAR(moved, kClients / 11, 150);
}

TEST(BalancerTest, AClientKeepsToAPodForAllItsPorts) {
  auto http = endpoints({1, 1, 1, 1, 1});
  auto other = http;
  for (Endpoint& e : other) e.address.port = 9090;
  const Lab a(http), b(other);
  for (uint32_t c = 0; c < 200; ++c) {
    EXPECT_EQ(a.balancer.pick_for(client_of(c), {}), b.balancer.pick_for(client_of(c), {}));
  }
}

TEST(BalancerTest, ClientsSpreadByWeightAndOverTheWaysOfOneAddress) {
  const Lab weighted(endpoints({1, 3}));
  int heavy = 0;
  for (uint32_t c = 0; c < 10'000; ++c) heavy += weighted.balancer.pick_for(client_of(c), {}) == 1;
  EXPECT_NEAR(heavy, 7500, 200);
  // Behind another waypoint all endpoints are the Service's address.
  auto ways = endpoints({1, 1});
  for (uint32_t i = 0; i < 2; ++i) {
    ways[i].address = *SocketAddress::parse("10.96.0.1:80");
    ways[i].tunnel = SocketAddress{IpAddress::v4(0x0a000001 + i), 15008};
  }
  const Lab through(ways);
  int second = 0;
  for (uint32_t c = 0; c < 10'000; ++c) second += through.balancer.pick_for(client_of(c), {}) == 1;
  EXPECT_NEAR(second, 5000, 200);
}

TEST(BalancerTest, ARetryOfAClientThatKeepsToAnEndpointGoesElsewhere) {
  const Lab lab(endpoints({1, 1, 1}));
  const int first = lab.balancer.pick_for(client_of(1), {});
  const int second = lab.balancer.pick_for(client_of(1), std::vector{first});
  EXPECT_NE(second, first);
  const int third = lab.balancer.pick_for(client_of(1), std::vector{first, second});
  EXPECT_EQ(first + second + third, 3) << "each once";
  EXPECT_EQ(lab.balancer.pick_for(client_of(1), std::vector{0, 1, 2}), first)
      << "all failed: its own has to do";
  EXPECT_EQ(Lab({}).balancer.pick_for(client_of(1), {}), Balancer::kNone);
}

using ClusterProto = envoy::config::cluster::v3::Cluster;
using Assignment = envoy::config::endpoint::v3::ClusterLoadAssignment;

TEST(EndpointSetTest, ReadsIstiosShape) {
  const auto set = EndpointSet::compile(from_json<Assignment>(R"({"cluster_name":"c","endpoints":[
    {"locality":{"region":"r","zone":"z"},"priority":1,"lb_endpoints":[
      {"endpoint":{"address":{"envoy_internal_address":{"server_listener_name":"connect_originate","endpoint_id":"10.0.0.1:8080"}}},
       "load_balancing_weight":3,
       "metadata":{"filter_metadata":{"envoy.filters.listener.original_dst":{"local":"10.0.0.1:8080"}}}},
      {"endpoint":{"address":{"socket_address":{"address":"fd00::1","port_value":81}}},"health_status":"UNHEALTHY"}]}]})"));
  ASSERT_TRUE(set) << set.error().detail;
  const auto& e = (*set)->endpoints();
  ASSERT_EQ(e.size(), 2u);
  EXPECT_EQ(e[0].address.to_string(), "10.0.0.1:8080");
  EXPECT_EQ(e[0].tunnel->to_string(), "10.0.0.1:15008");
  EXPECT_EQ(e[0].weight, 3u);
  EXPECT_EQ(e[0].priority, 1u);
  EXPECT_EQ(e[0].zone, "z");
  EXPECT_FALSE(e[1].tunnel);
  EXPECT_EQ(e[1].health, Health::kUnhealthy);
}

TEST(EndpointSetTest, TunnelMayLeadThroughAnotherWaypoint) {
  const auto set = EndpointSet::compile(from_json<Assignment>(R"({"endpoints":[{"lb_endpoints":[
    {"endpoint":{"address":{"envoy_internal_address":{"server_listener_name":"connect_originate","endpoint_id":"x"}}},
     "metadata":{"filter_metadata":{"envoy.filters.listener.original_dst":{"local":"10.96.0.1:80","waypoint":"10.0.0.7:15008"}}}}]}]})"));
  ASSERT_TRUE(set) << set.error().detail;
  EXPECT_EQ((*set)->endpoints()[0].address.to_string(), "10.96.0.1:80");
  EXPECT_EQ((*set)->endpoints()[0].tunnel->to_string(), "10.0.0.7:15008");
}

TEST(EndpointSetTest, RefusesWithThePlace) {
  for (const char* bad :
       {R"({})", R"({"endpoint":{"address":{"socket_address":{"address":"x","port_value":1}}}})",
        R"({"endpoint":{"address":{"socket_address":{"address":"1.2.3.4"}}}})",
        R"({"endpoint":{"address":{"envoy_internal_address":{"server_listener_name":"other","endpoint_id":"1.2.3.4:1"}}}})",
        R"({"endpoint":{"address":{"socket_address":{"address":"1.2.3.4","port_value":1}}},"load_balancing_weight":0})"}) {
    const auto set = EndpointSet::compile(from_json<Assignment>(
        std::string(R"({"endpoints":[{"lb_endpoints":[)") + bad + "]}]}"));
    ASSERT_FALSE(set) << bad;
    EXPECT_TRUE(set.error().detail.starts_with("endpoints[0].lb_endpoints[0]: "));
  }
}

TEST(ClusterTest, ReadsOptions) {
  const auto c = Cluster::compile(from_json<ClusterProto>(R"({"name":"c","type":"EDS",
    "lb_policy":"ROUND_ROBIN","connect_timeout":"3s",
    "circuit_breakers":{"thresholds":[{"max_requests":7,"max_retries":2}]},
    "metadata":{"filter_metadata":{"istio":{"services":[{"name":"n","namespace":"s","host":"n.s.svc"}]}}},
    "typed_extension_protocol_options":{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{
      "@type":"type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
      "explicit_http_config":{"http2_protocol_options":{}}}}})"));
  ASSERT_TRUE(c) << c.error().detail;
  EXPECT_EQ((*c)->eds_name, "c");
  EXPECT_EQ((*c)->lb, LbPolicy::kRoundRobin);
  EXPECT_EQ((*c)->connect_timeout, std::chrono::seconds(3));
  EXPECT_EQ((*c)->max_requests, 7u);
  EXPECT_EQ((*c)->max_retries, 2u);
  EXPECT_EQ((*c)->protocol, UpstreamProtocol::kHttp2);
  EXPECT_EQ((*c)->service_host, "n.s.svc");
}

TEST(ClusterTest, KeepsClientsToAnEndpointWhenTold) {
  const auto with = [](const std::string& affinity) {
    return Cluster::compile(from_json<ClusterProto>(
        R"({"name":"c","type":"EDS","metadata":{"filter_metadata":{"meltemi":{)" + affinity + "}}}}"));
  };
  EXPECT_FALSE((*with(""))->client_affinity);
  EXPECT_TRUE((*with(R"("affinity":"client_ip")"))->client_affinity);
  const auto bad = with(R"("affinity":"cookie")");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().detail, "metadata.meltemi.affinity: \"cookie\" is not client_ip");
}

TEST(ClusterTest, SpeaksHttp1UnlessToldOtherwise) {
  const auto protocol = [](const std::string& options) {
    const auto c = Cluster::compile(from_json<ClusterProto>(
        R"({"name":"c","type":"EDS","typed_extension_protocol_options":{)" +
        (options.empty() ? "" : R"("envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{"@type":
        "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",)" +
                                    options + "}") +
        "}}"));
    EXPECT_TRUE(c);
    return (*c)->protocol;
  };
  EXPECT_EQ(protocol(""), UpstreamProtocol::kHttp1);
  EXPECT_EQ(protocol(R"("common_http_protocol_options":{"idle_timeout":"5s"})"),
            UpstreamProtocol::kHttp1);
  EXPECT_EQ(protocol(R"("explicit_http_config":{"http_protocol_options":{}})"),
            UpstreamProtocol::kHttp1);
  EXPECT_EQ(protocol(R"("explicit_http_config":{"http2_protocol_options":{}})"),
            UpstreamProtocol::kHttp2);
  EXPECT_EQ(protocol(R"("use_downstream_protocol_config":{})"), UpstreamProtocol::kLikeDownstream);
}

TEST(ClusterTest, Http2OptionsAreActedOnWhereverTheyStand) {
  const auto cluster = [](const std::string& more) {
    return Cluster::compile(from_json<ClusterProto>(R"({"name":"c","type":"EDS",)" + more + "}"));
  };
  const auto extension = [](const std::string& kind, const std::string& options) {
    return R"("typed_extension_protocol_options":{)"
           R"("envoy.extensions.upstreams.http.v3.HttpProtocolOptions":{"@type":)"
           R"("type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",")" +
           kind + R"(":{"http2_protocol_options":{)" + options + "}}}}";
  };
  const std::string options = R"("max_concurrent_streams":7,"initial_stream_window_size":65536,)"
                              R"("initial_connection_window_size":131072)";
  for (const std::string& where :
       {R"("http2_protocol_options":{)" + options + "}", extension("explicit_http_config", options),
        extension("use_downstream_protocol_config", options)}) {
    const auto c = cluster(where);
    ASSERT_TRUE(c) << c.error().detail;
    EXPECT_EQ((*c)->max_streams, 7u) << where;
    EXPECT_EQ((*c)->stream_window, 65536u) << where;
    EXPECT_EQ((*c)->connection_window, 131072u) << where;
  }
  EXPECT_FALSE(cluster(extension("explicit_http_config", R"("initial_stream_window_size":1)")));
  EXPECT_FALSE(cluster(extension("explicit_http_config", R"("max_concurrent_streams":0)")));
}

TEST(ClusterTest, RefusesWhatItDoesNotDo) {
  for (const char* bad :
       {R"({"type":"EDS"})", R"({"name":"c","type":"STRICT_DNS"})",
        R"({"name":"c","type":"EDS","lb_policy":"RING_HASH"})",
        R"({"name":"c","type":"EDS","lb_policy":"CLUSTER_PROVIDED"})",
        R"({"name":"c","type":"EDS","connect_timeout":"0s"})",
        R"({"name":"c","type":"EDS","common_lb_config":{"healthy_panic_threshold":{"value":50}}})"}) {
    EXPECT_FALSE(Cluster::compile(from_json<ClusterProto>(bad))) << bad;
  }
}

}  // namespace
}  // namespace meltemi::waypoint
