#include "userspace/sandbox/controllers.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "userspace/sandbox/services.h"
#include "userspace/sandbox/workload_status.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

constexpr std::string_view kAlphabet = "bcdfghjklmnpqrstvwxz2456789";
constexpr int64_t kDefaultGraceSeconds = 30;

class Planner {
 public:
  Planner(const ObjectStore& wanted, const LivePods& live, const std::vector<NodeInfo>& nodes,
          const std::function<std::string()>& suffix)
      : wanted_(wanted), live_(live), nodes_(nodes), suffix_(suffix) {
    for (const NodeInfo& node : nodes) load_[node.name] = 0;
    for (const auto& [uid, pod] : live) {
      const auto& node = pod.desired.as<kube::Pod>().spec().node_name();
      if (!pod.finished() && load_.contains(node)) ++load_[node];
      by_controller_[controller_of(pod.desired)].push_back(&pod);
    }
  }

  PodPlan run() {
    place_waiting();
    for (const ObjectPtr& pod : wanted_.list(Kind::kPod)) plan_bare(*pod);
    for (const ObjectPtr& d : wanted_.list(Kind::kDeployment)) plan_deployment(*d);
    for (const ObjectPtr& r : wanted_.list(Kind::kReplicaSet)) plan_replica_set(*r);
    for (const ObjectPtr& j : wanted_.list(Kind::kJob)) plan_job(*j);
    remove_orphans();
    return std::move(plan_);
  }

 private:
  using Group = std::vector<const LivePod*>;

  // "ns/Deployment/name"; "ns/Pod/name" for pods that a user wrote.
  static std::string controller_of(const Object& pod) {
    const std::string_view controller = pod.annotation(kControllerAnnotation);
    return controller.empty() ? fmt::format("{}/Pod/{}", pod.ns(), pod.name())
                              : fmt::format("{}/{}", pod.ns(), controller);
  }
  static std::string id_of(const Object& owner) {
    return fmt::format("{}/{}/{}", owner.ns(), owner.info().name, owner.name());
  }

  const Group& group(const Object& owner) {
    const std::string id = id_of(owner);
    planned_.insert(id);
    return by_controller_[id];
  }

  // Fewest pods first, then the node's order: round robin where all are alike. "" with the reason.
  std::string choose_node(const kube::PodSpec& spec, std::string* reason) {
    if (!spec.node_name().empty()) {
      if (load_.contains(spec.node_name())) return spec.node_name();
      *reason = fmt::format("spec.nodeName: there is no node \"{}\"", spec.node_name());
      return {};
    }
    const NodeInfo* best = nullptr;
    for (const NodeInfo& node : nodes_) {
      const bool fits = std::all_of(
          spec.node_selector().begin(), spec.node_selector().end(), [&](const auto& wanted) {
            const auto label = node.labels.find(wanted.first);
            return label != node.labels.end() && label->second == wanted.second;
          });
      if (fits && (best == nullptr || load_[node.name] < load_[best->name])) best = &node;
    }
    if (best == nullptr) {
      *reason = fmt::format("0/{} nodes are available: no node has the labels of spec.nodeSelector",
                            nodes_.size());
      return {};
    }
    ++load_[best->name];
    return best->name;
  }

  void place_waiting() {
    for (const auto& [uid, pod] : live_) {
      const auto& spec = pod.desired.as<kube::Pod>().spec();
      std::string reason;
      if (pod.terminating() || load_.contains(spec.node_name())) continue;
      if (std::string node = choose_node(spec, &reason); !node.empty()) plan_.place[uid] = node;
    }
  }

  static void fill_defaults(kube::PodSpec* spec) {
    if (spec->service_account_name().empty())
      spec->set_service_account_name(spec->service_account().empty() ? "default"
                                                                     : spec->service_account());
    if (spec->restart_policy().empty()) spec->set_restart_policy("Always");
    if (!spec->has_termination_grace_period_seconds())
      spec->set_termination_grace_period_seconds(kDefaultGraceSeconds);
  }

  void create(Object pod) {
    std::string reason;
    pod.edit<kube::Pod>([&](kube::Pod& body) {
      body.clear_status();
      fill_defaults(body.mutable_spec());
      const std::string node = choose_node(body.spec(), &reason);
      if (!node.empty()) body.mutable_spec()->set_node_name(node);
    });
    plan_.create.push_back({std::move(pod), std::move(reason)});
  }

  void create_from(const Object& owner, const kube::PodTemplateSpec& tmpl, std::string_view prefix,
                   std::string_view owner_kind, std::string_view owner_name) {
    Object pod = Object::make(Kind::kPod, owner.ns(), fmt::format("{}-{}", prefix, suffix_()));
    kube::ObjectMeta& meta = pod.mutable_meta();
    meta.set_generate_name(fmt::format("{}-", prefix));
    *meta.mutable_labels() = tmpl.metadata().labels();
    *meta.mutable_annotations() = tmpl.metadata().annotations();
    (*meta.mutable_annotations())[std::string(kControllerAnnotation)] =
        fmt::format("{}/{}", owner.info().name, owner.name());
    kube::OwnerReference* reference = meta.add_owner_references();
    reference->set_api_version(owner_kind == "Job" ? "batch/v1" : "apps/v1");
    reference->set_kind(std::string(owner_kind));
    reference->set_name(std::string(owner_name));
    reference->set_uid(owner.meta().uid());
    reference->set_controller(true);
    pod.edit<kube::Pod>([&](kube::Pod& body) { *body.mutable_spec() = tmpl.spec(); });
    if (owner_kind == "ReplicaSet" && owner.kind() == Kind::kDeployment)
      (*meta.mutable_labels())["pod-template-hash"] =
          std::string(owner_name.substr(owner.name().size() + 1));
    create(std::move(pod));
  }

  void plan_bare(const Object& pod) {
    const std::string hash = encode_hash(
        stable_hash(config::to_yaml(config::encode_message(pod.as<kube::Pod>().spec()))), 10);
    const Group& mine = group(pod);
    if (mine.empty()) {
      Object copy = pod;
      (*copy.mutable_meta().mutable_annotations())[std::string(kSpecAnnotation)] = hash;
      create(std::move(copy));
      return;
    }
    const LivePod& current = *mine.front();
    if (current.terminating()) return;  // its successor comes when it is gone
    if (current.desired.annotation(kSpecAnnotation) != hash) {
      plan_.remove.push_back(current.desired.meta().uid());
      return;
    }
    update_metadata(pod, current, hash);
  }

  void update_metadata(const Object& pod, const LivePod& current, const std::string& hash) {
    Object next = current.desired;
    *next.mutable_meta().mutable_labels() = pod.meta().labels();
    *next.mutable_meta().mutable_annotations() = pod.meta().annotations();
    (*next.mutable_meta().mutable_annotations())[std::string(kSpecAnnotation)] = hash;
    if (!next.same_content(current.desired)) plan_.update.push_back(std::move(next));
  }

  void scale_down(std::vector<const LivePod*> pods, size_t excess) {
    // Those that serve nobody go first, then the youngest.
    std::sort(pods.begin(), pods.end(), [](const LivePod* a, const LivePod* b) {
      const auto rank = [](const LivePod* p) {
        return std::tuple(p->ready(), std::string_view(p->desired.meta().creation_timestamp()),
                          std::string_view(p->desired.name()));
      };
      const auto [ready_a, time_a, name_a] = rank(a);
      const auto [ready_b, time_b, name_b] = rank(b);
      return std::tie(ready_a, time_b, name_b) < std::tie(ready_b, time_a, name_a);
    });
    for (size_t i = 0; i < excess && i < pods.size(); ++i)
      plan_.remove.push_back(pods[i]->desired.meta().uid());
  }

  // Brings the pods of one template to `replicas`. Returns how many of them are ready.
  size_t plan_replicas(const Object& owner, const kube::PodTemplateSpec& tmpl,
                       const std::string& set_name, const Group& pods, size_t replicas) {
    std::vector<const LivePod*> active;
    for (const LivePod* pod : pods)
      if (!pod->terminating() && !pod->finished()) active.push_back(pod);
    if (active.size() > replicas) scale_down(active, active.size() - replicas);
    for (size_t i = active.size(); i < replicas; ++i)
      create_from(owner, tmpl, set_name, "ReplicaSet", set_name);
    return static_cast<size_t>(
        std::count_if(active.begin(), active.end(), [](const LivePod* p) { return p->ready(); }));
  }

  void plan_deployment(const Object& deployment) {
    const auto& spec = deployment.as<kube::Deployment>().spec();
    const std::string set_name = replica_set_name(deployment);
    Group current, old;
    for (const LivePod* pod : group(deployment)) {
      const auto& owners = pod->desired.meta().owner_references();
      (!owners.empty() && owners[0].name() == set_name ? current : old).push_back(pod);
    }
    const size_t replicas =
        static_cast<size_t>(spec.has_replicas() ? std::max(spec.replicas(), 0) : 1);
    const size_t ready = plan_replicas(deployment, spec.template_(), set_name, current, replicas);
    for (const LivePod* pod : old)
      if (ready >= replicas && !pod->terminating())
        plan_.remove.push_back(pod->desired.meta().uid());
  }

  void plan_replica_set(const Object& set) {
    const auto& spec = set.as<kube::ReplicaSet>().spec();
    const size_t replicas =
        static_cast<size_t>(spec.has_replicas() ? std::max(spec.replicas(), 0) : 1);
    plan_replicas(set, spec.template_(), set.name(), group(set), replicas);
  }

  void plan_job(const Object& job) {
    const auto& spec = job.as<kube::Job>().spec();
    int succeeded = 0, failed = 0, active = 0;
    for (const LivePod* pod : group(job)) {
      if (!pod->finished())
        active += !pod->terminating();
      else
        ++(pod->reported->as<kube::Pod>().status().phase() == "Succeeded" ? succeeded : failed);
    }
    const int limit = spec.has_backoff_limit() ? spec.backoff_limit() : kDefaultBackoffLimit;
    if (failed > limit) return;
    const int left = (spec.has_completions() ? spec.completions() : 1) - succeeded;
    const int parallel = std::min(spec.has_parallelism() ? spec.parallelism() : 1, left);
    for (int i = active; i < parallel; ++i)
      create_from(job, spec.template_(), job.name(), "Job", job.name());
  }

  void remove_orphans() {
    for (const auto& [controller, pods] : by_controller_) {
      if (planned_.contains(controller)) continue;
      for (const LivePod* pod : pods)
        if (!pod->terminating()) plan_.remove.push_back(pod->desired.meta().uid());
    }
  }

  const ObjectStore& wanted_;
  const LivePods& live_;
  const std::vector<NodeInfo>& nodes_;
  const std::function<std::string()>& suffix_;
  std::map<std::string, int> load_;
  std::map<std::string, Group> by_controller_;
  std::set<std::string> planned_;
  PodPlan plan_;
};

}  // namespace

bool LivePod::finished() const {
  return reported && is_finished(*reported);
}
bool LivePod::ready() const {
  return reported && is_ready(*reported);
}

uint64_t stable_hash(std::string_view text) {
  uint64_t h = 14695981039346656037ull;  // FNV-1a: the same in every build, unlike std::hash
  for (const char c : text) h = (h ^ static_cast<uint8_t>(c)) * 1099511628211ull;
  return h;
}

std::string encode_hash(uint64_t hash, size_t length) {
  std::string out;
  for (size_t i = 0; i < length; ++i, hash /= kAlphabet.size())
    out += kAlphabet[hash % kAlphabet.size()];
  return out;
}

PodPlan plan_pods(const ObjectStore& wanted, const LivePods& live,
                  const std::vector<NodeInfo>& nodes, const std::function<std::string()>& suffix) {
  return Planner(wanted, live, nodes, suffix).run();
}

}  // namespace meltemi::sandbox
