// The units of translation: each a pure function of a View that writes what it makes into Outputs.
// The engine (translate.cc) decides when which one runs. Internal to translation.
#pragma once

#include <google/protobuf/any.pb.h>

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/translate.h"
#include "userspace/config/view.h"
#include "userspace/model/enrolment.h"

namespace meltemi::config {

struct ResourceKey {
  ResourceType type;
  Scope scope;
  std::string name;
  auto operator<=>(const ResourceKey&) const = default;
};

// A cluster that routes of one waypoint send to; made on demand, once, however many routes want it.
struct ClusterRequest {
  Scope scope;
  std::string waypoint_ns;
  std::string service_ns;
  std::string service;
  uint32_t port = 0;
  std::string subset;
  bool http = true;
  // For the service's own port, whose listener has asked its policies: inbound-vip. Else outbound:
  // for routes of another service or port.
  bool owned = true;
  auto operator<=>(const ClusterRequest&) const = default;
  std::string name(const MeshNames& names) const;
};

class Outputs {
 public:
  void add(ResourceType type, Scope scope, std::string name,
           const google::protobuf::Message& message);
  void want(ClusterRequest request) { clusters_.insert(std::move(request)); }
  void condition(const ObjectKey& object, Condition condition) {
    conditions_[object].push_back(std::move(condition));
  }

  const std::map<ResourceKey, ResourcePtr>& resources() const { return resources_; }
  const std::set<ClusterRequest>& clusters() const { return clusters_; }
  const std::map<ObjectKey, std::vector<Condition>>& conditions() const { return conditions_; }

 private:
  std::map<ResourceKey, ResourcePtr> resources_;
  std::set<ClusterRequest> clusters_;
  std::map<ObjectKey, std::vector<Condition>> conditions_;
};

// Deterministic bytes: equal messages give equal bytes (maps are sorted).
std::string encode(const google::protobuf::Message& message);
void pack_any(const google::protobuf::Message& message, google::protobuf::Any* any);

// REQUIRES for all: the object exists in the view's store.
void translate_pod(View& view, const Object& pod, Outputs* out);          // translate_pod.cc
// Whether a pod is to be in the mesh, and why.
model::EnrolmentDecision enrolment_of(View& view, const Object& pod);
void translate_service(View& view, const Object& service, Outputs* out);  // translate_service.cc
void translate_authorization(View& view, const Object& policy,
                             Outputs* out);  // translate_policy.cc
void translate_peer_authentication(View& view, const Object& policy, Outputs* out);
void translate_strict_policy(View& view, Outputs* out);  // one in the mesh
void translate_service_proxy(View& view, const Object& service,
                             Outputs* out);  // translate_proxy.cc
void translate_waypoint(View& view, const Object& gateway, Outputs* out);
void translate_cluster(View& view, const ClusterRequest& request,
                       Outputs* out);  // translate_cluster.cc
// The virtual listener of a pod behind a workload waypoint, in that waypoint's scope.
void translate_pod_proxy(View& view, const Object& pod, Outputs* out);

}  // namespace meltemi::config
