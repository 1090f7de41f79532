// VirtualService: hosts, gateways, TCP and TLS routes in istiod's words, and rules that can never
// be reached as warnings. validate_http_route.cc has the HTTP routes.
#include <fmt/format.h>

#include <algorithm>

#include "userspace/base/address.h"
#include "userspace/config/check.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;

bool is_ip(std::string_view text) {
  return IpAddress::parse(text).has_value();
}

bool is_catch_all(const net::HTTPMatchRequest& match) {
  bool any_path = !match.has_uri() || (match.uri().match_type_case() == net::StringMatch::kPrefix &&
                                       match.uri().prefix() == "/");
  return any_path && !match.has_scheme() && !match.has_method() && !match.has_authority() &&
         match.headers().empty() && match.without_headers().empty() &&
         match.query_params().empty() && match.port() == 0 && match.source_labels().empty() &&
         match.source_namespace().empty() && match.gateways().empty();
}

// Rules after one that takes everything, and matches that an earlier rule has word for word.
void check_reachability(Check& check, const net::VirtualService& spec) {
  std::string taken_by;
  std::vector<std::pair<const net::HTTPMatchRequest*, std::string>> seen;
  for (int i = 0; i < spec.http_size(); ++i) {
    const net::HTTPRoute& route = spec.http(i);
    std::string label = route.name().empty() ? fmt::format("#{}", i) : route.name();
    std::string field = fmt::format("spec.http[{}]", i);
    if (!taken_by.empty()) {
      check.warn(
          field,
          fmt::format("virtualService rule {} not used (route without matches in previous rule {})",
                      label, taken_by),
          "Move it above, or remove it", kCodeUnreachableRule);
      continue;
    }
    bool all = route.match().empty();
    for (int k = 0; k < route.match_size(); ++k) {
      all = all || is_catch_all(route.match(k));
      std::string bytes = encode_message(route.match(k)).items.empty()
                              ? std::string()
                              : to_json(encode_message(route.match(k)), true);
      for (const auto& [earlier, rule] : seen) {
        if (to_json(encode_message(*earlier), true) != bytes || bytes.empty()) continue;
        check.warn(
            fmt::format("{}.match[{}]", field, k),
            fmt::format("virtualService rule {} match #{} is not used (duplicate match in rule {})",
                        label, k, rule),
            "Remove the duplicate", "IST0131");
        break;
      }
    }
    for (const auto& match : route.match()) seen.emplace_back(&match, label);
    if (all) taken_by = label;
  }
}

void check_hosts(Check& check, const net::VirtualService& spec) {
  bool mesh = spec.gateways().empty() || std::find(spec.gateways().begin(), spec.gateways().end(),
                                                   "mesh") != spec.gateways().end();
  for (int i = 0; i < spec.hosts_size(); ++i) {
    const std::string& host = spec.hosts(i);
    std::string field = fmt::format("spec.hosts[{}]", i);
    if (!is_wildcard_domain(host) && !is_ip(host)) {
      check.error(field, fmt::format("\"{}\" is not a host name", host),
                  "Write a DNS name, a short service name, an IP or a wildcard like *.example.com");
    }
    if (host == "*" && mesh) {
      check.error(field,
                  "wildcard host * is not allowed for virtual services bound to the mesh gateway",
                  "Name the services");
    }
    for (int k = 0; k < i; ++k) {
      if (host != spec.hosts(k) && !host_matches(host, spec.hosts(k)) &&
          !host_matches(spec.hosts(k), host)) {
        continue;
      }
      check.error(field,
                  fmt::format("duplicate hosts in virtual service: {} & {}", spec.hosts(k), host),
                  "Remove one of the two");
    }
  }
}

void check_gateways(Check& check, const net::VirtualService& spec) {
  for (int i = 0; i < spec.gateways_size(); ++i) {
    const std::string& gateway = spec.gateways(i);
    std::string field = fmt::format("spec.gateways[{}]", i);
    if (gateway == "mesh") continue;
    size_t slash = gateway.find('/');
    std::string_view ns =
        slash == std::string::npos ? "default" : std::string_view(gateway).substr(0, slash);
    std::string_view name =
        slash == std::string::npos ? gateway : std::string_view(gateway).substr(slash + 1);
    if (ns.empty() || name.empty()) {
      check.error(field, "config namespace and gateway name cannot be empty", "Write ns/name");
    } else if (!is_dns_label(ns) || !is_dns_subdomain(name)) {
      check.error(field, fmt::format("\"{}\" is not a gateway's name", gateway), "Write ns/name");
    } else {
      check.untuned(field, "binding to an ingress gateway");
    }
  }
}

void check_tcp(Check& check, const net::VirtualService& spec) {
  for (int i = 0; i < spec.tcp_size(); ++i) {
    const net::TCPRoute& route = spec.tcp(i);
    std::string field = fmt::format("spec.tcp[{}]", i);
    if (route.route().empty()) check.error(field, "TCP route is required", "Add `route`");
    for (int k = 0; k < route.match_size(); ++k) {
      const auto& match = route.match(k);
      std::string inner = fmt::format("{}.match[{}]", field, k);
      if (match.port() != 0) check.port(inner + ".port", match.port());
      for (int n = 0; n < match.destination_subnets_size(); ++n) {
        if (Cidr::parse(match.destination_subnets(n))) continue;
        check.error(fmt::format("{}.destinationSubnets[{}]", inner, n),
                    fmt::format("\"{}\" is not an address or prefix", match.destination_subnets(n)),
                    "Write it like 10.0.0.0/8");
      }
      if (!match.destination_subnets().empty()) {
        check.unsupported(inner + ".destinationSubnets", "matching on destination subnets");
      }
      if (!match.source_labels().empty() || !match.source_namespace().empty() ||
          !match.source_subnet().empty()) {
        check.warn(inner, "a waypoint cannot match TCP on the caller, so this match is dropped",
                   "Use an AuthorizationPolicy");
      }
    }
    for (int k = 0; k < route.route_size(); ++k) {
      validate_destination(check, fmt::format("{}.route[{}].destination", field, k),
                           route.route(k).has_destination(), route.route(k).destination());
    }
    std::vector<int32_t> weights;
    for (const auto& destination : route.route()) weights.push_back(destination.weight());
    validate_weights(check, field + ".route", weights);
  }
}

void check_tls(Check& check, const net::VirtualService& spec) {
  for (int i = 0; i < spec.tls_size(); ++i) {
    const net::TLSRoute& route = spec.tls(i);
    std::string field = fmt::format("spec.tls[{}]", i);
    if (route.match().empty()) {
      check.error(field, "TLS route must have at least one match condition",
                  "Add `match` with sniHosts");
    }
    if (route.route().empty()) check.error(field, "TLS route is required", "Add `route`");
    for (int k = 0; k < route.match_size(); ++k) {
      std::string inner = fmt::format("{}.match[{}].sniHosts", field, k);
      if (route.match(k).sni_hosts().empty()) {
        check.error(inner, "TLS match must have at least one SNI host", "Add one");
      }
      for (const std::string& sni : route.match(k).sni_hosts()) {
        bool covered =
            std::any_of(spec.hosts().begin(), spec.hosts().end(), [&](const std::string& host) {
              return host_matches(host, sni) || host_matches(sni, host);
            });
        if (covered) continue;
        check.error(
            inner,
            fmt::format("SNI host \"{}\" is not a compatible subset of any of the virtual service "
                        "hosts: [{}]",
                        sni, fmt::join(spec.hosts(), ", ")),
            "Use a host of spec.hosts");
      }
    }
  }
  if (!spec.tls().empty()) check.unsupported("spec.tls", "routing TLS by SNI");
}

}  // namespace

void validate_virtual_service(Check& check) {
  const net::VirtualService& spec = check.object().as<kube::VirtualService>().spec();
  if (spec.hosts().empty()) {
    // A VirtualService without hosts is one that others delegate to.
    if (!spec.gateways().empty()) {
      check.error("spec.gateways", "delegate virtual service must have no gateways specified",
                  "Add spec.hosts, or remove them");
    }
    if (!spec.tls().empty())
      check.error("spec.tls", "delegate virtual service must have no tls route specified",
                  "Remove it");
    if (!spec.tcp().empty())
      check.error("spec.tcp", "delegate virtual service must have no tcp route specified",
                  "Remove it");
    check.error("spec.hosts",
                "virtual service must have at least one host (delegates are not supported yet)",
                "Add the service's name to spec.hosts");
  }
  check_hosts(check, spec);
  check_gateways(check, spec);
  check.export_to(spec.export_to());
  if (spec.http().empty() && spec.tcp().empty() && spec.tls().empty()) {
    check.error("spec", "http, tcp or tls must be provided in virtual service",
                "Add `http` with a route");
  }
  for (int i = 0; i < spec.http_size(); ++i) {
    validate_http_route(check, fmt::format("spec.http[{}]", i), spec.http(i));
  }
  check_reachability(check, spec);
  check_tcp(check, spec);
  check_tls(check, spec);
}

}  // namespace meltemi::config
