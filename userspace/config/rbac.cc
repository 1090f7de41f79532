#include "userspace/config/rbac.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "userspace/base/address.h"
#include "userspace/config/policy_fields.h"

namespace meltemi::config {
namespace {

namespace api = ::istio::security::v1beta1;
namespace pb = ::envoy::config::rbac::v3;
using Strings = google::protobuf::RepeatedPtrField<std::string>;

constexpr std::string_view kSpiffe = "spiffe://";

// One conjunction of the filter: every attribute at most once per sign, which is what it can say.
template <typename Node>
class Conjunction {
 public:
  using Nodes = std::vector<Node>;

  // False if the attribute is there already: the conjunction cannot say both.
  bool add(std::string_view attribute, bool negated, Nodes alternatives) {
    if (alternatives.empty()) return true;
    if (!used_.insert(fmt::format("{}{}", negated ? "!" : "", attribute)).second) return false;
    Node node;
    if (alternatives.size() == 1) {
      node = std::move(alternatives[0]);
    } else {
      for (Node& one : alternatives) *add_alternative(&node) = std::move(one);
    }
    if (negated) {
      Node inner = std::move(node);
      node = Node();
      *negation(&node) = std::move(inner);
    }
    parts_.push_back(std::move(node));
    return true;
  }

  Node take() {
    Node out;
    if (parts_.empty()) {
      out.set_any(true);
    } else if (parts_.size() == 1) {
      out = std::move(parts_[0]);
    } else {
      for (Node& part : parts_) *add_part(&out) = std::move(part);
    }
    return out;
  }

 private:
  static pb::Principal* add_alternative(pb::Principal* n) { return n->mutable_or_ids()->add_ids(); }
  static pb::Permission* add_alternative(pb::Permission* n) {
    return n->mutable_or_rules()->add_rules();
  }
  static pb::Principal* add_part(pb::Principal* n) { return n->mutable_and_ids()->add_ids(); }
  static pb::Permission* add_part(pb::Permission* n) { return n->mutable_and_rules()->add_rules(); }
  static pb::Principal* negation(pb::Principal* n) { return n->mutable_not_id(); }
  static pb::Permission* negation(pb::Permission* n) { return n->mutable_not_rule(); }

  std::set<std::string> used_;
  std::vector<Node> parts_;
};

using Principals = std::vector<pb::Principal>;
using Permissions = std::vector<pb::Permission>;

pb::Principal any_identity() {
  pb::Principal p;
  p.mutable_authenticated();
  return p;
}

Principals principals_of(const Strings& values) {
  Principals out;
  for (std::string_view value : values) {
    if (value.starts_with(kSpiffe)) value.remove_prefix(kSpiffe.size());
    if (value == "*") {
      out.push_back(any_identity());
      continue;
    }
    auto* name = out.emplace_back().mutable_authenticated()->mutable_principal_name();
    if (value.starts_with('*')) {
      name->set_suffix(std::string(value.substr(1)));
    } else if (value.ends_with('*')) {
      name->set_prefix(fmt::format("{}{}", kSpiffe, value.substr(0, value.size() - 1)));
    } else {
      name->set_exact(fmt::format("{}{}", kSpiffe, value));
    }
  }
  return out;
}

std::string quote_name(std::string_view name) {
  std::string out;
  for (char c : name) {
    if (c == '.') out += '\\';
    out += c;
  }
  return out;
}

pb::Principal regex_principal(std::string regex) {
  pb::Principal p;
  p.mutable_authenticated()->mutable_principal_name()->mutable_safe_regex()->set_regex(
      std::move(regex));
  return p;
}

// nullopt if a value has its wildcard where the filter cannot have it.
std::optional<Principals> namespaces_of(const Strings& values) {
  Principals out;
  for (const std::string& value : values) {
    if (value == "*") {
      out.push_back(regex_principal("spiffe://[^/]+/ns/.*/.*"));
      continue;
    }
    size_t star = value.find('*');
    bool ends = star == std::string::npos || star == 0 || star + 1 == value.size();
    if (!ends || value.find('*', star + 1) != std::string::npos) {
      if (star != std::string::npos) return std::nullopt;
    }
    std::string pattern;
    if (star == 0)
      pattern = ".*" + quote_name(std::string_view(value).substr(1));
    else if (star != std::string::npos)
      pattern = quote_name(std::string_view(value).substr(0, star)) + ".*";
    else
      pattern = quote_name(value);
    out.push_back(regex_principal(fmt::format("spiffe://[^/]+/ns/{}/.*", pattern)));
  }
  return out;
}

Principals accounts_of(const Strings& values, std::string_view ns) {
  Principals out;
  for (const std::string& value : values) {
    size_t slash = value.find('/');
    std::string_view own_ns =
        slash == std::string::npos ? ns : std::string_view(value).substr(0, slash);
    std::string_view name =
        slash == std::string::npos ? value : std::string_view(value).substr(slash + 1);
    out.push_back(regex_principal(
        fmt::format("spiffe://[^/]+/ns/{}/sa/{}", quote_name(own_ns), quote_name(name))));
  }
  return out;
}

std::optional<Principals> trust_domains_of(const Strings& values) {
  Principals out;
  for (const std::string& value : values) {
    if (value == "*") {
      out.push_back(any_identity());
      continue;
    }
    if (value.starts_with('*')) return std::nullopt;
    auto* name = out.emplace_back().mutable_authenticated()->mutable_principal_name();
    name->set_prefix(value.ends_with('*')
                         ? fmt::format("{}{}", kSpiffe, value.substr(0, value.size() - 1))
                         : fmt::format("{}{}/", kSpiffe, value));
  }
  return out;
}

template <typename Node, typename F>
std::vector<Node> ranges_of(const Strings& values, F&& set) {
  std::vector<Node> out;
  for (const std::string& value : values) {
    auto cidr = Cidr::parse(value);
    if (!cidr) continue;  // validated before
    auto* range = set(&out.emplace_back());
    range->set_address_prefix(cidr->address.to_string());
    range->mutable_prefix_len()->set_value(cidr->length);
  }
  return out;
}

Principals sources_of(const Strings& values) {
  return ranges_of<pb::Principal>(values, [](auto* p) { return p->mutable_direct_remote_ip(); });
}
Permissions destinations_of(const Strings& values) {
  return ranges_of<pb::Permission>(values, [](auto* p) { return p->mutable_destination_ip(); });
}
Permissions ports_of(const Strings& values) {
  Permissions out;
  for (const std::string& value : values) {
    uint32_t port = 0;
    std::from_chars(value.data(), value.data() + value.size(), port);
    out.emplace_back().set_destination_port(port);
  }
  return out;
}

class RuleBuilder {
 public:
  RuleBuilder(std::string_view ns, bool deny) : ns_(ns), deny_(deny) {}

  // nullopt: the rule allows nothing because a part of it cannot be evaluated.
  std::optional<pb::Policy> build(const api::Rule& rule) {
    if (!deny_ && !l7_fields(rule).empty()) return std::nullopt;
    pb::Policy policy;
    add_permissions(rule, &policy);
    add_principals(rule, &policy);
    if (lost_ && !deny_) return std::nullopt;
    return policy;
  }

 private:
  template <typename Node>
  void need(Conjunction<Node>& to, std::string_view attribute, bool negated,
            std::optional<std::vector<Node>> nodes) {
    if (!nodes || !to.add(attribute, negated, std::move(*nodes))) lost_ = true;
  }

  void add_permissions(const api::Rule& rule, pb::Policy* out) {
    auto one = [&](const api::Operation& operation) {
      Conjunction<pb::Permission> all;
      need(all, "ports", false, {ports_of(operation.ports())});
      need(all, "ports", true, {ports_of(operation.not_ports())});
      for (const auto& when : rule.when()) {
        if (when.key() == "destination.port") {
          need(all, "ports", false, {ports_of(when.values())});
          need(all, "ports", true, {ports_of(when.not_values())});
        } else if (when.key() == "destination.ip") {
          need(all, "ips", false, {destinations_of(when.values())});
          need(all, "ips", true, {destinations_of(when.not_values())});
        }
      }
      *out->add_permissions() = all.take();
    };
    for (const auto& to : rule.to()) one(to.operation());
    if (rule.to().empty()) one(api::Operation());
  }

  void add_source(Conjunction<pb::Principal>& all, const api::Source& s) {
    need(all, "principals", false, {principals_of(s.principals())});
    need(all, "principals", true, {principals_of(s.not_principals())});
    need(all, "principals", false, trust_domains_of(s.trust_domains()));
    need(all, "principals", true, trust_domains_of(s.not_trust_domains()));
    need(all, "namespaces", false, namespaces_of(s.namespaces()));
    need(all, "namespaces", true, namespaces_of(s.not_namespaces()));
    need(all, "accounts", false, {accounts_of(s.service_accounts(), ns_)});
    need(all, "accounts", true, {accounts_of(s.not_service_accounts(), ns_)});
    need(all, "ips", false, {sources_of(s.ip_blocks())});
    need(all, "ips", true, {sources_of(s.not_ip_blocks())});
  }

  void add_when(Conjunction<pb::Principal>& all, const api::Condition& when) {
    const std::string& key = when.key();
    for (bool negated : {false, true}) {
      const Strings& values = negated ? when.not_values() : when.values();
      if (key == "source.principal") need(all, "principals", negated, {principals_of(values)});
      if (key == "source.trustDomain") need(all, "principals", negated, trust_domains_of(values));
      if (key == "source.namespace") need(all, "namespaces", negated, namespaces_of(values));
      if (key == "source.serviceAccount")
        need(all, "accounts", negated, {accounts_of(values, ns_)});
      if (key == "source.ip") need(all, "ips", negated, {sources_of(values)});
    }
  }

  void add_principals(const api::Rule& rule, pb::Policy* out) {
    auto one = [&](const api::Source& source) {
      Conjunction<pb::Principal> all;
      add_source(all, source);
      for (const auto& when : rule.when()) add_when(all, when);
      *out->add_principals() = all.take();
    };
    for (const auto& from : rule.from()) one(from.source());
    if (rule.from().empty()) one(api::Source());
  }

  std::string_view ns_;
  bool deny_;
  bool lost_ = false;  // a condition could not be said
};

bool targets(const api::AuthorizationPolicy& spec, std::string_view kind, std::string_view name) {
  for (const auto* target : targets_of(spec)) {
    if (target->kind() == kind && target->name() == name) return true;
  }
  return false;
}

}  // namespace

std::vector<RbacFilter> rbac_filters(View& view, std::string_view service_ns,
                                     std::string_view service, std::string_view gateway_ns,
                                     std::string_view gateway) {
  std::vector<ObjectPtr> bound;
  auto collect = [&](std::string_view ns, std::string_view kind, std::string_view name) {
    if (name.empty()) return;
    for (const ObjectPtr& policy : view.list(Kind::kAuthorizationPolicy, ns)) {
      if (!targets(policy->as<kube::AuthorizationPolicy>().spec(), kind, name)) continue;
      if (std::find(bound.begin(), bound.end(), policy) == bound.end()) bound.push_back(policy);
    }
  };
  collect(service_ns, "Service", service);
  collect(gateway_ns, "Gateway", gateway);
  if (ObjectPtr object = view.object(Kind::kGateway, gateway_ns, gateway)) {
    collect(view.names().root_namespace, "GatewayClass",
            object->as<kube::Gateway>().spec().gateway_class_name());
  }
  std::vector<RbacFilter> out;
  using Policy = api::AuthorizationPolicy;
  for (auto [action, wire] :
       {std::pair{Policy::DENY, pb::RBAC::DENY}, {Policy::ALLOW, pb::RBAC::ALLOW}}) {
    RbacFilter filter;
    filter.rules.set_action(wire);
    filter.shadow.set_action(wire);
    for (const ObjectPtr& policy : bound) {
      const Policy& spec = policy->as<kube::AuthorizationPolicy>().spec();
      if (spec.action() != action) continue;
      bool dry = policy->annotation("istio.io/dry-run") == "true";
      (dry ? filter.has_shadow : filter.has_rules) = true;
      pb::RBAC& rbac = dry ? filter.shadow : filter.rules;
      for (int i = 0; i < spec.rules_size(); ++i) {
        auto rule = RuleBuilder(policy->ns(), action == Policy::DENY).build(spec.rules(i));
        if (!rule) continue;
        std::string name =
            fmt::format("ns[{}]-policy[{}]-rule[{}]", policy->ns(), policy->name(), i);
        (*rbac.mutable_policies())[name] = std::move(*rule);
      }
    }
    if (filter.has_rules || filter.has_shadow) out.push_back(std::move(filter));
  }
  return out;
}

}  // namespace meltemi::config
