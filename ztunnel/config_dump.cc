#include "ztunnel/config_dump.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "userspace/base/clock.h"

namespace meltemi::ztunnel {
namespace {

using Json = nlohmann::ordered_json;

std::string base64(std::string_view in) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < in.size(); i += 3) {
    const size_t n = std::min<size_t>(3, in.size() - i);
    uint32_t v = 0;
    for (size_t k = 0; k < 3; ++k) v = v << 8 | (k < n ? static_cast<uint8_t>(in[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= n ? kDigits[v >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

std::string text(const model::NetworkAddress& a) {
  return fmt::format("{}/{}", a.network.view(), a.ip.to_string());
}

Json gateway(const model::GatewayAddress& g) {
  return {{"destination", g.address ? text(*g.address) : g.hostname.str()},
          {"hboneMtlsPort", g.hbone_port}};
}

Json ports(std::span<const model::Port> list) {
  Json out = Json::object();
  for (const model::Port& p : list) out[fmt::to_string(p.service)] = p.target;
  return out;
}

Json locality(const model::Locality& l) {
  Json out = Json::object();
  if (!l.region.empty()) out["region"] = l.region.str();
  if (!l.zone.empty()) out["zone"] = l.zone.str();
  if (!l.subzone.empty()) out["subzone"] = l.subzone.str();
  return out;
}

Json dump(const model::Workload& w) {
  Json j;
  j["workloadIps"] = Json::array();
  for (const IpAddress& ip : w.addresses) j["workloadIps"].push_back(ip.to_string());
  if (w.waypoint) j["waypoint"] = gateway(*w.waypoint);
  if (w.network_gateway) j["networkGateway"] = gateway(*w.network_gateway);
  j["protocol"] = model::to_string(w.protocol);
  j["networkMode"] =
      w.network_mode == model::NetworkMode::kHostNetwork ? "HostNetwork" : "Standard";
  j["uid"] = w.uid.str();
  j["name"] = w.name.str();
  j["namespace"] = w.ns.str();
  j["trustDomain"] = w.trust_domain.str();
  j["serviceAccount"] = w.service_account.str();
  j["network"] = w.network.str();
  j["workloadName"] = w.workload_name.str();
  j["workloadType"] = model::to_string(w.type);
  j["canonicalName"] = w.canonical_name.str();
  j["canonicalRevision"] = w.canonical_revision.str();
  j["hostname"] = w.hostname.str();
  j["node"] = w.node.str();
  if (w.native_tunnel) j["nativeTunnel"] = true;
  j["authorizationPolicies"] = Json::array();
  for (const auto& p : w.authorization_policies) j["authorizationPolicies"].push_back(p.str());
  j["status"] = w.healthy ? "Healthy" : "Unhealthy";
  j["clusterId"] = w.cluster.str();
  j["locality"] = locality(w.locality);
  j["services"] = Json::array();
  for (const auto& m : w.services) j["services"].push_back(m.service.str());
  j["capacity"] = w.capacity;
  return j;
}

const char* mode_name(model::LbMode mode) {
  switch (mode) {
    case model::LbMode::kStandard: return "Standard";
    case model::LbMode::kStrict: return "Strict";
    case model::LbMode::kFailover: return "Failover";
    case model::LbMode::kPassthrough: return "Passthrough";
  }
  return "Standard";
}

Json load_balancer(const model::LoadBalancing& lb) {
  static constexpr const char* kScopes[] = {"Region", "Zone", "Subzone", "Node", "Cluster", "Network"};
  Json preferences = Json::array();
  for (const model::Scope s : lb.preference) preferences.push_back(kScopes[static_cast<size_t>(s)]);
  return {{"routingPreferences", preferences},
          {"mode", mode_name(lb.mode)},
          {"healthPolicy",
           lb.health == model::HealthPolicy::kAllowAll ? "AllowAll" : "OnlyHealthy"}};
}

Json dump(const model::ServiceEntry& e) {
  const model::Service& s = *e.service;
  Json j;
  j["name"] = s.name.str();
  j["namespace"] = s.ns.str();
  j["hostname"] = s.hostname.str();
  j["vips"] = Json::array();
  for (const auto& vip : s.vips) j["vips"].push_back(text(vip));
  if (!s.cidr_vips.empty()) {
    for (const auto& c : s.cidr_vips) {
      j["cidrVips"].push_back({{"network", c.network.str()}, {"cidr", c.cidr.to_string()}});
    }
  }
  j["ports"] = ports(s.ports);
  j["endpoints"] = Json::object();
  e.endpoints.for_each([&](const model::Symbol& uid, const model::Endpoint& endpoint) {
    j["endpoints"][uid.str()] = {{"workloadUid", uid.str()},
                                 {"port", ports(endpoint.ports())},
                                 {"status", endpoint.workload->healthy ? "Healthy" : "Unhealthy"}};
  });
  j["subjectAltNames"] = Json::array();
  for (const auto& san : s.subject_alt_names) j["subjectAltNames"].push_back(std::string(san.uri()));
  if (s.waypoint) j["waypoint"] = gateway(*s.waypoint);
  for (const auto& w : s.weighted_waypoints) {
    j["weightedWaypoints"].push_back({{"destination", gateway(w.destination)}, {"weight", w.weight}});
  }
  if (s.load_balancing != model::LoadBalancing()) j["loadBalancer"] = load_balancer(s.load_balancing);
  if (s.canonical) j["canonical"] = true;
  return j;
}

void add_strings(Json& j, const char* name, const std::vector<model::StringMatch>& list) {
  static constexpr const char* kKinds[] = {"Exact", "Prefix", "Suffix", "Presence"};
  for (const auto& m : list) {
    const bool presence = m.kind == model::StringMatch::Kind::kPresence;
    j[name].push_back(
        {{kKinds[static_cast<size_t>(m.kind)], presence ? Json::array() : Json(m.value)}});
  }
}
void add_accounts(Json& j, const char* name, const std::vector<model::ServiceAccountMatch>& list) {
  for (const auto& m : list) {
    j[name].push_back({{"namespace", m.ns}, {"serviceAccount", m.service_account}});
  }
}
void add_cidrs(Json& j, const char* name, const std::vector<Cidr>& list) {
  for (const auto& c : list) j[name].push_back(c.to_string());
}

Json dump(const model::PolicyMatch& m) {
  Json j = Json::object();
  add_strings(j, "namespaces", m.namespaces);
  add_strings(j, "notNamespaces", m.not_namespaces);
  add_strings(j, "principals", m.principals);
  add_strings(j, "notPrincipals", m.not_principals);
  add_accounts(j, "serviceAccounts", m.service_accounts);
  add_accounts(j, "notServiceAccounts", m.not_service_accounts);
  add_cidrs(j, "sourceIps", m.source_ips);
  add_cidrs(j, "notSourceIps", m.not_source_ips);
  add_cidrs(j, "destinationIps", m.destination_ips);
  add_cidrs(j, "notDestinationIps", m.not_destination_ips);
  if (!m.destination_ports.empty()) j["destinationPorts"] = m.destination_ports;
  if (!m.not_destination_ports.empty()) j["notDestinationPorts"] = m.not_destination_ports;
  return j;
}

Json dump(const model::Policy& p) {
  static constexpr const char* kScopes[] = {"Global", "Namespace", "WorkloadSelector"};
  Json rules = Json::array();
  for (const auto& rule : p.rules) {
    Json clauses = Json::array();
    for (const auto& clause : rule.clauses) {
      Json matches = Json::array();
      for (const auto& m : clause.matches) matches.push_back(dump(m));
      clauses.push_back(std::move(matches));
    }
    rules.push_back(std::move(clauses));
  }
  Json j{{"name", p.name.str()},
         {"namespace", p.ns.str()},
         {"scope", kScopes[static_cast<size_t>(p.scope)]},
         {"action", p.action == model::PolicyAction::kDeny ? "Deny" : "Allow"}};
  if (p.dry_run) j["dryRun"] = true;
  j["rules"] = std::move(rules);
  return j;
}

Json one_certificate(const pki::Certificate& c) {
  return {{"pem", base64(c.to_pem())},
          {"serialNumber", c.serial()},
          {"validFrom", format_rfc3339(c.not_before())},
          {"expirationTime", format_rfc3339(c.not_after())}};
}

Json dump(const pki::CertificateEntry& e) {
  Json j{{"identity", std::string(e.identity.uri())}};
  switch (e.state) {
    case pki::CertificateState::kAvailable: j["state"] = "Available"; break;
    case pki::CertificateState::kInitializing: j["state"] = "Initializing"; break;
    case pki::CertificateState::kUnavailable: j["state"] = "Unavailable: " + e.last_error; break;
  }
  j["certChain"] = Json::array();
  j["rootCerts"] = Json::array();
  if (!e.certificate) return j;
  for (const auto& c : e.certificate->chain) j["certChain"].push_back(one_certificate(c));
  for (const auto& c : e.certificate->roots) j["rootCerts"].push_back(one_certificate(c));
  return j;
}

// How much of the rest is the control plane's present opinion.
Json control_plane(const xds::ClientStatus& status) {
  const WallTime now = std::chrono::system_clock::now();
  const auto seconds = std::chrono::floor<std::chrono::seconds>(xds::staleness(status, now));
  return {{"connected", status.state == xds::StreamState::kConnected},
          {"lastWord", format_rfc3339(status.state == xds::StreamState::kConnected
                                          ? now
                                          : status.last_word)},
          {"staleSeconds", seconds.count()},
          {"servingSavedState", status.serving_saved},
          {"savedStateRefused", status.saved_refusal},
          {"lastError", status.last_error}};
}

Json workload_state(const ConfigDumpInput& in) {
  Json out = Json::object();
  for (const auto& pod : in.pods) {
    out[pod.uid] = {{"state", "Up"},
                    {"connections", {{"inbound", Json::array()}, {"outbound", Json::array()}}},
                    {"info",
                     {{"name", pod.name},
                      {"namespace", pod.ns},
                      {"serviceAccount", pod.service_account}}}};
  }
  for (const FlowRow& f : in.flows) {
    const auto it = out.find(f.pod_uid);
    if (it == out.end()) continue;
    (*it)["connections"][f.inbound ? "inbound" : "outbound"].push_back(
        {{"src", f.src.to_string()},
         {"originalDst", f.original_dst.to_string()},
         {"actualDst", f.actual_dst.to_string()},
         {"protocol", f.protocol}});
  }
  return out;
}

}  // namespace

std::string config_dump(const ConfigDumpInput& in) {
  Json j;
  j["workloads"] = Json::array();
  in.mesh->each_workload([&](const model::Workload& w) { j["workloads"].push_back(dump(w)); });
  j["services"] = Json::array();
  in.mesh->each_service([&](const model::ServiceEntry& e) { j["services"].push_back(dump(e)); });
  j["policies"] = Json::array();
  in.mesh->each_policy([&](const model::Policy& p) { j["policies"].push_back(dump(p)); });
  j["stagedServices"] = Json::object();
  j["staticConfig"] = {{"workloads", Json::array()},
                       {"policies", Json::array()},
                       {"services", Json::array()}};
  j["version"] = {{"version", MELTEMI_VERSION}, {"buildStatus", "meltemi"}};
  j["config"] = Json::parse(in.config_json, nullptr, false);
  j["certificates"] = Json::array();
  for (const auto& e : in.certificates) j["certificates"].push_back(dump(e));
  j["workloadState"] = workload_state(in);
  if (in.control_plane) j["controlPlane"] = control_plane(*in.control_plane);
  return j.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace meltemi::ztunnel
