// DestinationRule: istiod's checks in istiod's words, and what the waypoint does not act on yet.
#include <fmt/format.h>

#include <cstdint>
#include <set>

#include "userspace/base/address.h"
#include "userspace/config/check.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;

constexpr uint64_t kMaxMaglevTable = 5'000'011;  // istiod's and Envoy's limit

bool is_prime(uint64_t n) {
  if (n < 2) return false;
  for (uint64_t d = 2; d * d <= n; ++d) {
    if (n % d == 0) return false;
  }
  return true;
}

void check_not_negative(Check& check, const std::string& field, int64_t value) {
  if (value < 0)
    check.error(field, fmt::format("{} must not be negative", value), "Give 0 or more");
}

void check_percent(Check& check, const std::string& field, int64_t value) {
  if (value >= 0 && value <= 100) return;
  check.error(field, fmt::format("percentage {} is not in range 0..100", value), "Give 0 to 100");
}

void check_tcp_pool(Check& check, const std::string& field,
                    const net::ConnectionPoolSettings::TCPSettings& tcp) {
  check_not_negative(check, field + ".maxConnections", tcp.max_connections());
  if (tcp.has_connect_timeout()) check.duration(field + ".connectTimeout", tcp.connect_timeout());
  if (tcp.has_max_connection_duration()) {
    check.duration(field + ".maxConnectionDuration", tcp.max_connection_duration());
    check.untuned(field + ".maxConnectionDuration", "maxConnectionDuration");
  }
  if (tcp.has_idle_timeout() && (tcp.idle_timeout().seconds() || tcp.idle_timeout().nanos())) {
    check.duration(field + ".idleTimeout", tcp.idle_timeout());
    check.untuned(field + ".idleTimeout", "idleTimeout");
  }
  if (tcp.has_tcp_keepalive()) check.untuned(field + ".tcpKeepalive", "tcpKeepalive");
}

void check_http_pool(Check& check, const std::string& field,
                     const net::ConnectionPoolSettings::HTTPSettings& http) {
  check_not_negative(check, field + ".http1MaxPendingRequests", http.http1_max_pending_requests());
  check_not_negative(check, field + ".http2MaxRequests", http.http2_max_requests());
  check_not_negative(check, field + ".maxRequestsPerConnection",
                     http.max_requests_per_connection());
  check_not_negative(check, field + ".maxRetries", http.max_retries());
  check_not_negative(check, field + ".maxConcurrentStreams", http.max_concurrent_streams());
  if (http.has_idle_timeout() && (http.idle_timeout().seconds() || http.idle_timeout().nanos())) {
    check.duration(field + ".idleTimeout", http.idle_timeout());
  }
  if (http.use_client_protocol() &&
      http.h2_upgrade_policy() == net::ConnectionPoolSettings::HTTPSettings::UPGRADE) {
    check.error(field, "use client protocol must not be true when H2UpgradePolicy is UPGRADE",
                "Remove one of the two");
  }
  if (http.has_http2_keep_alive()) {
    if (!http.http2_keep_alive().has_interval()) {
      check.error(field + ".http2KeepAlive.interval", "http2 keepalive interval is required",
                  "Add it");
    }
    if (!http.http2_keep_alive().has_timeout()) {
      check.error(field + ".http2KeepAlive.timeout", "http2 keepalive timeout is required",
                  "Add it");
    }
    check.untuned(field + ".http2KeepAlive", "http2KeepAlive");
  }
}

void check_pool(Check& check, const std::string& field, const net::ConnectionPoolSettings& pool) {
  if (!pool.has_tcp() && !pool.has_http()) {
    check.error(field, "connection pool must have at least one field",
                "Add tcp or http, or remove it");
  }
  if (pool.has_tcp()) check_tcp_pool(check, field + ".tcp", pool.tcp());
  if (pool.has_http()) check_http_pool(check, field + ".http", pool.http());
}

void check_outlier(Check& check, const std::string& field, const net::OutlierDetection& outlier) {
  if (outlier.has_consecutive_local_origin_failures() &&
      outlier.consecutive_local_origin_failures().value() > 0 &&
      !outlier.split_external_local_origin_errors()) {
    check.error(field,
                "outlier detection consecutive local origin failures is specified, but split "
                "external local origin errors is set to false",
                "Set splitExternalLocalOriginErrors: true");
  }
  if (outlier.consecutive_errors() != 0) {
    check.warn(field + ".consecutiveErrors", "outlier detection consecutive errors is deprecated",
               "Use consecutiveGatewayErrors or consecutive5xxErrors", kCodeDeprecated);
  }
  if (outlier.has_interval()) check.duration(field + ".interval", outlier.interval());
  if (outlier.has_base_ejection_time()) {
    check.duration(field + ".baseEjectionTime", outlier.base_ejection_time());
  }
  check_percent(check, field + ".maxEjectionPercent", outlier.max_ejection_percent());
  check_percent(check, field + ".minHealthPercent", outlier.min_health_percent());
  check.untuned(field, "outlierDetection");
}

void check_consistent_hash(Check& check, const std::string& field,
                           const net::LoadBalancerSettings::ConsistentHashLB& hash) {
  using Hash = net::LoadBalancerSettings::ConsistentHashLB;
  if (hash.hash_key_case() == Hash::kHttpCookie && hash.http_cookie().name().empty()) {
    check.error(field + ".httpCookie.name", "name required for HttpCookie", "Name the cookie");
  }
  bool algorithm = hash.hash_algorithm_case() != Hash::HASH_ALGORITHM_NOT_SET;
  if (hash.minimum_ring_size() != 0) {
    if (algorithm) {
      check.error(field, "only one of MinimumRingSize or Maglev/Ringhash can be specified",
                  "Remove minimumRingSize");
    }
    check.warn(field + ".minimumRingSize", "consistent hash minimumRingSize is deprecated",
               "Use ringHash.minimumRingSize", kCodeDeprecated);
  }
  if (hash.hash_algorithm_case() == Hash::kMaglev) {
    uint64_t size = hash.maglev().table_size();
    std::string inner = field + ".maglev.tableSize";
    if (size == 0) {
      check.error(inner, "tableSize must be set for maglev", "Use 65537");
    } else if (size >= kMaxMaglevTable) {
      check.error(inner, "tableSize must be less than 5000011 for maglev", "Use 65537");
    } else if (!is_prime(size)) {
      check.error(inner, "tableSize must be a prime number for maglev", "Use 65537");
    }
  }
  check.unsupported(field, "consistent hashing");
}

void check_locality(Check& check, const std::string& field,
                    const net::LocalityLoadBalancerSetting& locality) {
  if (!locality.distribute().empty() &&
      (!locality.failover().empty() || !locality.failover_priority().empty())) {
    check.error(field, "can not simultaneously specify 'distribute' and 'failover'", "Keep one");
  }
  for (int i = 0; i < locality.distribute_size(); ++i) {
    uint64_t total = 0;
    std::string inner = fmt::format("{}.distribute[{}].to", field, i);
    for (const auto& [to, weight] : locality.distribute(i).to()) {
      total += weight;
      if (weight >= 1 && weight <= 100) continue;
      check.error(fmt::format("{}[{}]", inner, to), "locality weight must be in range [1, 100]",
                  "Give 1 to 100");
    }
    if (total != 100) {
      check.error(inner, fmt::format("total locality weight {} != 100", total),
                  "Let them add up to 100");
    }
  }
  for (int i = 0; i < locality.failover_size(); ++i) {
    const auto& failover = locality.failover(i);
    std::string inner = fmt::format("{}.failover[{}]", field, i);
    if (failover.from() == failover.to()) {
      check.error(inner, "locality lb failover settings must specify different regions",
                  "Name two regions");
    }
    for (const std::string& region : {failover.from(), failover.to()}) {
      if (region.find('*') != std::string::npos) {
        check.error(inner, "locality lb failover region should not contain '*' wildcard",
                    "Name a region");
      } else if (region.find('/') != std::string::npos) {
        check.error(inner, "locality lb failover only specify region",
                    "Leave out zone and subzone");
      }
    }
  }
  check.untuned(field, "localityLbSetting");
}

void check_load_balancer(Check& check, const std::string& field,
                         const net::LoadBalancerSettings& balancer) {
  using Settings = net::LoadBalancerSettings;
  if (balancer.lb_policy_case() == Settings::kSimple &&
      balancer.simple() == Settings::PASSTHROUGH) {
    check.unsupported(field + ".simple", "PASSTHROUGH load balancing");
  }
  if (balancer.has_consistent_hash()) {
    check_consistent_hash(check, field + ".consistentHash", balancer.consistent_hash());
  }
  if (balancer.has_locality_lb_setting() && balancer.has_zone_aware_lb_setting()) {
    check.error(field, "only one of localityLbSetting and zoneAwareLbSetting can be set",
                "Keep one");
  }
  if (balancer.has_locality_lb_setting()) {
    check_locality(check, field + ".localityLbSetting", balancer.locality_lb_setting());
  }
  if (balancer.has_zone_aware_lb_setting()) {
    check.untuned(field + ".zoneAwareLbSetting", "zoneAwareLbSetting");
  }
  if (balancer.has_warmup()) {
    const auto& warmup = balancer.warmup();
    if (!warmup.has_duration())
      check.error(field + ".warmup.duration", "duration is required", "Add it");
    if (warmup.minimum_percent().value() > 100) {
      check.error(field + ".warmup.minimumPercent",
                  "minimumPercent value should be less than or equal to 100", "Give at most 100");
    }
    if (warmup.has_aggression() && warmup.aggression().value() <= 0) {
      check.error(field + ".warmup.aggression", "aggression should be greater than 0",
                  "Give more than 0");
    }
  }
  if (balancer.has_warmup() || balancer.has_warmup_duration_secs()) {
    check.untuned(field + (balancer.has_warmup() ? ".warmup" : ".warmupDurationSecs"), "warm-up");
  }
}

void check_only_mode(Check& check, const std::string& field, const net::ClientTLSSettings& tls) {
  std::vector<const google::protobuf::FieldDescriptor*> given;
  tls.GetReflection()->ListFields(tls, &given);
  for (const auto* one : given) {
    if (one->name() == "mode") continue;
    check.warn(fmt::format("{}.{}", field, one->json_name()),
               "has no effect: with ISTIO_MUTUAL the mesh knows names and certificates itself",
               "Remove it", kCodeIgnoredField);
  }
}

void check_client_tls(Check& check, const std::string& field, const net::ClientTLSSettings& tls) {
  using Tls = net::ClientTLSSettings;
  bool credential = !tls.credential_name().empty();
  if (tls.mode() == Tls::MUTUAL && !credential) {
    if (tls.client_certificate().empty()) {
      check.error(field + ".clientCertificate", "client certificate required for mutual tls",
                  "Add it");
    }
    if (tls.private_key().empty()) {
      check.error(field + ".privateKey", "private key required for mutual tls", "Add it");
    }
  }
  if (credential && (!tls.client_certificate().empty() || !tls.private_key().empty() ||
                     !tls.ca_certificates().empty() || !tls.ca_crl().empty())) {
    check.error(
        field,
        "cannot specify client certificates or CA certificate or CA CRL If credentialName is set",
        "Keep credentialName or the files");
  }
  if (tls.insecure_skip_verify().value() &&
      (!tls.ca_certificates().empty() || !tls.subject_alt_names().empty())) {
    check.error(field,
                "cannot specify CaCertificates or CredentialName or SubjectAltNames when "
                "InsecureSkipVerify is set true",
                "Remove insecureSkipVerify");
  }
  if (tls.mode() == Tls::SIMPLE || tls.mode() == Tls::MUTUAL) {
    check.unsupported(field + ".mode", "TLS origination");
  } else if (tls.mode() == Tls::ISTIO_MUTUAL) {
    check_only_mode(check, field, tls);  // the mode itself asks for what is done
  } else {
    check.warn(field,
               "has no effect: pods of the mesh are reached by its mutual TLS, others in clear",
               "Remove it, or exclude the destination from capture", kCodeIgnoredField);
  }
}

// What trafficPolicy and portLevelSettings have in common.
template <typename Policy>
void check_policy_parts(Check& check, const std::string& field, const Policy& policy) {
  if (policy.has_load_balancer()) {
    check_load_balancer(check, field + ".loadBalancer", policy.load_balancer());
  }
  if (policy.has_connection_pool()) {
    check_pool(check, field + ".connectionPool", policy.connection_pool());
  }
  if (policy.has_outlier_detection()) {
    check_outlier(check, field + ".outlierDetection", policy.outlier_detection());
  }
  if (policy.has_tls()) check_client_tls(check, field + ".tls", policy.tls());
}

bool has_policy_part(const auto& policy) {
  return policy.has_load_balancer() || policy.has_connection_pool() ||
         policy.has_outlier_detection() || policy.has_tls();
}

void check_traffic_policy(Check& check, const std::string& field,
                          const net::TrafficPolicy& policy) {
  if (!has_policy_part(policy) && policy.port_level_settings().empty() && !policy.has_tunnel() &&
      !policy.has_proxy_protocol() && !policy.has_retry_budget()) {
    check.error(field, "traffic policy must have at least one field", "Remove it, or fill it");
  }
  if (policy.has_tunnel() && policy.has_proxy_protocol()) {
    check.error(field, "tunnel and proxyProtocol must not be set together", "Keep one");
  }
  if (policy.has_tunnel()) {
    if (policy.tunnel().target_port() < 1 || policy.tunnel().target_port() > 65535) {
      check.error(field + ".tunnel.targetPort", "tunnel target port is invalid", "Give 1 to 65535");
    }
    check.unsupported(field + ".tunnel", "tunnelling to an external proxy");
  }
  if (policy.has_proxy_protocol())
    check.unsupported(field + ".proxyProtocol", "the PROXY protocol");
  if (policy.retry_budget().has_budget_interval()) {
    check.untuned(field + ".retryBudget.budgetInterval", "budgetInterval");
  }
  check_policy_parts(check, field, policy);
  std::set<uint32_t> ports;
  for (int i = 0; i < policy.port_level_settings_size(); ++i) {
    const auto& settings = policy.port_level_settings(i);
    std::string inner = fmt::format("{}.portLevelSettings[{}]", field, i);
    if (!settings.has_port() || settings.port().number() < 1 || settings.port().number() > 65535) {
      check.error(inner + ".port", "portTrafficPolicy must have valid port", "Add port.number");
    } else if (!ports.insert(settings.port().number()).second) {
      check.error(inner + ".port", fmt::format("port {} is listed twice", settings.port().number()),
                  "Merge the two");
    }
    if (!has_policy_part(settings)) {
      check.error(inner, "port traffic policy must have at least one field",
                  "Remove it, or fill it");
    }
    check_policy_parts(check, inner, settings);
  }
}

}  // namespace

void validate_destination_rule(Check& check) {
  const net::DestinationRule& spec = check.object().as<kube::DestinationRule>().spec();
  if (spec.host().empty()) {
    check.error("spec.host", "host is required", "Name the service");
  } else if (!is_wildcard_domain(spec.host()) && !IpAddress::parse(spec.host())) {
    check.error("spec.host", fmt::format("\"{}\" is not a host name", spec.host()),
                "Write a DNS name");
  }
  check.export_to(spec.export_to());
  if (spec.has_workload_selector()) {
    if (spec.export_to_size() > 1) {
      check.error(
          "spec.exportTo",
          "destination rule with workload selector cannot have multiple entries in exportTo",
          "Write exportTo: [\".\"]");
    } else if (spec.export_to_size() == 1 && spec.export_to(0) != ".") {
      check.error(
          "spec.exportTo",
          "destination rule with workload selector cannot have exportTo beyond current namespace",
          "Write exportTo: [\".\"]");
    }
    check.warn("spec.workloadSelector",
               "a rule for some clients only is not used by waypoints, so it has no effect",
               "Remove workloadSelector");
  }
  if (spec.has_traffic_policy()) {
    check_traffic_policy(check, "spec.trafficPolicy", spec.traffic_policy());
  }
  std::set<std::string> names;
  for (int i = 0; i < spec.subsets_size(); ++i) {
    const net::Subset& subset = spec.subsets(i);
    std::string field = fmt::format("spec.subsets[{}]", i);
    if (!is_dns_label(subset.name())) {
      check.error(field + ".name", fmt::format("subset name is invalid: {}", subset.name()),
                  "Use lower-case letters, digits and '-'");
    } else if (!names.insert(subset.name()).second) {
      check.error(field + ".name", fmt::format("duplicate subset names: {}", subset.name()),
                  "Rename one of the two");
    }
    check.labels(field + ".labels", subset.labels());
    if (subset.has_traffic_policy()) {
      check_traffic_policy(check, field + ".trafficPolicy", subset.traffic_policy());
    }
  }
}

}  // namespace meltemi::config
