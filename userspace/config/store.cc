#include "userspace/config/store.h"

#include <algorithm>

namespace meltemi::config {
namespace {

std::string label_key(std::string_view ns, std::string_view key, std::string_view value) {
  std::string out(ns);
  out += '\0';
  out += key;
  out += '=';
  out += value;
  return out;
}

// The pair of a selector that it is indexed by: any would do, the smallest is stable.
std::optional<std::pair<std::string, std::string>> index_label(const Labels& selector) {
  std::optional<std::pair<std::string, std::string>> best;
  for (const auto& [key, value] : selector) {
    if (!best || key < best->first) best = {key, value};
  }
  return best;
}

bool has_selector(Kind kind) {
  return kind == Kind::kService || kind == Kind::kAuthorizationPolicy ||
         kind == Kind::kPeerAuthentication;
}

}  // namespace

bool labels_contain(const Labels& labels, const Labels& selector) {
  return std::all_of(selector.begin(), selector.end(), [&](const auto& pair) {
    auto found = labels.find(pair.first);
    return found != labels.end() && found->second == pair.second;
  });
}

const Labels& selector_of(const Object& object) {
  static const Labels none;
  switch (object.kind()) {
    case Kind::kService:
      return object.as<kube::Service>().spec().selector();
    case Kind::kAuthorizationPolicy:
      return object.as<kube::AuthorizationPolicy>().spec().selector().match_labels();
    case Kind::kPeerAuthentication:
      return object.as<kube::PeerAuthentication>().spec().selector().match_labels();
    default:
      return none;
  }
}

std::optional<ObjectChange> ObjectStore::upsert(Object object) {
  ObjectKey key = object.key();
  Named& named = by_kind_[static_cast<size_t>(key.kind)][key.ns];
  auto found = named.find(key.name);
  ObjectPtr before = found == named.end() ? nullptr : found->second;
  kube::ObjectMeta& meta = object.mutable_meta();
  if (before) {
    // What the API server would keep when a manifest does not say it.
    if (meta.uid().empty()) meta.set_uid(before->meta().uid());
    if (meta.creation_timestamp().empty()) {
      meta.set_creation_timestamp(before->meta().creation_timestamp());
    }
    if (before->same_content(object)) return std::nullopt;
  }
  if (meta.generation() == 0) {
    int64_t last = before ? before->meta().generation() : 0;
    meta.set_generation(before && before->same_spec(object) ? last : last + 1);
  }
  meta.set_resource_version(std::to_string(++resource_version_));
  // Pods come by the thousand and nobody points at a line of their status.
  if (key.kind == Kind::kPod) object.forget_lines();
  auto after = std::make_shared<const Object>(std::move(object));
  if (before) index(before, false);
  named[key.name] = after;
  index(after, true);
  return ObjectChange{std::move(key), std::move(before), std::move(after)};
}

std::optional<ObjectChange> ObjectStore::erase(const ObjectKey& key) {
  auto& namespaces = by_kind_[static_cast<size_t>(key.kind)];
  auto ns = namespaces.find(key.ns);
  if (ns == namespaces.end()) return std::nullopt;
  auto found = ns->second.find(key.name);
  if (found == ns->second.end()) return std::nullopt;
  ObjectPtr before = found->second;
  ns->second.erase(found);
  if (ns->second.empty()) namespaces.erase(ns);
  index(before, false);
  ++resource_version_;
  return ObjectChange{key, std::move(before), nullptr};
}

void ObjectStore::index(const ObjectPtr& object, bool add) {
  auto change = [&](auto& table, const std::string& key) {
    if (add) {
      table[key].insert(object->name());
      return;
    }
    auto found = table.find(key);
    if (found == table.end()) return;
    found->second.erase(object->name());
    if (found->second.empty()) table.erase(found);
  };
  if (object->kind() == Kind::kPod) {
    for (const auto& [key, value] : object->meta().labels()) {
      change(pods_by_label_, label_key(object->ns(), key, value));
    }
  } else if (has_selector(object->kind())) {
    if (auto pair = index_label(selector_of(*object))) {
      change(selectors_by_label_[static_cast<size_t>(object->kind())],
             label_key(object->ns(), pair->first, pair->second));
    }
  }
}

ObjectPtr ObjectStore::find(const ObjectKey& key) const {
  return find(key.kind, key.ns, key.name);
}

ObjectPtr ObjectStore::find(Kind kind, std::string_view ns, std::string_view name) const {
  const auto& namespaces = by_kind_[static_cast<size_t>(kind)];
  auto in = namespaces.find(ns);
  if (in == namespaces.end()) return nullptr;
  auto found = in->second.find(name);
  return found == in->second.end() ? nullptr : found->second;
}

std::vector<ObjectPtr> ObjectStore::list(Kind kind, std::string_view ns) const {
  std::vector<ObjectPtr> out;
  const auto& namespaces = by_kind_[static_cast<size_t>(kind)];
  auto take = [&](const Named& named) {
    for (const auto& [name, object] : named) out.push_back(object);
  };
  if (!ns.empty() && kind_info(kind).namespaced) {
    if (auto found = namespaces.find(ns); found != namespaces.end()) take(found->second);
  } else {
    for (const auto& [name, named] : namespaces) take(named);
  }
  return out;
}

size_t ObjectStore::size(Kind kind) const {
  size_t count = 0;
  for (const auto& [ns, named] : by_kind_[static_cast<size_t>(kind)]) count += named.size();
  return count;
}

std::vector<ObjectPtr> ObjectStore::pods_selected(std::string_view ns,
                                                  const Labels& selector) const {
  std::vector<ObjectPtr> out;
  auto pair = index_label(selector);
  if (!pair) return out;
  auto found = pods_by_label_.find(label_key(ns, pair->first, pair->second));
  if (found == pods_by_label_.end()) return out;
  for (const std::string& name : found->second) {
    ObjectPtr pod = find(Kind::kPod, ns, name);
    if (pod && labels_contain(pod->meta().labels(), selector)) out.push_back(std::move(pod));
  }
  return out;
}

std::vector<ObjectPtr> ObjectStore::selecting(Kind kind, std::string_view ns,
                                              const Labels& labels) const {
  std::vector<ObjectPtr> out;
  const auto& table = selectors_by_label_[static_cast<size_t>(kind)];
  for (const auto& [key, value] : labels) {
    auto found = table.find(label_key(ns, key, value));
    if (found == table.end()) continue;
    for (const std::string& name : found->second) {
      ObjectPtr object = find(kind, ns, name);
      if (object && labels_contain(labels, selector_of(*object))) out.push_back(std::move(object));
    }
  }
  std::sort(out.begin(), out.end(),
            [](const ObjectPtr& a, const ObjectPtr& b) { return a->name() < b->name(); });
  return out;
}

}  // namespace meltemi::config
