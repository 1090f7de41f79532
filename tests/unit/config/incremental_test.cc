// Whatever the order of changes: what the incremental translator holds equals what a fresh one
// computes from the same objects, and what it reported adds up to what it holds.
#include <fmt/format.h>

#include <map>
#include <tuple>

#include "tests/unit/config/fixture.h"
#include "tests/unit/config/random_manifests.h"

namespace meltemi::config {
namespace {

using Key = std::tuple<ResourceType, Scope, std::string>;
using Held = std::map<Key, std::string>;  // -> version and body

constexpr int kSeeds = 12;
constexpr int kStepsPerSeed = 250;

class World {
 public:
  explicit World(uint32_t seed) : make_(seed), tree_(&store_), translator_(&store_, MeshNames()) {}

  void step() {
    TranslationResult result = make_.pick(10) == 0 ? enrol() : change_object();
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
                  fresh.conditions(object->key()))
            << when;
      }
    }
    // Computing everything again changes nothing.
    ASSERT_TRUE(translator_.rebuild().resources.empty()) << when;
  }

  size_t resources() const { return mirror_.size(); }

 private:
  TranslationResult enrol() {
    std::string node = make_.one_of({"node-a", "node-b"});
    std::set<std::string> uids;
    for (const char* where : {"shop", "other", "istio-system"}) {
      for (int i = 0; i < 4; ++i) {
        if (make_.pick(2)) uids.insert(fmt::format("uid-{}-p{}", where, i));
      }
    }
    enrolled_[node] = uids;
    return translator_.set_enrolled(node, uids);
  }

  TranslationResult change_object() {
    auto [path, yaml] = make_.object();
    if (make_.pick(4) == 0) return translator_.apply(tree_.remove(path).changes);
    ManifestTree::Outcome out = tree_.put(path, yaml);
    EXPECT_FALSE(has_errors(out.problems)) << out.problems[0].to_string() << "\n" << yaml;
    return translator_.apply(out.changes);
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

  RandomManifests make_;
  ObjectStore store_;
  ManifestTree tree_;
  Translator translator_;
  std::map<std::string, std::set<std::string>> enrolled_;
  Held mirror_;
  std::map<ObjectKey, std::vector<Condition>> statuses_;
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
    pods += pod_yaml("shop", fmt::format("p{}", i), fmt::format("app: a{}", i % 50),
                     fmt::format("10.0.{}.{}", i / 100, i % 100 + 1));
  }
  mesh.put("pods.yaml", pods);
  TranslationResult service =
      mesh.put("s.yaml",
               "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\n"
               "spec: {clusterIP: 10.96.0.1, selector: {app: a7}, ports: [{port: 80}]}\n");
  EXPECT_EQ(service.resources.size(), 5u) << "the service and its four pods";
  EXPECT_LE(service.recomputed_units, 12u);
  TranslationResult enrolled = mesh.translator().set_enrolled("node-a", {"uid-shop-p3"});
  EXPECT_EQ(enrolled.resources.size(), 1u);
  EXPECT_LE(enrolled.recomputed_units, 2u);
  TranslationResult annotation = mesh.put(
      "s.yaml",
      "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, annotations: {a: b}}\n"
      "spec: {clusterIP: 10.96.0.1, selector: {app: a7}, ports: [{port: 80}]}\n");
  EXPECT_TRUE(annotation.resources.empty()) << "a metadata edit pushes nothing";
}

}  // namespace
}  // namespace meltemi::config
