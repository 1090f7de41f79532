#include "userspace/config/policy_fields.h"

#include <fmt/format.h>

namespace meltemi::config {

namespace sec = ::istio::security::v1beta1;

bool has_l7(const sec::Source& s) {
  return !s.request_principals().empty() || !s.not_request_principals().empty() ||
         !s.remote_ip_blocks().empty() || !s.not_remote_ip_blocks().empty();
}

bool has_l7(const sec::Operation& o) {
  return !o.hosts().empty() || !o.not_hosts().empty() || !o.methods().empty() ||
         !o.not_methods().empty() || !o.paths().empty() || !o.not_paths().empty();
}

bool is_l4_key(std::string_view key) {
  for (std::string_view known :
       {"source.ip", "source.namespace", "source.principal", "source.serviceAccount",
        "source.trustDomain", "destination.ip", "destination.port"}) {
    if (key == known) return true;
  }
  return false;
}

bool is_known_key(std::string_view key) {
  auto indexed = [&](std::string_view prefix) {
    return key.starts_with(prefix) && key.size() > prefix.size() + 2 && key[prefix.size()] == '[' &&
           key.ends_with(']');
  };
  for (std::string_view known : {"remote.ip", "request.auth.principal", "request.auth.audiences",
                                 "request.auth.presenter", "connection.sni"}) {
    if (key == known) return true;
  }
  return is_l4_key(key) || indexed("request.headers") || indexed("request.auth.claims") ||
         key.starts_with("experimental.envoy.filters.");
}

std::vector<std::string> l7_fields(const sec::Rule& rule) {
  std::vector<std::string> out;
  for (int i = 0; i < rule.from_size(); ++i) {
    const sec::Source& s = rule.from(i).source();
    auto add = [&](const auto& values, std::string_view name) {
      if (!values.empty()) out.push_back(fmt::format("from[{}].source.{}", i, name));
    };
    add(s.request_principals(), "requestPrincipals");
    add(s.not_request_principals(), "notRequestPrincipals");
    add(s.remote_ip_blocks(), "remoteIpBlocks");
    add(s.not_remote_ip_blocks(), "notRemoteIpBlocks");
  }
  for (int i = 0; i < rule.to_size(); ++i) {
    const sec::Operation& o = rule.to(i).operation();
    auto add = [&](const auto& values, std::string_view name) {
      if (!values.empty()) out.push_back(fmt::format("to[{}].operation.{}", i, name));
    };
    add(o.hosts(), "hosts");
    add(o.not_hosts(), "notHosts");
    add(o.methods(), "methods");
    add(o.not_methods(), "notMethods");
    add(o.paths(), "paths");
    add(o.not_paths(), "notPaths");
  }
  for (int i = 0; i < rule.when_size(); ++i) {
    if (!is_l4_key(rule.when(i).key())) {
      out.push_back(fmt::format("when[{}] ({})", i, rule.when(i).key()));
    }
  }
  return out;
}

bool binds_to_target(const sec::AuthorizationPolicy& policy) {
  return policy.has_target_ref() || !policy.target_refs().empty();
}

std::vector<const ::istio::type::v1beta1::PolicyTargetReference*> targets_of(
    const sec::AuthorizationPolicy& policy) {
  std::vector<const ::istio::type::v1beta1::PolicyTargetReference*> out;
  if (policy.has_target_ref()) out.push_back(&policy.target_ref());
  for (const auto& target : policy.target_refs()) out.push_back(&target);
  return out;
}

}  // namespace meltemi::config
