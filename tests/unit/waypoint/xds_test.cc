#include "waypoint/xds/store.h"

#include <gtest/gtest.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"
#include "protos.h"
#include "waypoint/app/static_config.h"
#include "waypoint/xds/refusals.h"
#include "waypoint/xds/strict.h"

namespace meltemi::waypoint {
namespace {

using ListenerProto = envoy::config::listener::v3::Listener;
using RouteProto = envoy::config::route::v3::RouteConfiguration;
using ClusterProto = envoy::config::cluster::v3::Cluster;
using Assignment = envoy::config::endpoint::v3::ClusterLoadAssignment;

std::string hcm(const std::string& extra, const std::string& filters = "") {
  return R"({"name":"envoy.filters.network.http_connection_manager","typed_config":{
    "@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "stat_prefix":"s",)" +
         extra + R"(,"http_filters":[)" + filters +
         R"({"name":"envoy.filters.http.router","typed_config":{
    "@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}})";
}
const std::string kRds = R"("rds":{"config_source":{"ads":{}},"route_config_name":"r"})";
const std::string kTcp = R"({"name":"envoy.filters.network.tcp_proxy","typed_config":{
  "@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
  "stat_prefix":"s","cluster":"c"}})";

std::string virtual_listener(const std::string& chains) {
  return R"({"name":"l","bind_to_port":false,
    "address":{"socket_address":{"address":"10.96.0.1","port_value":80}},
    "additional_addresses":[{"address":{"socket_address":{"address":"fd00::1","port_value":80}}}],)" +
         chains + "}";
}
std::string one_chain(const std::string& filters) {
  return R"("filter_chains":[{"filters":[)" + filters + "]}]";
}

template <typename Proto>
Status put(ConfigStore& store, XdsType type, const std::string& name, const std::string& json) {
  return store.put(type, name, from_json<Proto>(json).SerializeAsString());
}

std::string refusal(const std::string& listener_json) {
  ConfigStore store;
  const Status ok = put<ListenerProto>(store, XdsType::kListener, "l", listener_json);
  return ok ? "accepted" : ok.error().detail;
}

TEST(RefusalsTest, AWaypointThatRefusedEverythingSaysSo) {
  Refusals refusals;
  EXPECT_EQ(refusals.nothing_accepted(), "");
  refusals.note(XdsType::kCluster, "c", "filters is not supported");
  refusals.note(XdsType::kCluster, "d", "filters is not supported");
  EXPECT_EQ(refusals.nothing_accepted(),
            "all 2 of type.googleapis.com/envoy.config.cluster.v3.Cluster were refused, first c: "
            "filters is not supported");
  refusals.note(XdsType::kCluster, "d", "");
  EXPECT_EQ(refusals.nothing_accepted(), "") << "one is enough to have something to do";
  refusals.note(XdsType::kCluster, "d", "a worse version");
  EXPECT_EQ(refusals.nothing_accepted(), "") << "the last good one is in force";
  refusals.forget(XdsType::kCluster, "d");
  EXPECT_NE(refusals.nothing_accepted(), "");
  refusals.forget(XdsType::kCluster, "c");
  EXPECT_EQ(refusals.nothing_accepted(), "") << "an empty configuration is one";
  refusals.note(XdsType::kRoute, "r", "bad");
  EXPECT_EQ(refusals.nothing_accepted(), "") << "routes come after what names them";
}

TEST(ConfigStoreTest, LinksAndFindsVirtualListeners) {
  ConfigStore store;
  ASSERT_TRUE(put<ListenerProto>(store, XdsType::kListener, "l", virtual_listener(one_chain(hcm(kRds)))));
  ASSERT_TRUE(put<ClusterProto>(store, XdsType::kCluster, "c", R"({"name":"c","type":"EDS"})"));
  EXPECT_EQ(store.wanted_routes(), std::set<std::string>{"r"});
  EXPECT_EQ(store.wanted_endpoints(), std::set<std::string>{"c"});
  EXPECT_EQ(store.missing().size(), 2u);
  ASSERT_TRUE(put<RouteProto>(store, XdsType::kRoute, "r",
                              R"({"name":"r","virtual_hosts":[{"name":"v","domains":["*"],
      "routes":[{"match":{"prefix":"/"},"route":{"cluster":"c"}}]}]})"));
  ASSERT_TRUE(put<Assignment>(store, XdsType::kEndpoints, "c", R"({"cluster_name":"c"})"));
  EXPECT_TRUE(store.missing().empty());

  const SnapshotPtr s = store.build();
  for (const char* authority : {"10.96.0.1:80", "[fd00::1]:80"}) {
    const ListenerPtr* l = s->find_virtual(*SocketAddress::parse(authority));
    ASSERT_TRUE(l) << authority;
    EXPECT_TRUE((*l)->chain_for(Detected::kHttp1)->http()->routes);
  }
  EXPECT_FALSE(s->find_virtual(*SocketAddress::parse("10.96.0.1:81")));
  EXPECT_FALSE(s->find_virtual(*SocketAddress::parse("10.96.0.2:80")));
  ASSERT_TRUE(s->find_cluster(model::Symbol("c")));
  EXPECT_TRUE(s->find_cluster(model::Symbol("c"))->endpoints);

  store.remove(XdsType::kListener, "l");
  EXPECT_FALSE(store.build()->find_virtual(*SocketAddress::parse("10.96.0.1:80")));
  EXPECT_TRUE(s->find_virtual(*SocketAddress::parse("10.96.0.1:80"))) << "old snapshots stay whole";
}

TEST(ConfigStoreTest, PortZeroIsEveryPort) {
  ConfigStore store;
  ASSERT_TRUE(put<ListenerProto>(store, XdsType::kListener, "l",
                                 R"({"name":"l","bind_to_port":false,"address":{"socket_address":{
      "address":"10.0.0.5","port_value":0}},)" + one_chain(kTcp) + "}"));
  const SnapshotPtr s = store.build();
  EXPECT_TRUE(s->find_virtual(*SocketAddress::parse("10.0.0.5:8080")));
  EXPECT_TRUE(s->find_virtual(*SocketAddress::parse("10.0.0.5:1")));
}

TEST(ConfigStoreTest, ABadResourceLeavesTheLastGoodOne) {
  ConfigStore store;
  ASSERT_TRUE(put<ClusterProto>(store, XdsType::kCluster, "c", R"({"name":"c","type":"EDS"})"));
  EXPECT_FALSE(put<ClusterProto>(store, XdsType::kCluster, "c", R"({"name":"c","type":"STRICT_DNS"})"));
  EXPECT_FALSE(store.put(XdsType::kCluster, "c", "\xff\xff\xff"));
  EXPECT_EQ(store.build()->clusters.size(), 1u);
}

TEST(ConfigStoreTest, WhatLeavesIsServedUntilItIsGoneOrItsAddressIsTakenOver) {
  ConfigStore store;
  const SocketAddress at = *SocketAddress::parse("10.96.0.1:80");
  ASSERT_TRUE(put<ListenerProto>(store, XdsType::kListener, "old", virtual_listener(one_chain(kTcp))));
  store.leave(XdsType::kListener, "old");
  SnapshotPtr snapshot = store.build();
  ASSERT_TRUE(snapshot->find_virtual(at));
  EXPECT_TRUE((*snapshot->find_virtual(at))->leaving);

  // By name "old" is the first of the two.
  ASSERT_TRUE(put<ListenerProto>(store, XdsType::kListener, "successor",
                                 virtual_listener(one_chain(kTcp))));
  EXPECT_FALSE((*store.build()->find_virtual(at))->leaving);

  store.remove(XdsType::kListener, "successor");
  ASSERT_TRUE(put<ListenerProto>(store, XdsType::kListener, "old", virtual_listener(one_chain(kTcp))));
  EXPECT_FALSE((*store.build()->find_virtual(at))->leaving) << "it came back";

  store.leave(XdsType::kListener, "old");
  store.remove(XdsType::kListener, "old");
  EXPECT_FALSE(store.build()->find_virtual(at));
}

TEST(ListenerTest, ChoosesChainsByProtocol) {
  ConfigStore store;
  ASSERT_TRUE(put<ListenerProto>(
      store, XdsType::kListener, "l",
      virtual_listener(R"("filter_chains":[{"filter_chain_match":{"application_protocols":["http/1.1","h2c"]},
        "filters":[)" + hcm(kRds) + R"(]}],"default_filter_chain":{"filters":[)" + kTcp + "]}")));
  const ListenerPtr l = store.build()->virtual_listeners.begin()->second;
  EXPECT_TRUE(l->needs_detection());
  EXPECT_TRUE(l->chain_for(Detected::kHttp1)->http());
  EXPECT_TRUE(l->chain_for(Detected::kH2)->http());
  EXPECT_TRUE(l->chain_for(Detected::kOther)->tcp());
}

TEST(ListenerTest, RefusesByName) {
  EXPECT_EQ(refusal(virtual_listener(one_chain(hcm(kRds)))), "accepted");
  EXPECT_EQ(refusal(R"({"name":"l"})"), "l: address is not set");
  EXPECT_EQ(refusal(virtual_listener(one_chain(""))),
            "l: filter_chains[0]: filters: no http_connection_manager or tcp_proxy");
  EXPECT_EQ(refusal(virtual_listener(one_chain(R"({"name":"envoy.filters.network.mongo_proxy"})"))),
            "l: filter_chains[0]: filters: \"envoy.filters.network.mongo_proxy\" is not supported");
  EXPECT_EQ(refusal(virtual_listener(one_chain(hcm(kRds, R"({"name":"envoy.filters.http.lua"},)")))),
            "l: filter_chains[0]: http_filters: \"envoy.filters.http.lua\" is not supported");
  EXPECT_EQ(refusal(virtual_listener(one_chain(hcm(kRds + R"(,"normalize_path":false)")))),
            "accepted");
  EXPECT_NE(refusal(virtual_listener(one_chain(hcm(R"("codec_type":"HTTP3",)" + kRds)))), "accepted");
}

// The heart of "never ignored": a field that Envoy has and this proxy has not is refused by its name.
TEST(Strict, NamesUnsupportedFieldsAnywhere) {
  // request_mirror_policies (30) of a RouteAction, encoded by hand as a newer control plane would.
  RouteProto proto = from_json<RouteProto>(R"({"name":"r","virtual_hosts":[{"name":"v","domains":["*"],
    "routes":[{"match":{"prefix":"/"},"route":{"cluster":"c"}}]}]})");
  auto* action = proto.mutable_virtual_hosts(0)->mutable_routes(0)->mutable_route();
  action->GetReflection()->MutableUnknownFields(action)->AddLengthDelimited(30, "");
  const Status refused = check_supported(proto);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().reason, Reason::kUnsupported);
  EXPECT_EQ(refused.error().detail,
            "virtual_hosts[0].routes[0].route: "
            "envoy.config.route.v3.RouteAction.request_mirror_policies is not supported");

  // The same inside the Any of a filter.
  ListenerProto listener = from_json<ListenerProto>(virtual_listener(one_chain(hcm(kRds))));
  auto* any = listener.mutable_filter_chains(0)->mutable_filters(0)->mutable_typed_config();
  any->set_value(any->value() + std::string("\xa2\x01\x00", 3));  // field 20, empty
  ConfigStore store;
  const Status nack = store.put(XdsType::kListener, "l", listener.SerializeAsString());
  ASSERT_FALSE(nack);
  EXPECT_NE(nack.error().detail.find("HttpConnectionManager.represent_ipv4_remote_address_as_ipv4_"
                                     "mapped_ipv6 is not supported"),
            std::string::npos)
      << nack.error().detail;

  // A field number that nobody has.
  ClusterProto cluster = from_json<ClusterProto>(R"({"name":"c","type":"EDS"})");
  cluster.GetReflection()->MutableUnknownFields(&cluster)->AddVarint(4711, 1);
  EXPECT_EQ(check_supported(cluster).error().detail,
            "field 4711 of envoy.config.cluster.v3.Cluster is not supported");
  // An enum value that nobody has.
  ClusterProto enums = from_json<ClusterProto>(R"({"name":"c","type":"EDS"})");
  enums.set_lb_policy(static_cast<ClusterProto::LbPolicy>(42));
  EXPECT_EQ(check_supported(enums).error().detail,
            "lb_policy: value 42 of envoy.config.cluster.v3.Cluster.LbPolicy is not supported");
}

TEST(StaticConfig, ReadsYamlAndNamesMistakes) {
  ConfigStore store;
  const std::string good = R"(
static_resources:
  clusters:
  - name: origin
    type: STATIC
    connect_timeout: 1s
    load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}
)";
  ASSERT_TRUE(load_static_config(good, "f", store));
  EXPECT_EQ(store.build()->clusters.size(), 1u);
  const auto mistake = [](const std::string& text) {
    ConfigStore s;
    const Status ok = load_static_config(text, "f", s);
    return ok ? std::string("accepted") : ok.error().detail;
  };
  EXPECT_EQ(mistake("foo: [{}]"), "f: foo[0]: unknown section; use listeners, clusters, routes, endpoints");
  EXPECT_NE(mistake("clusters: [{name: a, tpye: EDS}]").find("tpye"), std::string::npos);
  EXPECT_TRUE(mistake("a: [").starts_with("f:1")) << mistake("a: [");
  EXPECT_NE(mistake("clusters: [{name: a, type: STRICT_DNS}]").find("STRICT_DNS"), std::string::npos);
}

TEST(ConfigDump, HasEnvoysShape) {
  ConfigStore store;
  ASSERT_TRUE(put<ClusterProto>(store, XdsType::kCluster, "c", R"({"name":"c","type":"EDS"})"));
  const std::string json = store.dump_json();
  EXPECT_NE(json.find("envoy.admin.v3.ClustersConfigDump"), std::string::npos);
  EXPECT_NE(json.find(R"({"cluster":{"@type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","name":"c")"),
            std::string::npos)
      << json;
}

}  // namespace
}  // namespace meltemi::waypoint
