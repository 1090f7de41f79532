#include "waypoint/route/authz.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "envoy/config/rbac/v3/rbac.pb.h"
#include "waypoint/xds/convert.h"

namespace meltemi::waypoint {
namespace {

namespace pb = envoy::config::rbac::v3;
using model::PolicyMatch;
using model::StringMatch;

constexpr std::string_view kSpiffe = "spiffe://";
constexpr uint32_t kMaxPortRange = 1024;  // ports of one range; each becomes an entry

std::unexpected<Error> unsupported(std::string detail) {
  return fail(Reason::kUnsupported, Fault::kConfig, std::move(detail));
}

// The values of one disjunction, before it is known whether it is negated.
struct Values {
  bool any = false;  // matches everything
  std::vector<StringMatch> namespaces, principals;
  std::vector<model::ServiceAccountMatch> accounts;
  std::vector<Cidr> source_ips, destination_ips;
  std::vector<uint16_t> ports;

  int kinds() const {
    return !namespaces.empty() + !principals.empty() + !accounts.empty() + !source_ips.empty() +
           !destination_ips.empty() + !ports.empty();
  }
};

// "shop", "shop.*" (written as a regular expression): exact, prefix, suffix or anything.
std::optional<StringMatch> name_pattern(std::string_view regex) {
  StringMatch m;
  if (regex == ".*" || regex == ".+" || regex == "[^/]+" || regex == "[^/]*") {
    m.kind = StringMatch::Kind::kPresence;
    return m;
  }
  if (regex.ends_with(".*")) {
    m.kind = StringMatch::Kind::kPrefix;
    regex.remove_suffix(2);
  } else if (regex.starts_with(".*")) {
    m.kind = StringMatch::Kind::kSuffix;
    regex.remove_prefix(2);
  }
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] == '\\' && i + 1 < regex.size()) {
      m.value += regex[++i];
      continue;
    }
    const char c = regex[i];
    const bool literal = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '-' || c == '_';
    if (!literal) return std::nullopt;
    m.value += c;
  }
  return m.value.empty() ? std::nullopt : std::make_optional(m);
}

// The two shapes in which namespaces and service accounts arrive (facts: istiod §3.8).
Status add_regex(Values& values, std::string_view regex) {
  if (regex == ".*" || regex == ".+") {
    values.principals.push_back({StringMatch::Kind::kPresence, ""});
    return {};
  }
  std::string_view rest = regex;
  if (rest.starts_with("^")) rest.remove_prefix(1);
  if (rest.ends_with("$")) rest.remove_suffix(1);
  for (const std::string_view head : {".*/ns/", "spiffe://.*/ns/", "spiffe://[^/]+/ns/"}) {
    if (!rest.starts_with(head)) continue;
    rest.remove_prefix(head.size());
    const size_t sa = rest.find("/sa/");
    if (sa == std::string_view::npos) {
      if (rest.ends_with("/.*")) {
        const auto ns = name_pattern(rest.substr(0, rest.size() - 3));
        if (ns) {
          values.namespaces.push_back(*ns);
          return {};
        }
      }
      break;
    }
    const auto ns = name_pattern(rest.substr(0, sa));
    const auto account = name_pattern(rest.substr(sa + 4));
    if (ns && account && ns->kind == StringMatch::Kind::kExact &&
        account->kind == StringMatch::Kind::kExact) {
      values.accounts.push_back({ns->value, account->value});
      return {};
    }
    break;
  }
  return unsupported(fmt::format("principal_name: regex \"{}\" is not supported", regex));
}

Status add_principal_name(Values& values, const pb::Principal::Authenticated& proto) {
  if (!proto.has_principal_name()) {
    values.principals.push_back({StringMatch::Kind::kPresence, ""});
    return {};
  }
  using P = envoy::type::matcher::v3::StringMatcher;
  const auto& name = proto.principal_name();
  if (name.ignore_case()) return unsupported("principal_name: ignore_case is not supported");
  switch (name.match_pattern_case()) {
    case P::kSuffix:
      values.principals.push_back({StringMatch::Kind::kSuffix, name.suffix()});
      return {};
    case P::kSafeRegex: return add_regex(values, name.safe_regex().regex());
    case P::kExact:
    case P::kPrefix: {
      const bool exact = name.match_pattern_case() == P::kExact;
      std::string_view text = exact ? name.exact() : name.prefix();
      if (!text.starts_with(kSpiffe)) {
        return unsupported(fmt::format("principal_name: \"{}\" does not start with spiffe://", text));
      }
      text.remove_prefix(kSpiffe.size());
      if (!exact && text.empty()) {
        values.principals.push_back({StringMatch::Kind::kPresence, ""});
        return {};
      }
      values.principals.push_back(
          {exact ? StringMatch::Kind::kExact : StringMatch::Kind::kPrefix, std::string(text)});
      return {};
    }
    default: return unsupported("principal_name: no pattern set");
  }
}

Status add_port(Values& values, uint32_t port) {
  if (port < 1 || port > 65535) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("destination_port: {} is not in 1..65535", port));
  }
  values.ports.push_back(static_cast<uint16_t>(port));
  return {};
}

// --- leaves and disjunctions, for principals and permissions alike ---
Status add_leaf(Values& values, const pb::Principal& p) {
  switch (p.identifier_case()) {
    case pb::Principal::kAny: values.any = p.any(); return {};
    case pb::Principal::kAuthenticated: return add_principal_name(values, p.authenticated());
    case pb::Principal::kDirectRemoteIp:
      values.source_ips.push_back(MELTEMI_TRY(cidr_of(p.direct_remote_ip(), "direct_remote_ip")));
      return {};
    case pb::Principal::kRemoteIp:
      values.source_ips.push_back(MELTEMI_TRY(cidr_of(p.remote_ip(), "remote_ip")));
      return {};
    default: return unsupported("principal: nested and/or/not of this depth is not supported");
  }
}
Status add_leaf(Values& values, const pb::Permission& p) {
  switch (p.rule_case()) {
    case pb::Permission::kAny: values.any = p.any(); return {};
    case pb::Permission::kDestinationIp:
      values.destination_ips.push_back(MELTEMI_TRY(cidr_of(p.destination_ip(), "destination_ip")));
      return {};
    case pb::Permission::kDestinationPort: return add_port(values, p.destination_port());
    case pb::Permission::kDestinationPortRange: {
      const auto& range = p.destination_port_range();
      if (range.end() <= range.start() ||
          static_cast<uint32_t>(range.end() - range.start()) > kMaxPortRange) {
        return unsupported(fmt::format("destination_port_range: empty, or more than {} ports",
                                       kMaxPortRange));
      }
      for (int port = range.start(); port < range.end(); ++port) {
        MELTEMI_TRY(add_port(values, static_cast<uint32_t>(port)));
      }
      return {};
    }
    default: return unsupported("permission: nested and/or/not of this depth is not supported");
  }
}

const auto* or_set(const pb::Principal& p) { return p.has_or_ids() ? &p.or_ids().ids() : nullptr; }
const auto* or_set(const pb::Permission& p) {
  return p.has_or_rules() ? &p.or_rules().rules() : nullptr;
}
const auto* and_set(const pb::Principal& p) {
  return p.has_and_ids() ? &p.and_ids().ids() : nullptr;
}
const auto* and_set(const pb::Permission& p) {
  return p.has_and_rules() ? &p.and_rules().rules() : nullptr;
}
const pb::Principal* negated(const pb::Principal& p) { return p.has_not_id() ? &p.not_id() : nullptr; }
const pb::Permission* negated(const pb::Permission& p) {
  return p.has_not_rule() ? &p.not_rule() : nullptr;
}

Result<Values> disjunction(const auto& node) {
  Values values;
  if (const auto* set = or_set(node)) {
    for (const auto& leaf : *set) MELTEMI_TRY(add_leaf(values, leaf));
  } else {
    MELTEMI_TRY(add_leaf(values, node));
  }
  if (!values.any && values.kinds() != 1) {
    return unsupported("an or of different kinds of attributes is not supported");
  }
  return values;
}

template <typename T>
Status move_into(std::vector<T>& to, std::vector<T>& from, const char* kind) {
  if (from.empty()) return {};
  if (!to.empty()) return unsupported(fmt::format("two conditions on {} in one and", kind));
  to = std::move(from);
  return {};
}

Status add_condition(PolicyMatch& match, Values values, bool negate) {
  auto& m = match;
  MELTEMI_TRY(move_into(negate ? m.not_namespaces : m.namespaces, values.namespaces, "namespaces"));
  MELTEMI_TRY(move_into(negate ? m.not_principals : m.principals, values.principals, "principals"));
  MELTEMI_TRY(move_into(negate ? m.not_service_accounts : m.service_accounts, values.accounts,
                        "service accounts"));
  MELTEMI_TRY(move_into(negate ? m.not_source_ips : m.source_ips, values.source_ips, "source IPs"));
  MELTEMI_TRY(move_into(negate ? m.not_destination_ips : m.destination_ips,
                        values.destination_ips, "destination IPs"));
  MELTEMI_TRY(move_into(negate ? m.not_destination_ports : m.destination_ports, values.ports,
                        "destination ports"));
  return {};
}

// One element of `permissions` or `principals`. nullopt: it matches everything.
template <typename Node>
Result<std::optional<PolicyMatch>> conjunction(const Node& node) {
  std::vector<const Node*> parts;
  if (const auto* set = and_set(node)) {
    for (const Node& part : *set) parts.push_back(&part);
  } else {
    parts.push_back(&node);
  }
  PolicyMatch match;
  for (const Node* part : parts) {
    const Node* inner = negated(*part);
    Values values = MELTEMI_TRY(disjunction(inner ? *inner : *part));
    if (values.any && inner) return unsupported("not of any is not supported");
    if (values.any) continue;
    MELTEMI_TRY(add_condition(match, std::move(values), inner != nullptr));
  }
  if (match.empty()) return std::optional<PolicyMatch>();
  return std::optional<PolicyMatch>(std::move(match));
}

template <typename Node>
Status add_clause(model::PolicyRule& rule, const google::protobuf::RepeatedPtrField<Node>& nodes,
                  const char* what) {
  if (nodes.empty()) {
    return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("{} is empty", what));
  }
  model::PolicyClause clause;
  for (const Node& node : nodes) {
    auto match = MELTEMI_TRY(conjunction(node));
    if (!match) return {};  // one alternative always holds: so does the clause
    clause.matches.push_back(std::move(*match));
  }
  rule.clauses.push_back(std::move(clause));
  return {};
}

struct RuleName {
  std::string ns, policy;
  uint32_t rule = 0;
};

// "ns[shop]-policy[deny]-rule[0]"; any other name is a policy of one rule.
RuleName rule_name(const std::string& text) {
  RuleName name{"", text, 0};
  const auto part = [&](std::string_view key, std::string_view& out) {
    const size_t at = text.find(key);
    if (at == std::string::npos) return false;
    const size_t begin = at + key.size();
    const size_t end = text.find(']', begin);
    if (end == std::string::npos) return false;
    out = std::string_view(text).substr(begin, end - begin);
    return true;
  };
  std::string_view ns, policy, rule;
  if (part("ns[", ns) && part("-policy[", policy) && part("-rule[", rule)) {
    std::from_chars(rule.data(), rule.data() + rule.size(), name.rule);
    name.ns = ns;
    name.policy = policy;
  }
  return name;
}

Result<std::vector<model::PolicyPtr>> compile_rules(const pb::RBAC& proto) {
  std::vector<model::PolicyPtr> out;
  if (proto.action() == pb::RBAC::LOG) return out;
  const bool allow = proto.action() == pb::RBAC::ALLOW;
  std::map<std::pair<std::string, std::string>, std::map<uint32_t, model::PolicyRule>> policies;
  for (const auto& [name, policy] : proto.policies()) {
    model::PolicyRule rule;
    Status ok = add_clause(rule, policy.permissions(), "permissions");
    if (ok) ok = add_clause(rule, policy.principals(), "principals");
    if (!ok) {
      Error error = ok.error();
      error.detail = fmt::format("policy {}: {}", name, error.detail);
      return fail(std::move(error));
    }
    const RuleName parsed = rule_name(name);
    policies[{parsed.ns, parsed.policy}].emplace(parsed.rule, std::move(rule));
  }
  if (allow && policies.empty()) policies[{"", "allow-nothing"}];
  for (auto& [key, rules] : policies) {
    auto policy = std::make_shared<model::Policy>();
    policy->ns = model::Symbol(key.first);
    policy->name = model::Symbol(key.second);
    policy->action = allow ? model::PolicyAction::kAllow : model::PolicyAction::kDeny;
    for (auto& [index, rule] : rules) policy->rules.push_back(std::move(rule));
    policy->seal();
    out.push_back(std::move(policy));
  }
  return out;
}

}  // namespace

Result<RbacFilter> RbacFilter::compile(const pb::RBAC* rules, const pb::RBAC* shadow) {
  RbacFilter filter;
  if (rules) filter.rules_ = MELTEMI_TRY(compile_rules(*rules));
  if (shadow) filter.shadow_ = MELTEMI_TRY(compile_rules(*shadow));
  return filter;
}

model::PolicyVerdict RbacFilter::check(const model::PolicyInput& input) const {
  return model::evaluate(rules_, input);
}

model::PolicyVerdict RbacFilter::check_shadow(const model::PolicyInput& input) const {
  return model::evaluate(shadow_, input);
}

model::PolicyVerdict authorize(const std::vector<RbacFilter>& filters,
                               const model::PolicyInput& input) {
  for (const RbacFilter& filter : filters) {
    model::PolicyVerdict verdict = filter.check(input);
    if (!verdict.allowed) return verdict;
  }
  return {};
}

}  // namespace meltemi::waypoint
