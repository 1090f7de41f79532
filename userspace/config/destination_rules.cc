#include "userspace/config/destination_rules.h"

#include <algorithm>

#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;

std::vector<ObjectPtr> best_in_namespace(View& view, std::string_view ns, const std::string& host,
                                         std::string_view client_ns) {
  std::vector<ObjectPtr> out;
  size_t best = 0;
  for (const ObjectPtr& rule : view.list(Kind::kDestinationRule, ns)) {
    const auto& spec = rule->as<kube::DestinationRule>().spec();
    if (spec.has_workload_selector()) continue;
    if (!exported_to(spec.export_to(), rule->ns(), client_ns)) continue;
    std::string pattern = expand_host(spec.host(), rule->ns(), view.names().cluster_domain);
    if (!host_matches(pattern, host)) continue;
    size_t specific = pattern == host ? std::string::npos : pattern.size();
    if (specific < best) continue;
    if (specific > best) out.clear();
    best = specific;
    out.push_back(rule);
  }
  std::sort(out.begin(), out.end(), [](const ObjectPtr& a, const ObjectPtr& b) {
    const auto& at = a->meta().creation_timestamp();
    const auto& bt = b->meta().creation_timestamp();
    return at != bt ? at < bt : a->name() < b->name();
  });
  return out;
}

// Fields of `over` that are set replace those of `base`; a level for the port replaces the whole.
void overlay(const net::TrafficPolicy& over, uint32_t port, net::TrafficPolicy* base) {
  for (const auto& level : over.port_level_settings()) {
    if (level.port().number() != port) continue;
    base->clear_load_balancer();
    base->clear_connection_pool();
    if (level.has_load_balancer()) *base->mutable_load_balancer() = level.load_balancer();
    if (level.has_connection_pool()) *base->mutable_connection_pool() = level.connection_pool();
    if (over.has_retry_budget()) *base->mutable_retry_budget() = over.retry_budget();
    return;
  }
  if (over.has_load_balancer()) *base->mutable_load_balancer() = over.load_balancer();
  if (over.has_connection_pool()) *base->mutable_connection_pool() = over.connection_pool();
  if (over.has_retry_budget()) *base->mutable_retry_budget() = over.retry_budget();
}

}  // namespace

std::vector<ObjectPtr> destination_rules_for(View& view, const Object& service,
                                             std::string_view client_ns) {
  std::string host = service_host(service.name(), service.ns(), view.names().cluster_domain);
  std::string_view order[] = {client_ns, service.ns(), view.names().root_namespace};
  for (std::string_view ns : order) {
    std::vector<ObjectPtr> rules = best_in_namespace(view, ns, host, client_ns);
    if (!rules.empty()) return rules;
  }
  return {};
}

DestinationPolicy destination_policy(View& view, const Object& service, uint32_t port,
                                     std::string_view subset, std::string_view client_ns) {
  DestinationPolicy out;
  std::vector<ObjectPtr> rules = destination_rules_for(view, service, client_ns);
  if (!rules.empty()) out.rule = rules.front();
  for (const ObjectPtr& rule : rules) {
    const auto& spec = rule->as<kube::DestinationRule>().spec();
    if (!spec.has_traffic_policy()) continue;
    overlay(spec.traffic_policy(), port, &out.policy);
    break;  // the oldest rule that has one
  }
  for (const ObjectPtr& rule : rules) {
    for (const auto& candidate : rule->as<kube::DestinationRule>().spec().subsets()) {
      if (subset.empty() || out.subset_found || candidate.name() != subset) continue;
      out.subset_found = true;
      out.rule = rule;
      out.subset_labels = candidate.labels();
      if (candidate.has_traffic_policy()) overlay(candidate.traffic_policy(), port, &out.policy);
    }
  }
  return out;
}

}  // namespace meltemi::config
