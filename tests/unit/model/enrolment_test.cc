// The order in which enrolment is decided, as a truth table over every combination.
#include <gtest/gtest.h>

#include <optional>

#include "userspace/model/enrolment.h"

namespace meltemi::model {
namespace {

using R = EnrolmentReason;

struct Case {
  int pod_mode, pod_mode_annotation, inject, inject_annotation;  // 0 absent, 1 yes, 2 no, 3 garbage
  int ns_mode, ns_injection;
  bool never, always, mesh_default;
  int blocked;  // 0 no, 1 excluded, 2 host network, 3 sidecar container, 4 sidecar status, 5 succeeded, 6 failed
};

const char* text(int v, const char* yes, const char* no) {
  return v == 1 ? yes : v == 2 ? no : "banana";
}

// The rule as prose has it, written a second time and differently: a list of voters in order.
R oracle(const Case& c) {
  switch (c.blocked) {
    case 1: return R::kExcludedNamespace;
    case 2: return R::kHostNetwork;
    case 3:
    case 4: return R::kSidecar;
    case 5:
    case 6: return R::kTerminated;
  }
  for (int voter : {c.pod_mode, c.pod_mode_annotation, c.inject, c.inject_annotation}) {
    if (voter == 1) return R::kPodOptIn;
    if (voter == 2) return R::kPodOptOut;
  }
  if (c.never) return R::kNeverSelector;
  if (c.always) return R::kAlwaysSelector;
  for (int voter : {c.ns_mode, c.ns_injection}) {
    if (voter == 1) return R::kNamespaceOptIn;
    if (voter == 2) return R::kNamespaceOptOut;
  }
  return c.mesh_default ? R::kMeshDefaultIn : R::kMeshDefaultOut;
}

EnrolmentDecision decide(const Case& c) {
  Labels labels{{"app", "x"}}, annotations, ns;
  if (c.pod_mode) labels["istio.io/dataplane-mode"] = text(c.pod_mode, "ambient", "none");
  if (c.inject) labels["sidecar.istio.io/inject"] = text(c.inject, "true", "false");
  if (c.pod_mode_annotation) {
    annotations["istio.io/dataplane-mode"] = text(c.pod_mode_annotation, "ambient", "none");
  }
  if (c.inject_annotation) {
    annotations["sidecar.istio.io/inject"] = text(c.inject_annotation, "true", "false");
  }
  if (c.blocked == 4) annotations["sidecar.istio.io/status"] = "{}";
  if (c.ns_mode) ns["istio.io/dataplane-mode"] = text(c.ns_mode, "ambient", "none");
  if (c.ns_injection) ns["istio-injection"] = text(c.ns_injection, "enabled", "disabled");

  EnrolmentPolicy policy;
  policy.mesh_default = c.mesh_default;
  if (c.never) policy.never_enrol = {*LabelSelector::parse("app=x")};
  if (c.always) policy.always_enrol = {*LabelSelector::parse("app in (x,y)")};
  EnrolmentInput pod;
  pod.ns = c.blocked == 1 ? "kube-system" : "shop";
  pod.labels = &labels;
  pod.annotations = &annotations;
  pod.namespace_labels = &ns;
  pod.host_network = c.blocked == 2;
  pod.containers = {"app"};
  if (c.blocked == 3) pod.containers.push_back("istio-proxy");
  pod.phase = c.blocked == 5 ? "Succeeded" : c.blocked == 6 ? "Failed" : "Running";
  return decide_enrolment(pod, policy);
}

TEST(Enrolment, TruthTableOfEveryCombination) {
  size_t n = 0;
  Case c{};
  for (c.pod_mode = 0; c.pod_mode < 4; ++c.pod_mode)
    for (c.pod_mode_annotation = 0; c.pod_mode_annotation < 4; ++c.pod_mode_annotation)
      for (c.inject = 0; c.inject < 4; ++c.inject)
        for (c.inject_annotation = 0; c.inject_annotation < 4; ++c.inject_annotation)
          for (c.ns_mode = 0; c.ns_mode < 4; ++c.ns_mode)
            for (c.ns_injection = 0; c.ns_injection < 4; ++c.ns_injection)
              for (int flags = 0; flags < 8; ++flags)
                for (c.blocked = 0; c.blocked < 7; ++c.blocked, ++n) {
                  c.never = flags & 1;
                  c.always = flags & 2;
                  c.mesh_default = flags & 4;
                  const auto got = decide(c);
                  const R want = oracle(c);
                  ASSERT_EQ(enrolment_reason_name(got.reason), enrolment_reason_name(want));
                  const bool in = want == R::kPodOptIn || want == R::kAlwaysSelector ||
                                  want == R::kNamespaceOptIn || want == R::kMeshDefaultIn;
                  ASSERT_EQ(got.enrol, in);
                  ASSERT_FALSE(got.text().empty());
                }
  EXPECT_EQ(n, 4096u * 8 * 7);
}

TEST(Enrolment, TextNamesWhatDecided) {
  Case c{};
  c.ns_injection = 1;
  EXPECT_EQ(decide(c).text(),
            "namespace_opt_in: its namespace is labelled for the mesh (istio-injection=enabled)");
  c.ns_mode = 2;
  EXPECT_EQ(decide(c).text(), "namespace_opt_out: its namespace is labelled to stay out "
                              "(istio.io/dataplane-mode=none)");
}

TEST(Enrolment, AnUnknownPodWithoutMapsFollowsTheDefault) {
  EnrolmentInput pod;
  pod.ns = "x";
  EXPECT_EQ(decide_enrolment(pod, {}).reason, R::kMeshDefaultOut);
  EnrolmentPolicy all;
  all.mesh_default = true;
  EXPECT_TRUE(decide_enrolment(pod, all).enrol);
}

TEST(LabelSelector, KubectlSyntax) {
  const Labels labels{{"app", "web"}, {"tier", "front"}};
  const std::pair<const char*, bool> cases[] = {
      {"", true}, {"app=web", true}, {"app==web", true}, {"app=db", false}, {"app!=db", true},
      {"app!=web", false}, {"nope!=x", true}, {"app", true}, {"nope", false}, {"!nope", true}, {"!app", false},
      {"app in (web,db)", true}, {"app in (db)", false}, {"app notin (db, x)", true},
      {"nope notin (x)", true}, {"app notin (web)", false}, {"app=web,tier=front", true},
      {"app=web,tier=back", false}, {" app = web , tier in ( front , back ) ", true}};
  for (const auto& [text, want] : cases) {
    const auto s = LabelSelector::parse(text);
    ASSERT_TRUE(s.has_value()) << text;
    EXPECT_EQ(s->matches(labels), want) << text;
  }
  for (const char* text : {"=x", "a b", "!", ",a", "a,,b"}) {
    EXPECT_FALSE(LabelSelector::parse(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace meltemi::model
