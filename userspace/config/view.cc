#include "userspace/config/view.h"

#include <fmt/format.h>

namespace meltemi::config {
namespace {

std::string object_key(Kind kind, std::string_view ns, std::string_view name) {
  return fmt::format("o|{}|{}|{}", static_cast<int>(kind), ns, name);
}
std::string list_key(Kind kind, std::string_view ns) {
  return fmt::format("l|{}|{}", static_cast<int>(kind), ns);
}
std::string label_key(Kind kind, std::string_view ns, std::string_view key,
                      std::string_view value) {
  return fmt::format("s|{}|{}|{}={}", static_cast<int>(kind), ns, key, value);
}

// One pair is enough for an index; the smallest key is stable.
const Labels::value_type* first_pair(const Labels& labels) {
  const Labels::value_type* best = nullptr;
  for (const auto& pair : labels) {
    if (best == nullptr || pair.first < best->first) best = &pair;
  }
  return best;
}

}  // namespace

ObjectPtr View::object(Kind kind, std::string_view ns, std::string_view name) {
  reads_.insert(object_key(kind, ns, name));
  return store_.find(kind, ns, name);
}

std::vector<ObjectPtr> View::list(Kind kind, std::string_view ns) {
  reads_.insert(list_key(kind, ns));
  return store_.list(kind, ns);
}

std::vector<ObjectPtr> View::pods_selected(std::string_view ns, const Labels& selector) {
  if (const auto* pair = first_pair(selector)) {
    reads_.insert(label_key(Kind::kPod, ns, pair->first, pair->second));
  }
  return store_.pods_selected(ns, selector);
}

std::vector<ObjectPtr> View::selecting(Kind kind, std::string_view ns, const Labels& labels) {
  for (const auto& [key, value] : labels) reads_.insert(label_key(kind, ns, key, value));
  return store_.selecting(kind, ns, labels);
}

bool View::enrolled(const std::string& pod_uid) {
  reads_.insert(key_of_enrolment(pod_uid));
  return enrolled_.contains(pod_uid);
}

std::string key_of_enrolment(std::string_view pod_uid) {
  return fmt::format("e|{}", pod_uid);
}

std::set<std::string> keys_of_change(const ObjectChange& change) {
  const ObjectKey& key = change.key;
  std::set<std::string> keys = {object_key(key.kind, key.ns, key.name), list_key(key.kind, key.ns),
                                list_key(key.kind, "")};
  for (const ObjectPtr& object : {change.before, change.after}) {
    if (!object) continue;
    if (key.kind == Kind::kPod) {
      for (const auto& [name, value] : object->meta().labels()) {
        keys.insert(label_key(key.kind, key.ns, name, value));
      }
    } else if (const auto* pair = first_pair(selector_of(*object))) {
      keys.insert(label_key(key.kind, key.ns, pair->first, pair->second));
    }
  }
  return keys;
}

}  // namespace meltemi::config
