// A store and translator fed with YAML, as the directory source would. Only for tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/translate.h"
#include "userspace/config/tree.h"

namespace meltemi::config {

class Mesh {
 public:
  Mesh() : tree_(&store_), translator_(&store_, MeshNames()) {}

  // Replaces file `path`; errors in it fail the test.
  TranslationResult put(std::string_view path, std::string_view yaml) {
    ManifestTree::Outcome out = tree_.put(path, yaml);
    for (const Problem& problem : out.problems) {
      EXPECT_NE(problem.severity, Severity::kError) << problem.to_string();
    }
    return checked(translator_.apply(out.changes));
  }
  TranslationResult remove(std::string_view path) {
    return checked(translator_.apply(tree_.remove(path).changes));
  }

  template <typename T>
  T get(ResourceType type, const Scope& scope, std::string_view name) {
    T message;
    ResourcePtr resource = translator_.find(type, scope, name);
    EXPECT_NE(resource, nullptr) << scope << " has no " << name;
    if (resource) EXPECT_TRUE(message.ParseFromString(resource->body));
    return message;
  }
  bool has(ResourceType type, const Scope& scope, std::string_view name) {
    return translator_.find(type, scope, name) != nullptr;
  }
  std::vector<std::string> names(ResourceType type, const Scope& scope) {
    std::vector<std::string> out;
    for (const ResourcePtr& resource : translator_.list(type, scope)) out.push_back(resource->name);
    return out;
  }
  // The reason of a condition of an object, "" if there is none.
  std::string reason(const ObjectKey& key, std::string_view type) {
    for (const Condition& condition : translator_.conditions(key)) {
      if (condition.type == type) return condition.reason;
    }
    return {};
  }

  ObjectStore& store() { return store_; }
  ManifestTree& tree() { return tree_; }
  Translator& translator() { return translator_; }

 private:
  // Every resource that a waypoint gets is one that a strict Envoy would take.
  static TranslationResult checked(TranslationResult result);

  ObjectStore store_;
  ManifestTree tree_;
  Translator translator_;
};

// A running pod with status, as the node writes it.
std::string pod_yaml(std::string_view ns, std::string_view name, std::string_view labels,
                     std::string_view ip, std::string_view extra_spec = "");

}  // namespace meltemi::config
