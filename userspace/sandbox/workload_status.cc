#include "userspace/sandbox/workload_status.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/sandbox/controllers.h"
#include "userspace/sandbox/services.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

constexpr int kMaxUnavailablePercent = 25;  // apps/v1: maxUnavailable, rounded down

std::vector<ObjectPtr> pods_of(const ObjectStore& store, const Object& owner) {
  const std::string mark = fmt::format("{}/{}", owner.info().name, owner.name());
  std::vector<ObjectPtr> out = store.list(Kind::kPod, owner.ns());
  std::erase_if(out,
                [&](const ObjectPtr& pod) { return pod->annotation(kControllerAnnotation) != mark; });
  return out;
}

bool is_of_set(const Object& pod, const std::string& set_name) {
  const auto& owners = pod.meta().owner_references();
  return !owners.empty() && owners[0].name() == set_name;
}

template <typename Status>
void add_condition(Status* status, std::string_view type, bool holds, std::string_view reason,
                   std::string_view message) {
  kube::Condition* condition = status->add_conditions();
  condition->set_type(std::string(type));
  condition->set_status(holds ? "True" : "False");
  condition->set_reason(std::string(reason));
  condition->set_message(std::string(message));
}

void add_deployment_conditions(int wanted, const std::string& set_name,
                               kube::Deployment::Status* s) {
  const bool enough = s->available_replicas() >= wanted - wanted * kMaxUnavailablePercent / 100;
  add_condition(s, "Available", enough,
                enough ? "MinimumReplicasAvailable" : "MinimumReplicasUnavailable",
                enough ? "Deployment has minimum availability."
                       : "Deployment does not have minimum availability.");
  const bool done = s->updated_replicas() == wanted && s->available_replicas() == wanted &&
                    s->replicas() == wanted;
  add_condition(s, "Progressing", true, done ? "NewReplicaSetAvailable" : "ReplicaSetUpdated",
                fmt::format("ReplicaSet \"{}\" {}", set_name,
                            done ? "has successfully progressed." : "is progressing."));
}

kube::Deployment::Status deployment_status(const ObjectStore& store, const Object& deployment) {
  const auto& spec = deployment.as<kube::Deployment>().spec();
  const int wanted = spec.has_replicas() ? spec.replicas() : 1;
  const std::string set_name = replica_set_name(deployment);
  kube::Deployment::Status s;
  s.set_observed_generation(deployment.meta().generation());
  for (const ObjectPtr& pod : pods_of(store, deployment)) {
    if (is_terminating(*pod)) {
      s.set_terminating_replicas(s.terminating_replicas() + 1);
      continue;
    }
    if (is_finished(*pod)) continue;
    s.set_replicas(s.replicas() + 1);
    if (is_of_set(*pod, set_name)) s.set_updated_replicas(s.updated_replicas() + 1);
    if (is_ready(*pod)) s.set_ready_replicas(s.ready_replicas() + 1);
  }
  s.set_available_replicas(s.ready_replicas());
  s.set_unavailable_replicas(std::max(0, std::max(wanted, s.replicas()) - s.available_replicas()));
  add_deployment_conditions(wanted, set_name, &s);
  return s;
}

kube::ReplicaSet::Status replica_set_status(const ObjectStore& store, const Object& set) {
  kube::ReplicaSet::Status s;
  s.set_observed_generation(set.meta().generation());
  for (const ObjectPtr& pod : pods_of(store, set)) {
    if (is_terminating(*pod)) {
      s.set_terminating_replicas(s.terminating_replicas() + 1);
      continue;
    }
    if (is_finished(*pod)) continue;
    s.set_replicas(s.replicas() + 1);
    if (is_ready(*pod)) s.set_ready_replicas(s.ready_replicas() + 1);
  }
  s.set_fully_labeled_replicas(s.replicas());
  s.set_available_replicas(s.ready_replicas());
  return s;
}

// RFC 3339 times of one form sort as texts.
std::string last_end(const Object& pod) {
  std::string out;
  for (const auto& c : pod.as<kube::Pod>().status().container_statuses())
    out = std::max(out, c.state().terminated().finished_at());
  return out;
}

kube::Job::Status job_status(const ObjectStore& store, const Object& job) {
  const auto& spec = job.as<kube::Job>().spec();
  kube::Job::Status s;
  s.set_start_time(job.meta().creation_timestamp());
  std::string ended;
  for (const ObjectPtr& pod : pods_of(store, job)) {
    if (is_finished(*pod)) {
      const bool good = pod->as<kube::Pod>().status().phase() == "Succeeded";
      good ? s.set_succeeded(s.succeeded() + 1) : s.set_failed(s.failed() + 1);
      ended = std::max(ended, last_end(*pod));
    } else if (is_terminating(*pod)) {
      s.set_terminating(s.terminating() + 1);
    } else {
      s.set_active(s.active() + 1);
      s.set_ready(s.ready() + is_ready(*pod));
    }
  }
  const int limit = spec.has_backoff_limit() ? spec.backoff_limit() : kDefaultBackoffLimit;
  if (s.succeeded() >= (spec.has_completions() ? spec.completions() : 1)) {
    s.set_completion_time(ended);
    add_condition(&s, "Complete", true, "CompletionsReached",
                  "Reached expected number of succeeded pods");
  } else if (s.failed() > limit) {
    add_condition(&s, "Failed", true, "BackoffLimitExceeded",
                  "Job has reached the specified backoff limit");
  }
  return s;
}

}  // namespace

std::string replica_set_name(const Object& deployment) {
  const auto& spec = deployment.as<kube::Deployment>().spec();
  const std::string text = config::to_yaml(config::encode_message(spec.template_()));
  return fmt::format("{}-{}", deployment.name(), encode_hash(stable_hash(text), 10));
}

Object with_status(const ObjectStore& store, const Object& object) {
  Object out = object;
  switch (object.kind()) {
    case Kind::kDeployment:
      out.edit<kube::Deployment>(
          [&](kube::Deployment& d) { *d.mutable_status() = deployment_status(store, object); });
      break;
    case Kind::kReplicaSet:
      out.edit<kube::ReplicaSet>(
          [&](kube::ReplicaSet& r) { *r.mutable_status() = replica_set_status(store, object); });
      break;
    case Kind::kJob:
      out.edit<kube::Job>([&](kube::Job& j) { *j.mutable_status() = job_status(store, object); });
      break;
    default:
      break;
  }
  return out;
}

}  // namespace meltemi::sandbox
