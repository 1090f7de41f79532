#include "ztunnel/local_config.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <fstream>
#include <functional>
#include <map>
#include <sstream>

namespace meltemi::ztunnel {
namespace {

using model::Symbol;

// Carries an error out of the nested readers; never leaves this file.
struct Invalid {
  std::string what;
};

[[noreturn]] void refuse(const YAML::Node& node, const std::string& what) {
  const YAML::Mark mark = node.Mark();
  throw Invalid{mark.line >= 0 ? fmt::format("line {}: {}", mark.line + 1, what) : what};
}

// Reads one mapping: every field is asked for by name, and what nobody asked for is an error.
class Fields {
 public:
  Fields(const YAML::Node& node, std::string object) : node_(node), object_(std::move(object)) {
    if (!node.IsMap()) refuse(node, fmt::format("{} is not a mapping", object_));
    for (const auto& entry : node) left_.emplace(entry.first.as<std::string>(), entry.second);
  }
  // An absent or null field reads as an undefined node.
  YAML::Node take(const std::string& name) {
    const auto it = left_.find(name);
    if (it == left_.end()) return YAML::Node(YAML::NodeType::Undefined);
    YAML::Node value = it->second;
    left_.erase(it);
    return value.IsNull() ? YAML::Node(YAML::NodeType::Undefined) : value;
  }
  template <typename T>
  T get(const std::string& name, T fallback) {
    const YAML::Node n = take(name);
    return n.IsDefined() ? scalar<T>(n, name) : fallback;
  }
  std::string text(const std::string& name) { return get<std::string>(name, {}); }
  Symbol symbol(const std::string& name) { return Symbol(text(name)); }
  std::string required(const std::string& name) {
    std::string v = text(name);
    if (v.empty()) refuse(node_, fmt::format("{}: field {} is required", object_, name));
    return v;
  }
  template <typename T>
  T scalar(const YAML::Node& n, const std::string& name) {
    T value;
    if (!n.IsScalar() || !YAML::convert<T>::decode(n, value)) {
      refuse(n, fmt::format("{}: field {} has a bad value", object_, name));
    }
    return value;
  }
  uint16_t port(const YAML::Node& n, const std::string& name) {
    const int v = scalar<int>(n, name);
    if (v < 0 || v > 65535) refuse(n, fmt::format("{}: field {}: no port {}", object_, name, v));
    return static_cast<uint16_t>(v);
  }
  template <typename E>
  E choice(const std::string& name, E fallback, std::initializer_list<std::pair<const char*, E>> of) {
    const YAML::Node n = take(name);
    if (!n.IsDefined()) return fallback;
    const auto text = scalar<std::string>(n, name);
    for (const auto& [word, value] : of) {
      if (text == word) return value;
    }
    refuse(n, fmt::format("{}: field {}: unknown value \"{}\"", object_, name, text));
  }
  void each(const std::string& name, const std::function<void(const YAML::Node&)>& fn) {
    const YAML::Node n = take(name);
    if (!n.IsDefined()) return;
    if (!n.IsSequence()) refuse(n, fmt::format("{}: field {} is not a list", object_, name));
    for (const auto& item : n) fn(item);
  }
  void each_pair(const std::string& name,
                 const std::function<void(const std::string&, const YAML::Node&)>& fn) {
    const YAML::Node n = take(name);
    if (!n.IsDefined()) return;
    if (!n.IsMap()) refuse(n, fmt::format("{}: field {} is not a mapping", object_, name));
    for (const auto& entry : n) fn(entry.first.as<std::string>(), entry.second);
  }
  void done() const {
    if (left_.empty()) return;
    refuse(left_.begin()->second,
           fmt::format("{}: unknown field \"{}\"", object_, left_.begin()->first));
  }
  const std::string& object() const { return object_; }
  const YAML::Node& node() const { return node_; }

 private:
  YAML::Node node_;
  std::string object_;
  std::map<std::string, YAML::Node> left_;
};

IpAddress read_ip(const YAML::Node& n, const std::string& object) {
  const auto ip = IpAddress::parse(n.as<std::string>());
  if (!ip) refuse(n, fmt::format("{}: \"{}\" is no IP address", object, n.as<std::string>()));
  return *ip;
}

// "network/ip": everything before the first slash is the network.
std::optional<model::NetworkAddress> parse_network_address(const std::string& text) {
  const size_t slash = text.find('/');
  const auto ip = slash == std::string::npos ? std::nullopt : IpAddress::parse(text.substr(slash + 1));
  if (!ip) return std::nullopt;
  return model::NetworkAddress{Symbol(text.substr(0, slash)), *ip};
}

std::optional<model::GatewayAddress> read_gateway(const YAML::Node& n, const std::string& object) {
  if (!n.IsDefined()) return std::nullopt;
  Fields f(n, object + " gateway");
  model::GatewayAddress g;
  const std::string destination = f.required("destination");
  if (const auto address = parse_network_address(destination)) {
    g.address = address;
  } else {
    g.hostname = Symbol(destination);
  }
  if (const YAML::Node port = f.take("hboneMtlsPort"); port.IsDefined()) {
    g.hbone_port = f.port(port, "hboneMtlsPort");
  }
  f.done();
  return g;
}

std::vector<model::Port> read_ports(Fields& f, const YAML::Node& n, const std::string& name) {
  if (!n.IsMap()) refuse(n, fmt::format("{}: field {} is not a mapping", f.object(), name));
  std::vector<model::Port> ports;
  for (const auto& entry : n) {
    ports.push_back({f.port(entry.first, name), f.port(entry.second, name)});
  }
  return ports;
}

void read_locality(Fields& f, model::Workload& w) {
  const YAML::Node n = f.take("locality");
  if (!n.IsDefined()) return;
  Fields l(n, f.object() + " locality");
  w.locality = {l.symbol("region"), l.symbol("zone"), l.symbol("subzone")};
  l.done();
}

void read_application_tunnel(Fields& f, model::Workload& w) {
  const YAML::Node n = f.take("applicationTunnel");
  if (!n.IsDefined()) return;
  Fields t(n, f.object() + " applicationTunnel");
  model::ApplicationTunnel tunnel;
  tunnel.protocol = t.choice("protocol", model::AppTunnelProtocol::kNone,
                             {{"NONE", model::AppTunnelProtocol::kNone},
                              {"PROXY", model::AppTunnelProtocol::kProxy}});
  if (const YAML::Node port = t.take("port"); port.IsDefined()) tunnel.port = t.port(port, "port");
  t.done();
  w.application_tunnel = tunnel;
}

std::shared_ptr<model::Workload> read_workload(const YAML::Node& node) {
  Fields f(node, "workload");
  auto w = std::make_shared<model::Workload>();
  w->uid = Symbol(f.required("uid"));
  w->name = f.symbol("name");
  w->ns = Symbol(f.required("namespace"));
  f.each("workloadIps",
         [&](const YAML::Node& n) { w->addresses.push_back(read_ip(n, f.object())); });
  w->protocol = f.choice("protocol", model::TunnelProtocol::kTcp,
                         {{"TCP", model::TunnelProtocol::kTcp}, {"HBONE", model::TunnelProtocol::kHbone}});
  w->network_mode = f.choice("networkMode", model::NetworkMode::kStandard,
                             {{"Standard", model::NetworkMode::kStandard},
                              {"HostNetwork", model::NetworkMode::kHostNetwork}});
  w->trust_domain = Symbol(f.get<std::string>("trustDomain", "cluster.local"));
  w->service_account = Symbol(f.get<std::string>("serviceAccount", "default"));
  w->network = f.symbol("network");
  w->workload_name = f.symbol("workloadName");
  w->type = f.choice("workloadType", model::WorkloadType::kDeployment,
                     {{"deployment", model::WorkloadType::kDeployment},
                      {"cronjob", model::WorkloadType::kCronJob},
                      {"pod", model::WorkloadType::kPod},
                      {"job", model::WorkloadType::kJob}});
  w->canonical_name = f.symbol("canonicalName");
  w->canonical_revision = f.symbol("canonicalRevision");
  w->hostname = f.symbol("hostname");
  w->node = f.symbol("node");
  w->native_tunnel = f.get("nativeTunnel", false);
  read_application_tunnel(f, *w);
  f.each("authorizationPolicies", [&](const YAML::Node& n) {
    w->authorization_policies.push_back(Symbol(n.as<std::string>()));
  });
  w->healthy = f.choice("status", true, {{"Healthy", true}, {"Unhealthy", false}});
  w->cluster = Symbol(f.get<std::string>("clusterId", "Kubernetes"));
  read_locality(f, *w);
  w->waypoint = read_gateway(f.take("waypoint"), f.object());
  w->network_gateway = read_gateway(f.take("networkGateway"), f.object());
  w->capacity = f.get<uint32_t>("capacity", 1);
  f.each_pair("services", [&](const std::string& service, const YAML::Node& ports) {
    if (service.find('/') == std::string::npos) {
      refuse(ports, fmt::format("workload: service \"{}\" is not namespace/hostname", service));
    }
    w->services.push_back({Symbol(service), read_ports(f, ports, "services")});
  });
  f.done();
  return w;
}

void read_load_balancer(Fields& f, model::Service& s) {
  using model::Scope;
  const YAML::Node n = f.take("loadBalancer");
  if (!n.IsDefined()) return;
  Fields lb(n, f.object() + " loadBalancer");
  lb.each("routingPreferences", [&](const YAML::Node& item) {
    Fields one(YAML::Load(fmt::format("{{scope: {}}}", item.as<std::string>())), lb.object());
    s.load_balancing.preference.push_back(
        one.choice("scope", Scope::kRegion,
                   {{"Region", Scope::kRegion}, {"Zone", Scope::kZone}, {"Subzone", Scope::kSubzone},
                    {"Node", Scope::kNode}, {"Cluster", Scope::kCluster},
                    {"Network", Scope::kNetwork}}));
  });
  s.load_balancing.mode =
      lb.choice("mode", model::LbMode::kStandard,
                {{"Standard", model::LbMode::kStandard}, {"Strict", model::LbMode::kStrict},
                 {"Failover", model::LbMode::kFailover},
                 {"Passthrough", model::LbMode::kPassthrough}});
  s.load_balancing.health = lb.choice("healthPolicy", model::HealthPolicy::kOnlyHealthy,
                                      {{"OnlyHealthy", model::HealthPolicy::kOnlyHealthy},
                                       {"AllowAll", model::HealthPolicy::kAllowAll}});
  lb.done();
}

// An endpoint that only its service names: workload uid and ports.
struct NamedEndpoint {
  Symbol service;
  std::string workload;
  std::vector<model::Port> ports;
  YAML::Node node;
};

void read_endpoints(Fields& f, const model::Service& s, std::vector<NamedEndpoint>& out) {
  f.each_pair("endpoints", [&](const std::string& uid, const YAML::Node& node) {
    Fields e(node, f.object() + " endpoint");
    NamedEndpoint endpoint{s.key, e.get<std::string>("workloadUid", uid), {}, node};
    if (const YAML::Node ports = e.take("port"); ports.IsDefined()) {
      endpoint.ports = read_ports(e, ports, "port");
    }
    e.take("status");  // the workload's own status counts
    e.done();
    out.push_back(std::move(endpoint));
  });
}

std::shared_ptr<model::Service> read_service(const YAML::Node& node,
                                             std::vector<NamedEndpoint>& endpoints) {
  Fields f(node, "service");
  auto s = std::make_shared<model::Service>();
  s->name = Symbol(f.required("name"));
  s->ns = Symbol(f.required("namespace"));
  s->hostname = Symbol(f.required("hostname"));
  s->seal();
  f.each("vips", [&](const YAML::Node& n) {
    const auto vip = parse_network_address(n.as<std::string>());
    if (!vip) refuse(n, fmt::format("service: vip \"{}\" is not network/ip", n.as<std::string>()));
    s->vips.push_back(*vip);
  });
  f.each("cidrVips", [&](const YAML::Node& n) {
    Fields c(n, "service cidrVip");
    const Symbol network = c.symbol("network");
    const auto cidr = Cidr::parse(c.required("cidr"));
    if (!cidr) refuse(n, "service: cidrVip has a bad cidr");
    c.done();
    s->cidr_vips.push_back({network, *cidr});
  });
  if (const YAML::Node ports = f.take("ports"); ports.IsDefined()) {
    s->ports = read_ports(f, ports, "ports");
  }
  read_endpoints(f, *s, endpoints);
  f.each("subjectAltNames", [&](const YAML::Node& n) {
    if (auto id = model::Identity::parse(n.as<std::string>())) s->subject_alt_names.push_back(*id);
  });
  s->waypoint = read_gateway(f.take("waypoint"), f.object());
  f.each("weightedWaypoints", [&](const YAML::Node& n) {
    Fields w(n, "service weightedWaypoint");
    const uint32_t weight = w.get<uint32_t>("weight", 0);
    s->weighted_waypoints.push_back({*read_gateway(w.take("destination"), f.object()), weight});
    w.done();
  });
  read_load_balancer(f, *s);
  s->ip_families = f.choice("ipFamilies", model::IpFamilies::kAutomatic,
                            {{"Dual", model::IpFamilies::kDual},
                             {"IPv4", model::IpFamilies::kV4Only},
                             {"IPv6", model::IpFamilies::kV6Only}});
  s->canonical = f.get("canonical", false);
  s->visibility = f.choice("visibility", model::Visibility::kPublic,
                           {{"Public", model::Visibility::kPublic},
                            {"Namespace", model::Visibility::kNamespace}});
  f.done();
  return s;
}

model::StringMatch read_string_match(const YAML::Node& n) {
  using Kind = model::StringMatch::Kind;
  if (!n.IsMap() || n.size() != 1) refuse(n, "policy: a string match has exactly one kind");
  const auto kind = n.begin()->first.as<std::string>();
  const YAML::Node value = n.begin()->second;
  if (kind == "Presence") return {Kind::kPresence, {}};
  for (const auto& [word, k] : {std::pair("Exact", Kind::kExact), std::pair("Prefix", Kind::kPrefix),
                                std::pair("Suffix", Kind::kSuffix)}) {
    if (kind == word) return {k, value.as<std::string>()};
  }
  refuse(n, fmt::format("policy: unknown string match \"{}\"", kind));
}

void read_strings(Fields& f, const std::string& name, std::vector<model::StringMatch>& out) {
  f.each(name, [&](const YAML::Node& n) { out.push_back(read_string_match(n)); });
}
void read_accounts(Fields& f, const std::string& name,
                   std::vector<model::ServiceAccountMatch>& out) {
  f.each(name, [&](const YAML::Node& n) {
    Fields a(n, f.object() + " " + name);
    model::ServiceAccountMatch account;
    account.ns = a.required("namespace");
    account.service_account = a.required("serviceAccount");
    out.push_back(std::move(account));
    a.done();
  });
}
void read_cidrs(Fields& f, const std::string& name, std::vector<Cidr>& out) {
  f.each(name, [&](const YAML::Node& n) {
    const auto cidr = Cidr::parse(n.as<std::string>());
    if (!cidr) refuse(n, fmt::format("policy: {}: \"{}\" is no CIDR", name, n.as<std::string>()));
    out.push_back(*cidr);
  });
}
void read_match_ports(Fields& f, const std::string& name, std::vector<uint16_t>& out) {
  f.each(name, [&](const YAML::Node& n) { out.push_back(f.port(n, name)); });
}

model::PolicyMatch read_match(const YAML::Node& node) {
  Fields f(node, "policy match");
  model::PolicyMatch m;
  read_strings(f, "namespaces", m.namespaces);
  read_strings(f, "notNamespaces", m.not_namespaces);
  read_strings(f, "principals", m.principals);
  read_strings(f, "notPrincipals", m.not_principals);
  read_accounts(f, "serviceAccounts", m.service_accounts);
  read_accounts(f, "notServiceAccounts", m.not_service_accounts);
  read_cidrs(f, "sourceIps", m.source_ips);
  read_cidrs(f, "notSourceIps", m.not_source_ips);
  read_cidrs(f, "destinationIps", m.destination_ips);
  read_cidrs(f, "notDestinationIps", m.not_destination_ips);
  read_match_ports(f, "destinationPorts", m.destination_ports);
  read_match_ports(f, "notDestinationPorts", m.not_destination_ports);
  f.done();
  return m;
}

void need_list(const YAML::Node& n, const char* what) {
  if (!n.IsSequence()) refuse(n, fmt::format("policy: {} is not a list", what));
}

std::shared_ptr<model::Policy> read_policy(const YAML::Node& node) {
  Fields f(node, "policy");
  auto p = std::make_shared<model::Policy>();
  p->name = Symbol(f.required("name"));
  p->ns = Symbol(f.required("namespace"));
  p->scope = f.choice("scope", model::PolicyScope::kWorkloadSelector,
                      {{"Global", model::PolicyScope::kGlobal},
                       {"Namespace", model::PolicyScope::kNamespace},
                       {"WorkloadSelector", model::PolicyScope::kWorkloadSelector}});
  p->action = f.choice("action", model::PolicyAction::kAllow,
                       {{"Allow", model::PolicyAction::kAllow}, {"Deny", model::PolicyAction::kDeny}});
  p->dry_run = f.get("dryRun", false);
  f.each("rules", [&](const YAML::Node& rule) {
    need_list(rule, "a rule");
    auto& clauses = p->rules.emplace_back().clauses;
    for (const auto& clause : rule) {
      need_list(clause, "a clause");
      auto& matches = clauses.emplace_back().matches;
      for (const auto& match : clause) matches.push_back(read_match(match));
    }
  });
  f.done();
  p->seal();
  return p;
}

void attach(const NamedEndpoint& e, std::vector<std::shared_ptr<model::Workload>>& workloads) {
  for (auto& w : workloads) {
    if (w->uid != std::string_view(e.workload)) continue;
    for (const auto& m : w->services) {
      if (m.service == e.service) return;
    }
    w->services.push_back({e.service, e.ports});
    return;
  }
  refuse(e.node, fmt::format("service {}: endpoint of unknown workload \"{}\"", e.service.view(),
                             e.workload));
}

model::Batch read_all(const YAML::Node& root) {
  model::Batch batch;
  if (!root.IsDefined() || root.IsNull()) return batch;
  Fields f(root, "configuration");
  std::vector<std::shared_ptr<model::Workload>> workloads;
  std::vector<NamedEndpoint> endpoints;
  f.each("workloads", [&](const YAML::Node& n) { workloads.push_back(read_workload(n)); });
  f.each("services",
         [&](const YAML::Node& n) { batch.services.push_back(read_service(n, endpoints)); });
  f.each("policies", [&](const YAML::Node& n) { batch.policies.push_back(read_policy(n)); });
  f.done();
  for (const NamedEndpoint& e : endpoints) attach(e, workloads);
  for (auto& w : workloads) {
    if (Status s = w->seal(); !s) throw Invalid{s.error().detail};
    batch.workloads.push_back(std::move(w));
  }
  return batch;
}

}  // namespace

Result<model::Batch> parse_local_config(std::string_view yaml, std::string_view origin) {
  std::string what;
  try {
    return read_all(YAML::Load(std::string(yaml)));
  } catch (const Invalid& e) {
    what = e.what;
  } catch (const YAML::Exception& e) {
    what = e.what();
  }
  return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("{}: {}", origin, what));
}

Result<model::Batch> read_local_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail_errno(errno, fmt::format("open {}", path));
  std::ostringstream text;
  text << file.rdbuf();
  if (text.str().size() > kMaxLocalConfig) {
    return fail(Reason::kLimitExceeded, Fault::kConfig, fmt::format("{} is above 64 MiB", path));
  }
  return parse_local_config(text.str(), path);
}

}  // namespace meltemi::ztunnel
