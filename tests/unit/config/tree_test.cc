// Files to changes: last good objects, layers, duplicates, generations.
#include <gmock/gmock.h>

#include "tests/unit/config/fixture.h"

namespace meltemi::config {
namespace {

using testing::HasSubstr;

std::string service(std::string_view name, int port) {
  return "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + std::string(name) +
         ", namespace: shop}\nspec: {ports: [{port: " + std::to_string(port) + "}]}\n";
}

struct Tree : testing::Test {
  ObjectStore store;
  ManifestTree tree{&store};
  int port(std::string_view name) {
    ObjectPtr object = store.find(Kind::kService, "shop", name);
    return object ? object->as<kube::Service>().spec().ports(0).port() : 0;
  }
};

TEST_F(Tree, ABadFileChangesNothing) {
  EXPECT_EQ(tree.put("f.yaml", service("a", 1) + service("b", 2)).changes.size(), 2u);
  ManifestTree::Outcome bad = tree.put(
      "f.yaml", service("a", 3) +
                    "---\napiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {prots: []}\n");
  EXPECT_TRUE(bad.changes.empty());
  ASSERT_TRUE(has_errors(bad.problems));
  EXPECT_THAT(bad.problems[0].to_string(),
              HasSubstr("(f.yaml:10): spec.prots: unknown field \"prots\". Did you mean `ports`?"));
  EXPECT_EQ(port("a"), 1);
  EXPECT_EQ(port("b"), 2);
  EXPECT_FALSE(tree.problems().empty()) << "the file stays bad until it is mended";
  ManifestTree::Outcome mended = tree.put("f.yaml", service("a", 3));
  EXPECT_EQ(mended.changes.size(), 2u) << "a changed, b is gone";
  EXPECT_EQ(port("a"), 3);
  EXPECT_EQ(port("b"), 0);
  EXPECT_TRUE(tree.problems().empty());
}

TEST_F(Tree, UnchangedBytesChangeNothing) {
  tree.put("f.yaml", service("a", 1));
  EXPECT_TRUE(tree.put("f.yaml", service("a", 1)).changes.empty());
  EXPECT_TRUE(tree.remove("g.yaml").changes.empty());
}

TEST_F(Tree, HigherLayersWinAndGiveWay) {
  tree.put("user.yaml", service("a", 1));
  tree.put("state/a.yaml", service("a", 2), 2);
  EXPECT_EQ(port("a"), 2);
  EXPECT_EQ(tree.file_of({Kind::kService, "shop", "a"}), "state/a.yaml");
  EXPECT_TRUE(tree.put("user.yaml", service("a", 3)).changes.empty());
  tree.remove("state/a.yaml");
  EXPECT_EQ(port("a"), 3);
  tree.remove("user.yaml");
  EXPECT_EQ(port("a"), 0);
}

TEST_F(Tree, TwoFilesWithOneObjectAreWarnedAbout) {
  tree.put("b.yaml", service("a", 2));
  ManifestTree::Outcome out = tree.put("a.yaml", service("a", 1));
  ASSERT_EQ(out.problems.size(), 1u);
  EXPECT_EQ(out.problems[0].severity, Severity::kWarning);
  EXPECT_THAT(out.problems[0].message, HasSubstr("also defined in b.yaml"));
  EXPECT_EQ(port("a"), 1);
  EXPECT_TRUE(has_errors(tree.put("c.yaml", service("x", 1) + service("x", 2)).problems))
      << "twice in one file";
}

TEST_F(Tree, GenerationCountsSpecsOnly) {
  auto generation = [&] { return store.find(Kind::kService, "shop", "a")->meta().generation(); };
  tree.put("f.yaml", service("a", 1));
  EXPECT_EQ(generation(), 1);
  tree.put("f.yaml", service("a", 2));
  EXPECT_EQ(generation(), 2);
  std::string labelled = service("a", 2);
  labelled.replace(labelled.find("namespace: shop"), 15, "namespace: shop, labels: {x: y}");
  EXPECT_EQ(tree.put("f.yaml", labelled).changes.size(), 1u);
  EXPECT_EQ(generation(), 2);
}

TEST(Store, SelectorsFindPodsAndPodsFindSelectors) {
  Mesh mesh;
  mesh.put("p.yaml", pod_yaml("a", "p", "app: x, tier: web", "10.0.0.1") +
                         pod_yaml("a", "q", "app: x", "10.0.0.2") +
                         pod_yaml("b", "p", "app: x, tier: web", "10.0.0.3"));
  mesh.put("s.yaml",
           "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {selector: "
           "{tier: web, app: x}, ports: [{port: 1}]}\n");
  Labels both;
  both["app"] = "x";
  both["tier"] = "web";
  EXPECT_EQ(mesh.store().pods_selected("a", both).size(), 1u);
  EXPECT_TRUE(mesh.store().pods_selected("a", Labels()).empty())
      << "a Service without selector selects nothing";
  EXPECT_EQ(mesh.store().selecting(Kind::kService, "a", both).size(), 1u);
  both.erase("tier");
  EXPECT_EQ(mesh.store().pods_selected("a", both).size(), 2u);
  EXPECT_TRUE(mesh.store().selecting(Kind::kService, "a", both).empty());
}

}  // namespace
}  // namespace meltemi::config
