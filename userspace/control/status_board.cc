// See status_board.h. A status file holds a copy of the object; Services and Pods get none, because
// others (the node, the sandbox) derive their own copies from what they read here.
#include "userspace/control/status_board.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

namespace meltemi::control {
namespace {

using config::Kind;
using config::Object;
using config::ObjectKey;
using config::Severity;
namespace kube = config::kube;

constexpr std::string_view kSummaryName = "meltemi-config-status";

bool has_istio_status(Kind kind) {
  return kind == Kind::kVirtualService || kind == Kind::kDestinationRule ||
         kind == Kind::kAuthorizationPolicy || kind == Kind::kPeerAuthentication;
}

bool has_status(Kind kind) { return has_istio_status(kind) || kind == Kind::kGateway; }

kube::Condition condition(std::string_view type, bool good, std::string_view reason,
                          std::string_view message, int64_t generation) {
  kube::Condition out;
  out.set_type(std::string(type));
  out.set_status(good ? "True" : "False");
  out.set_reason(std::string(reason));
  out.set_message(std::string(message));
  out.set_observed_generation(generation);
  return out;
}

// istioctl's shape of an analysis message.
void add_message(const config::Problem& problem, kube::IstioStatus* status) {
  auto& fields = *status->add_validation_messages()->mutable_struct_value()->mutable_fields();
  auto& type = *fields["type"].mutable_struct_value()->mutable_fields();
  type["code"].set_string_value(problem.code);
  std::string level(config::severity_name(problem.severity));
  std::ranges::transform(level, level.begin(), [](unsigned char c) { return std::toupper(c); });
  fields["level"].set_string_value(level);
  fields["message"].set_string_value(
      fmt::format("{}{}{}{}{}", problem.field, problem.field.empty() ? "" : ": ", problem.message,
                  problem.fix.empty() ? "" : ". ", problem.fix));
}

template <typename T>
Object with_istio_status(const Object& object, const kube::IstioStatus& status) {
  Object out = object;
  out.edit<T>([&](T& body) { *body.mutable_status() = status; });
  return out;
}

}  // namespace

void StatusBoard::note(const std::vector<config::ObjectChange>& changes) {
  for (const config::ObjectChange& change : changes) {
    if (has_status(change.key.kind)) touched_.insert(change.key);
  }
}

void StatusBoard::note(const std::vector<config::StatusChange>& changes) {
  for (const config::StatusChange& change : changes) {
    if (change.conditions.empty()) {
      translated_.erase(change.object);
    } else {
      translated_[change.object] = change.conditions;
    }
    touched_.insert(change.object);
  }
}

// Every object that could be meant: a file's problem may name none, so all objects are looked at.
void StatusBoard::touch_of(const config::Problems& problems) {
  if (problems.empty()) return;
  for (const Kind kind : {Kind::kVirtualService, Kind::kDestinationRule, Kind::kAuthorizationPolicy,
                          Kind::kPeerAuthentication}) {
    for (const auto& object : store_.list(kind)) touched_.insert(object->key());
  }
}

void StatusBoard::set_file_problems(config::Problems problems) {
  touch_of(file_problems_);
  touch_of(problems);
  file_problems_ = std::move(problems);
  summary_touched_ = true;
}

void StatusBoard::set_findings(config::Problems findings) {
  touch_of(findings_);
  touch_of(findings);
  findings_ = std::move(findings);
  findings_by_object_.clear();
  for (const config::Problem& finding : findings_) {
    findings_by_object_.emplace(finding.object, &finding);
  }
}

void StatusBoard::set_gateway(const ObjectKey& key, kube::Gateway::Status status) {
  gateways_[key] = std::move(status);
  touched_.insert(key);
}

const kube::Gateway::Status* StatusBoard::gateway(const ObjectKey& key) const {
  const auto it = gateways_.find(key);
  return it == gateways_.end() ? nullptr : &it->second;
}

// The error that keeps what is written in the object's file from taking effect; null if there is none.
const config::Problem* StatusBoard::error_of(const Object& object, const std::string& file) const {
  const std::string name = object.key().to_string();
  const config::Problem* of_file = nullptr;
  for (const config::Problem& problem : file_problems_) {
    if (problem.severity != Severity::kError) continue;
    if (problem.object == name) return &problem;
    if (!file.empty() && problem.file == file) of_file = &problem;
  }
  return of_file;
}

void StatusBoard::fill_istio(const Object& object, std::string_view now, const std::string& file,
                             kube::IstioStatus* status) {
  const int64_t generation = object.meta().generation();
  status->set_observed_generation(generation);
  Conditions conditions;
  if (const config::Problem* error = error_of(object, file)) {
    *conditions.Add() = condition(
        "Accepted", false, "Invalid",
        fmt::format("{} The last good version stays in effect.", error->to_string()), generation);
  } else {
    *conditions.Add() = condition("Accepted", true, "Accepted", "", generation);
  }
  if (const auto it = translated_.find(object.key()); it != translated_.end()) {
    for (const config::Condition& c : it->second) {
      *conditions.Add() = condition(c.type, c.status, c.reason, c.message, generation);
    }
  }
  const auto [first, last] = findings_by_object_.equal_range(object.key().to_string());
  const auto unresolved = std::find_if(first, last, [](const auto& entry) {
    return entry.second->code == config::kCodeReference ||
           entry.second->code == config::kCodeUnknownRuleHost;
  });
  if (unresolved != last) {  // goes away with its cause
    *conditions.Add() = condition("ResolvedRefs", false, "RefNotFound",
                                  fmt::format("{}: {}", unresolved->second->field,
                                              unresolved->second->message),
                                  generation);
  }
  const Conditions& before = shown_[object.key()];
  for (kube::Condition& c : conditions) {
    const auto old = std::ranges::find_if(before, [&](const kube::Condition& o) {
      return o.type() == c.type() && o.status() == c.status();
    });
    c.set_last_transition_time(old != before.end() ? old->last_transition_time() : std::string(now));
  }
  for (auto it = first; it != last; ++it) add_message(*it->second, status);
  shown_[object.key()] = conditions;
  *status->mutable_conditions() = std::move(conditions);
}

void StatusBoard::publish_one(const ObjectKey& key, std::string_view now, const std::string& file) {
  const std::string name = "status." + file_name_of(key);
  const auto object = store_.find(key);
  if (object == nullptr) {
    shown_.erase(key);
    gateways_.erase(key);
    files_.erase(name);
    return;
  }
  Object out = *object;
  if (key.kind == Kind::kGateway) {
    const kube::Gateway::Status* status = gateway(key);
    if (status == nullptr) return;
    out.edit<kube::Gateway>([&](kube::Gateway& body) { *body.mutable_status() = *status; });
  } else {
    kube::IstioStatus status;
    fill_istio(*object, now, file, &status);
    switch (key.kind) {
      case Kind::kVirtualService: out = with_istio_status<kube::VirtualService>(out, status); break;
      case Kind::kDestinationRule: out = with_istio_status<kube::DestinationRule>(out, status); break;
      case Kind::kAuthorizationPolicy:
        out = with_istio_status<kube::AuthorizationPolicy>(out, status);
        break;
      default: out = with_istio_status<kube::PeerAuthentication>(out, status); break;
    }
  }
  files_.put(name, config::objects_to_yaml({out}));
}

// What no object can carry, since it has never been a good one: the errors of all files.
void StatusBoard::publish_summary() {
  summary_touched_ = false;
  const ObjectKey key{Kind::kConfigMap, root_namespace_, std::string(kSummaryName)};
  std::string text;
  for (const config::Problem& problem : file_problems_) {
    if (problem.severity == Severity::kError) text += problem.to_string() + "\n";
  }
  if (text.empty()) {
    files_.erase(file_name_of(key));
    return;
  }
  Object summary = Object::make(key.kind, key.ns, key.name);
  summary.edit<kube::ConfigMap>([&](kube::ConfigMap& map) { (*map.mutable_data())["errors"] = text; });
  files_.put(file_name_of(key), config::objects_to_yaml({summary}));
}

void StatusBoard::publish(std::string_view now,
                          const std::function<std::string(const ObjectKey&)>& provider) {
  for (const ObjectKey& key : std::exchange(touched_, {})) {
    if (has_status(key.kind)) publish_one(key, now, provider(key));
  }
  if (summary_touched_) publish_summary();
}

}  // namespace meltemi::control
