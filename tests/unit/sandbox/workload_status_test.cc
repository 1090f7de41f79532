// The statuses of workloads, from the pods that there are.
#include "userspace/sandbox/workload_status.h"

#include <gtest/gtest.h>

#include "tests/unit/sandbox/objects.h"
#include "userspace/sandbox/controllers.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
using config::ObjectStore;
namespace kube = config::kube;

constexpr std::string_view kDeployment = R"(
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, generation: 3}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: none, command: [sleep, infinity]}]}
)";

constexpr std::string_view kJob = R"(
apiVersion: batch/v1
kind: Job
metadata: {name: load, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  completions: 2
  backoffLimit: 1
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: none, command: ["true"]}]}
)";

enum class State : uint8_t { kReady, kUnready, kTerminating, kSucceeded, kFailed };

void add_pod(ObjectStore* store, const std::string& name, const std::string& controller,
             const std::string& set, State state) {
  Object pod = Object::make(Kind::kPod, "default", name);
  (*pod.mutable_meta().mutable_annotations())[std::string(kControllerAnnotation)] = controller;
  pod.mutable_meta().add_owner_references()->set_name(set);
  if (state == State::kTerminating)
    pod.mutable_meta().set_deletion_timestamp("2026-01-01T00:00:09Z");
  pod.edit<kube::Pod>([&](kube::Pod& body) {
    kube::PodStatus& status = *body.mutable_status();
    status.set_phase(state == State::kSucceeded ? "Succeeded"
                     : state == State::kFailed  ? "Failed"
                                                : "Running");
    kube::Condition* ready = status.add_conditions();
    ready->set_type("Ready");
    ready->set_status(state == State::kReady ? "True" : "False");
    if (state == State::kSucceeded)
      status.add_container_statuses()->mutable_state()->mutable_terminated()->set_finished_at(
          "2026-01-01T00:00:0" + name.substr(name.size() - 1) + "Z");
  });
  store->upsert(pod);
}

kube::Deployment::Status deployment_in(const ObjectStore& store) {
  return with_status(store, *store.find(Kind::kDeployment, "default", "web"))
      .as<kube::Deployment>()
      .status();
}

kube::Job::Status job_in(const ObjectStore& store) {
  return with_status(store, *store.find(Kind::kJob, "default", "load")).as<kube::Job>().status();
}

template <typename Status>
std::string condition(const Status& status, std::string_view type) {
  for (const kube::Condition& c : status.conditions())
    if (c.type() == type) return c.status() + " " + c.reason();
  return "";
}

class DeploymentStatus : public testing::Test {
 protected:
  void add(const std::string& name, State state) {
    add_pod(&store_, name, "Deployment/web", set_, state);
  }
  void add_old(const std::string& name, State state) {
    add_pod(&store_, name, "Deployment/web", "web-old", state);
  }

  ObjectStore store_ = test::store_of(kDeployment);
  std::string set_ = replica_set_name(*store_.find(Kind::kDeployment, "default", "web"));
};

TEST_F(DeploymentStatus, WithoutPodsIsUnavailable) {
  const auto s = deployment_in(store_);
  EXPECT_EQ(s.replicas(), 0);
  EXPECT_EQ(s.unavailable_replicas(), 2);
  EXPECT_EQ(s.observed_generation(), 3);
  EXPECT_EQ(condition(s, "Available"), "False MinimumReplicasUnavailable");
  EXPECT_EQ(condition(s, "Progressing"), "True ReplicaSetUpdated");
}

TEST_F(DeploymentStatus, CountsReadyPods) {
  add("a", State::kReady);
  add("b", State::kUnready);
  auto s = deployment_in(store_);
  EXPECT_EQ(s.replicas(), 2);
  EXPECT_EQ(s.available_replicas(), 1);
  EXPECT_EQ(s.unavailable_replicas(), 1);
  EXPECT_EQ(condition(s, "Available"), "False MinimumReplicasUnavailable") << "of two none may miss";
  add("b", State::kReady);
  s = deployment_in(store_);
  EXPECT_EQ(condition(s, "Available"), "True MinimumReplicasAvailable");
  EXPECT_EQ(condition(s, "Progressing"), "True NewReplicaSetAvailable");
}

TEST_F(DeploymentStatus, PodsOfTheOldTemplateAreNotUpToDate) {
  add_old("a", State::kReady);
  add_old("b", State::kReady);
  auto s = deployment_in(store_);
  EXPECT_EQ(s.updated_replicas(), 0);
  EXPECT_EQ(condition(s, "Available"), "True MinimumReplicasAvailable") << "the old ones serve";
  EXPECT_EQ(condition(s, "Progressing"), "True ReplicaSetUpdated");
  add("c", State::kReady);
  add("d", State::kReady);
  EXPECT_EQ(condition(deployment_in(store_), "Progressing"), "True ReplicaSetUpdated");
  add_old("a", State::kTerminating);
  add_old("b", State::kTerminating);
  s = deployment_in(store_);
  EXPECT_EQ(s.replicas(), 2);
  EXPECT_EQ(s.terminating_replicas(), 2);
  EXPECT_EQ(condition(s, "Progressing"), "True NewReplicaSetAvailable");
}

TEST_F(DeploymentStatus, OthersPodsAreNotItsOwn) {
  add_pod(&store_, "x", "Deployment/webapp", set_, State::kReady);
  EXPECT_EQ(deployment_in(store_).replicas(), 0);
}

TEST(JobStatus, CompletesWithItsLastPod) {
  ObjectStore store = test::store_of(kJob);
  add_pod(&store, "p1", "Job/load", "load", State::kSucceeded);
  add_pod(&store, "p2", "Job/load", "load", State::kReady);
  auto s = job_in(store);
  EXPECT_EQ(s.succeeded(), 1);
  EXPECT_EQ(s.active(), 1);
  EXPECT_EQ(s.ready(), 1);
  EXPECT_EQ(condition(s, "Complete"), "");
  add_pod(&store, "p2", "Job/load", "load", State::kSucceeded);
  s = job_in(store);
  EXPECT_EQ(condition(s, "Complete"), "True CompletionsReached");
  EXPECT_EQ(s.start_time(), "2026-01-01T00:00:00Z");
  EXPECT_EQ(s.completion_time(), "2026-01-01T00:00:02Z");
}

TEST(JobStatus, FailsBeyondItsBackoffLimit) {
  ObjectStore store = test::store_of(kJob);
  add_pod(&store, "p1", "Job/load", "load", State::kFailed);
  EXPECT_EQ(condition(job_in(store), "Failed"), "") << "one more is granted";
  add_pod(&store, "p2", "Job/load", "load", State::kFailed);
  EXPECT_EQ(condition(job_in(store), "Failed"), "True BackoffLimitExceeded");
}

}  // namespace
}  // namespace meltemi::sandbox
