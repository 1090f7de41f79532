// Whatever the order of changes: what the incremental translator holds equals what a fresh one computes
// from the same objects, and what it reported adds up to what it holds.
#include <fmt/format.h>

#include <map>
#include <random>
#include <tuple>

#include "tests/unit/config/fixture.h"

namespace meltemi::config {
namespace {

using Key = std::tuple<ResourceType, Scope, std::string>;
using Held = std::map<Key, std::string>;  // -> version and body

constexpr int kSeeds = 12;
constexpr int kStepsPerSeed = 250;

class World {
 public:
  explicit World(uint32_t seed) : random_(seed), tree_(&store_), translator_(&store_, MeshNames()) {}

  void step() {
    TranslationResult result = pick(10) == 0 ? enrol() : change_object();
    for (const ResourceChange& change : result.resources) {
      Key key{change.type, change.scope, change.name};
      if (change.resource) {
        mirror_[key] = change.resource->version + change.resource->body;
      } else {
        EXPECT_EQ(mirror_.erase(key), 1u) << "removed what was never there: " << change.name;
      }
    }
    for (const StatusChange& change : result.statuses) {
      if (change.conditions.empty()) {
        statuses_.erase(change.object);
      } else {
        statuses_[change.object] = change.conditions;
      }
    }
  }

  void check(const std::string& when) {
    Translator fresh(&store_, MeshNames());
    fresh.rebuild();
    for (const auto& [node, uids] : enrolled_) fresh.set_enrolled(node, uids);
    Held want = held(fresh);
    ASSERT_EQ(held(translator_), want) << when;
    ASSERT_EQ(mirror_, want) << when << ": reported changes do not add up";
    ASSERT_EQ(translator_.unit_count(), fresh.unit_count()) << when;
    for (Kind kind : {Kind::kAuthorizationPolicy, Kind::kService}) {
      for (const ObjectPtr& object : store_.list(kind)) {
        ASSERT_EQ(translator_.conditions(object->key()), fresh.conditions(object->key())) << when;
        auto known = statuses_.find(object->key());
        ASSERT_EQ(known == statuses_.end() ? std::vector<Condition>() : known->second,
                  fresh.conditions(object->key())) << when;
      }
    }
    // Computing everything again changes nothing.
    ASSERT_TRUE(translator_.rebuild().resources.empty()) << when;
  }

  size_t resources() const { return mirror_.size(); }

 private:
  uint32_t pick(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  const char* one_of(std::initializer_list<const char*> options) { return options.begin()[pick(static_cast<uint32_t>(options.size()))]; }
  const char* ns() { return one_of({"shop", "other", "istio-system"}); }
  const char* app() { return one_of({"a", "b", "c"}); }

  TranslationResult enrol() {
    std::string node = one_of({"node-a", "node-b"});
    std::set<std::string> uids;
    for (const char* where : {"shop", "other", "istio-system"}) {
      for (int i = 0; i < 4; ++i) {
        if (pick(2)) uids.insert(fmt::format("uid-{}-p{}", where, i));
      }
    }
    enrolled_[node] = uids;
    return translator_.set_enrolled(node, uids);
  }

  TranslationResult change_object() {
    auto [path, yaml] = object();
    if (pick(4) == 0) return translator_.apply(tree_.remove(path).changes);
    ManifestTree::Outcome out = tree_.put(path, yaml);
    EXPECT_FALSE(has_errors(out.problems)) << out.problems[0].to_string() << "\n" << yaml;
    return translator_.apply(out.changes);
  }

  std::pair<std::string, std::string> object() {
    const char* where = ns();
    switch (pick(9)) {
      case 0: return {fmt::format("ns-{}", where),
                      fmt::format("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}, labels: {{{}}}}}\n", where,
                                  one_of({"x: y", "istio.io/dataplane-mode: ambient", "istio.io/use-waypoint: w1",
                                          "istio.io/use-waypoint: w2, istio.io/use-waypoint-namespace: shop"}))};
      case 1: case 2: return pod(where);
      case 3: return service(where);
      case 4: return gateway(where);
      case 5: return virtual_service(where);
      case 6: return destination_rule(where);
      case 7: return policy(where);
      default: return peer_authentication(where);
    }
  }

  std::pair<std::string, std::string> pod(const char* where) {
    uint32_t i = pick(4);
    std::string name = fmt::format("p{}", i);
    std::string yaml = pod_yaml(where, name, fmt::format("app: {}, version: {}{}", app(), one_of({"v1", "v2"}),
                                                         one_of({"", ", istio.io/use-waypoint: w1", ", istio.io/use-waypoint: none"})),
                                fmt::format("10.{}.0.{}", int{where[0]}, i + 1),
                                fmt::format("  serviceAccountName: {}", one_of({"x", "y"})));
    if (pick(5) == 0) yaml.replace(yaml.find("\"True\""), 6, "\"False\"");
    if (pick(8) == 0) yaml.replace(yaml.find("Running"), 7, "Failed");
    return {fmt::format("pod-{}-{}", where, name), yaml};
  }
  std::pair<std::string, std::string> service(const char* where) {
    const char* name = app();
    return {fmt::format("svc-{}-{}", where, name),
            fmt::format("apiVersion: v1\nkind: Service\nmetadata: {{name: {1}, namespace: {0}, labels: {{{2}}}}}\nspec:\n"
                        "  clusterIP: {3}\n  selector: {{app: {4}}}\n  ports: [{{name: {5}, port: {6}, targetPort: {7}}}]\n",
                        where, name, one_of({"x: y", "istio.io/use-waypoint: w1", "istio.io/use-waypoint: none"}),
                        one_of({"10.96.0.1", "None", "fd00::1"}), app(), one_of({"http", "tcp", "grpc", "other"}),
                        80 + pick(2), one_of({"http", "8080", "nope"}))};
  }
  std::pair<std::string, std::string> gateway(const char* where) {
    const char* name = one_of({"w1", "w2"});
    return {fmt::format("gw-{}-{}", where, name),
            fmt::format("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {1}, namespace: {0}, {2}}}\n"
                        "spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE, "
                        "allowedRoutes: {{namespaces: {{from: {3}}}}}}}]}}\n",
                        where, name,
                        one_of({"labels: {a: b}", "labels: {istio.io/waypoint-for: all}", "labels: {istio.io/waypoint-for: workload}",
                                "annotations: {istio.io/for-service-account: x}"}),
                        one_of({"Same", "All"}))};
  }
  std::pair<std::string, std::string> virtual_service(const char* where) {
    const char* host = app();
    return {fmt::format("vs-{}-{}", where, host),
            fmt::format("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {1}, namespace: {0}}}\nspec:\n"
                        "  hosts: [{1}]\n  http:\n  - match: [{{uri: {{prefix: /{2}}}}}]\n    route:\n"
                        "    - {{destination: {{host: {3}, subset: {4}}}, weight: 1}}\n    - {{destination: {{host: {5}.other.svc.cluster.local}}, weight: 2}}\n"
                        "  {6}\n",
                        where, host, one_of({"x", "y"}), app(), one_of({"s1", "s2"}), app(),
                        one_of({"", "- directResponse: {status: 404}", "- timeout: 1s\n    route: [{destination: {host: a}}]"}))};
  }
  std::pair<std::string, std::string> destination_rule(const char* where) {
    const char* host = one_of({"a", "b", "c", "\"*.svc.cluster.local\""});
    return {fmt::format("dr-{}-{}", where, one_of({"1", "2"})),
            fmt::format("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d{3}, namespace: {0}}}\nspec:\n"
                        "  host: {1}\n  trafficPolicy: {{loadBalancer: {{simple: {2}}}}}\n  subsets: [{{name: s1, labels: {{version: v1}}}}]\n",
                        where, host, one_of({"RANDOM", "ROUND_ROBIN"}), next_++)};
  }
  std::pair<std::string, std::string> policy(const char* where) {
    const char* name = one_of({"p1", "p2"});
    return {fmt::format("ap-{}-{}", where, name),
            fmt::format("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {1}, namespace: {0}}}\nspec:\n"
                        "  {2}\n  action: {3}\n  rules: [{{from: [{{source: {{namespaces: [{0}]}}}}]}}]\n",
                        where, name,
                        one_of({"", "selector: {matchLabels: {app: a}}", "selector: {matchLabels: {version: v1}}",
                                "targetRefs: [{kind: Service, group: \"\", name: a}]",
                                "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w1}]"}),
                        one_of({"ALLOW", "DENY"}))};
  }
  std::pair<std::string, std::string> peer_authentication(const char* where) {
    const char* name = one_of({"x", "y"});
    return {fmt::format("pa-{}-{}", where, name),
            fmt::format("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {1}, namespace: {0}}}\nspec: {2}\n",
                        where, name,
                        one_of({"{mtls: {mode: STRICT}}", "{mtls: {mode: UNSET}}",
                                "{selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
                                "{selector: {matchLabels: {app: a}}, portLevelMtls: {8080: {mode: STRICT}}}"}))};
  }

  static Held held(const Translator& translator) {
    Held out;
    std::vector<Scope> scopes = {kEveryone, node_scope("node-a"), node_scope("node-b")};
    for (const char* ns : {"shop", "other", "istio-system"}) {
      for (const char* name : {"w1", "w2"}) scopes.push_back(waypoint_scope(ns, name));
    }
    for (const Scope& scope : scopes) {
      for (size_t type = 0; type < kResourceTypeCount; ++type) {
        for (const ResourcePtr& r : translator.list(static_cast<ResourceType>(type), scope)) {
          out[{static_cast<ResourceType>(type), scope, r->name}] = r->version + r->body;
        }
      }
    }
    return out;
  }

  std::mt19937 random_;
  ObjectStore store_;
  ManifestTree tree_;
  Translator translator_;
  std::map<std::string, std::set<std::string>> enrolled_;
  Held mirror_;
  std::map<ObjectKey, std::vector<Condition>> statuses_;
  int next_ = 0;
};

TEST(Incremental, EqualsAFullComputationAfterAnyHistory) {
  size_t most = 0;
  for (uint32_t seed = 1; seed <= kSeeds; ++seed) {
    World world(seed);
    for (int step = 0; step < kStepsPerSeed; ++step) {
      world.step();
      if (step % 10 == 9) {
        ASSERT_NO_FATAL_FAILURE(world.check(fmt::format("seed {} step {}", seed, step)));
      }
      most = std::max(most, world.resources());
    }
  }
  EXPECT_GT(most, 40u) << "the histories are too poor to prove anything";
}

TEST(Incremental, RecomputesOnlyWhatReadTheChange) {
  Mesh mesh;
  std::string pods;
  for (int i = 0; i < 200; ++i) {
    pods += pod_yaml("shop", fmt::format("p{}", i), fmt::format("app: a{}", i % 50), fmt::format("10.0.{}.{}", i / 100, i % 100 + 1));
  }
  mesh.put("pods.yaml", pods);
  TranslationResult service = mesh.put("s.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\n"
                                                 "spec: {clusterIP: 10.96.0.1, selector: {app: a7}, ports: [{port: 80}]}\n");
  EXPECT_EQ(service.resources.size(), 5u) << "the service and its four pods";
  EXPECT_LE(service.recomputed_units, 12u);
  TranslationResult enrolled = mesh.translator().set_enrolled("node-a", {"uid-shop-p3"});
  EXPECT_EQ(enrolled.resources.size(), 1u);
  EXPECT_LE(enrolled.recomputed_units, 2u);
  TranslationResult annotation = mesh.put("s.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, annotations: {a: b}}\n"
                                                    "spec: {clusterIP: 10.96.0.1, selector: {app: a7}, ports: [{port: 80}]}\n");
  EXPECT_TRUE(annotation.resources.empty()) << "a metadata edit pushes nothing";
}

}  // namespace
}  // namespace meltemi::config
