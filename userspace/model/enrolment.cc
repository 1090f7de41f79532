#include "userspace/model/enrolment.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace meltemi::model {
namespace {

constexpr std::string_view kDataplaneMode = "istio.io/dataplane-mode";
constexpr std::string_view kInject = "sidecar.istio.io/inject";
constexpr std::string_view kInjection = "istio-injection";
constexpr std::string_view kSidecarStatus = "sidecar.istio.io/status";
constexpr std::string_view kSidecarContainer = "istio-proxy";

const std::string* value_of(const Labels* labels, std::string_view key) {
  if (!labels) return nullptr;
  const auto it = labels->find(key);
  return it == labels->end() ? nullptr : &it->second;
}

struct Vote {
  bool in;
  std::string_view source;
  std::string value;
};

// `yes` and `no` are the two values that mean something under `key`.
std::optional<Vote> vote(const Labels* labels, std::string_view key, std::string_view yes,
                         std::string_view no) {
  const std::string* value = value_of(labels, key);
  if (!value || (*value != yes && *value != no)) return std::nullopt;
  return Vote{*value == yes, key, *value};
}

std::optional<Vote> pod_vote(const EnrolmentInput& pod) {
  if (auto v = vote(pod.labels, kDataplaneMode, "ambient", "none")) return v;
  if (auto v = vote(pod.annotations, kDataplaneMode, "ambient", "none")) return v;
  if (auto v = vote(pod.labels, kInject, "true", "false")) return v;
  return vote(pod.annotations, kInject, "true", "false");
}

std::optional<Vote> namespace_vote(const EnrolmentInput& pod) {
  if (auto v = vote(pod.namespace_labels, kDataplaneMode, "ambient", "none")) return v;
  return vote(pod.namespace_labels, kInjection, "enabled", "disabled");
}

bool has_sidecar(const EnrolmentInput& pod) {
  return value_of(pod.annotations, kSidecarStatus) ||
         std::find(pod.containers.begin(), pod.containers.end(), kSidecarContainer) !=
             pod.containers.end();
}

bool any_matches(const std::vector<LabelSelector>& selectors, const Labels* labels) {
  static const Labels kNone;
  return std::any_of(selectors.begin(), selectors.end(), [&](const LabelSelector& s) {
    return s.matches(labels ? *labels : kNone);
  });
}

bool reason_enrols(EnrolmentReason reason) {
  switch (reason) {
#define MELTEMI_X(id, text, enrol, meaning) \
  case EnrolmentReason::id:                 \
    return enrol;
    MELTEMI_ENROLMENT_REASONS(MELTEMI_X)
#undef MELTEMI_X
  }
  return false;
}

EnrolmentDecision because(EnrolmentReason reason, std::string_view source = {},
                          std::string value = {}) {
  return {reason_enrols(reason), reason, source, std::move(value)};
}

}  // namespace

std::string_view enrolment_reason_name(EnrolmentReason reason) {
  switch (reason) {
#define MELTEMI_X(id, text, enrol, meaning) \
  case EnrolmentReason::id:                 \
    return text;
    MELTEMI_ENROLMENT_REASONS(MELTEMI_X)
#undef MELTEMI_X
  }
  return "mesh_default_out";
}

std::string_view enrolment_reason_meaning(EnrolmentReason reason) {
  switch (reason) {
#define MELTEMI_X(id, text, enrol, meaning) \
  case EnrolmentReason::id:                 \
    return meaning;
    MELTEMI_ENROLMENT_REASONS(MELTEMI_X)
#undef MELTEMI_X
  }
  return {};
}

std::string EnrolmentDecision::text() const {
  std::string out =
      fmt::format("{}: {}", enrolment_reason_name(reason), enrolment_reason_meaning(reason));
  if (!source.empty()) out += fmt::format(" ({}={})", source, value);
  return out;
}

EnrolmentDecision decide_enrolment(const EnrolmentInput& pod, const EnrolmentPolicy& policy) {
  using R = EnrolmentReason;
  const auto& excluded = policy.excluded_namespaces;
  if (std::find(excluded.begin(), excluded.end(), pod.ns) != excluded.end()) {
    return because(R::kExcludedNamespace);
  }
  if (pod.host_network) return because(R::kHostNetwork);
  if (has_sidecar(pod)) return because(R::kSidecar);
  if (pod.phase == "Succeeded" || pod.phase == "Failed") return because(R::kTerminated);
  if (auto v = pod_vote(pod)) {
    return because(v->in ? R::kPodOptIn : R::kPodOptOut, v->source, std::move(v->value));
  }
  if (any_matches(policy.never_enrol, pod.labels)) return because(R::kNeverSelector);
  if (any_matches(policy.always_enrol, pod.labels)) return because(R::kAlwaysSelector);
  if (auto v = namespace_vote(pod)) {
    return because(v->in ? R::kNamespaceOptIn : R::kNamespaceOptOut, v->source,
                   std::move(v->value));
  }
  return because(policy.mesh_default ? R::kMeshDefaultIn : R::kMeshDefaultOut);
}

}  // namespace meltemi::model
