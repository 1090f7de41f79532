// The controllers as a user knows them: what apply, scale, a new image, a crash and a deletion lead
// to.
#include "userspace/sandbox/controllers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/sandbox/objects.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
namespace kube = config::kube;
using test::store_of;

constexpr char kDeployment[] = R"(
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: i, command: [sleep, infinity]}]
)";

// A cluster that does what plans say, one step at a time.
class Cluster {
 public:
  explicit Cluster(int nodes) {
    for (int i = 1; i <= nodes; ++i)
      nodes_.push_back({"node" + std::to_string(i), {{"zone", i % 2 ? "odd" : "even"}}});
  }

  PodPlan plan(const config::ObjectStore& wanted) {
    return plan_pods(wanted, pods, nodes_, [this] { return std::to_string(10000 + next_++); });
  }

  void carry_out(const PodPlan& plan) {
    for (const PodPlan::Create& create : plan.create) {
      Object pod = create.pod;
      const std::string uid = "uid-" + std::to_string(next_++);
      pod.mutable_meta().set_uid(uid);
      pod.mutable_meta().set_creation_timestamp("2026-01-01T00:00:" + std::to_string(next_));
      pods[uid] = LivePod{pod, nullptr};
    }
    for (const auto& [uid, node] : plan.place)
      pods[uid].desired.edit<kube::Pod>(
          [&](kube::Pod& p) { p.mutable_spec()->set_node_name(node); });
    for (const std::string& uid : plan.remove)
      pods[uid].desired.mutable_meta().set_deletion_timestamp("now");
  }

  void report(LivePod& pod, const std::string& phase, bool ready) {
    Object copy = pod.desired;
    copy.edit<kube::Pod>([&](kube::Pod& p) {
      p.mutable_status()->set_phase(phase);
      kube::Condition* c = p.mutable_status()->add_conditions();
      c->set_type("Ready");
      c->set_status(ready ? "True" : "False");
    });
    pod.reported = std::make_shared<const Object>(copy);
  }

  void settle(const config::ObjectStore& wanted) {
    for (int round = 0; round < 10; ++round) {
      const PodPlan p = plan(wanted);
      if (p.empty()) return;
      carry_out(p);
      std::erase_if(pods, [](const auto& e) { return e.second.terminating(); });
      for (auto& [uid, pod] : pods)
        if (!pod.desired.as<kube::Pod>().spec().node_name().empty()) report(pod, "Running", true);
    }
    ADD_FAILURE() << "the controllers never come to rest";
  }

  std::map<std::string, int> per_node() const {
    std::map<std::string, int> out;
    for (const auto& [uid, pod] : pods) ++out[pod.desired.as<kube::Pod>().spec().node_name()];
    return out;
  }

  LivePods pods;

 private:
  std::vector<NodeInfo> nodes_;
  int next_ = 0;
};

TEST(Deployment, SpreadsItsPodsAndThenRests) {
  Cluster cluster(3);
  const auto wanted = store_of(kDeployment);
  cluster.settle(wanted);
  EXPECT_EQ(cluster.pods.size(), 3u);
  EXPECT_EQ(cluster.per_node(),
            (std::map<std::string, int>{{"node1", 1}, {"node2", 1}, {"node3", 1}}));
  EXPECT_TRUE(cluster.plan(wanted).empty());
}

TEST(Deployment, NamesOwnersAndDefaultsAreKubernetes) {
  Cluster cluster(1);
  const PodPlan plan = cluster.plan(store_of(kDeployment));
  ASSERT_EQ(plan.create.size(), 3u);
  const Object& pod = plan.create[0].pod;
  const std::string hash(pod.label("pod-template-hash"));
  EXPECT_EQ(hash.size(), 10u);
  EXPECT_TRUE(pod.name().starts_with("web-" + hash + "-")) << pod.name();
  ASSERT_EQ(pod.meta().owner_references_size(), 1);
  EXPECT_EQ(pod.meta().owner_references(0).kind(), "ReplicaSet");
  EXPECT_EQ(pod.meta().owner_references(0).name(), "web-" + hash);
  const auto& spec = pod.as<kube::Pod>().spec();
  EXPECT_EQ(spec.service_account_name(), "default");
  EXPECT_EQ(spec.restart_policy(), "Always");
  EXPECT_EQ(spec.termination_grace_period_seconds(), 30);
}

TEST(Deployment, RollsOutNewPodsBeforeOldOnesGo) {
  Cluster cluster(2);
  cluster.settle(store_of(kDeployment));
  std::string changed = kDeployment;
  changed.replace(changed.find("image: i"), 8, "image: j");
  const auto wanted = store_of(changed);

  const PodPlan first = cluster.plan(wanted);
  EXPECT_EQ(first.create.size(), 3u);
  EXPECT_THAT(first.remove, testing::IsEmpty()) << "old pods went before new ones were ready";
  cluster.carry_out(first);
  EXPECT_TRUE(cluster.plan(wanted).empty()) << "new pods are not ready yet: nothing to do but wait";
  for (auto& [uid, pod] : cluster.pods) cluster.report(pod, "Running", true);
  EXPECT_EQ(cluster.plan(wanted).remove.size(), 3u);
}

TEST(Deployment, ScalesDownThoseThatServeNobodyFirst) {
  Cluster cluster(1);
  cluster.settle(store_of(kDeployment));
  auto& sick = cluster.pods.begin()->second;
  cluster.report(sick, "Running", false);
  std::string smaller = kDeployment;
  smaller.replace(smaller.find("replicas: 3"), 11, "replicas: 2");
  EXPECT_THAT(cluster.plan(store_of(smaller)).remove,
              testing::ElementsAre(cluster.pods.begin()->first));
}

TEST(Deployment, PodsGoWithIt) {
  Cluster cluster(1);
  cluster.settle(store_of(kDeployment));
  EXPECT_EQ(cluster.plan(config::ObjectStore()).remove.size(), 3u);
}

TEST(Deployment, ReplacesAPodThatWasDeleted) {
  Cluster cluster(1);
  const auto wanted = store_of(kDeployment);
  cluster.settle(wanted);
  cluster.pods.begin()->second.desired.mutable_meta().set_deletion_timestamp("now");
  EXPECT_EQ(cluster.plan(wanted).create.size(), 1u);
}

constexpr char kPod[] = R"(
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec:
  containers: [{name: c, image: i, command: [sleep, infinity]}]
)";

TEST(Pod, IsMadeOnceAndReplacedWhenItsSpecChanges) {
  Cluster cluster(1);
  const auto wanted = store_of(kPod);
  cluster.settle(wanted);
  ASSERT_EQ(cluster.pods.size(), 1u);
  EXPECT_EQ(cluster.pods.begin()->second.desired.name(), "client");
  std::string changed = kPod;
  changed.replace(changed.find("infinity"), 8, "1d");
  const PodPlan plan = cluster.plan(store_of(changed));
  EXPECT_EQ(plan.remove.size(), 1u);
  EXPECT_TRUE(plan.create.empty()) << "two pods of one name";
}

TEST(Pod, TakesNewLabelsWithoutARestart) {
  Cluster cluster(1);
  cluster.settle(store_of(kPod));
  std::string changed = kPod;
  changed.replace(changed.find("app: client}"), 12, "app: other}");
  const PodPlan plan = cluster.plan(store_of(changed));
  ASSERT_EQ(plan.update.size(), 1u);
  EXPECT_EQ(plan.update[0].label("app"), "other");
  EXPECT_EQ(plan.update[0].meta().uid(), cluster.pods.begin()->first);
  EXPECT_TRUE(plan.remove.empty());
}

TEST(Pod, WithoutAFittingNodeWaitsAndSaysWhy) {
  Cluster cluster(2);
  std::string picky = kPod;
  picky.replace(picky.find("spec:\n"), 6, "spec:\n  nodeSelector: {zone: nowhere}\n");
  const PodPlan plan = cluster.plan(store_of(picky));
  ASSERT_EQ(plan.create.size(), 1u);
  EXPECT_THAT(plan.create[0].unplaced, testing::HasSubstr("0/2 nodes are available"));
  cluster.carry_out(plan);
  EXPECT_TRUE(cluster.plan(store_of(picky)).empty());
}

TEST(Pod, GoesWhereItsSelectorOrNodeNameSays) {
  Cluster cluster(3);
  std::string even = kPod;
  even.replace(even.find("spec:\n"), 6, "spec:\n  nodeSelector: {zone: even}\n");
  EXPECT_EQ(cluster.plan(store_of(even)).create.at(0).pod.as<kube::Pod>().spec().node_name(),
            "node2");
  std::string named = kPod;
  named.replace(named.find("spec:\n"), 6, "spec:\n  nodeName: node3\n");
  EXPECT_EQ(cluster.plan(store_of(named)).create.at(0).pod.as<kube::Pod>().spec().node_name(),
            "node3");
  named.replace(named.find("node3"), 5, "nodeX");
  EXPECT_THAT(cluster.plan(store_of(named)).create.at(0).unplaced,
              testing::HasSubstr("there is no node \"nodeX\""));
}

constexpr char kJob[] = R"(
apiVersion: batch/v1
kind: Job
metadata: {name: load, namespace: shop}
spec:
  completions: 3
  parallelism: 2
  backoffLimit: 1
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: i, command: ["true"]}]
)";

TEST(Job, RunsToItsCompletions) {
  Cluster cluster(1);
  const auto wanted = store_of(kJob);
  cluster.carry_out(cluster.plan(wanted));
  EXPECT_EQ(cluster.pods.size(), 2u) << "parallelism";
  for (auto& [uid, pod] : cluster.pods) cluster.report(pod, "Succeeded", false);
  cluster.carry_out(cluster.plan(wanted));
  EXPECT_EQ(cluster.pods.size(), 3u) << "one is left to do";
  for (auto& [uid, pod] : cluster.pods) cluster.report(pod, "Succeeded", false);
  EXPECT_TRUE(cluster.plan(wanted).empty());
}

TEST(Job, GivesUpAfterItsBackoffLimit) {
  Cluster cluster(1);
  const auto wanted = store_of(kJob);
  for (int round = 0; round < 5; ++round) {
    cluster.carry_out(cluster.plan(wanted));
    for (auto& [uid, pod] : cluster.pods) cluster.report(pod, "Failed", false);
  }
  EXPECT_EQ(cluster.pods.size(), 2u);
  EXPECT_TRUE(cluster.plan(wanted).empty());
}

}  // namespace
}  // namespace meltemi::sandbox
