// AuthorizationPolicy and PeerAuthentication to istio.security.Authorization, which ztunnel
// enforces, and the conditions that say what of a policy is enforced where. What ztunnel cannot see
// (HTTP) never makes an ALLOW wider nor a DENY narrower: a DENY of HTTP attributes only denies all.
#include <fmt/format.h>

#include <charconv>

#include "security/authorization.pb.h"
#include "userspace/config/mesh.h"
#include "userspace/config/names.h"
#include "userspace/config/policy_fields.h"
#include "userspace/config/units.h"

namespace meltemi::config {
namespace {

namespace api = ::istio::security::v1beta1;
namespace wire = ::istio::security;
using Strings = google::protobuf::RepeatedPtrField<std::string>;
using Matches = google::protobuf::RepeatedPtrField<wire::StringMatch>;

void add_string(std::string_view value, Matches* out) {
  wire::StringMatch* match = out->Add();
  if (value == "*") {
    match->mutable_presence();
  } else if (value.starts_with('*')) {
    match->set_suffix(std::string(value.substr(1)));
  } else if (value.ends_with('*')) {
    match->set_prefix(std::string(value.substr(0, value.size() - 1)));
  } else {
    match->set_exact(std::string(value));
  }
}

void add_strings(const Strings& values, Matches* out) {
  for (const std::string& value : values) add_string(value, out);
}

// Principals are "<trust domain>/ns/<ns>/sa/<sa>"; people also write the SPIFFE URI.
void add_principals(const Strings& values, Matches* out) {
  constexpr std::string_view kScheme = "spiffe://";
  for (std::string_view value : values) {
    if (value.starts_with(kScheme)) value.remove_prefix(kScheme.size());
    add_string(value, out);
  }
}

// A trust domain is the start of a principal. "*.example" cannot be said as a prefix: false.
bool add_trust_domains(const Strings& values, Matches* out) {
  bool complete = true;
  for (const std::string& value : values) {
    if (value == "*") {
      out->Add()->mutable_presence();
    } else if (value.starts_with('*')) {
      complete = false;
    } else if (value.ends_with('*')) {
      out->Add()->set_prefix(value.substr(0, value.size() - 1));
    } else {
      out->Add()->set_prefix(value + '/');
    }
  }
  return complete;
}

void add_ips(const Strings& values, google::protobuf::RepeatedPtrField<wire::Address>* out) {
  for (const std::string& value : values) {
    auto cidr = Cidr::parse(value);
    if (!cidr) continue;  // validated; without values the match is empty and never matches
    wire::Address* address = out->Add();
    address->set_address(cidr->address.wire());
    address->set_length(cidr->length);
  }
}

void add_ports(const Strings& values, google::protobuf::RepeatedField<uint32_t>* out) {
  for (const std::string& value : values) {
    uint32_t port = 0;
    std::from_chars(value.data(), value.data() + value.size(), port);
    out->Add(port);
  }
}

void add_accounts(const Strings& values, std::string_view ns,
                  google::protobuf::RepeatedPtrField<wire::ServiceAccountMatch>* out) {
  for (const std::string& value : values) {
    wire::ServiceAccountMatch* match = out->Add();
    size_t slash = value.find('/');
    match->set_namespace_(slash == std::string::npos ? std::string(ns) : value.substr(0, slash));
    match->set_serviceaccount(slash == std::string::npos ? value : value.substr(slash + 1));
  }
}

bool is_empty(const wire::Match& match) {
  return match.ByteSizeLong() == 0;
}

class RuleTranslator {
 public:
  RuleTranslator(std::string_view ns, bool deny) : ns_(ns), deny_(deny) {}

  // Appends what the rule means at a ztunnel; nothing if it must not apply at all.
  void add(const api::Rule& rule, wire::Authorization* out) {
    if (!deny_ && !l7_fields(rule).empty())
      return;  // an ALLOW that cannot be checked allows nothing
    bool domains = false;
    for (const auto& from : rule.from()) {
      domains |=
          !from.source().trust_domains().empty() || !from.source().not_trust_domains().empty();
    }
    if (!domains) {
      add_one(rule, rule.from().begin(), rule.from().end(), out);
      return;
    }
    // Trust domain and principals of one source must both hold, which takes two clauses: so each
    // source becomes a rule of its own (rules are OR'ed like the sources were).
    for (auto from = rule.from().begin(); from != rule.from().end(); ++from) {
      add_one(rule, from, from + 1, out);
    }
  }

 private:
  template <typename It>
  void add_one(const api::Rule& rule, It first, It last, wire::Authorization* out) {
    wire::Rule result;
    bool stripped = false;
    bool unsayable = false;
    add_operations(rule, &result, &stripped);
    add_sources(first, last, &result, &stripped, &unsayable);
    for (const auto& when : rule.when()) add_condition(when, &result, &stripped, &unsayable);
    if (unsayable && !deny_) return;
    // A DENY of which nothing is left denies everything: what its author wanted to keep out is out.
    *out->add_rules() = std::move(result);
  }

  void add_operations(const api::Rule& rule, wire::Rule* out, bool* stripped) {
    if (rule.to().empty()) return;
    wire::Clause clause;
    for (const auto& to : rule.to()) {
      wire::Match* match = clause.add_matches();
      add_ports(to.operation().ports(), match->mutable_destination_ports());
      add_ports(to.operation().not_ports(), match->mutable_not_destination_ports());
      if (has_l7(to.operation())) *stripped = true;
      if (is_empty(*match) && has_l7(to.operation())) return;  // one alternative is now anything
    }
    *out->add_clauses() = std::move(clause);
  }

  template <typename It>
  void add_sources(It first, It last, wire::Rule* out, bool* stripped, bool* unsayable) {
    if (first == last) return;
    wire::Clause clause;
    wire::Clause domain_clause;
    bool anything = false;
    for (It from = first; from != last; ++from) {
      const api::Source& s = from->source();
      wire::Match match;
      add_principals(s.principals(), match.mutable_principals());
      add_principals(s.not_principals(), match.mutable_not_principals());
      add_strings(s.namespaces(), match.mutable_namespaces());
      add_strings(s.not_namespaces(), match.mutable_not_namespaces());
      add_ips(s.ip_blocks(), match.mutable_source_ips());
      add_ips(s.not_ip_blocks(), match.mutable_not_source_ips());
      add_accounts(s.service_accounts(), ns_, match.mutable_service_accounts());
      add_accounts(s.not_service_accounts(), ns_, match.mutable_not_service_accounts());
      if (has_l7(s)) *stripped = true;
      wire::Match domain;
      if (!add_trust_domains(s.trust_domains(), domain.mutable_principals()) ||
          !add_trust_domains(s.not_trust_domains(), domain.mutable_not_principals())) {
        *unsayable = true;
        domain.Clear();
      }
      if (!is_empty(domain)) *domain_clause.add_matches() = domain;
      bool only_stripped = is_empty(match) && (has_l7(s) || !is_empty(domain) || *unsayable);
      if (only_stripped) {
        anything = true;
      } else {
        *clause.add_matches() = std::move(match);
      }
    }
    if (!anything) *out->add_clauses() = std::move(clause);
    if (!domain_clause.matches().empty()) *out->add_clauses() = std::move(domain_clause);
    if (*unsayable) *stripped = true;
  }

  void add_condition(const api::Condition& when, wire::Rule* out, bool* stripped, bool* unsayable) {
    wire::Match match;
    const std::string& key = when.key();
    if (key == "source.ip") {
      add_ips(when.values(), match.mutable_source_ips());
      add_ips(when.not_values(), match.mutable_not_source_ips());
    } else if (key == "source.namespace") {
      add_strings(when.values(), match.mutable_namespaces());
      add_strings(when.not_values(), match.mutable_not_namespaces());
    } else if (key == "source.principal") {
      add_principals(when.values(), match.mutable_principals());
      add_principals(when.not_values(), match.mutable_not_principals());
    } else if (key == "source.serviceAccount") {
      add_accounts(when.values(), ns_, match.mutable_service_accounts());
      add_accounts(when.not_values(), ns_, match.mutable_not_service_accounts());
    } else if (key == "source.trustDomain") {
      if (!add_trust_domains(when.values(), match.mutable_principals()) ||
          !add_trust_domains(when.not_values(), match.mutable_not_principals())) {
        *unsayable = *stripped = true;
        return;
      }
    } else if (key == "destination.ip") {
      add_ips(when.values(), match.mutable_destination_ips());
      add_ips(when.not_values(), match.mutable_not_destination_ips());
    } else if (key == "destination.port") {
      add_ports(when.values(), match.mutable_destination_ports());
      add_ports(when.not_values(), match.mutable_not_destination_ports());
    } else {
      *stripped = true;
      return;
    }
    *out->add_clauses()->add_matches() = std::move(match);
  }

  std::string_view ns_;
  bool deny_;
};

bool denies_every_connection(const api::Rule& rule) {
  wire::Authorization probe;
  RuleTranslator("", true).add(rule, &probe);
  for (const auto& one : probe.rules()) {
    if (one.clauses().empty()) return true;
  }
  return false;
}

// Every rule's HTTP fields, for a message.
std::string l7_list(const api::AuthorizationPolicy& spec) {
  std::vector<std::string> all;
  for (int i = 0; i < spec.rules_size(); ++i) {
    for (const std::string& field : l7_fields(spec.rules(i))) {
      all.push_back(fmt::format("rules[{}].{}", i, field));
    }
  }
  return fmt::format("{}", fmt::join(all, ", "));
}

Condition ztunnel_condition(const api::AuthorizationPolicy& spec) {
  using Policy = api::AuthorizationPolicy;
  if (spec.action() != Policy::ALLOW && spec.action() != Policy::DENY) {
    return {
        "ZtunnelAccepted", false, "UnsupportedValue",
        fmt::format("ztunnel does not support the {} action", Policy::Action_Name(spec.action()))};
  }
  std::string list = l7_list(spec);
  if (list.empty()) return {"ZtunnelAccepted", true, "Accepted", "attached to ztunnel"};
  if (spec.action() == Policy::ALLOW) {
    return {
        "ZtunnelAccepted", false, "UnsupportedValue",
        fmt::format(
            "ztunnel does not support HTTP attributes ({}). Rules with them are omitted, so the "
            "policy is more restrictive than requested",
            list)};
  }
  std::vector<std::string> total;
  for (int i = 0; i < spec.rules_size(); ++i) {
    if (denies_every_connection(spec.rules(i))) total.push_back(fmt::format("rules[{}]", i));
  }
  return {"ZtunnelAccepted", false, "UnsupportedValue",
          fmt::format("ztunnel does not support HTTP attributes ({}). They are ignored, so the "
                      "policy is more restrictive than requested{}",
                      list,
                      total.empty() ? ""
                                    : fmt::format(": {} denies every connection; use targetRefs and "
                                                  "a waypoint",
                                                  fmt::join(total, ", ")))};
}

// How a policy with targetRefs stands at its waypoints: the worst of its targets.
Condition waypoint_condition(View& view, const Object& policy,
                             const api::AuthorizationPolicy& spec) {
  auto result = [](bool ok, std::string_view reason, std::string message) {
    return Condition{"WaypointAccepted", ok, std::string(reason), std::move(message)};
  };
  for (const auto* target : targets_of(spec)) {
    std::string full = fmt::format("{} {}/{}", target->kind(), policy.ns(), target->name());
    if (target->kind() == "Service") {
      ObjectPtr service = view.object(Kind::kService, policy.ns(), target->name());
      if (!service) return result(false, "TargetNotFound", full + " does not exist");
      WaypointBinding binding = resolve_waypoint(view, *service, Traffic::kService);
      if (binding.reason == "WaypointMissing") {
        return result(false, "AncestorNotBound", fmt::format("{}: {}", full, binding.message));
      }
      if (!binding.bound) {
        return result(
            false, "AncestorNotBound",
            fmt::format("{} is not bound to a waypoint, so the policy has no effect: run `meltemi "
                        "waypoint apply -n {} --enroll-namespace`",
                        full, policy.ns()));
      }
    } else if (target->kind() == "Gateway") {
      if (!view.object(Kind::kGateway, policy.ns(), target->name())) {
        return result(false, "TargetNotFound", full + " does not exist");
      }
    } else if (target->kind() == "GatewayClass") {
      if (policy.ns() != view.names().root_namespace) {
        return result(false, "Invalid",
                      fmt::format("a GatewayClass can only be targeted from namespace {}",
                                  view.names().root_namespace));
      }
    }
  }
  std::string list = l7_list(spec);
  if (!list.empty()) {
    return result(false, "PartiallyInvalid",
                  fmt::format("HTTP attributes ({}) are not evaluated yet: {}", list,
                              spec.action() == api::AuthorizationPolicy::DENY
                                  ? "their rules deny whatever the other attributes match"
                                  : "their rules allow nothing"));
  }
  return result(true, "Accepted", "bound to the waypoint");
}

void add_strict_match(wire::Rule* rule) {
  // Whoever has no identity at all.
  rule->add_clauses()->add_matches()->add_not_principals()->mutable_presence();
}

}  // namespace

void translate_authorization(View& view, const Object& policy, Outputs* out) {
  using Policy = api::AuthorizationPolicy;
  const Policy& spec = policy.as<kube::AuthorizationPolicy>().spec();
  if (binds_to_target(spec)) {
    out->condition(policy.key(), waypoint_condition(view, policy, spec));
    return;
  }
  out->condition(policy.key(), ztunnel_condition(spec));
  if (spec.action() != Policy::ALLOW && spec.action() != Policy::DENY) return;
  wire::Authorization authorization;
  authorization.set_name(policy.name());
  authorization.set_namespace_(policy.ns());
  bool selects = !spec.selector().match_labels().empty();
  authorization.set_scope(selects                                      ? wire::WORKLOAD_SELECTOR
                          : policy.ns() == view.names().root_namespace ? wire::GLOBAL
                                                                       : wire::NAMESPACE);
  bool deny = spec.action() == Policy::DENY;
  authorization.set_action(deny ? wire::DENY : wire::ALLOW);
  authorization.set_dry_run(policy.annotation("istio.io/dry-run") == "true");
  RuleTranslator translator(policy.ns(), deny);
  for (const auto& rule : spec.rules()) translator.add(rule, &authorization);
  out->add(ResourceType::kAuthorization, kEveryone,
           fmt::format("{}/{}", policy.ns(), policy.name()), authorization);
}

void translate_peer_authentication(View& view, const Object& policy, Outputs* out) {
  if (selector_of(policy).empty() || policy.ns() == view.names().root_namespace) return;
  PortModes modes = port_modes(view, policy);
  if (!modes.matters()) return;
  wire::Authorization authorization;
  authorization.set_name(converted_policy_name(policy));
  authorization.set_namespace_(policy.ns());
  authorization.set_scope(wire::WORKLOAD_SELECTOR);
  authorization.set_action(wire::DENY);
  if (modes.base == MtlsMode::kStrict) {
    wire::Rule* rule = authorization.add_rules();
    add_strict_match(rule);
    for (uint32_t port : modes.permissive) {
      rule->add_clauses()->add_matches()->add_not_destination_ports(port);
    }
  } else {
    for (uint32_t port : modes.strict) {
      wire::Match* match = authorization.add_rules()->add_clauses()->add_matches();
      match->add_not_principals()->mutable_presence();
      match->add_destination_ports(port);
    }
  }
  out->add(ResourceType::kAuthorization, kEveryone,
           fmt::format("{}/{}", policy.ns(), converted_policy_name(policy)), authorization);
}

void translate_strict_policy(View& view, Outputs* out) {
  if (view.list(Kind::kPeerAuthentication, "").empty()) return;
  const std::string& root = view.names().root_namespace;
  wire::Authorization authorization;
  authorization.set_name(std::string(kStrictPolicyName));
  authorization.set_namespace_(root);
  authorization.set_scope(wire::WORKLOAD_SELECTOR);
  authorization.set_action(wire::DENY);
  add_strict_match(authorization.add_rules());
  out->add(ResourceType::kAuthorization, kEveryone, fmt::format("{}/{}", root, kStrictPolicyName),
           authorization);
}

}  // namespace meltemi::config
