// What every object must satisfy, and which validator looks at its spec.
#include "userspace/config/validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "userspace/config/check.h"
#include "userspace/config/mesh_config.h"
#include "userspace/config/mesh_keys.h"
#include "userspace/config/names.h"
#include "userspace/config/reader.h"

namespace meltemi::config {

bool Check::port(const std::string& field, int64_t number) {
  if (number >= 1 && number <= 65535) return true;
  error(field, fmt::format("port number {} must be in the range 1..65535", number),
        "Give a port from 1 to 65535");
  return false;
}

void Check::duration(const std::string& field, const google::protobuf::Duration& value) {
  int64_t nanos = value.seconds() * 1'000'000'000 + value.nanos();
  if (nanos < 1'000'000) {
    error(field, "duration must be greater than 1ms", "Give at least \"1ms\"");
  } else if (nanos % 1'000'000 != 0) {
    error(field, "only durations to ms precision are supported", "Round it to milliseconds");
  }
}

void Check::labels(const std::string& field, const Labels& map) {
  for (const auto& [key, value] : map) {
    std::string inner = fmt::format("{}[{}]", field, key);
    if (!is_label_key(key)) {
      error(inner, fmt::format("\"{}\" is not a legal label key", key),
            "Use [prefix/]name with letters, digits, '-', '_' and '.', at most 63 characters");
    }
    if (!is_label_value(value)) {
      error(inner, fmt::format("\"{}\" is not a legal label value", value),
            "Use letters, digits, '-', '_' and '.', at most 63 characters");
    }
  }
}

void Check::selector(const std::string& field, const Labels& labels) {
  if (labels.empty()) {
    warn(field, "workload selector specified without labels",
         "Remove the selector, or give matchLabels");
  }
  for (const auto& [key, value] : labels) {
    std::string pair = fmt::format("{}={}", key, value);
    std::string inner = fmt::format("{}.matchLabels[{}]", field, key);
    if (key.empty()) {
      error(inner, fmt::format("empty key is not supported in selector: \"{}\"", pair),
            "Name the label");
    }
    if (key.find('*') != std::string::npos || value.find('*') != std::string::npos) {
      error(inner, fmt::format("wildcard is not supported in selector: \"{}\"", pair),
            "Write the whole value, or label the pods alike");
    }
  }
}

void Check::export_to(const google::protobuf::RepeatedPtrField<std::string>& entries) {
  std::set<std::string> seen;
  for (int i = 0; i < entries.size(); ++i) {
    const std::string& entry = entries[i];
    std::string field = fmt::format("spec.exportTo[{}]", i);
    if (entry != "*" && entry != "." && !is_dns_label(entry)) {
      error(field, fmt::format("\"{}\" is no namespace", entry),
            "Write a namespace, \".\" or \"*\"");
    }
    if (!seen.insert(entry).second) {
      error(field, fmt::format("duplicate entries in exportTo for entry {}", entry),
            "Remove the duplicate");
    }
  }
  if (seen.contains(".") && seen.contains(object_.ns())) {
    error("spec.exportTo",
          fmt::format("duplicate entries in exportTo: . and current namespace {}", object_.ns()),
          "Remove one of the two");
  }
  if (seen.contains("*") && seen.size() > 1) {
    error("spec.exportTo",
          "cannot have both public (*) and non-public exportTo values for a resource",
          "Keep \"*\" alone, or remove it");
  }
}

namespace {

void check_name(Check& check) {
  const Object& object = check.object();
  // RBAC-free kinds only: every kind here takes a DNS subdomain, Services and Namespaces a label.
  bool label = object.kind() == Kind::kNamespace || object.kind() == Kind::kService;
  if (label ? !is_dns_label(object.name()) : !is_dns_subdomain(object.name())) {
    check.error(
        "metadata.name", fmt::format("\"{}\" is not a legal name", object.name()),
        "Use lower-case letters, digits and '-', starting and ending with a letter or digit");
  }
  if (object.info().namespaced && !is_dns_label(object.ns())) {
    check.error("metadata.namespace", fmt::format("\"{}\" is not a legal namespace", object.ns()),
                "Use lower-case letters, digits and '-', at most 63 characters");
  }
}

// Annotations that istiod keeps for itself or for one kind.
void check_annotations(Check& check) {
  const Object& object = check.object();
  for (std::string_view key : {"internal.istio.io/parents", "internal.istio.io/parent-namespace"}) {
    if (!object.annotation(key).empty()) {
      check.error(fmt::format("metadata.annotations[{}]", key),
                  "annotation found, this may not be set by users", "Remove the annotation");
    }
  }
  if (object.meta().annotations().contains("internal.istio.io/webhook-always-reject")) {
    check.error("metadata.annotations[internal.istio.io/webhook-always-reject]",
                "this object asks to be rejected", "Remove the annotation");
  }
}

// Fields that are read and kept, and that nobody acts on: each with what its author should know.
void name_unused_fields(Check& check) {
  struct Unused {
    Kind kind;
    std::string_view field;
    std::string_view effect;
  };
  static constexpr std::string_view kMutable = "the object can be changed all the same";
  static constexpr std::string_view kNoPull = "images are not pulled";
  static constexpr std::string_view kNoParameters = "waypoints are made from options only";
  static constexpr std::string_view kLabelsOnly = "of a node only the labels are read";
  static constexpr Unused kUnused[] = {
      {Kind::kNamespace, "spec.finalizers", "deleting it waits for nobody"},
      {Kind::kNode, "spec.podCIDR", kLabelsOnly},
      {Kind::kNode, "spec.podCIDRs", kLabelsOnly},
      {Kind::kNode, "spec.providerID", kLabelsOnly},
      {Kind::kNode, "spec.configSource", kLabelsOnly},
      {Kind::kNode, "spec.externalID", kLabelsOnly},
      {Kind::kNode, "spec.unschedulable", "pods are placed on it all the same"},
      {Kind::kNode, "spec.taints", "pods are placed on it all the same"},
      {Kind::kConfigMap, "immutable", kMutable},
      {Kind::kSecret, "immutable", kMutable},
      {Kind::kServiceAccount, "secrets", "tokens are made for each pod"},
      {Kind::kServiceAccount, "imagePullSecrets", kNoPull},
      {Kind::kService, "spec.allocateLoadBalancerNodePorts", "node ports are not opened"},
      {Kind::kGateway, "spec.allowedListeners", "ListenerSets are not read"},
      {Kind::kGateway, "spec.infrastructure.parametersRef", kNoParameters},
      {Kind::kGatewayClass, "spec.parametersRef", kNoParameters},
  };
  const auto warn = [&check](std::string_view field, std::string_view effect) {
    if (!check.object().wrote(field)) return;
    check.warn(std::string(field), fmt::format("has no effect: {}", effect), "Do not rely on it",
               kCodeIgnoredField);
  };
  for (const Unused& unused : kUnused) {
    if (unused.kind == check.object().kind()) warn(unused.field, unused.effect);
  }
  if (!check.object().meta().generate_name().empty()) {
    warn("metadata.generateName", "the object has a name");
  }
  if (!check.object().meta().finalizers().empty()) {
    warn("metadata.finalizers", "deleting the object waits for nobody");
  }
}

void check_spec(Check& check, const MeshNames& names) {
  switch (check.object().kind()) {
    case Kind::kPod:
      validate_pod(check);
      return;
    case Kind::kDeployment:
      validate_deployment(check);
      return;
    case Kind::kReplicaSet:
      validate_replica_set(check);
      return;
    case Kind::kJob:
      validate_job(check);
      return;
    case Kind::kService:
      validate_service(check);
      return;
    case Kind::kGateway:
      validate_gateway(check);
      return;
    case Kind::kVirtualService:
      validate_virtual_service(check);
      return;
    case Kind::kDestinationRule:
      validate_destination_rule(check);
      return;
    case Kind::kAuthorizationPolicy:
      validate_authorization_policy(check);
      return;
    case Kind::kPeerAuthentication:
      validate_peer_authentication(check, names);
      return;
    case Kind::kConfigMap:
      validate_mesh_config(check, names);
      return;
    case Kind::kNamespace:
    case Kind::kNode:
    case Kind::kServiceAccount:
    case Kind::kSecret:
    case Kind::kGatewayClass:
      return;  // names and labels are all there is
  }
}

}  // namespace

Problems validate(const Object& object, const MeshNames& names) {
  Problems problems;
  Check check(object, &problems);
  check_name(check);
  check.labels("metadata.labels", object.meta().labels());
  check_mesh_keys(check, object.kind(), "metadata", object.meta());
  check_annotations(check);
  name_unused_fields(check);
  check_spec(check, names);
  return problems;
}

namespace {

// Whether one of the two fields is the other or lies below it.
bool related(std::string_view a, std::string_view b) {
  if (a.size() > b.size()) std::swap(a, b);
  return a.empty() || (b.starts_with(a) && (b.size() == a.size() || b[a.size()] == '.' ||
                                            b[a.size()] == '['));
}

// What else is wrong with an object that did not decode, but for what its broken fields may cause.
void validate_broken(const Object& object, const MeshNames& names, Problems* problems) {
  const Problems schema = *problems;
  for (Problem& found : validate(object, names)) {
    const bool caused = std::any_of(schema.begin(), schema.end(), [&](const Problem& p) {
      return p.object == found.object && related(p.field, found.field);
    });
    if (!caused && found.severity == Severity::kError) problems->push_back(std::move(found));
  }
}

}  // namespace

ReadResult read_and_validate(std::string_view bytes, std::string_view file,
                             const ReadOptions& options, const MeshNames& names) {
  std::vector<Object> broken;
  ReadResult read = read_objects(bytes, file, options, &broken);
  ReadResult out;
  out.problems = std::move(read.problems);
  for (const Object& object : broken) validate_broken(object, names, &out.problems);
  for (Object& object : read.objects) {
    Problems problems = validate(object, names);
    bool bad = has_errors(problems);
    out.problems.insert(out.problems.end(), std::make_move_iterator(problems.begin()),
                        std::make_move_iterator(problems.end()));
    if (!bad) out.objects.push_back(std::move(object));
  }
  return out;
}

}  // namespace meltemi::config
