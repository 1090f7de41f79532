// Objects to xDS resources, incrementally: a changed object recomputes only the units that read it.
// Each unit is a pure function of the store and the kernel's truth (which pods are enrolled); its
// reads are recorded as dependency keys while it runs. A resource is encoded once and its bytes are
// shared. One owner; not thread-safe, but Resources are immutable and may go anywhere. Never
// serves, never validates: what is in the store is taken as validated.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/config/validate.h"

namespace meltemi::config {

enum class ResourceType : uint8_t {
  kAddress,        // istio.workload.Address
  kAuthorization,  // istio.security.Authorization
  kPodEnrolment,   // meltemi.node.v1.PodEnrolment
  kListener,       // envoy.config.listener.v3.Listener
  kRoute,          // envoy.config.route.v3.RouteConfiguration
  kCluster,        // envoy.config.cluster.v3.Cluster
  kEndpoints,      // envoy.config.endpoint.v3.ClusterLoadAssignment
};
inline constexpr size_t kResourceTypeCount = 7;
std::string_view type_url(ResourceType type);  // "type.googleapis.com/istio.workload.Address"
std::optional<ResourceType> resource_type(std::string_view type_url);

// Who gets a resource: everyone (""), one node ("node/<name>"), one waypoint
// ("waypoint/<ns>/<name>").
using Scope = std::string;
inline const Scope kEveryone;
Scope node_scope(std::string_view node);
Scope waypoint_scope(std::string_view ns, std::string_view gateway);

struct Resource {
  std::string name;
  std::string version;  // hash of the content: equal content, equal version, also across restarts
  std::string body;     // the encoded message (Any.value)
};
using ResourcePtr = std::shared_ptr<const Resource>;

struct ResourceChange {
  ResourceType type;
  Scope scope;
  std::string name;
  ResourcePtr resource;  // null: removed
};

// Kubernetes-style condition of an object (facts: ZtunnelAccepted, WaypointAccepted, WaypointBound,
// ...).
struct Condition {
  std::string type;
  bool status = false;
  std::string reason;
  std::string message;
  bool operator==(const Condition&) const = default;
};
struct StatusChange {
  ObjectKey object;
  int64_t observed_generation = 0;
  std::vector<Condition> conditions;  // all that the translator has for it; empty: none any more
};

struct TranslationResult {
  std::vector<ResourceChange> resources;  // only what differs, sorted by type, scope, name
  std::vector<StatusChange> statuses;     // only what differs
  size_t recomputed_units = 0;
};

class Translator {
 public:
  // `store` must outlive the translator; changes are applied to it before they are told here.
  Translator(const ObjectStore* store, MeshNames names);
  ~Translator();
  Translator(const Translator&) = delete;
  Translator& operator=(const Translator&) = delete;

  // Tells what changed in the store since the last call. The first call may be rebuild() instead.
  TranslationResult apply(const std::vector<ObjectChange>& changes);
  // The uids of the pods that are enrolled in the kernel of `node` now. Returns what that changes.
  TranslationResult set_enrolled(std::string_view node, std::set<std::string> pod_uids);
  // Whether this pod is to be in the mesh, by the store as it is now; false if there is no such pod.
  bool wants_enrolment(std::string_view ns, std::string_view name) const;
  // Forgets everything and computes from the store; returns the difference to what was there.
  TranslationResult rebuild();

  // All resources of a type in one scope, sorted by name.
  std::vector<ResourcePtr> list(ResourceType type, const Scope& scope) const;
  ResourcePtr find(ResourceType type, const Scope& scope, std::string_view name) const;
  // Conditions of an object, empty if there are none.
  std::vector<Condition> conditions(const ObjectKey& object) const;
  size_t unit_count() const;

 private:
  class Engine;
  std::unique_ptr<Engine> engine_;
};

}  // namespace meltemi::config
