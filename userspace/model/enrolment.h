// Whether a pod belongs to the mesh: one pure function, one order, always with a
// reason. Used by the control plane and the CLI. Must never look at anything but its arguments.
//
// Order: a pod that cannot be enrolled (excluded namespace, host network, sidecar, ended) is left
// alone whatever the labels say. Then the first of these that says something decides:
//   1. the pod: label istio.io/dataplane-mode (ambient | none), else its annotation of that name;
//      else label sidecar.istio.io/inject (true | false), else its annotation of that name
//   2. neverEnrol selectors   3. alwaysEnrol selectors
//   4. the namespace: label istio.io/dataplane-mode, else istio-injection (enabled | disabled)
//   5. the mesh default
// A value that is none of the listed says nothing.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/model/selector.h"

namespace meltemi::model {

// X(enumerator, text, enrol, meaning). `text` travels on xDS and is shown by status and CLI.
#define MELTEMI_ENROLMENT_REASONS(X)                                                               \
  X(kExcludedNamespace, "excluded_namespace", false, "its namespace never joins the mesh")         \
  X(kHostNetwork, "host_network", false, "it runs in the host's network")                          \
  X(kSidecar, "sidecar", false, "it carries a sidecar proxy of its own")                           \
  X(kTerminated, "terminated", false, "it has ended")                                              \
  X(kPodOptIn, "pod_opt_in", true, "its own label or annotation asks for it")                      \
  X(kPodOptOut, "pod_opt_out", false, "its own label or annotation declines")                      \
  X(kNeverSelector, "never_selector", false, "a neverEnrol selector of the mesh matches it")       \
  X(kAlwaysSelector, "always_selector", true, "an alwaysEnrol selector of the mesh matches it")    \
  X(kNamespaceOptIn, "namespace_opt_in", true, "its namespace is labelled for the mesh")           \
  X(kNamespaceOptOut, "namespace_opt_out", false, "its namespace is labelled to stay out")         \
  X(kMeshDefaultIn, "mesh_default_in", true, "nothing says otherwise and the mesh takes all")      \
  X(kMeshDefaultOut, "mesh_default_out", false, "nothing asks for it; label the namespace "        \
                                                "istio.io/dataplane-mode=ambient to enrol it")

enum class EnrolmentReason : uint8_t {
#define MELTEMI_X(id, text, enrol, meaning) id,
  MELTEMI_ENROLMENT_REASONS(MELTEMI_X)
#undef MELTEMI_X
};

std::string_view enrolment_reason_name(EnrolmentReason reason);
std::string_view enrolment_reason_meaning(EnrolmentReason reason);

struct EnrolmentPolicy {
  std::vector<std::string> excluded_namespaces = {"kube-system", "kube-public", "kube-node-lease",
                                                  "local-path-storage"};
  std::vector<LabelSelector> never_enrol;
  std::vector<LabelSelector> always_enrol;
  bool mesh_default = false;
};

struct EnrolmentInput {
  std::string_view ns;
  const Labels* namespace_labels = nullptr;  // null: the namespace is not known, says nothing
  const Labels* labels = nullptr;            // null: none
  const Labels* annotations = nullptr;
  std::vector<std::string_view> containers;  // names, init containers included
  bool host_network = false;
  std::string_view phase;  // "Succeeded" and "Failed" have ended; anything else has not
};

struct EnrolmentDecision {
  bool enrol = false;
  EnrolmentReason reason = EnrolmentReason::kMeshDefaultOut;
  std::string_view source;  // the label or annotation that decided, static; may be empty
  std::string value;        // its value
  // "pod_opt_out: its own label or annotation declines (sidecar.istio.io/inject=false)"
  std::string text() const;
};

EnrolmentDecision decide_enrolment(const EnrolmentInput& pod, const EnrolmentPolicy& policy);

}  // namespace meltemi::model
