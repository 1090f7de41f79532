// Destinations that lie behind another waypoint than the one that routes to them: they are dialled
// through it, and nowhere if it is not there.
#include <gmock/gmock.h>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "tests/unit/config/fixture.h"
#include "userspace/config/analyze.h"

namespace meltemi::config {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
namespace cl = ::envoy::config::cluster::v3;
namespace ep = ::envoy::config::endpoint::v3;

const Scope kScope = "waypoint/shop/first";

std::string gateway(std::string_view ns, std::string_view name, std::string_view traffic) {
  return "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) +
         ", labels: {istio.io/waypoint-for: " + std::string(traffic) +
         "}}\nspec:\n  gatewayClassName: meltemi-waypoint\n  listeners: [{name: mesh, port: 15008, "
         "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]\n";
}

// What the controller makes of a Gateway, and a pod of it.
std::string parts(std::string_view ns, std::string_view name, std::string_view ip,
                  std::string_view index = "0") {
  const std::string label = "gateway.networking.k8s.io/gateway-name: " + std::string(name);
  return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + std::string(name) +
         ", namespace: " + std::string(ns) +
         ", labels: {gateway.istio.io/managed: istio.io-mesh-controller}}\nspec: {selector: {" + label +
         "}, ports: [{name: mesh, port: 15008}]}\n" +
         pod_yaml(ns, std::string(name) + "-" + std::string(index),
                  label + ", gateway.istio.io/managed: istio.io-mesh-controller", ip);
}

// Service front behind waypoint first, Service back behind waypoint second of another namespace.
constexpr char kServices[] = R"(
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {istio.io/use-waypoint: first}}
spec: {clusterIP: 10.96.0.1, selector: {app: front}, ports: [{name: http, port: 80}, {name: tcp, port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: back, namespace: far, labels: {istio.io/use-waypoint: second}}
spec: {clusterIP: 10.96.0.2, selector: {app: back}, ports: [{name: http, port: 8000, targetPort: 8080}]}
)";

std::string send_to(std::string_view destination) {
  return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: front, namespace: "
         "shop}\nspec:\n  hosts: [front]\n  http: [{route: [{destination: {" +
         std::string(destination) + "}}]}]\n  tcp: [{route: [{destination: {" +
         std::string(destination) + "}}]}]\n";
}
constexpr char kBack[] = "outbound|8000||back.far.svc.cluster.local";

struct Chain : Mesh {
  Chain() {
    put("services.yaml", kServices);
    put("gateways.yaml", gateway("shop", "first", "service") + gateway("far", "second", "service"));
    put("front.yaml", parts("shop", "first", "10.1.0.1"));
    put("back.yaml", parts("far", "second", "10.1.0.2"));
    put("pods.yaml", pod_yaml("shop", "front", "app: front", "10.2.0.1") +
                         pod_yaml("far", "back", "app: back", "10.2.0.2"));
    put("vs.yaml", send_to("host: back.far.svc.cluster.local"));
    translator().set_enrolled("node-a", {"uid-shop-front", "uid-far-back"});
  }

  // "<authority> by <tunnel>[ of <waypoint>][ <health>]" of each endpoint.
  std::vector<std::string> ways(std::string_view cluster, const Scope& scope = kScope) {
    std::vector<std::string> out;
    auto assignment = get<ep::ClusterLoadAssignment>(ResourceType::kEndpoints, scope, cluster);
    for (const auto& locality : assignment.endpoints()) {
      for (const auto& e : locality.lb_endpoints()) out.push_back(way(e));
    }
    return out;
  }
  std::string told(std::string_view cluster, std::string_view field) {
    auto c = get<cl::Cluster>(ResourceType::kCluster, kScope, cluster);
    auto found = c.metadata().filter_metadata().find("meltemi");
    if (found == c.metadata().filter_metadata().end()) return {};
    auto value = found->second.fields().find(std::string(field));
    return value == found->second.fields().end() ? "" : value->second.string_value();
  }

 private:
  static std::string text(const ep::LbEndpoint& e, const char* filter, const char* key) {
    auto found = e.metadata().filter_metadata().find(filter);
    if (found == e.metadata().filter_metadata().end()) return {};
    auto value = found->second.fields().find(key);
    return value == found->second.fields().end() ? "" : value->second.string_value();
  }
  static std::string way(const ep::LbEndpoint& e) {
    constexpr const char* kTunnel = "envoy.filters.listener.original_dst";
    std::string out = text(e, kTunnel, "local");
    EXPECT_EQ(out, e.endpoint().address().envoy_internal_address().endpoint_id());
    if (auto via = text(e, kTunnel, "waypoint"); !via.empty()) {
      out += " by " + via + " of " + text(e, "meltemi", "waypoint");
    }
    if (e.health_status() != ::envoy::config::core::v3::HEALTHY) out += " unhealthy";
    return out;
  }
};

TEST(WaypointChain, AServiceBehindAnotherWaypointIsCalledThroughIt) {
  Chain mesh;
  EXPECT_THAT(mesh.ways(kBack), ElementsAre("10.96.0.2:8000 by 10.1.0.2:15008 of far/second"));
  // More and fewer pods of it.
  mesh.put("back2.yaml", pod_yaml("far", "second-1", "gateway.networking.k8s.io/gateway-name: second",
                                  "10.1.0.3"));
  EXPECT_THAT(mesh.ways(kBack), UnorderedElementsAre("10.96.0.2:8000 by 10.1.0.2:15008 of far/second",
                                                     "10.96.0.2:8000 by 10.1.0.3:15008 of far/second"));
  mesh.remove("back2.yaml");
  mesh.remove("back.yaml");
  EXPECT_THAT(mesh.ways(kBack), IsEmpty()) << "never its pods";
  EXPECT_EQ(mesh.told(kBack, "waypoint"), "far/second");
  EXPECT_EQ(mesh.told(kBack, "refused"), "");
}

TEST(WaypointChain, AWaypointHearsWhoseClientsKeepToAPod) {
  Chain mesh;
  EXPECT_EQ(mesh.told(kBack, "affinity"), "");
  std::string keeping(kServices);
  const std::string_view selector = "selector: {app: back}";
  ASSERT_NE(keeping.find(selector), std::string::npos);
  keeping.insert(keeping.find(selector), "sessionAffinity: ClientIP, ");
  mesh.put("services.yaml", keeping);
  EXPECT_EQ(mesh.told(kBack, "affinity"), "client_ip");
}

TEST(WaypointChain, TheBindingIsFollowedWhenItChanges) {
  Chain mesh;
  std::string unbound(kServices);
  unbound.replace(unbound.find("istio.io/use-waypoint: second"), 29, "istio.io/use-waypoint: none");
  mesh.put("services.yaml", unbound);
  EXPECT_THAT(mesh.ways(kBack), ElementsAre("10.2.0.2:8080"));
  EXPECT_EQ(mesh.told(kBack, "waypoint"), "");
  mesh.put("ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: far, labels: "
                      "{istio.io/use-waypoint: second}}\n");
  EXPECT_THAT(mesh.ways(kBack), ElementsAre("10.2.0.2:8080")) << "none ends the search";
  mesh.put("services.yaml", kServices);
  EXPECT_THAT(mesh.ways(kBack), ElementsAre("10.96.0.2:8000 by 10.1.0.2:15008 of far/second"));
}

TEST(WaypointChain, OneWaypointForBothIsNoDetour) {
  Chain mesh;
  std::string shared(kServices);
  shared.replace(shared.find("istio.io/use-waypoint: second"), 29,
                 "istio.io/use-waypoint: first, istio.io/use-waypoint-namespace: shop");
  mesh.put("services.yaml", shared);
  EXPECT_THAT(mesh.ways(kBack), ElementsAre("10.2.0.2:8080"));
  // But the listener that the request came by has asked the policies of front only.
  const auto policies = [&](std::string_view cluster) {
    auto c = mesh.get<cl::Cluster>(ResourceType::kCluster, kScope, cluster);
    const auto& fields = c.metadata().filter_metadata();
    auto found = fields.find("meltemi");
    return found == fields.end() ? "" : found->second.ShortDebugString();
  };
  EXPECT_EQ(policies(kBack), "");
  mesh.put("policy.yaml",
           "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, "
           "namespace: far}\nspec: {targetRefs: [{kind: Service, group: '', name: back}], rules: "
           "[{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}\n");
  EXPECT_THAT(policies(kBack), HasSubstr("spiffe://cluster.local/ns/a/sa/b"));
  EXPECT_THAT(policies(kBack), HasSubstr("10.96.0.2:8000"));
  EXPECT_EQ(policies("inbound-vip|8000|http|back.far.svc.cluster.local"), "")
      << "its own listener has asked them";
}

TEST(WaypointChain, AMissingWaypointRefuses) {
  Chain mesh;
  mesh.put("gateways.yaml", gateway("shop", "first", "service"));
  EXPECT_THAT(mesh.ways(kBack), IsEmpty());
  EXPECT_EQ(mesh.told(kBack, "refused"), "waypoint_unknown");
  EXPECT_THAT(mesh.told(kBack, "message"), HasSubstr("waypoint far/second does not exist"));
}

TEST(WaypointChain, ASubsetOrAHeadlessServiceIsRefusedWithTheReason) {
  Chain mesh;
  mesh.put("rule.yaml",
           "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: back, "
           "namespace: far}\nspec: {host: back, subsets: [{name: v1, labels: {version: v1}}]}\n");
  mesh.put("vs.yaml", send_to("host: back.far.svc.cluster.local, subset: v1"));
  constexpr char kSubset[] = "outbound|8000|v1|back.far.svc.cluster.local";
  EXPECT_THAT(mesh.ways(kSubset), IsEmpty());
  EXPECT_EQ(mesh.told(kSubset, "refused"), "unsupported");
  EXPECT_THAT(mesh.told(kSubset, "message"), HasSubstr("subset v1"));
  std::string found;
  for (const Problem& p : analyze_object(mesh.store(), {Kind::kVirtualService, "shop", "front"})) {
    found += p.to_string();
  }
  EXPECT_THAT(found, HasSubstr("spec.http[0].route[0].destination.subset: requests are refused"))
      << "and it is said when the rule is written";

  std::string headless(kServices);
  headless.replace(headless.find("10.96.0.2"), 9, "None");
  mesh.put("services.yaml", headless);
  mesh.put("vs.yaml", send_to("host: back.far.svc.cluster.local"));
  EXPECT_THAT(mesh.ways(kBack), IsEmpty());
  EXPECT_THAT(mesh.told(kBack, "message"), HasSubstr("headless"));
}

TEST(WaypointChain, AServicesConditionSaysWhichWaypointServesIt) {
  Chain mesh;
  const auto bound = [&](std::string_view ns, std::string_view name) {
    return waypoint_bound(mesh.store(), *mesh.store().find(Kind::kService, ns, name));
  };
  EXPECT_EQ(bound("far", "back")->reason, "WaypointIsNotReady");
  EXPECT_FALSE(bound("far", "back")->status);
  std::string ready = gateway("far", "second", "service");
  ready += "status: {conditions: [{type: Programmed, status: \"True\"}]}\n";
  mesh.put("gateways.yaml", ready + gateway("shop", "first", "workload"));
  EXPECT_EQ(bound("far", "back")->reason, "WaypointAccepted");
  EXPECT_THAT(bound("far", "back")->message, HasSubstr("far/second"));
  EXPECT_TRUE(bound("far", "back")->status);
  EXPECT_EQ(bound("shop", "front")->reason, "UnsupportedTrafficType");
  EXPECT_FALSE(bound("shop", "first")) << "a waypoint's own Service asks for none";
}

TEST(WaypointChain, APodBehindAWorkloadWaypointIsCalledThroughIt) {
  Chain mesh;
  constexpr char kOwn[] = "inbound-vip|80|http|front.shop.svc.cluster.local";
  mesh.remove("vs.yaml");
  EXPECT_THAT(mesh.ways(kOwn), ElementsAre("10.2.0.1:80"));
  mesh.put("guard.yaml",
           gateway("shop", "guard", "workload") + parts("shop", "guard", "10.1.0.7") +
               pod_yaml("shop", "guard-1", "gateway.networking.k8s.io/gateway-name: guard", "10.1.0.8") +
               pod_yaml("shop", "guard-2", "gateway.networking.k8s.io/gateway-name: guard", "10.1.0.9"));
  mesh.put("pods.yaml",
           pod_yaml("shop", "front", "app: front, istio.io/use-waypoint: guard", "10.2.0.1") +
               pod_yaml("shop", "front-b", "app: front, istio.io/use-waypoint: guard", "10.2.0.3") +
               pod_yaml("shop", "front-c", "app: front", "10.2.0.4"));
  mesh.translator().set_enrolled("node-a", {"uid-shop-front", "uid-shop-front-b", "uid-shop-front-c"});
  EXPECT_THAT(mesh.ways(kOwn),
              UnorderedElementsAre("10.2.0.1:80 by 10.1.0.7:15008 of shop/guard",
                                   "10.2.0.1:80 by 10.1.0.8:15008 of shop/guard",
                                   "10.2.0.3:80 by 10.1.0.9:15008 of shop/guard",
                                   "10.2.0.3:80 by 10.1.0.7:15008 of shop/guard", "10.2.0.4:80"));
  EXPECT_EQ(mesh.told(kOwn, "waypoint"), "");
  mesh.remove("guard.yaml");
  EXPECT_THAT(mesh.ways(kOwn), ElementsAre("10.2.0.4:80")) << "its pods are left out, not bared";
  EXPECT_EQ(mesh.told(kOwn, "waypoint"), "shop/guard");
}

TEST(WaypointChain, AServiceAccountsWaypointGuardsItsPodsForOthers) {
  Chain mesh;
  mesh.remove("vs.yaml");
  mesh.put("guard.yaml",
           "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: guard, "
           "namespace: shop, annotations: {istio.io/for-service-account: default}}\nspec: "
           "{gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15008, protocol: "
           "HBONE}]}\n" +
               parts("shop", "guard", "10.1.0.7"));
  EXPECT_THAT(mesh.ways("inbound-vip|80|http|front.shop.svc.cluster.local"),
              ElementsAre("10.2.0.1:80 by 10.1.0.7:15008 of shop/guard"));
}

}  // namespace
}  // namespace meltemi::config
