// The local configuration file: everything in it arrives, everything wrong with it is named.
#include "ztunnel/local_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace meltemi::ztunnel {
namespace {

using testing::HasSubstr;

constexpr const char* kFull = R"(
workloads:
- uid: Kubernetes//Pod/shop/web
  name: web
  namespace: shop
  workloadIps: [10.0.0.1, "fd00::1"]
  protocol: HBONE
  networkMode: Standard
  trustDomain: cluster.local
  serviceAccount: web
  network: net1
  workloadName: web
  workloadType: job
  canonicalName: web
  canonicalRevision: v2
  hostname: web.example
  node: n1
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [shop/deny]
  status: Unhealthy
  clusterId: c1
  locality: {region: eu, zone: z1, subzone: s1}
  waypoint: {destination: shop/waypoint.shop.svc.cluster.local, hboneMtlsPort: 15008}
  networkGateway: {destination: net2/10.9.9.9, hboneMtlsPort: 15009}
  capacity: 7
  services: {shop/web.shop.svc.cluster.local: {80: 8080, 81: 8081}}
- {uid: b, name: b, namespace: shop, workloadIps: [10.0.0.2], services: {}}
services:
- name: web
  namespace: shop
  hostname: web.shop.svc.cluster.local
  vips: [net1/10.96.0.1, /10.96.0.2]
  cidrVips: [{network: net1, cidr: 10.97.0.0/16}]
  ports: {80: 8080, 81: 0}
  endpoints: {b: {workloadUid: b, port: {81: 9}, status: Healthy}}
  subjectAltNames: ["spiffe://cluster.local/ns/shop/sa/web", "not one"]
  waypoint: {destination: net1/10.0.0.9}
  weightedWaypoints: [{destination: {destination: a/b}, weight: 3}]
  loadBalancer: {routingPreferences: [Network, Region, Node], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
policies:
- name: deny
  namespace: shop
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - notPrincipals: [{Presence: []}]
        namespaces: [{Exact: a}, {Prefix: b}, {Suffix: c}]
        serviceAccounts: [{namespace: x, serviceAccount: y}]
        sourceIps: [10.0.0.0/8, 1.2.3.4]
        destinationPorts: [8080, 80]
)";

TEST(LocalConfig, EverythingArrives) {
  const auto batch = parse_local_config(kFull, "test.yaml");
  ASSERT_TRUE(batch.has_value()) << batch.error().detail;
  ASSERT_EQ(batch->workloads.size(), 2u);
  const model::Workload& w = *batch->workloads[0];
  EXPECT_EQ(w.identity.uri(), "spiffe://cluster.local/ns/shop/sa/web");
  EXPECT_EQ(w.addresses.size(), 2u);
  EXPECT_EQ(w.protocol, model::TunnelProtocol::kHbone);
  EXPECT_EQ(w.type, model::WorkloadType::kJob);
  EXPECT_EQ(w.network, "net1");
  EXPECT_TRUE(w.native_tunnel);
  EXPECT_FALSE(w.healthy);
  EXPECT_EQ(w.capacity, 7u);
  EXPECT_EQ(w.application_tunnel->port, 15088);
  EXPECT_EQ(w.waypoint->hostname, "shop/waypoint.shop.svc.cluster.local");
  EXPECT_EQ(w.network_gateway->address->ip, *IpAddress::parse("10.9.9.9"));
  EXPECT_EQ(w.network_gateway->hbone_port, 15009);
  ASSERT_EQ(w.services.size(), 1u);
  EXPECT_EQ(w.services[0].ports, (std::vector<model::Port>{{80, 8080}, {81, 8081}}));
  EXPECT_EQ(w.authorization_policies[0], "shop/deny");
  // An endpoint that only the service names is attached to its workload.
  ASSERT_EQ(batch->workloads[1]->services.size(), 1u);
  EXPECT_EQ(batch->workloads[1]->services[0].ports, (std::vector<model::Port>{{81, 9}}));
  const model::Service& s = *batch->services[0];
  EXPECT_EQ(s.vips.size(), 2u);
  EXPECT_EQ(s.cidr_vips[0].cidr.to_string(), "10.97.0.0/16");
  EXPECT_EQ(s.subject_alt_names.size(), 1u);
  EXPECT_EQ(s.load_balancing.preference.size(), 3u);
  EXPECT_EQ(s.load_balancing.mode, model::LbMode::kFailover);
  EXPECT_EQ(s.weighted_waypoints[0].weight, 3u);
  EXPECT_EQ(s.visibility, model::Visibility::kNamespace);
  const model::Policy& p = *batch->policies[0];
  EXPECT_TRUE(p.dry_run);
  const model::PolicyMatch& m = p.rules[0].clauses[0].matches[0];
  EXPECT_EQ(m.namespaces.size(), 3u);
  EXPECT_EQ(m.source_ips[1].to_string(), "1.2.3.4/32");
  EXPECT_EQ(m.destination_ports, (std::vector<uint16_t>{80, 8080})) << "sorted";
}

TEST(LocalConfig, EmptyIsEmpty) {
  const auto batch = parse_local_config("", "x");
  ASSERT_TRUE(batch.has_value());
  EXPECT_TRUE(batch->empty());
}

TEST(LocalConfig, ErrorsNameLineObjectAndField) {
  const std::pair<const char*, const char*> cases[] = {
      {"workload: []", "configuration: unknown field \"workload\""},
      {"workloads:\n- {uid: a, namespace: b, colour: red}", "line 2: workload: unknown field \"colour\""},
      {"workloads:\n- {namespace: b}", "workload: field uid is required"},
      {"workloads: [{uid: a, namespace: b, workloadIps: [1.2.3]}]", "\"1.2.3\" is no IP address"},
      {"workloads: [{uid: a, namespace: b, protocol: UDP}]", "unknown value \"UDP\""},
      {"workloads: [{uid: a, namespace: b, services: {x: {80: 80}}}]", "is not namespace/hostname"},
      {"workloads: [{uid: a, namespace: b, services: {x/y: {80: 70000}}}]", "no port 70000"},
      {"workloads: [{uid: a, namespace: 'b c'}]", "bad namespace"},
      {"workloads: {}", "field workloads is not a list"},
      {"services: [{name: a, namespace: b, hostname: c, vips: [10.0.0.1]}]", "is not network/ip"},
      {"services: [{name: a, namespace: b, hostname: c, endpoints: {u: {}}}]", "unknown workload \"u\""},
      {"services: [{name: a, namespace: b, hostname: c, loadBalancer: {mode: Best}}]", "unknown value \"Best\""},
      {"services: [{name: a, namespace: b, hostname: c, loadBalancer: {routingPreferences: [Galaxy]}}]", "unknown value \"Galaxy\""},
      {"policies: [{name: a, namespace: b, rules: [[[{sourceIps: [10.0.0.0/99]}]]]}]", "is no CIDR"},
      {"policies: [{name: a, namespace: b, rules: [[[{principals: [{Regex: x}]}]]]}]", "unknown string match \"Regex\""},
      {"policies: [{name: a, namespace: b, rules: [[{}]]}]", "a clause is not a list"},
      {"policies: [{name: a, namespace: b, action: Audit}]", "unknown value \"Audit\""},
      {"a: [", "line"},
      {"[1, 2]", "configuration is not a mapping"}};
  for (const auto& [yaml, want] : cases) {
    const auto r = parse_local_config(yaml, "mesh.yaml");
    ASSERT_FALSE(r.has_value()) << yaml;
    EXPECT_EQ(r.error().reason, Reason::kBadConfig);
    EXPECT_THAT(r.error().detail, HasSubstr(want)) << yaml;
    EXPECT_THAT(r.error().detail, testing::StartsWith("mesh.yaml: "));
  }
  EXPECT_THAT(read_local_config("/nowhere/x.yaml").error().detail, HasSubstr("/nowhere/x.yaml"));
}

}  // namespace
}  // namespace meltemi::ztunnel
