// The incremental engine: which units exist, what each read and made, and what a change touches.
#include "userspace/config/translate.h"

#include <fmt/format.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "userspace/config/units.h"

namespace meltemi::config {
namespace {

constexpr std::string_view kTypeUrls[kResourceTypeCount] = {
    "type.googleapis.com/istio.workload.Address",
    "type.googleapis.com/istio.security.Authorization",
    "type.googleapis.com/meltemi.node.v1.PodEnrolment",
    "type.googleapis.com/envoy.config.listener.v3.Listener",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
    "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
};

// FNV-1a, 64 bits: stable across processes and machines, which std::hash is not.
std::string content_version(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  return fmt::format("{:016x}", hash);
}

}  // namespace

std::string_view type_url(ResourceType type) {
  return kTypeUrls[static_cast<size_t>(type)];
}

std::optional<ResourceType> resource_type(std::string_view url) {
  for (size_t i = 0; i < kResourceTypeCount; ++i) {
    if (kTypeUrls[i] == url) return static_cast<ResourceType>(i);
  }
  return std::nullopt;
}

Scope node_scope(std::string_view node) {
  return fmt::format("node/{}", node);
}
Scope waypoint_scope(std::string_view ns, std::string_view gateway) {
  return fmt::format("waypoint/{}/{}", ns, gateway);
}

std::string encode(const google::protobuf::Message& message) {
  std::string out;
  google::protobuf::io::StringOutputStream stream(&out);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  message.SerializeToCodedStream(&coded);
  coded.Trim();
  return out;
}

void pack_any(const google::protobuf::Message& message, google::protobuf::Any* any) {
  any->set_type_url("type.googleapis.com/" + message.GetDescriptor()->full_name());
  any->set_value(encode(message));
}

void Outputs::add(ResourceType type, Scope scope, std::string name,
                  const google::protobuf::Message& message) {
  auto resource = std::make_shared<Resource>();
  resource->name = name;
  resource->body = encode(message);
  resource->version = content_version(resource->body);
  resources_.insert_or_assign(ResourceKey{type, std::move(scope), std::move(name)},
                              std::move(resource));
}

// What a unit is made for: an object, a cluster that routes want, or the one strict policy.
struct UnitId {
  enum class What : uint8_t { kObject, kProxy, kCluster, kStrict };
  What what = What::kStrict;
  ObjectKey object;        // kObject, kProxy
  ClusterRequest cluster;  // kCluster
  auto operator<=>(const UnitId&) const = default;
};

class Translator::Engine {
 public:
  Engine(const ObjectStore* store, MeshNames names) : store_(*store), names_(std::move(names)) {
    ensure({UnitId::What::kStrict, {}, {}});
  }

  void note(const ObjectChange& change) {
    for (const UnitId& id : units_of(change.key)) {
      if (change.after) {
        ensure(id);
      } else {
        drop(id);
      }
    }
    for (const std::string& key : keys_of_change(change)) touch(key);
  }

  void note_enrolled(std::string_view node, std::set<std::string> uids) {
    std::set<std::string>& known = enrolled_by_node_[std::string(node)];
    std::set<std::string> changed;
    std::set_symmetric_difference(known.begin(), known.end(), uids.begin(), uids.end(),
                                  std::inserter(changed, changed.end()));
    known = std::move(uids);
    if (known.empty()) enrolled_by_node_.erase(std::string(node));
    for (const std::string& uid : changed) {
      // A pod has one node; a uid that two nodes report stays as long as one does.
      bool anywhere = std::any_of(enrolled_by_node_.begin(), enrolled_by_node_.end(),
                                  [&](const auto& entry) { return entry.second.contains(uid); });
      bool differs = anywhere ? enrolled_.insert(uid).second : enrolled_.erase(uid) > 0;
      if (differs) touch(key_of_enrolment(uid));
    }
  }

  bool wants_enrolment(std::string_view ns, std::string_view name) const {
    View view(&store_, &enrolled_, &names_);
    const ObjectPtr pod = view.object(Kind::kPod, ns, name);
    return pod && enrolment_of(view, *pod).enrol;
  }

  void note_everything() {
    std::vector<UnitId> gone;
    std::set<UnitId> wanted = {{UnitId::What::kStrict, {}, {}}};
    for (size_t kind = 0; kind < kKindCount; ++kind) {
      for (const ObjectPtr& object : store_.list(static_cast<Kind>(kind))) {
        for (UnitId& id : units_of(object->key())) wanted.insert(std::move(id));
      }
    }
    for (const auto& [id, unit] : units_) {
      if (id.what != UnitId::What::kCluster && !wanted.contains(id)) gone.push_back(id);
    }
    for (const UnitId& id : gone) drop(id);
    for (const UnitId& id : wanted) ensure(id);
    for (const auto& [id, unit] : units_) dirty_.insert(id);
  }

  TranslationResult settle() {
    TranslationResult result;
    while (!dirty_.empty()) {
      UnitId id = *dirty_.begin();
      dirty_.erase(dirty_.begin());
      if (!units_.contains(id)) continue;
      recompute(id);
      ++result.recomputed_units;
    }
    report(&result);
    return result;
  }

  std::vector<ResourcePtr> list(ResourceType type, const Scope& scope) const {
    std::vector<ResourcePtr> out;
    auto from = published_.lower_bound(ResourceKey{type, scope, ""});
    for (; from != published_.end() && from->first.type == type && from->first.scope == scope;
         ++from) {
      out.push_back(from->second);
    }
    return out;
  }

  ResourcePtr find(ResourceType type, const Scope& scope, std::string_view name) const {
    auto found = published_.find(ResourceKey{type, scope, std::string(name)});
    return found == published_.end() ? nullptr : found->second;
  }

  std::vector<Condition> conditions(const ObjectKey& object) const {
    auto found = published_conditions_.find(object);
    return found == published_conditions_.end() ? std::vector<Condition>() : found->second;
  }

  size_t unit_count() const { return units_.size(); }

 private:
  struct Unit {
    std::set<std::string> reads;
    Outputs outputs;
    size_t wanted_by = 0;  // clusters only: how many units ask for it
  };

  static std::vector<UnitId> units_of(const ObjectKey& key) {
    switch (key.kind) {
      case Kind::kPod:
      case Kind::kService:
        return {{UnitId::What::kObject, key, {}}, {UnitId::What::kProxy, key, {}}};
      case Kind::kAuthorizationPolicy:
      case Kind::kPeerAuthentication:
      case Kind::kGateway:
        return {{UnitId::What::kObject, key, {}}};
      default:
        return {};
    }
  }

  void ensure(const UnitId& id) {
    if (units_.try_emplace(id).second) dirty_.insert(id);
  }

  void drop(const UnitId& id) {
    auto found = units_.find(id);
    if (found == units_.end()) return;
    Unit unit = std::move(found->second);
    units_.erase(found);
    forget_reads(id, unit.reads);
    replace(id, unit.outputs, Outputs());
  }

  void touch(const std::string& key) {
    auto found = readers_.find(key);
    if (found == readers_.end()) return;
    dirty_.insert(found->second.begin(), found->second.end());
  }

  void forget_reads(const UnitId& id, const std::set<std::string>& reads) {
    for (const std::string& key : reads) {
      auto found = readers_.find(key);
      if (found == readers_.end()) continue;
      found->second.erase(id);
      if (found->second.empty()) readers_.erase(found);
    }
  }

  void recompute(const UnitId& id) {
    View view(&store_, &enrolled_, &names_);
    Outputs outputs;
    run(id, view, &outputs);
    Unit& unit = units_.at(id);
    std::set<std::string> reads = view.take_reads();
    if (reads != unit.reads) {
      forget_reads(id, unit.reads);
      for (const std::string& key : reads) readers_[key].insert(id);
      unit.reads = std::move(reads);
    }
    Outputs before = std::exchange(unit.outputs, outputs);
    replace(id, before, outputs);
  }

  void run(const UnitId& id, View& view, Outputs* out) const {
    switch (id.what) {
      case UnitId::What::kStrict:
        translate_strict_policy(view, out);
        return;
      case UnitId::What::kCluster:
        translate_cluster(view, id.cluster, out);
        return;
      case UnitId::What::kObject:
      case UnitId::What::kProxy:
        break;
    }
    ObjectPtr object = view.object(id.object.kind, id.object.ns, id.object.name);
    if (!object) return;
    bool proxy = id.what == UnitId::What::kProxy;
    switch (id.object.kind) {
      case Kind::kPod:
        (proxy ? translate_pod_proxy : translate_pod)(view, *object, out);
        return;
      case Kind::kService:
        (proxy ? translate_service_proxy : translate_service)(view, *object, out);
        return;
      case Kind::kAuthorizationPolicy:
        translate_authorization(view, *object, out);
        return;
      case Kind::kPeerAuthentication:
        translate_peer_authentication(view, *object, out);
        return;
      case Kind::kGateway:
        translate_waypoint(view, *object, out);
        return;
      default:
        return;
    }
  }

  // Takes a unit's old outputs back and gives its new ones.
  void replace(const UnitId& id, const Outputs& before, const Outputs& after) {
    for (const auto& [key, resource] : before.resources()) {
      auto found = makers_.find(key);
      found->second.erase(id);
      if (found->second.empty()) makers_.erase(found);
      changed_.insert(key);
    }
    for (const auto& [key, resource] : after.resources()) {
      makers_[key][id] = resource;
      changed_.insert(key);
    }
    for (const auto& [object, conditions] : before.conditions()) {
      conditions_[object].erase(id);
      changed_objects_.insert(object);
    }
    for (const auto& [object, conditions] : after.conditions()) {
      conditions_[object][id] = conditions;
      changed_objects_.insert(object);
    }
    for (const ClusterRequest& request : after.clusters()) {
      UnitId cluster{UnitId::What::kCluster, {}, request};
      ensure(cluster);
      ++units_.at(cluster).wanted_by;
    }
    for (const ClusterRequest& request : before.clusters()) {
      UnitId cluster{UnitId::What::kCluster, {}, request};
      if (--units_.at(cluster).wanted_by == 0) drop(cluster);
    }
  }

  // Compares what is made now with what was last told, and tells the difference.
  void report(TranslationResult* result) {
    for (const ResourceKey& key : changed_) {
      auto makers = makers_.find(key);
      auto old = published_.find(key);
      if (makers == makers_.end()) {
        if (old == published_.end()) continue;
        published_.erase(old);
        result->resources.push_back({key.type, key.scope, key.name, nullptr});
        continue;
      }
      // Units that make the same resource make equal ones; the first stands for all.
      const ResourcePtr& now = makers->second.begin()->second;
      if (old != published_.end() && old->second->version == now->version) continue;
      published_.insert_or_assign(key, now);
      result->resources.push_back({key.type, key.scope, key.name, now});
    }
    changed_.clear();
    for (const ObjectKey& object : changed_objects_) report_conditions(object, result);
    changed_objects_.clear();
  }

  void report_conditions(const ObjectKey& object, TranslationResult* result) {
    std::vector<Condition> now;
    auto found = conditions_.find(object);
    if (found != conditions_.end()) {
      for (const auto& [id, list] : found->second) now.insert(now.end(), list.begin(), list.end());
      if (found->second.empty()) conditions_.erase(found);
    }
    std::vector<Condition>& known = published_conditions_[object];
    bool same = known == now;
    if (!same) {
      known = now;
      ObjectPtr stored = store_.find(object);
      result->statuses.push_back(
          {object, stored ? stored->meta().generation() : 0, std::move(now)});
    }
    if (known.empty()) published_conditions_.erase(object);
  }

  const ObjectStore& store_;
  MeshNames names_;
  EnrolledPods enrolled_;
  std::map<std::string, std::set<std::string>> enrolled_by_node_;

  std::map<UnitId, Unit> units_;
  std::set<UnitId> dirty_;
  std::unordered_map<std::string, std::set<UnitId>> readers_;
  std::map<ResourceKey, std::map<UnitId, ResourcePtr>> makers_;
  std::map<ObjectKey, std::map<UnitId, std::vector<Condition>>> conditions_;
  std::map<ResourceKey, ResourcePtr> published_;
  std::map<ObjectKey, std::vector<Condition>> published_conditions_;
  std::set<ResourceKey> changed_;
  std::set<ObjectKey> changed_objects_;
};

Translator::Translator(const ObjectStore* store, MeshNames names)
    : engine_(std::make_unique<Engine>(store, std::move(names))) {}
Translator::~Translator() = default;

TranslationResult Translator::apply(const std::vector<ObjectChange>& changes) {
  for (const ObjectChange& change : changes) engine_->note(change);
  return engine_->settle();
}

TranslationResult Translator::set_enrolled(std::string_view node, std::set<std::string> pod_uids) {
  engine_->note_enrolled(node, std::move(pod_uids));
  return engine_->settle();
}

bool Translator::wants_enrolment(std::string_view ns, std::string_view name) const {
  return engine_->wants_enrolment(ns, name);
}

TranslationResult Translator::rebuild() {
  engine_->note_everything();
  return engine_->settle();
}

std::vector<ResourcePtr> Translator::list(ResourceType type, const Scope& scope) const {
  return engine_->list(type, scope);
}
ResourcePtr Translator::find(ResourceType type, const Scope& scope, std::string_view name) const {
  return engine_->find(type, scope, name);
}
std::vector<Condition> Translator::conditions(const ObjectKey& object) const {
  return engine_->conditions(object);
}
size_t Translator::unit_count() const {
  return engine_->unit_count();
}

}  // namespace meltemi::config
