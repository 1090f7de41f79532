#include "userspace/model/policy.h"

#include <fmt/format.h>

#include <algorithm>

namespace meltemi::model {
namespace {

bool any_string(const std::vector<StringMatch>& values, std::string_view text) {
  return std::any_of(values.begin(), values.end(),
                     [&](const StringMatch& m) { return m.matches(text); });
}

bool any_account(const std::vector<ServiceAccountMatch>& values, const Identity& id) {
  return std::any_of(values.begin(), values.end(), [&](const ServiceAccountMatch& m) {
    return m.ns == id.ns() && m.service_account == id.service_account();
  });
}

bool any_cidr(const std::vector<Cidr>& values, const IpAddress& ip) {
  return std::any_of(values.begin(), values.end(), [&](const Cidr& c) { return c.contains(ip); });
}

// REQUIRES: sorted (Policy::seal).
bool any_port(const std::vector<uint16_t>& values, uint16_t port) {
  return std::binary_search(values.begin(), values.end(), port);
}

// One attribute kind: unset kinds do not constrain; a set kind needs one match; its twin needs none.
template <typename T, typename F>
bool kind_holds(const std::vector<T>& values, const std::vector<T>& not_values, F&& any) {
  return (values.empty() || any(values)) && (not_values.empty() || !any(not_values));
}

bool identity_holds(const PolicyMatch& m, const Identity* id) {
  // Without an identity no matcher on it matches, hence every negative one holds.
  return kind_holds(m.namespaces, m.not_namespaces,
                    [&](const auto& v) { return id && any_string(v, id->ns()); }) &&
         kind_holds(m.principals, m.not_principals,
                    [&](const auto& v) { return id && any_string(v, id->principal()); }) &&
         kind_holds(m.service_accounts, m.not_service_accounts,
                    [&](const auto& v) { return id && any_account(v, *id); });
}

bool match_holds(const PolicyMatch& m, const PolicyInput& in, const Identity* id,
                 PolicyAction action) {
  if (m.invalid) return action == PolicyAction::kDeny;
  if (m.empty()) return false;
  return identity_holds(m, id) &&
         kind_holds(m.source_ips, m.not_source_ips,
                    [&](const auto& v) { return any_cidr(v, in.source_ip); }) &&
         kind_holds(m.destination_ips, m.not_destination_ips,
                    [&](const auto& v) { return any_cidr(v, in.destination.ip); }) &&
         kind_holds(m.destination_ports, m.not_destination_ports,
                    [&](const auto& v) { return any_port(v, in.destination.port); });
}

const Identity* identity_of(const PolicyInput& in) {
  return in.identity && in.identity->present() ? in.identity : nullptr;
}

bool rule_holds(const PolicyRule& rule, const PolicyInput& in, PolicyAction action) {
  const Identity* id = identity_of(in);
  return std::all_of(rule.clauses.begin(), rule.clauses.end(), [&](const PolicyClause& c) {
    return c.matches.empty() ||
           std::any_of(c.matches.begin(), c.matches.end(), [&](const PolicyMatch& m) {
             return match_holds(m, in, id, action);
           });
  });
}

// A DENY of peers without an identity is how STRICT mTLS arrives (facts: istiod §2.8).
bool demands_identity(const PolicyRule& rule) {
  for (const PolicyClause& c : rule.clauses) {
    for (const PolicyMatch& m : c.matches) {
      for (const StringMatch& s : m.not_principals) {
        if (s.kind == StringMatch::Kind::kPresence) return true;
      }
    }
  }
  return false;
}

}  // namespace

bool StringMatch::matches(std::string_view text) const {
  switch (kind) {
    case Kind::kExact: return text == value;
    case Kind::kPrefix: return text.starts_with(value);
    case Kind::kSuffix: return text.ends_with(value);
    case Kind::kPresence: return !text.empty();
  }
  return false;
}

bool PolicyMatch::empty() const {
  return namespaces.empty() && not_namespaces.empty() && principals.empty() &&
         not_principals.empty() && service_accounts.empty() && not_service_accounts.empty() &&
         source_ips.empty() && not_source_ips.empty() && destination_ips.empty() &&
         not_destination_ips.empty() && destination_ports.empty() && not_destination_ports.empty();
}

void Policy::seal() {
  key = Symbol(fmt::format("{}/{}", ns.view(), name.view()));
  for (PolicyRule& rule : rules) {
    for (PolicyClause& clause : rule.clauses) {
      for (PolicyMatch& m : clause.matches) {
        std::sort(m.destination_ports.begin(), m.destination_ports.end());
        std::sort(m.not_destination_ports.begin(), m.not_destination_ports.end());
      }
    }
  }
}

std::string PolicyVerdict::detail() const {
  if (reason == Reason::kPolicyUnknown) return fmt::format("policy {} is not known", unknown.view());
  if (!policy) return {};
  // The control plane turns PeerAuthentication into policies with names of its own.
  constexpr std::string_view kConverted = "converted_peer_authentication_";
  if (policy->name.view() == "istio_converted_static_strict") {
    return "PeerAuthentication with mode STRICT: plaintext is refused";
  }
  if (policy->name.view().starts_with(kConverted)) {
    return fmt::format("PeerAuthentication {}/{}", policy->ns.view(),
                       policy->name.view().substr(kConverted.size()));
  }
  if (rule < 0) return fmt::format("policy {}", policy->key.view());
  return fmt::format("policy {} rule {}", policy->key.view(), rule);
}

int first_matching_rule(const Policy& policy, const PolicyInput& input) {
  for (size_t i = 0; i < policy.rules.size(); ++i) {
    if (rule_holds(policy.rules[i], input, policy.action)) return static_cast<int>(i);
  }
  return -1;
}

PolicyVerdict evaluate(std::span<const PolicyPtr> policies, const PolicyInput& input,
                       const Symbol& unknown) {
  PolicyEvaluation evaluation(input);
  for (const PolicyPtr& p : policies) evaluation.deny_phase(p);
  if (!unknown.empty()) evaluation.unknown(unknown);
  for (const PolicyPtr& p : policies) evaluation.allow_phase(p);
  return std::move(evaluation).verdict();
}

void PolicyEvaluation::deny_phase(const PolicyPtr& policy) {
  if (decided_ || policy->action != PolicyAction::kDeny || policy->dry_run) return;
  const int rule = first_matching_rule(*policy, input_);
  if (rule < 0) return;
  const bool plaintext = !identity_of(input_) && demands_identity(policy->rules[rule]);
  decide(false, plaintext ? Reason::kStrictPlaintext : Reason::kPolicyDeny, policy, rule);
}

void PolicyEvaluation::unknown(const Symbol& name) {
  if (decided_) return;
  decide(false, Reason::kPolicyUnknown, nullptr, -1);
  verdict_.unknown = name;
}

void PolicyEvaluation::allow_phase(const PolicyPtr& policy) {
  if (decided_ || policy->action != PolicyAction::kAllow || policy->dry_run) return;
  const int rule = first_matching_rule(*policy, input_);
  if (rule >= 0) return decide(true, Reason::kOk, policy, rule);
  if (!closest_allow_) closest_allow_ = policy;
}

PolicyVerdict PolicyEvaluation::verdict() && {
  if (!decided_ && closest_allow_) {
    decide(false, Reason::kPolicyNoAllowMatch, closest_allow_, -1);
  }
  return std::move(verdict_);
}

void PolicyEvaluation::decide(bool allowed, Reason reason, const PolicyPtr& policy, int rule) {
  decided_ = true;
  verdict_.allowed = allowed;
  verdict_.reason = reason;
  verdict_.policy = policy;
  verdict_.rule = rule;
}

}  // namespace meltemi::model
