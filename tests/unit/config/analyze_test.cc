// Findings across objects, each with what mends it.
#include <gmock/gmock.h>

#include "tests/unit/config/fixture.h"
#include "userspace/config/analyze.h"

namespace meltemi::config {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kShop[] = R"(
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: catalog}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: catalog, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  template:
    metadata: {labels: {app: catalog, version: v1}}
    spec: {containers: [{name: c, command: [serve], ports: [{name: http, containerPort: 8080}]}]}
)";

constexpr char kWaypoint[] = R"(
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: meltemi-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
)";

struct Analysed : Mesh {
  Analysed() { put("shop.yaml", kShop); }
  // Applies `yaml` and returns what is found about the object, joined.
  std::string about(Kind kind, std::string_view name, std::string_view yaml,
                    std::string_view ns = "shop") {
    put("it.yaml", yaml);
    std::string out;
    for (const Problem& p : analyze_object(store(), {kind, std::string(ns), std::string(name)}))
      out += p.to_string() + "\n";
    return out;
  }
};

std::string vs(std::string_view spec) {
  return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: "
         "shop}\nspec: " +
         std::string(spec) + "\n";
}

TEST(Analyze, L7RuleWithoutAWaypointSaysWhatToRun) {
  Analysed mesh;
  std::string yaml = vs("{hosts: [catalog], http: [{route: [{destination: {host: catalog}}]}]}");
  EXPECT_EQ(mesh.about(Kind::kVirtualService, "v", yaml),
            "warning: VirtualService shop/v (it.yaml:4): spec.hosts[0]: its rules have no effect: "
            "no waypoint serves "
            "catalog.shop.svc.cluster.local. Run `meltemi waypoint apply -n shop "
            "--enroll-namespace` [MLT0102]\n");
  mesh.remove("shop.yaml");
  mesh.put("shop.yaml",
           std::string(kShop).substr(std::string(kShop).find("---")) + "---" + kWaypoint);
  EXPECT_EQ(mesh.about(Kind::kVirtualService, "v", yaml), "");
}

TEST(Analyze, NamedWaypointThatIsNotThere) {
  Analysed mesh;
  mesh.put("ns.yaml",
           "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, labels: "
           "{istio.io/use-waypoint: wp}}\n"
           "spec: {clusterIP: 10.96.0.11, selector: {app: catalog}, ports: [{port: 80}]}\n");
  EXPECT_THAT(
      mesh.about(Kind::kVirtualService, "v",
                 vs("{hosts: [web], http: [{route: [{destination: {host: web}}]}]}")),
      HasSubstr("waypoint shop/wp of web.shop.svc.cluster.local does not exist, and traffic to it "
                "is refused. Run `meltemi waypoint apply -n shop --name wp`"));
  Problems service = analyze_object(mesh.store(), {Kind::kService, "shop", "web"});
  ASSERT_EQ(service.size(), 1u);
  EXPECT_THAT(service[0].to_string(), HasSubstr("waypoint shop/wp does not exist"));
}

TEST(Analyze, UnknownHostSubsetAndPort) {
  Analysed mesh;
  auto found = [&](std::string_view spec) {
    return mesh.about(Kind::kVirtualService, "v", vs(spec));
  };
  EXPECT_THAT(found("{hosts: [catalg], http: [{route: [{destination: {host: catalog}}]}]}"),
              HasSubstr("error: VirtualService shop/v (it.yaml:4): spec.hosts[0]: Referenced host "
                        "not found: \"catalg\". Did you mean `catalog`?"));
  EXPECT_THAT(
      found("{hosts: [catalog], http: [{route: [{destination: {host: catalog.shop}}]}]}"),
      HasSubstr(
          "Referenced host not found: \"catalog.shop\". Write catalog.shop.svc.cluster.local"));
  EXPECT_THAT(
      found("{hosts: [catalog], http: [{route: [{destination: {host: nothing.example.com}}]}]}"),
      HasSubstr("Create the Service"));
  EXPECT_THAT(found("{hosts: [catalog], http: [{route: [{destination: {host: catalog, port: "
                    "{number: 81}}}]}]}"),
              HasSubstr("spec.http[0].route[0].destination.port.number: Service shop/catalog has "
                        "no port 81. Use one of: 80"));
  EXPECT_THAT(
      found("{hosts: [catalog], http: [{route: [{destination: {host: catalog, subset: v2}}]}]}"),
      HasSubstr("Referenced host+subset in destinationrule not found: "
                "\"catalog.shop.svc.cluster.local+v2\". Add a DestinationRule for host catalog "
                "with a subset named v2"));
  mesh.put("dr.yaml",
           "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, "
           "namespace: shop}\n"
           "spec: {host: catalog, subsets: [{name: version-v1, labels: {version: v1}}]}\n");
  EXPECT_THAT(found("{hosts: [catalog], http: [{route: [{destination: {host: catalog, subset: "
                    "version-v3}}]}]}"),
              HasSubstr("Did you mean `version-v1`?"));
  EXPECT_THAT(found("{hosts: [catalog], http: [{route: [{destination: {host: catalog, subset: "
                    "version-v1}}]}]}"),
              testing::Not(HasSubstr("error")));
}

TEST(Analyze, DestinationRules) {
  Analysed mesh;
  auto dr = [&](std::string_view spec) {
    return mesh.about(Kind::kDestinationRule, "d",
                      "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: "
                      "d, namespace: shop}\nspec: " +
                          std::string(spec) + "\n");
  };
  EXPECT_THAT(dr("{host: katalog}"), HasSubstr("IST0174"));
  EXPECT_THAT(dr("{host: catalog, subsets: [{name: v9, labels: {version: v9}}]}"),
              HasSubstr("subset v9 selects no pod of Service shop/catalog"));
  EXPECT_THAT(dr("{host: catalog, subsets: [{name: v1, labels: {version: v1}}]}"),
              testing::Not(HasSubstr("selects no pod")))
      << "a Deployment makes such pods";
}

TEST(Analyze, Policies) {
  Analysed mesh;
  auto ap = [&](std::string_view spec) {
    return mesh.about(Kind::kAuthorizationPolicy, "p",
                      "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: "
                      "{name: p, namespace: shop}\nspec: " +
                          std::string(spec) + "\n");
  };
  EXPECT_THAT(ap("{targetRefs: [{kind: Service, group: \"\", name: catlog}]}"),
              HasSubstr("spec.targetRefs[0].name: Referenced Service not found: \"shop/catlog\". "
                        "Did you mean `catalog`?"));
  EXPECT_THAT(
      ap("{targetRefs: [{kind: Service, group: \"\", name: catalog}]}"),
      HasSubstr("the policy has no effect: no waypoint serves catalog.shop.svc.cluster.local. Run "
                "`meltemi waypoint apply -n shop --enroll-namespace`"));
  EXPECT_THAT(ap("{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: gw}]}"),
              HasSubstr("Referenced Gateway not found"));
  EXPECT_THAT(ap("{selector: {matchLabels: {app: nobody}}}"), HasSubstr("no matching workloads"));
  EXPECT_EQ(ap("{selector: {matchLabels: {app: catalog}}}"), "");
  EXPECT_EQ(ap("{}"), "");
}

TEST(Analyze, TheLoserOfTwoRulesForOneHostIsTold) {
  Analysed mesh;
  const auto meta = [](const char* kind, const char* name, const char* created) {
    return std::string("apiVersion: networking.istio.io/v1\nkind: ") + kind + "\nmetadata: {name: " +
           name + ", namespace: shop, creationTimestamp: \"" + created + "\"}\nspec: ";
  };
  mesh.put("a.yaml", meta("VirtualService", "a", "2026-01-01T00:00:00Z") +
                         "{hosts: [catalog], http: [{route: [{destination: {host: catalog}}]}]}\n");
  const std::string lost = mesh.about(
      Kind::kVirtualService, "b",
      meta("VirtualService", "b", "2026-02-01T00:00:00Z") +
          "{hosts: [catalog.shop.svc.cluster.local], http: [{match: [{uri: {prefix: /b}}], route: "
          "[{destination: {host: catalog}}]}, {route: [{destination: {host: catalog}}]}]}\n");
  EXPECT_THAT(lost, HasSubstr("The VirtualServices shop/b, shop/a associated with mesh gateway define "
                              "the same host"));
  EXPECT_THAT(lost, HasSubstr("[IST0109]"));
  EXPECT_THAT(lost, HasSubstr("spec.http[1]: the rule is not in force: VirtualService shop/a is "
                              "older"));
  Problems first = analyze_object(mesh.store(), {Kind::kVirtualService, "shop", "a"});
  for (const Problem& p : first) EXPECT_THAT(p.message, testing::Not(HasSubstr("not in force")));

  mesh.put("d.yaml", meta("DestinationRule", "d", "2026-01-01T00:00:00Z") +
                         "{host: catalog, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: "
                         "[{name: v1, labels: {version: v1}}]}\n");
  const std::string rule = mesh.about(
      Kind::kDestinationRule, "e",
      meta("DestinationRule", "e", "2026-02-01T00:00:00Z") +
          "{host: catalog, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v1, "
          "labels: {version: v1}}, {name: v2, labels: {version: v1}}]}\n");
  EXPECT_THAT(rule, HasSubstr("spec.trafficPolicy: trafficPolicy is not in force: DestinationRule "
                              "shop/d for the same host is older"));
  EXPECT_THAT(rule, HasSubstr("spec.subsets[0]: subset v1 is not in force"));
  EXPECT_THAT(rule, testing::Not(HasSubstr("subset v2")));
}

TEST(Analyze, AGatewayThatIsNotTheMeshsIsNamed) {
  Analysed mesh;
  EXPECT_THAT(mesh.about(Kind::kVirtualService, "v",
                         vs("{hosts: [catalog], gateways: [shop-gateway, mesh], http: [{route: "
                            "[{destination: {host: catalog}}]}]}")),
              HasSubstr("spec.gateways[0]: Referenced gateway not found: \"shop-gateway\""));
}

TEST(Analyze, ServicesAndPods) {
  Analysed mesh;
  EXPECT_THAT(
      mesh.about(Kind::kService, "lost",
                 "apiVersion: v1\nkind: Service\nmetadata: {name: lost, namespace: shop}\n"
                 "spec: {selector: {app: lost}, ports: [{port: 80}]}\n"),
      HasSubstr("no pod of namespace shop has these labels, so the Service has no endpoints"));
  EXPECT_EQ(mesh.about(Kind::kService, "catalog", ""), "");
  mesh.put("a.yaml", pod_yaml("shop", "a", "app: x", "10.0.0.9"));
  mesh.put("b.yaml", pod_yaml("other", "b", "app: x", "10.0.0.9"));
  Problems found = analyze(mesh.store());
  int duplicates = 0;
  for (const Problem& p : found) {
    if (p.code != kCodeDuplicateIp) continue;
    ++duplicates;
    EXPECT_EQ(p.severity, Severity::kError);
    EXPECT_THAT(p.message, HasSubstr("has the address 10.0.0.9 too"));
  }
  EXPECT_EQ(duplicates, 2) << "each of the two is told";
  EXPECT_THAT(mesh.about(Kind::kService, "named",
                         "apiVersion: v1\nkind: Service\nmetadata: {name: named, namespace: shop}\n"
                         "spec: {selector: {app: x}, ports: [{port: 80, targetPort: web}]}\n"),
              HasSubstr("no selected pod has a container port named \"web\""));
}

}  // namespace
}  // namespace meltemi::config
