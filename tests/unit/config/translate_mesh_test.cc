// What ztunnel and agents get: workloads, services, policies, enrolments, and who changes when.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "meltemi/node/v1/node.pb.h"
#include "security/authorization.pb.h"
#include "tests/unit/config/fixture.h"
#include "workload/workload.pb.h"

namespace meltemi::config {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
namespace wl = ::istio::workload;
namespace sec = ::istio::security;

constexpr char kCatalog[] = "Kubernetes//Pod/shop/catalog-1";
constexpr char kCatalogService[] = "shop/catalog.shop.svc.cluster.local";

constexpr char kShop[] = R"(
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec:
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  ipFamilies: [IPv4, IPv6]
  selector: {app: catalog}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: tcp-raw, port: 9000, targetPort: 9001}
  - {name: dns, port: 53, protocol: UDP}
)";

std::string catalog_pod() {
  return pod_yaml("shop", "catalog-1", "app: catalog, version: v1", "10.244.0.5",
                  "  serviceAccountName: catalog");
}

wl::Workload workload(Mesh& mesh, std::string_view uid) {
  return mesh.get<wl::Address>(ResourceType::kAddress, kEveryone, uid).workload();
}
std::string ip(const std::string& wire) {
  return IpAddress::from_bytes(as_bytes(wire))->to_string();
}

TEST(TranslateWorkload, CarriesWhatZtunnelNeeds) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  wl::Workload w = workload(mesh, kCatalog);
  EXPECT_EQ(ip(w.addresses(0)), "10.244.0.5");
  EXPECT_EQ(w.name(), "catalog-1");
  EXPECT_EQ(w.namespace_(), "shop");
  EXPECT_EQ(w.service_account(), "catalog");
  EXPECT_EQ(w.trust_domain(), "") << "cluster.local is the default and left out";
  EXPECT_EQ(w.node(), "node-a");
  EXPECT_EQ(w.canonical_name(), "catalog");
  EXPECT_EQ(w.canonical_revision(), "v1");
  EXPECT_EQ(w.workload_type(), wl::POD);
  EXPECT_EQ(w.status(), wl::HEALTHY);
  EXPECT_EQ(w.tunnel_protocol(), wl::NONE) << "not enrolled in any kernel yet";
  ASSERT_EQ(w.services().size(), 1u);
  const wl::PortList& ports = w.services().at(kCatalogService);
  ASSERT_EQ(ports.ports_size(), 2);
  EXPECT_EQ(ports.ports(0).target_port(), 8080u) << "a named target port is the pod's";
  EXPECT_EQ(ports.ports(0).app_protocol(), wl::HTTP11);
  EXPECT_EQ(ports.ports(1).target_port(), 9001u);
}

TEST(TranslateWorkload, SaysWhereTheNodeOfThePodStands) {
  const auto node = [](std::string_view labels) {
    return fmt::format("apiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\n  labels: {{{}}}\n",
                       labels);
  };
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  EXPECT_FALSE(workload(mesh, kCatalog).has_locality()) << "the node is not known";
  const TranslationResult result = mesh.put(
      "node.yaml", node("topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1, "
                        "topology.istio.io/subzone: rack-7"));
  ASSERT_EQ(result.resources.size(), 1u) << "what was told already is told again";
  const wl::Locality locality = workload(mesh, kCatalog).locality();
  EXPECT_EQ(locality.region(), "eu");
  EXPECT_EQ(locality.zone(), "eu-1");
  EXPECT_EQ(locality.subzone(), "rack-7");
  mesh.put("node.yaml", node("topology.kubernetes.io/zone: eu-2"));
  EXPECT_EQ(workload(mesh, kCatalog).locality().zone(), "eu-2");
  EXPECT_EQ(workload(mesh, kCatalog).locality().region(), "");
  mesh.put("node.yaml", node("kubernetes.io/os: linux"));
  EXPECT_FALSE(workload(mesh, kCatalog).has_locality()) << "no label says where";
}

TEST(TranslateWorkload, HboneFollowsTheKernelNotTheLabel) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  TranslationResult result = mesh.translator().set_enrolled("node-a", {"uid-shop-catalog-1"});
  ASSERT_EQ(result.resources.size(), 1u);
  EXPECT_EQ(result.resources[0].name, kCatalog);
  EXPECT_EQ(workload(mesh, kCatalog).tunnel_protocol(), wl::HBONE);
  EXPECT_FALSE(workload(mesh, kCatalog).native_tunnel());
  EXPECT_TRUE(mesh.translator().set_enrolled("node-a", {"uid-shop-catalog-1"}).resources.empty());
  mesh.translator().set_enrolled("node-a", {});
  EXPECT_EQ(workload(mesh, kCatalog).tunnel_protocol(), wl::NONE);
}

TEST(TranslateWorkload, GoneWhenThePodHasEndedAndUnhealthyWhenNotReady) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  std::string pod = catalog_pod();
  std::string not_ready = pod;
  not_ready.replace(not_ready.find("\"True\""), 6, "\"False\"");
  mesh.put("pod.yaml", not_ready);
  EXPECT_EQ(workload(mesh, kCatalog).status(), wl::UNHEALTHY);
  std::string ended = pod;
  ended.replace(ended.find("Running"), 7, "Succeeded");
  TranslationResult result = mesh.put("pod.yaml", ended);
  EXPECT_FALSE(mesh.has(ResourceType::kAddress, kEveryone, kCatalog));
  EXPECT_FALSE(mesh.has(ResourceType::kPodEnrolment, node_scope("node-a"), "uid-shop-catalog-1"));
  ASSERT_EQ(result.resources.size(), 2u);
  EXPECT_EQ(result.resources[0].resource, nullptr);
}

TEST(TranslateService, CarriesVipsAndPorts) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  wl::Service s =
      mesh.get<wl::Address>(ResourceType::kAddress, kEveryone, kCatalogService).service();
  EXPECT_EQ(s.hostname(), "catalog.shop.svc.cluster.local");
  ASSERT_EQ(s.addresses_size(), 2);
  EXPECT_EQ(ip(s.addresses(1).address()), "fd00:96::10");
  EXPECT_EQ(s.ip_families(), wl::DUAL);
  EXPECT_TRUE(s.canonical());
  ASSERT_EQ(s.ports_size(), 2) << "UDP ports are not the mesh's";
  EXPECT_EQ(s.ports(0).target_port(), 0u) << "named: resolved per pod";
  EXPECT_EQ(s.ports(1).app_protocol(), wl::TCP);
  EXPECT_FALSE(s.has_load_balancing());
  EXPECT_FALSE(s.has_waypoint());
}

TEST(TranslateService, LoadBalancing) {
  Mesh mesh;
  auto service = [](std::string_view field) {
    return "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec:\n  clusterIP: "
           "10.0.0.1\n"
           "  ports: [{port: 80}]\n  " +
           std::string(field) + "\n";
  };
  auto balancing = [&] {
    return mesh.get<wl::Address>(ResourceType::kAddress, kEveryone, "a/s.a.svc.cluster.local")
        .service()
        .load_balancing();
  };
  mesh.put("s.yaml", service("internalTrafficPolicy: Local"));
  EXPECT_EQ(balancing().mode(), wl::LoadBalancing::STRICT);
  EXPECT_THAT(balancing().routing_preference(), ElementsAre(wl::LoadBalancing::NODE));
  mesh.put("s.yaml", service("trafficDistribution: PreferSameNode"));
  EXPECT_EQ(balancing().mode(), wl::LoadBalancing::FAILOVER);
  EXPECT_EQ(balancing().routing_preference_size(), 5);
  mesh.put("s.yaml", service("publishNotReadyAddresses: true"));
  EXPECT_EQ(balancing().health_policy(), wl::LoadBalancing::ALLOW_ALL);
}

TEST(TranslateEnrolment, ANamespaceSwitchesTheGuardOfItsPodsOff) {
  Mesh mesh;
  mesh.put("pod.yaml", catalog_pod());
  const auto unguarded = [&mesh](const char* guard) {
    mesh.put("ns.yaml", std::string("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: "
                                    "{istio.io/dataplane-mode: ambient}, annotations: {") +
                            guard + "}}\n");
    return mesh
        .get<::meltemi::node::v1::PodEnrolment>(ResourceType::kPodEnrolment, node_scope("node-a"),
                                                "uid-shop-catalog-1")
        .unguarded();
  };
  EXPECT_FALSE(unguarded(""));
  EXPECT_TRUE(unguarded("meltemi.io/egress-guard: disabled"));
  EXPECT_FALSE(unguarded("meltemi.io/egress-guard: enabled"));
  EXPECT_FALSE(unguarded("meltemi.io/egress-guard: \"off\"")) << "what means nothing opens nothing";
}

TEST(TranslateEnrolment, TellsTheNodeWhatToDoAndWhy) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  namespace node = ::meltemi::node::v1;
  auto enrolment = [&] {
    return mesh.get<node::PodEnrolment>(ResourceType::kPodEnrolment, node_scope("node-a"),
                                        "uid-shop-catalog-1");
  };
  EXPECT_TRUE(enrolment().enrol());
  EXPECT_EQ(enrolment().reason(), "namespace_opt_in");
  EXPECT_EQ(enrolment().service_account(), "catalog");
  EXPECT_THAT(enrolment().probe_ports(), ElementsAre(8080u));
  EXPECT_EQ(enrolment().inbound_mode(), node::PERMISSIVE);
  mesh.put("pa.yaml",
           "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
           "metadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n");
  EXPECT_EQ(enrolment().inbound_mode(), node::STRICT);
  mesh.put("ns2.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n");
  mesh.put("shop.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
  EXPECT_FALSE(enrolment().enrol());
  EXPECT_EQ(enrolment().reason(), "mesh_default_out");
}

TEST(TranslateEnrolment, ExistsBeforeThePodHasAnAddress) {
  Mesh mesh;
  mesh.put("pod.yaml",
           "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, uid: u1}\n"
           "spec: {nodeName: node-b, containers: [{name: c, command: [x]}]}\n");
  EXPECT_TRUE(mesh.has(ResourceType::kPodEnrolment, node_scope("node-b"), "u1"));
  EXPECT_THAT(mesh.names(ResourceType::kAddress, kEveryone), IsEmpty());
}

// --- policies -----------------------------------------------------------------------------------

sec::Authorization policy(Mesh& mesh, std::string_view name) {
  return mesh.get<sec::Authorization>(ResourceType::kAuthorization, kEveryone, name);
}

std::string policy_yaml(std::string_view spec, std::string_view ns = "shop") {
  return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, "
         "namespace: " +
         std::string(ns) + "}\nspec: " + std::string(spec) + "\n";
}

TEST(TranslatePolicy, ScopeAndAction) {
  Mesh mesh;
  mesh.put("p.yaml", policy_yaml("{}"));
  EXPECT_EQ(policy(mesh, "shop/p").scope(), sec::NAMESPACE);
  EXPECT_EQ(policy(mesh, "shop/p").action(), sec::ALLOW);
  EXPECT_EQ(policy(mesh, "shop/p").rules_size(), 0) << "no rules: allows nothing";
  mesh.put("p.yaml", policy_yaml("{action: DENY, rules: [{}]}", "istio-system"));
  EXPECT_EQ(policy(mesh, "istio-system/p").scope(), sec::GLOBAL);
  ASSERT_EQ(policy(mesh, "istio-system/p").rules_size(), 1);
  EXPECT_EQ(policy(mesh, "istio-system/p").rules(0).clauses_size(), 0)
      << "an empty rule matches all";
  EXPECT_FALSE(mesh.has(ResourceType::kAuthorization, kEveryone, "shop/p"));
}

TEST(TranslatePolicy, SelectorPoliciesAreNamedByTheWorkload) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), IsEmpty());
  mesh.put("p.yaml", policy_yaml("{selector: {matchLabels: {app: catalog}}}"));
  EXPECT_EQ(policy(mesh, "shop/p").scope(), sec::WORKLOAD_SELECTOR);
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), ElementsAre("shop/p"));
  mesh.put("root.yaml",
           policy_yaml("{selector: {matchLabels: {version: v1}}, action: DENY, rules: [{}]}",
                       "istio-system"));
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(),
              ElementsAre("istio-system/p", "shop/p"));
  mesh.put("p.yaml", policy_yaml("{selector: {matchLabels: {app: other}}}"));
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), ElementsAre("istio-system/p"));
}

TEST(TranslatePolicy, RulesBecomeClauses) {
  Mesh mesh;
  mesh.put("p.yaml", policy_yaml(R"(
  action: DENY
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/a/sa/b", "*/sa/x", "spiffe://td/ns/*"], notNamespaces: ["kube-*"]}
    - source: {serviceAccounts: ["web", "other/api"], }
    - source: {ipBlocks: ["10.0.0.0/8", "fd00::1"]}
    to:
    - operation: {ports: ["80"], notPorts: ["81"]}
    when:
    - {key: source.namespace, values: ["*"], notValues: [z]}
    - {key: destination.port, values: ["8080"]}
)"));
  sec::Authorization a = policy(mesh, "shop/p");
  ASSERT_EQ(a.rules_size(), 1);
  ASSERT_EQ(a.rules(0).clauses_size(), 4);
  const auto& to = a.rules(0).clauses(0).matches(0);
  EXPECT_THAT(to.destination_ports(), ElementsAre(80u));
  EXPECT_THAT(to.not_destination_ports(), ElementsAre(81u));
  const auto& from = a.rules(0).clauses(1);
  ASSERT_EQ(from.matches_size(), 3);
  EXPECT_EQ(from.matches(0).principals(0).exact(), "cluster.local/ns/a/sa/b");
  EXPECT_EQ(from.matches(0).principals(1).suffix(), "/sa/x");
  EXPECT_EQ(from.matches(0).principals(2).prefix(), "td/ns/");
  EXPECT_EQ(from.matches(0).not_namespaces(0).prefix(), "kube-");
  EXPECT_EQ(from.matches(1).service_accounts(0).namespace_(), "shop")
      << "a bare name is the policy's own";
  EXPECT_EQ(from.matches(1).service_accounts(1).namespace_(), "other");
  EXPECT_EQ(from.matches(2).source_ips(0).length(), 8u);
  EXPECT_EQ(from.matches(2).source_ips(1).address().size(), 16u);
  EXPECT_TRUE(a.rules(0).clauses(2).matches(0).namespaces(0).has_presence());
  EXPECT_THAT(a.rules(0).clauses(3).matches(0).destination_ports(), ElementsAre(8080u));
  EXPECT_EQ(mesh.reason({Kind::kAuthorizationPolicy, "shop", "p"}, "ZtunnelAccepted"), "Accepted");
}

TEST(TranslatePolicy, TrustDomainsAreEnforced) {
  Mesh mesh;
  mesh.put("p.yaml",
           policy_yaml(
               "{rules: [{from: [{source: {trustDomains: [partner, \"corp*\"], namespaces: [a]}}, "
               "{source: {namespaces: [b]}}]}]}"));
  sec::Authorization a = policy(mesh, "shop/p");
  ASSERT_EQ(a.rules_size(), 2) << "one rule a source, so that both conditions of one must hold";
  ASSERT_EQ(a.rules(0).clauses_size(), 2);
  EXPECT_EQ(a.rules(0).clauses(0).matches(0).namespaces(0).exact(), "a");
  EXPECT_EQ(a.rules(0).clauses(1).matches(0).principals(0).prefix(), "partner/");
  EXPECT_EQ(a.rules(0).clauses(1).matches(0).principals(1).prefix(), "corp");
  ASSERT_EQ(a.rules(1).clauses_size(), 1);
  // What a prefix cannot say: an ALLOW then allows nothing, a DENY denies more.
  mesh.put("p.yaml", policy_yaml("{rules: [{from: [{source: {trustDomains: [\"*.corp\"]}}]}]}"));
  EXPECT_EQ(policy(mesh, "shop/p").rules_size(), 0);
  mesh.put("p.yaml", policy_yaml("{action: DENY, rules: [{from: [{source: {trustDomains: "
                                 "[\"*.corp\"], namespaces: [a]}}]}]}"));
  ASSERT_EQ(policy(mesh, "shop/p").rules(0).clauses_size(), 1);
  EXPECT_EQ(policy(mesh, "shop/p").rules(0).clauses(0).matches(0).namespaces(0).exact(), "a");
}

TEST(TranslatePolicy, HttpAttributesFailClosed) {
  Mesh mesh;
  const ObjectKey key{Kind::kAuthorizationPolicy, "shop", "p"};
  mesh.put("p.yaml", policy_yaml("{rules: [{to: [{operation: {methods: [GET]}}]}, {to: "
                                 "[{operation: {ports: [\"80\"]}}]}]}"));
  EXPECT_EQ(policy(mesh, "shop/p").rules_size(), 1)
      << "the ALLOW rule that cannot be checked is gone";
  EXPECT_EQ(mesh.reason(key, "ZtunnelAccepted"), "UnsupportedValue");
  mesh.put("p.yaml",
           policy_yaml("{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: "
                       "[{operation: {methods: [GET]}}, {operation: {ports: [\"80\"]}}]}]}"));
  ASSERT_EQ(policy(mesh, "shop/p").rules(0).clauses_size(), 1) << "wider: all of namespace a";
  EXPECT_EQ(policy(mesh, "shop/p").rules(0).clauses(0).matches(0).namespaces(0).exact(), "a");
  mesh.put("p.yaml", policy_yaml("{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"));
  ASSERT_EQ(policy(mesh, "shop/p").rules_size(), 1);
  EXPECT_EQ(policy(mesh, "shop/p").rules(0).clauses_size(), 0) << "matches everything: closed";
  ASSERT_FALSE(mesh.translator().conditions(key).empty());
  EXPECT_THAT(mesh.translator().conditions(key)[0].message,
              HasSubstr("more restrictive than requested: rules[0] denies every connection"));
}

TEST(TranslatePolicy, TargetRefsNeverReachZtunnel) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("p.yaml",
           policy_yaml("{targetRefs: [{kind: Service, group: \"\", name: catalog}], rules: []}"));
  EXPECT_FALSE(mesh.has(ResourceType::kAuthorization, kEveryone, "shop/p"));
  const ObjectKey key{Kind::kAuthorizationPolicy, "shop", "p"};
  EXPECT_EQ(mesh.reason(key, "WaypointAccepted"), "AncestorNotBound");
  mesh.put("p.yaml",
           policy_yaml("{targetRefs: [{kind: Service, group: \"\", name: nobody}], rules: []}"));
  EXPECT_EQ(mesh.reason(key, "WaypointAccepted"), "TargetNotFound");
}

std::string pa_yaml(std::string_view ns, std::string_view name, std::string_view spec) {
  return "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " +
         std::string(name) + ", namespace: " + std::string(ns) + "}\nspec: " + std::string(spec) +
         "\n";
}

TEST(TranslatePeerAuthentication, LevelsInherit) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  const char* strict = "istio-system/istio_converted_static_strict";
  EXPECT_FALSE(mesh.has(ResourceType::kAuthorization, kEveryone, strict));
  mesh.put("mesh.yaml", pa_yaml("istio-system", "default", "{mtls: {mode: STRICT}}"));
  EXPECT_TRUE(mesh.has(ResourceType::kAuthorization, kEveryone, strict));
  EXPECT_EQ(policy(mesh, strict).action(), sec::DENY);
  EXPECT_TRUE(policy(mesh, strict).rules(0).clauses(0).matches(0).not_principals(0).has_presence());
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), ElementsAre(strict));
  mesh.put("ns.yaml", pa_yaml("shop", "default", "{mtls: {mode: DISABLE}}"));
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), IsEmpty());
  mesh.put("ns.yaml", pa_yaml("shop", "default", "{mtls: {mode: UNSET}}"));
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), ElementsAre(strict));
  mesh.put(
      "pod-pa.yaml",
      pa_yaml("shop", "w", "{selector: {matchLabels: {app: catalog}}, mtls: {mode: PERMISSIVE}}"));
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), IsEmpty());
  mesh.remove("pod-pa.yaml");
  mesh.remove("ns.yaml");
  mesh.remove("mesh.yaml");
  EXPECT_FALSE(mesh.has(ResourceType::kAuthorization, kEveryone, strict));
}

TEST(TranslatePeerAuthentication, PortsGetTheirOwnPolicy) {
  Mesh mesh;
  mesh.put("shop.yaml", kShop);
  mesh.put("pod.yaml", catalog_pod());
  mesh.put("pa.yaml", pa_yaml("shop", "w",
                              "{selector: {matchLabels: {app: catalog}}, mtls: {mode: STRICT}, "
                              "portLevelMtls: {8080: {mode: PERMISSIVE}, 9001: {mode: STRICT}}}"));
  const char* converted = "shop/converted_peer_authentication_w";
  EXPECT_THAT(workload(mesh, kCatalog).authorization_policies(), ElementsAre(converted));
  sec::Authorization a = policy(mesh, converted);
  ASSERT_EQ(a.rules(0).clauses_size(), 2);
  EXPECT_THAT(a.rules(0).clauses(1).matches(0).not_destination_ports(), ElementsAre(8080u));
  mesh.put("pa.yaml", pa_yaml("shop", "w",
                              "{selector: {matchLabels: {app: catalog}}, mtls: {mode: PERMISSIVE}, "
                              "portLevelMtls: {8080: {mode: STRICT}}}"));
  a = policy(mesh, converted);
  EXPECT_THAT(a.rules(0).clauses(0).matches(0).destination_ports(), ElementsAre(8080u));
  EXPECT_TRUE(a.rules(0).clauses(0).matches(0).not_principals(0).has_presence());
}

}  // namespace
}  // namespace meltemi::config
