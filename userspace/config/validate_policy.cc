// AuthorizationPolicy and PeerAuthentication: istiod's checks in istiod's words.
#include <fmt/format.h>

#include <algorithm>

#include <charconv>
#include <set>

#include "userspace/base/address.h"
#include "userspace/config/check.h"
#include "userspace/config/names.h"
#include "userspace/config/policy_fields.h"

namespace meltemi::config {
namespace {

namespace sec = ::istio::security::v1beta1;
using Strings = google::protobuf::RepeatedPtrField<std::string>;

constexpr int kMaxRules = 512;           // CRD limit
constexpr int kMaxTargets = 16;          // CRD limit
constexpr int kMaxServiceAccounts = 16;  // CRD limit
constexpr size_t kMaxServiceAccountLength = 320;

void check_not_empty_values(Check& check, const std::string& field, const Strings& values) {
  for (int i = 0; i < values.size(); ++i) {
    if (!values[i].empty()) continue;
    check.error(fmt::format("{}[{}]", field, i),
                fmt::format("empty value not allowed, found in {}", field),
                "Remove it, or fill it");
  }
}

void check_ip_blocks(Check& check, const std::string& field, const Strings& values) {
  check_not_empty_values(check, field, values);
  for (int i = 0; i < values.size(); ++i) {
    if (values[i].empty() || Cidr::parse(values[i])) continue;
    bool prefix = values[i].find('/') != std::string::npos;
    check.error(
        fmt::format("{}[{}]", field, i),
        prefix ? fmt::format("bad CIDR range ({}): not an address with a prefix length", values[i])
               : fmt::format("bad IP address ({})", values[i]),
        "Write it like 10.0.0.1 or 10.0.0.0/8");
  }
}

void check_ports(Check& check, const std::string& field, const Strings& values) {
  check_not_empty_values(check, field, values);
  for (int i = 0; i < values.size(); ++i) {
    if (values[i].empty()) continue;
    uint32_t port = 0;
    const char* end = values[i].data() + values[i].size();
    auto [stop, error] = std::from_chars(values[i].data(), end, port);
    if (error == std::errc() && stop == end && port >= 1 && port <= 65535) continue;
    check.error(fmt::format("{}[{}]", field, i),
                fmt::format("bad port ({}): not in 1..65535", values[i]),
                "Give a port number as a string, e.g. \"8080\"");
  }
}

void check_service_accounts(Check& check, const std::string& field, const Strings& values) {
  check_not_empty_values(check, field, values);
  if (values.size() > kMaxServiceAccounts) {
    check.error(field, fmt::format("{} service accounts, at most 16 are allowed", values.size()),
                "Split the rule");
  }
  for (int i = 0; i < values.size(); ++i) {
    const std::string& value = values[i];
    if (value.empty()) continue;
    std::string inner = fmt::format("{}[{}]", field, i);
    if (value.find('*') != std::string::npos) {
      check.error(inner, fmt::format("wildcard not allowed in service account \"{}\"", value),
                  "Name each account, or use `namespaces`");
      continue;
    }
    size_t slash = value.find('/');
    std::string_view name =
        slash == std::string::npos ? value : std::string_view(value).substr(slash + 1);
    bool ns_ok =
        slash == std::string::npos || is_dns_label(std::string_view(value).substr(0, slash));
    if (!ns_ok || !is_dns_subdomain(name) || value.size() > kMaxServiceAccountLength) {
      check.error(
          inner,
          fmt::format("expected format 'serviceAccount' or 'namespace/serviceAccount', got \"{}\"",
                      value),
          "Write it like shop/webapp");
    }
  }
}

void check_trust_domains(Check& check, const std::string& field, const Strings& values) {
  check_not_empty_values(check, field, values);
  for (int i = 0; i < values.size(); ++i) {
    const std::string& value = values[i];
    size_t star = value.find('*');
    bool star_ok = star == std::string::npos || (value.find('*', star + 1) == std::string::npos &&
                                                 (star == 0 || star + 1 == value.size()));
    if (star_ok && value.find('/') == std::string::npos) continue;
    check.error(fmt::format("{}[{}]", field, i), fmt::format("bad trust domain (\"{}\")", value),
                "Use one '*' at the start or end at most, and no '/'");
  }
}

void check_path_templates(Check& check, const std::string& field, const Strings& values) {
  check_not_empty_values(check, field, values);
  for (int i = 0; i < values.size(); ++i) {
    const std::string& path = values[i];
    if (path.find('{') == std::string::npos && path.find('}') == std::string::npos) continue;
    bool ok = path.find('*') != std::string::npos;
    std::string rest = path;
    size_t many = rest.find("{**}");
    if (many != std::string::npos && many + 4 != rest.size()) ok = false;
    if (many != std::string::npos) rest.erase(many, 4);
    for (size_t at; (at = rest.find("{*}")) != std::string::npos;) rest.erase(at, 3);
    if (rest.find_first_of("{}*") != std::string::npos) ok = false;
    if (ok) continue;
    check.error(fmt::format("{}[{}]", field, i),
                fmt::format("invalid or unsupported path {}", path),
                "Use {*} for one segment and {**} as the last, without other '*'");
  }
}

// What a CUSTOM rule may not name, as the external authorizer does not get it.
void check_custom_source(Check& check, const std::string& field, const sec::Source& s) {
  auto forbid = [&](const Strings& values, std::string_view name) {
    if (values.empty()) return;
    check.error(fmt::format("{}.{}", field, name),
                fmt::format("{} is currently not supported with CUSTOM action", name), "Remove it");
  };
  forbid(s.namespaces(), "namespaces");
  forbid(s.not_namespaces(), "notNamespaces");
  forbid(s.service_accounts(), "serviceAccounts");
  forbid(s.not_service_accounts(), "notServiceAccounts");
  forbid(s.trust_domains(), "trustDomains");
  forbid(s.not_trust_domains(), "notTrustDomains");
  forbid(s.principals(), "principals");
  forbid(s.not_principals(), "notPrincipals");
  forbid(s.request_principals(), "requestPrincipals");
  forbid(s.not_request_principals(), "notRequestPrincipals");
}

bool is_empty(const google::protobuf::Message& message) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  return fields.empty();
}

void check_source(Check& check, const std::string& field, const sec::Source& s, int rule) {
  if (is_empty(s)) {
    check.error(field, "`from.source` must not be empty, found in rule " + std::to_string(rule),
                "Add principals, namespaces or ipBlocks");
    return;
  }
  for (const auto& [values, name] : {std::pair{&s.principals(), "principals"},
                                     {&s.not_principals(), "notPrincipals"},
                                     {&s.request_principals(), "requestPrincipals"},
                                     {&s.not_request_principals(), "notRequestPrincipals"},
                                     {&s.namespaces(), "namespaces"},
                                     {&s.not_namespaces(), "notNamespaces"}}) {
    check_not_empty_values(check, fmt::format("{}.{}", field, name), *values);
  }
  check_ip_blocks(check, field + ".ipBlocks", s.ip_blocks());
  check_ip_blocks(check, field + ".notIpBlocks", s.not_ip_blocks());
  check_ip_blocks(check, field + ".remoteIpBlocks", s.remote_ip_blocks());
  check_ip_blocks(check, field + ".notRemoteIpBlocks", s.not_remote_ip_blocks());
  check_service_accounts(check, field + ".serviceAccounts", s.service_accounts());
  check_service_accounts(check, field + ".notServiceAccounts", s.not_service_accounts());
  check_trust_domains(check, field + ".trustDomains", s.trust_domains());
  check_trust_domains(check, field + ".notTrustDomains", s.not_trust_domains());
  bool accounts = !s.service_accounts().empty() || !s.not_service_accounts().empty();
  bool others = !s.principals().empty() || !s.not_principals().empty() || !s.namespaces().empty() ||
                !s.not_namespaces().empty();
  if (accounts && others) {
    check.error(
        field,
        fmt::format("cannot set serviceAccounts with namespaces or principals, found at rule {}",
                    rule),
        "Use only serviceAccounts, or only the others");
  }
}

void check_operation(Check& check, const std::string& field, const sec::Operation& o, int rule) {
  if (is_empty(o)) {
    check.error(field, "`to.operation` must not be empty, found in rule " + std::to_string(rule),
                "Add ports, methods, paths or hosts");
    return;
  }
  check_ports(check, field + ".ports", o.ports());
  check_ports(check, field + ".notPorts", o.not_ports());
  for (const auto& [values, name] : {std::pair{&o.hosts(), "hosts"},
                                     {&o.not_hosts(), "notHosts"},
                                     {&o.methods(), "methods"},
                                     {&o.not_methods(), "notMethods"}}) {
    check_not_empty_values(check, fmt::format("{}.{}", field, name), *values);
  }
  check_path_templates(check, field + ".paths", o.paths());
  check_path_templates(check, field + ".notPaths", o.not_paths());
}

void check_condition(Check& check, const std::string& field, const sec::Condition& when,
                     bool custom) {
  static constexpr std::pair<std::string_view, std::string_view> kReplaced[] = {
      {"source.user", "source.principal"},
      {"destination.user", "selector"},
      {"destination.namespace", "the policy's namespace"},
      {"destination.name", "selector"},
      {"destination.labels", "selector"}};
  const std::string& key = when.key();
  if (key.empty()) {
    check.error(field + ".key", "`key` must not be empty",
                "Name an attribute, e.g. source.namespace");
    return;
  }
  for (const auto& [old, now] : kReplaced) {
    if (key != old && !key.starts_with(std::string(old) + "[")) continue;
    check.error(field + ".key",
                fmt::format("deprecated attribute {}: only supported in v1alpha1", key),
                fmt::format("Use {}", now));
    return;
  }
  if (!is_known_key(key)) {
    static const std::vector<std::string_view> kKeys = {"source.ip",
                                                        "remote.ip",
                                                        "source.namespace",
                                                        "source.serviceAccount",
                                                        "source.principal",
                                                        "source.trustDomain",
                                                        "request.auth.principal",
                                                        "request.auth.audiences",
                                                        "request.auth.presenter",
                                                        "destination.ip",
                                                        "destination.port",
                                                        "connection.sni"};
    std::string_view near = did_you_mean(key, kKeys);
    check.error(field + ".key", fmt::format("unknown attribute: {}", key),
                near.empty() ? fmt::format("Known: {}", fmt::join(kKeys, ", "))
                             : fmt::format("Did you mean `{}`?", near));
    return;
  }
  if (when.values().empty() && when.not_values().empty()) {
    check.error(field,
                fmt::format("at least one of `values` or `notValues` must be set for key {}", key),
                "Add values");
  }
  bool auth = key.starts_with("request.auth.") || key == "source.namespace" ||
              key == "source.serviceAccount" || key == "source.trustDomain" ||
              key == "source.principal";
  if (custom && auth) {
    check.error(field + ".key",
                fmt::format("{} is currently not supported with CUSTOM action", key),
                "Remove the condition");
  }
  for (const auto* values : {&when.values(), &when.not_values()}) {
    std::string inner = field + (values == &when.values() ? ".values" : ".notValues");
    if (key == "source.ip" || key == "remote.ip" || key == "destination.ip") {
      check_ip_blocks(check, inner, *values);
    } else if (key == "destination.port") {
      check_ports(check, inner, *values);
    } else if (key == "source.serviceAccount") {
      check_service_accounts(check, inner, *values);
    } else if (key == "source.trustDomain") {
      check_trust_domains(check, inner, *values);
    } else {
      check_not_empty_values(check, inner, *values);
    }
  }
}

// `from: []` would mean the same as no `from` at all: everybody. Nobody who writes it wants that.
void check_written_lists(Check& check, const sec::Rule& rule, const std::string& field, int index) {
  for (const auto& [name, size] : {std::pair{"from", rule.from_size()},
                                   {"to", rule.to_size()},
                                   {"when", rule.when_size()}}) {
    const std::string inner = fmt::format("{}.{}", field, name);
    if (size > 0 || !check.object().wrote(inner)) continue;
    check.error(inner, fmt::format("`{}` must not be empty, found in rule {}", name, index),
                "Fill it, or remove it to match everything");
  }
}

void check_rule(Check& check, const sec::AuthorizationPolicy& spec, int index) {
  const sec::Rule& rule = spec.rules(index);
  bool custom = spec.action() == sec::AuthorizationPolicy::CUSTOM;
  std::string field = fmt::format("spec.rules[{}]", index);
  check_written_lists(check, rule, field, index);
  for (int i = 0; i < rule.from_size(); ++i) {
    std::string inner = fmt::format("{}.from[{}].source", field, i);
    if (!rule.from(i).has_source()) {
      check.error(inner, fmt::format("`from.source` must not be nil, found in rule {}", index),
                  "Add `source`");
      continue;
    }
    check_source(check, inner, rule.from(i).source(), index);
    if (custom) check_custom_source(check, inner, rule.from(i).source());
  }
  for (int i = 0; i < rule.to_size(); ++i) {
    std::string inner = fmt::format("{}.to[{}].operation", field, i);
    if (!rule.to(i).has_operation()) {
      check.error(inner, fmt::format("`to.operation` must not be nil, found in rule {}", index),
                  "Add `operation`");
      continue;
    }
    check_operation(check, inner, rule.to(i).operation(), index);
  }
  for (int i = 0; i < rule.when_size(); ++i) {
    check_condition(check, fmt::format("{}.when[{}]", field, i), rule.when(i), custom);
  }
}

void check_target(Check& check, const std::string& field,
                  const ::istio::type::v1beta1::PolicyTargetReference& target) {
  static constexpr std::pair<std::string_view, std::string_view> kAllowed[] = {
      {"", "Service"},
      {"core", "Service"},
      {"networking.istio.io", "ServiceEntry"},
      {"gateway.networking.k8s.io", "Gateway"},
      {"gateway.networking.k8s.io", "GatewayClass"}};
  if (target.name().empty())
    check.error(field + ".name", "targetRef name must be set", "Name the target");
  if (target.kind().empty()) {
    check.error(field + ".kind", "targetRef kind must be set", "Write Service or Gateway");
    return;
  }
  if (!target.namespace_().empty()) {
    check.error(field + ".namespace", "cross namespace referencing is not currently supported",
                "Remove it, and put the policy into the target's namespace");
  }
  bool allowed = false;
  for (const auto& [group, kind] : kAllowed)
    allowed |= group == target.group() && kind == target.kind();
  if (!allowed) {
    check.error(field,
                fmt::format("targetRef to kind {} of group \"{}\" is not supported", target.kind(),
                            target.group()),
                "Target a Service (group \"\") or a Gateway (group gateway.networking.k8s.io)");
  } else if (target.kind() == "ServiceEntry") {
    check.unsupported(field + ".kind", "a target of kind ServiceEntry");
  }
}

void check_binding(Check& check, const sec::AuthorizationPolicy& spec) {
  bool targets = binds_to_target(spec);
  if (spec.has_selector() && targets) {
    check.error("spec", "only one of targetRefs or selector can be set", "Remove one of the two");
  }
  if (spec.has_selector()) check.selector("spec.selector", spec.selector().match_labels());
  if (spec.target_refs_size() > kMaxTargets) {
    check.error("spec.targetRefs",
                fmt::format("{} targets, at most 16 are allowed", spec.target_refs_size()),
                "Split the policy");
  }
  if (spec.has_target_ref()) check_target(check, "spec.targetRef", spec.target_ref());
  for (int i = 0; i < spec.target_refs_size(); ++i) {
    check_target(check, fmt::format("spec.targetRefs[{}]", i), spec.target_refs(i));
  }
}

void check_action(Check& check, const sec::AuthorizationPolicy& spec) {
  using Policy = sec::AuthorizationPolicy;
  bool provider = spec.action_detail_case() == Policy::kProvider;
  if (spec.action() == Policy::CUSTOM) {
    if (spec.rules().empty()) {
      check.error("spec.rules",
                  "CUSTOM action without `rules` is meaningless as it will never be triggered",
                  "Add rules: [{}] to trigger always");
    }
    if (spec.provider().name().empty()) {
      check.error("spec.provider.name", "`provider.name` must not be empty", "Name the provider");
    }
    check.unsupported("spec.action", "action CUSTOM");
  } else if (provider) {
    check.error("spec.provider",
                fmt::format("`provider` must not be with non CUSTOM action, found {}",
                            Policy::Action_Name(spec.action())),
                "Remove it");
  }
  if (spec.action() == Policy::DENY && spec.rules().empty()) {
    check.error("spec.rules",
                "DENY action without `rules` is meaningless as it will never be triggered",
                "Add rules: [{}] to deny everything");
  }
  if (spec.action() == Policy::AUDIT) check.unsupported("spec.action", "action AUDIT");
}

void check_dry_run(Check& check, const sec::AuthorizationPolicy& spec) {
  auto found = check.object().meta().annotations().find("istio.io/dry-run");
  if (found == check.object().meta().annotations().end()) return;
  std::string field = "metadata.annotations[istio.io/dry-run]";
  if (found->second != "true" && found->second != "false") {
    check.error(field, fmt::format("\"{}\" is not a boolean", found->second),
                "Write \"true\" or \"false\"");
  }
  if (spec.action() != sec::AuthorizationPolicy::ALLOW &&
      spec.action() != sec::AuthorizationPolicy::DENY) {
    check.error(field, "dry-run is only possible with ALLOW and DENY", "Remove the annotation");
  }
}

// Whether nothing of a rule is left where only connections are seen: some alternative of each part
// has HTTP attributes only.
bool only_l7(const sec::Rule& rule) {
  const auto any = [](const auto& list, auto&& is_l7) {
    return list.empty() || std::any_of(list.begin(), list.end(), is_l7);
  };
  const auto source_is = [](const auto& from) {
    sec::Source rest = from.source();
    rest.clear_request_principals();
    rest.clear_not_request_principals();
    rest.clear_remote_ip_blocks();
    rest.clear_not_remote_ip_blocks();
    return rest.ByteSizeLong() == 0;
  };
  const auto operation_is = [](const auto& to) {
    return to.operation().ports().empty() && to.operation().not_ports().empty();
  };
  return any(rule.from(), source_is) && any(rule.to(), operation_is) &&
         std::none_of(rule.when().begin(), rule.when().end(),
                      [](const auto& when) { return is_l4_key(when.key()); });
}

// Rules that need HTTP where only connections are seen. They are never silently wider or narrower:
// the translation fails closed, and this says how.
void warn_l7(Check& check, const sec::AuthorizationPolicy& spec) {
  bool deny = spec.action() == sec::AuthorizationPolicy::DENY;
  for (int i = 0; i < spec.rules_size(); ++i) {
    std::vector<std::string> fields = l7_fields(spec.rules(i));
    if (fields.empty()) continue;
    std::string field = fmt::format("spec.rules[{}]", i);
    std::string list = fmt::format("{}", fmt::join(fields, ", "));
    if (binds_to_target(spec)) {
      check.warn(
          field,
          deny ? fmt::format(
                     "{}: HTTP attributes are not evaluated yet; the rule denies whatever its "
                     "other attributes match",
                     list)
               : fmt::format("{}: HTTP attributes are not evaluated yet; the rule allows nothing",
                             list),
          "Use principals, namespaces, serviceAccounts, ipBlocks and ports", kCodeUnsupported);
    } else {
      check.warn(
          field,
          deny ? fmt::format(
                     "{}: ztunnel sees connections, not requests; these attributes are ignored, "
                     "and a rule of nothing else denies every connection",
                     list)
               : fmt::format("{}: ztunnel sees connections, not requests; the rule allows nothing",
                             list),
          "Put a waypoint in front and use targetRefs instead of selector", kCodeIneffectivePolicy);
    }
    if (deny && only_l7(spec.rules(i))) {
      check.warn(field,
                 "configured AuthorizationPolicy will deny all traffic to TCP ports under its scope "
                 "due to the use of only HTTP attributes in a DENY rule; it is recommended to "
                 "explicitly specify the port",
                 "Add operation.ports");
    }
  }
}

}  // namespace

void validate_authorization_policy(Check& check) {
  const sec::AuthorizationPolicy& spec = check.object().as<kube::AuthorizationPolicy>().spec();
  check_binding(check, spec);
  check_action(check, spec);
  check_dry_run(check, spec);
  if (spec.rules_size() > kMaxRules) {
    check.error("spec.rules", fmt::format("{} rules, at most 512 are allowed", spec.rules_size()),
                "Split the policy");
  }
  for (int i = 0; i < spec.rules_size(); ++i) check_rule(check, spec, i);
  warn_l7(check, spec);
}

void validate_peer_authentication(Check& check, const MeshNames& names) {
  const sec::PeerAuthentication& spec = check.object().as<kube::PeerAuthentication>().spec();
  bool selects = !spec.selector().match_labels().empty();
  if (spec.has_selector()) check.selector("spec.selector", spec.selector().match_labels());
  if (!spec.port_level_mtls().empty() && !selects) {
    check.error("spec.portLevelMtls",
                "mesh/namespace peer authentication cannot have port level mTLS", "Add a selector");
  }
  for (const auto& [port, mtls] : spec.port_level_mtls()) {
    if (port >= 1 && port <= 65535) continue;
    check.error(fmt::format("spec.portLevelMtls[{}]", port), "port must be in range 1..65535",
                "Give a port of the pod");
  }
  if (selects && check.object().ns() == names.root_namespace) {
    check.warn("spec.selector",
               "a peer authentication with a selector has no effect in the root namespace",
               "Remove the selector for the whole mesh, or move the object");
  }
}

}  // namespace meltemi::config
