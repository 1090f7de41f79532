#include "userspace/config/analyze.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "userspace/config/destination_rules.h"
#include "userspace/config/mesh.h"
#include "userspace/config/names.h"
#include "userspace/config/policy_fields.h"

namespace meltemi::config {
namespace {

namespace net = ::istio::networking::v1alpha3;

constexpr std::string_view kCodeSharedHost = "IST0109";  // two VirtualServices, one host

using PodsByIp = std::map<IpAddress, std::vector<ObjectPtr>>;

class Analysis {
 public:
  Analysis(const ObjectStore& store, const MeshNames& names)
      : store_(store), names_(names), view_(&store, &nobody_, &names) {}

  Problems take() { return std::move(problems_); }

  void object(const Object& object) {
    subject_ = &object;
    switch (object.kind()) {
      case Kind::kVirtualService:
        virtual_service(object);
        return;
      case Kind::kDestinationRule:
        destination_rule(object);
        return;
      case Kind::kAuthorizationPolicy:
        authorization_policy(object);
        return;
      case Kind::kPeerAuthentication:
        selects_something(object, "spec.selector");
        return;
      case Kind::kService:
        service(object);
        return;
      case Kind::kNamespace:
        named_waypoint(object, object.name());
        return;
      case Kind::kPod:
        pod(object);
        return;
      case Kind::kGateway:
        gateway(object);
        return;
      default:
        return;
    }
  }

 private:
  void add(Severity severity, std::string_view code, std::string field, std::string message,
           std::string fix) {
    problems_.push_back(
        subject_->problem(severity, code, std::move(field), std::move(message), std::move(fix)));
  }

  // --- hosts ------------------------------------------------------------------------------------

  // The Service that a host names, null if there is none.
  ObjectPtr service_of(std::string_view host) {
    std::string suffix = fmt::format(".svc.{}", names_.cluster_domain);
    if (!host.ends_with(suffix)) return nullptr;
    host.remove_suffix(suffix.size());
    size_t dot = host.find('.');
    if (dot == std::string_view::npos) return nullptr;
    return store_.find(Kind::kService, host.substr(dot + 1), host.substr(0, dot));
  }

  std::string fix_for_host(const std::string& host, const std::string& ns) {
    // "catalog.shop" and "catalog.shop.svc" are understood by resolvers, but are other hosts here.
    std::string_view short_form = host;
    if (short_form.ends_with(".svc")) short_form.remove_suffix(4);
    size_t dot = short_form.find('.');
    if (dot != std::string_view::npos) {
      std::string full = service_host(short_form.substr(0, dot), short_form.substr(dot + 1),
                                      names_.cluster_domain);
      if (service_of(full)) return fmt::format("Write {}", full);
    }
    std::vector<std::string> hosts;
    for (const ObjectPtr& service : store_.list(Kind::kService)) {
      if (service->ns() == ns) hosts.push_back(service->name());
      hosts.push_back(service_host(service->name(), service->ns(), names_.cluster_domain));
    }
    std::string_view near = did_you_mean(host, {hosts.begin(), hosts.end()});
    if (!near.empty()) return fmt::format("Did you mean `{}`?", near);
    return fmt::format(
        "Create the Service, or name one that exists (`meltemi sandbox get svc -n {}`)", ns);
  }

  // --- VirtualService ---------------------------------------------------------------------------

  void virtual_service(const Object& vs) {
    const auto& spec = vs.as<kube::VirtualService>().spec();
    bool mesh = spec.gateways().empty() || std::find(spec.gateways().begin(), spec.gateways().end(),
                                                     "mesh") != spec.gateways().end();
    for (int i = 0; mesh && i < spec.hosts_size(); ++i)
      virtual_host(vs, spec.hosts(i), fmt::format("spec.hosts[{}]", i));
    gateways(vs);
    for (int i = 0; mesh && i < spec.hosts_size(); ++i) shared_host(vs, i);
    for (int i = 0; i < spec.http_size(); ++i) {
      for (int k = 0; k < spec.http(i).route_size(); ++k) {
        destination(vs, spec.http(i).route(k).destination(),
                    fmt::format("spec.http[{}].route[{}].destination", i, k));
      }
    }
    for (int i = 0; i < spec.tcp_size(); ++i) {
      for (int k = 0; k < spec.tcp(i).route_size(); ++k) {
        destination(vs, spec.tcp(i).route(k).destination(),
                    fmt::format("spec.tcp[{}].route[{}].destination", i, k));
      }
    }
  }

  // No gateway but the mesh's own is run here.
  void gateways(const Object& vs) {
    const auto& names = vs.as<kube::VirtualService>().spec().gateways();
    for (int i = 0; i < names.size(); ++i) {
      if (names[i] == "mesh") continue;
      add(Severity::kWarning, kCodeReference, fmt::format("spec.gateways[{}]", i),
          fmt::format("Referenced gateway not found: \"{}\". Its rules act in the mesh only if "
                      "`mesh` is listed too",
                      names[i]),
          names.size() == 1 ? "Remove spec.gateways to use the rules inside of the mesh"
                            : "Remove it, or leave it for a gateway to come");
    }
  }

  // Older objects for the same host: one route list is made of all, the oldest first.
  void shared_host(const Object& vs, int index) {
    const std::string& host = vs.as<kube::VirtualService>().spec().hosts(index);
    const std::string full = expand_host(host, vs.ns(), names_.cluster_domain);
    const std::string field = fmt::format("spec.hosts[{}]", index);
    for (const ObjectPtr& other : store_.list(Kind::kVirtualService, vs.ns())) {
      if (other->key() == vs.key() || !names_host(*other, full)) continue;
      add(Severity::kWarning, kCodeSharedHost, field,
          fmt::format("The VirtualServices {}/{}, {}/{} associated with mesh gateway define the "
                      "same host {} which can lead to undefined behavior. Here the rules of the "
                      "older come first, and what takes every request comes last",
                      vs.ns(), vs.name(), other->ns(), other->name(), host),
          "Merge the conflicting VirtualServices into a single resource");
      const int rule = catch_all(vs);
      if (rule < 0 || catch_all(*other) < 0 || !comes_before(*other, vs)) continue;
      add(Severity::kWarning, kCodeUnreachableRule, fmt::format("spec.http[{}]", rule),
          fmt::format("the rule is not in force: {} is older and has one that takes every request",
                      other->key().to_string()),
          "Merge the two, or give this rule a match");
    }
  }

  bool names_host(const Object& vs, const std::string& full) {
    const auto& spec = vs.as<kube::VirtualService>().spec();
    const auto& gateways = spec.gateways();
    if (!gateways.empty() && std::find(gateways.begin(), gateways.end(), "mesh") == gateways.end())
      return false;
    return std::any_of(spec.hosts().begin(), spec.hosts().end(), [&](const std::string& host) {
      return expand_host(host, vs.ns(), names_.cluster_domain) == full;
    });
  }

  // Index of the rule that takes every request, -1 if there is none.
  static int catch_all(const Object& vs) {
    const auto& rules = vs.as<kube::VirtualService>().spec().http();
    for (int i = 0; i < rules.size(); ++i) {
      if (rules[i].match().empty()) return i;
    }
    return -1;
  }

  static bool comes_before(const Object& a, const Object& b) {
    const std::string& at = a.meta().creation_timestamp();
    const std::string& bt = b.meta().creation_timestamp();
    return at != bt ? at < bt : a.name() < b.name();
  }

  void virtual_host(const Object& vs, const std::string& host, const std::string& field) {
    if (host.starts_with('*')) return;
    ObjectPtr service = service_of(expand_host(host, vs.ns(), names_.cluster_domain));
    if (!service) {
      add(Severity::kError, kCodeReference, field,
          fmt::format("Referenced host not found: \"{}\"", host), fix_for_host(host, vs.ns()));
      return;
    }
    needs_waypoint(*service, field, "its rules have");
    WaypointBinding binding = resolve_waypoint(view_, *service, Traffic::kService);
    if (binding.bound && vs.ns() != service->ns() && vs.ns() != binding.ns) {
      add(Severity::kWarning, kCodeIneffectivePolicy, "metadata.namespace",
          fmt::format("its rules have no effect: the waypoint of {} reads VirtualServices of the "
                      "namespaces {} and {} only",
                      service->key().to_string(), service->ns(), binding.ns),
          fmt::format("Move it to namespace {}", service->ns()));
    }
  }

  void destination(const Object& vs, const net::Destination& destination,
                   const std::string& field) {
    std::string host = expand_host(destination.host(), vs.ns(), names_.cluster_domain);
    ObjectPtr service = service_of(host);
    if (!service) {
      add(Severity::kError, kCodeReference, field + ".host",
          fmt::format("Referenced host not found: \"{}\"", destination.host()),
          fix_for_host(destination.host(), vs.ns()));
      return;
    }
    destination_port(*service, destination, field);
    if (destination.subset().empty()) return;
    subset(*service, destination.subset(), field + ".subset");
    chosen_elsewhere(vs, *service, destination.subset(), field + ".subset");
  }

  // The waypoint of another Service that the rules are for cannot choose among pods that it may only
  // reach through their own waypoint.
  void chosen_elsewhere(const Object& vs, const Object& destination, const std::string& subset,
                        const std::string& field) {
    WaypointBinding theirs = resolve_waypoint(view_, destination, Traffic::kService);
    if (!theirs.bound) return;
    for (const std::string& host : vs.as<kube::VirtualService>().spec().hosts()) {
      ObjectPtr service = service_of(expand_host(host, vs.ns(), names_.cluster_domain));
      if (!service) continue;
      WaypointBinding ours = resolve_waypoint(view_, *service, Traffic::kService);
      if (!ours.bound || (ours.ns == theirs.ns && ours.gateway == theirs.gateway)) continue;
      add(Severity::kWarning, kCodeIneffectivePolicy, field,
          fmt::format("requests are refused: subset {} of {} lies behind waypoint {}/{}, and the "
                      "waypoint {}/{} of {} cannot choose there",
                      subset, destination.key().to_string(), theirs.ns, theirs.gateway, ours.ns,
                      ours.gateway, service->key().to_string()),
          fmt::format("Choose the subset in a VirtualService for {}, or bind both Services to one "
                      "waypoint",
                      destination.name()));
      return;
    }
  }

  void destination_port(const Object& service, const net::Destination& destination,
                        const std::string& field) {
    const auto& ports = service.as<kube::Service>().spec().ports();
    if (!destination.has_port()) return;
    std::vector<int> known;
    for (const auto& port : ports) {
      if (port.port() == static_cast<int>(destination.port().number())) return;
      known.push_back(port.port());
    }
    add(Severity::kError, kCodeReference, field + ".port.number",
        fmt::format("{} has no port {}", service.key().to_string(), destination.port().number()),
        fmt::format("Use one of: {}", fmt::join(known, ", ")));
  }

  void subset(const Object& service, const std::string& name, const std::string& field) {
    WaypointBinding binding = resolve_waypoint(view_, service, Traffic::kService);
    std::string client = binding.bound ? binding.ns : service.ns();
    std::vector<std::string> known;
    for (const ObjectPtr& rule : destination_rules_for(view_, service, client)) {
      for (const auto& one : rule->as<kube::DestinationRule>().spec().subsets()) {
        if (one.name() == name) return;
        known.push_back(one.name());
      }
    }
    std::string host = service_host(service.name(), service.ns(), names_.cluster_domain);
    std::string_view near = did_you_mean(name, {known.begin(), known.end()});
    std::string fix = !near.empty() ? fmt::format("Did you mean `{}`?", near)
                      : known.empty()
                          ? fmt::format("Add a DestinationRule for host {} with a subset named {}",
                                        service.name(), name)
                          : fmt::format("Known subsets: {}", fmt::join(known, ", "));
    add(Severity::kError, kCodeReference, field,
        fmt::format("Referenced host+subset in destinationrule not found: \"{}+{}\"", host, name),
        fix);
  }

  // --- waypoints --------------------------------------------------------------------------------

  // L7 rules on a Service that no waypoint serves do nothing; `what` opens the sentence.
  void needs_waypoint(const Object& service, const std::string& field, std::string_view what) {
    WaypointBinding binding = resolve_waypoint(view_, service, Traffic::kService);
    std::string host = service_host(service.name(), service.ns(), names_.cluster_domain);
    if (binding.bound && binding.reason != "WaypointMissing") return;
    if (binding.reason == "WaypointMissing") {
      add(Severity::kWarning, kCodeNoWaypoint, field,
          fmt::format(
              "{} no effect: waypoint {}/{} of {} does not exist, and traffic to it is refused",
              what, binding.ns, binding.gateway, host),
          fmt::format("Run `meltemi waypoint apply -n {} --name {}`", binding.ns, binding.gateway));
    } else if (!binding.reason.empty()) {
      add(Severity::kWarning, kCodeNoWaypoint, field,
          fmt::format("{} no effect: {}", what, binding.message),
          binding.reason == "UnsupportedTrafficType"
              ? fmt::format("Run `meltemi waypoint apply -n {} --name {} --for all --overwrite`",
                            binding.ns, binding.gateway)
              : fmt::format("Let Gateway {}/{} admit namespace {}", binding.ns, binding.gateway,
                            service.ns()));
    } else if (service.label("istio.io/use-waypoint") == "none") {
      add(Severity::kWarning, kCodeNoWaypoint, field,
          fmt::format(
              "{} no effect: no waypoint serves {}, as its label istio.io/use-waypoint=none says",
              what, host),
          fmt::format(
              "Run `meltemi waypoint apply -n {} --enroll-namespace` and remove the label from {}",
              service.ns(), service.key().to_string()));
    } else {
      add(Severity::kWarning, kCodeNoWaypoint, field,
          fmt::format("{} no effect: no waypoint serves {}", what, host),
          fmt::format("Run `meltemi waypoint apply -n {} --enroll-namespace`", service.ns()));
    }
  }

  // An object's own label that names a waypoint which is not there.
  void named_waypoint(const Object& labelled, const std::string& ns) {
    std::string_view name = labelled.label("istio.io/use-waypoint");
    if (name.empty() || name == "none") return;
    std::string_view other = labelled.label("istio.io/use-waypoint-namespace");
    std::string where = other.empty() ? ns : std::string(other);
    if (store_.find(Kind::kGateway, where, name)) return;
    add(Severity::kWarning, kCodeReference, "metadata.labels[istio.io/use-waypoint]",
        fmt::format("waypoint {}/{} does not exist, and traffic that needs it is refused", where,
                    name),
        fmt::format("Run `meltemi waypoint apply -n {} --name {}`, or remove the label", where,
                    name));
  }

  void gateway(const Object& gateway) {
    std::string_view account = gateway.annotation("istio.io/for-service-account");
    if (account.empty() || store_.find(Kind::kServiceAccount, gateway.ns(), account)) return;
    add(Severity::kWarning, kCodeReference, "metadata.annotations[istio.io/for-service-account]",
        fmt::format("ServiceAccount {}/{} does not exist", gateway.ns(), account),
        "Create it, or correct the name");
  }

  // --- DestinationRule --------------------------------------------------------------------------

  void destination_rule(const Object& rule) {
    const auto& spec = rule.as<kube::DestinationRule>().spec();
    if (spec.host().starts_with('*')) return;
    ObjectPtr service = service_of(expand_host(spec.host(), rule.ns(), names_.cluster_domain));
    if (!service) {
      add(Severity::kWarning, kCodeUnknownRuleHost, "spec.host",
          fmt::format("host \"{}\" is no known service, so the rule has no effect", spec.host()),
          fix_for_host(spec.host(), rule.ns()));
      return;
    }
    needs_waypoint(*service, "spec.host", "the rule has");
    shared_rule_host(rule);
    for (int i = 0; i < spec.subsets_size(); ++i) {
      Labels wanted = selector_of(*service);
      for (const auto& [key, value] : spec.subsets(i).labels()) wanted[key] = value;
      if (wanted.empty() || runs_somewhere(service->ns(), wanted)) continue;
      add(Severity::kWarning, kCodeEmptySubset, fmt::format("spec.subsets[{}]", i),
          fmt::format("subset {} selects no pod of {}", spec.subsets(i).name(),
                      service->key().to_string()),
          "Correct the labels, or start such pods");
    }
  }

  // Rules for one host are merged: all subsets, but of each name, and of trafficPolicy, the oldest.
  void shared_rule_host(const Object& rule) {
    const auto& spec = rule.as<kube::DestinationRule>().spec();
    const std::string host = expand_host(spec.host(), rule.ns(), names_.cluster_domain);
    for (const ObjectPtr& other : store_.list(Kind::kDestinationRule, rule.ns())) {
      const auto& theirs = other->as<kube::DestinationRule>().spec();
      if (other->key() == rule.key() || !comes_before(*other, rule)) continue;
      if (expand_host(theirs.host(), other->ns(), names_.cluster_domain) != host) continue;
      const auto lost = [&](std::string field, std::string_view what) {
        add(Severity::kWarning, kCodeIneffectivePolicy, std::move(field),
            fmt::format("{} is not in force: {} for the same host is older and has one", what,
                        other->key().to_string()),
            "Merge the two DestinationRules");
      };
      if (spec.has_traffic_policy() && theirs.has_traffic_policy()) {
        lost("spec.trafficPolicy", "trafficPolicy");
      }
      for (int i = 0; i < spec.subsets_size(); ++i) {
        for (const auto& subset : theirs.subsets()) {
          if (subset.name() != spec.subsets(i).name()) continue;
          lost(fmt::format("spec.subsets[{}]", i), fmt::format("subset {}", subset.name()));
        }
      }
    }
  }

  // --- policies ---------------------------------------------------------------------------------

  void authorization_policy(const Object& policy) {
    const auto& spec = policy.as<kube::AuthorizationPolicy>().spec();
    if (!binds_to_target(spec)) {
      selects_something(policy, "spec.selector");
      return;
    }
    std::vector<const ::istio::type::v1beta1::PolicyTargetReference*> targets = targets_of(spec);
    for (size_t i = 0; i < targets.size(); ++i) {
      int index = static_cast<int>(i) - (spec.has_target_ref() ? 1 : 0);
      target(policy, *targets[i],
             index < 0 ? "spec.targetRef" : fmt::format("spec.targetRefs[{}]", index));
    }
  }

  void target(const Object& policy, const ::istio::type::v1beta1::PolicyTargetReference& target,
              const std::string& field) {
    if (target.kind() == "Service") {
      ObjectPtr service = store_.find(Kind::kService, policy.ns(), target.name());
      if (service) {
        needs_waypoint(*service, field, "the policy has");
      } else {
        missing_target(policy, target, field, Kind::kService);
      }
    } else if (target.kind() == "Gateway") {
      if (!store_.find(Kind::kGateway, policy.ns(), target.name())) {
        missing_target(policy, target, field, Kind::kGateway);
      }
    } else if (target.kind() == "GatewayClass" && policy.ns() != names_.root_namespace) {
      add(Severity::kWarning, kCodeIneffectivePolicy, field,
          fmt::format("the policy has no effect: a GatewayClass is targeted from namespace {} only",
                      names_.root_namespace),
          fmt::format("Move it to namespace {}", names_.root_namespace));
    }
  }

  void missing_target(const Object& policy,
                      const ::istio::type::v1beta1::PolicyTargetReference& target,
                      const std::string& field, Kind kind) {
    std::vector<std::string> names;
    for (const ObjectPtr& object : store_.list(kind, policy.ns())) names.push_back(object->name());
    std::string_view near = did_you_mean(target.name(), {names.begin(), names.end()});
    add(Severity::kError, kCodeReference, field + ".name",
        fmt::format("Referenced {} not found: \"{}/{}\"", target.kind(), policy.ns(),
                    target.name()),
        near.empty()
            ? fmt::format(
                  "Create it in namespace {}; a target is always in the policy's own namespace",
                  policy.ns())
            : fmt::format("Did you mean `{}`?", near));
  }

  void selects_something(const Object& policy, const std::string& field) {
    const Labels& selector = selector_of(policy);
    if (selector.empty()) return;
    if (policy.ns() == names_.root_namespace)
      return;  // all namespaces: too broad to call it a mistake
    if (runs_somewhere(policy.ns(), selector)) return;
    add(Severity::kWarning, kCodeNoPods, field,
        "no matching workloads for this resource with the selector",
        fmt::format("Correct the labels (`meltemi sandbox get pods -n {} --show-labels`)",
                    policy.ns()));
  }

  // --- services and pods ------------------------------------------------------------------------

  // A pod has the labels, or something here would make such pods.
  bool runs_somewhere(const std::string& ns, const Labels& selector) {
    if (!store_.pods_selected(ns, selector).empty()) return true;
    auto templated = [&](Kind kind, auto&& labels_of) {
      for (const ObjectPtr& object : store_.list(kind, ns)) {
        if (labels_contain(labels_of(*object), selector)) return true;
      }
      return false;
    };
    return templated(Kind::kDeployment,
                     [](const Object& o) -> const Labels& {
                       return o.as<kube::Deployment>().spec().template_().metadata().labels();
                     }) ||
           templated(Kind::kReplicaSet,
                     [](const Object& o) -> const Labels& {
                       return o.as<kube::ReplicaSet>().spec().template_().metadata().labels();
                     }) ||
           templated(Kind::kJob, [](const Object& o) -> const Labels& {
             return o.as<kube::Job>().spec().template_().metadata().labels();
           });
  }

  void service(const Object& service) {
    named_waypoint(service, service.ns());
    const Labels& selector = selector_of(service);
    if (selector.empty()) return;
    if (!runs_somewhere(service.ns(), selector)) {
      add(Severity::kWarning, kCodeNoPods, "spec.selector",
          fmt::format("no pod of namespace {} has these labels, so the Service has no endpoints",
                      service.ns()),
          "Correct the selector, or start such pods");
      return;
    }
    target_ports(service);
  }

  // A named target port that no selected pod has.
  void target_ports(const Object& service) {
    std::vector<ObjectPtr> pods = store_.pods_selected(service.ns(), selector_of(service));
    if (pods.empty()) return;
    const auto& ports = service.as<kube::Service>().spec().ports();
    for (int i = 0; i < ports.size(); ++i) {
      if (!is_tcp(ports[i])) continue;
      bool found = std::any_of(pods.begin(), pods.end(), [&](const ObjectPtr& pod) {
        return target_port(ports[i], *pod) != 0;
      });
      if (found) continue;
      add(Severity::kWarning, kCodeReference, fmt::format("spec.ports[{}].targetPort", i),
          fmt::format("no selected pod has a container port named \"{}\"",
                      ports[i].target_port().text()),
          "Name the pods' port, or give a number");
    }
  }

  const PodsByIp& pods_by_ip() {
    if (!by_ip_) {
      by_ip_.emplace();
      for (const ObjectPtr& pod : store_.list(Kind::kPod)) {
        if (pod_ended(*pod) || pod->as<kube::Pod>().spec().host_network()) continue;
        for (const IpAddress& ip : pod_ips(*pod)) (*by_ip_)[ip].push_back(pod);
      }
    }
    return *by_ip_;
  }

  void pod(const Object& pod) {
    if (pod_ended(pod) || pod.as<kube::Pod>().spec().host_network()) return;
    for (const IpAddress& ip : pod_ips(pod)) {
      for (const ObjectPtr& other : pods_by_ip().at(ip)) {
        if (other->key() == pod.key()) continue;
        add(Severity::kError, kCodeDuplicateIp, "status.podIP",
            fmt::format("{} has the address {} too; traffic to it reaches one of the two",
                        other->key().to_string(), ip.to_string()),
            "Delete one of the two pods");
      }
    }
  }

  const ObjectStore& store_;
  const MeshNames& names_;
  EnrolledPods nobody_;
  View view_;
  const Object* subject_ = nullptr;
  Problems problems_;
  std::optional<PodsByIp> by_ip_;
};

}  // namespace

std::optional<Condition> waypoint_bound(const ObjectStore& store, const Object& service,
                                        const MeshNames& names) {
  EnrolledPods nobody;
  View view(&store, &nobody, &names);
  WaypointBinding binding = resolve_waypoint(view, service, Traffic::kService);
  if (binding.reason.empty()) return std::nullopt;
  Condition out{"istio.io/WaypointBound", binding.reason == "WaypointAccepted", binding.reason,
                binding.message};
  if (!out.status) return out;
  ObjectPtr gateway = store.find(Kind::kGateway, binding.ns, binding.gateway);
  for (const auto& condition : gateway->as<kube::Gateway>().status().conditions()) {
    if (condition.type() == "Programmed" && condition.status() == "True") return out;
  }
  out.status = false;
  out.reason = "WaypointIsNotReady";
  out.message = fmt::format("{}, which is not ready; traffic is refused until it is",
                            binding.message);
  return out;
}

Problems analyze(const ObjectStore& store, const MeshNames& names) {
  Analysis analysis(store, names);
  for (size_t kind = 0; kind < kKindCount; ++kind) {
    for (const ObjectPtr& object : store.list(static_cast<Kind>(kind))) analysis.object(*object);
  }
  return analysis.take();
}

Problems analyze_object(const ObjectStore& store, const ObjectKey& key, const MeshNames& names) {
  ObjectPtr object = store.find(key);
  if (!object) return {};
  Analysis analysis(store, names);
  analysis.object(*object);
  return analysis.take();
}

}  // namespace meltemi::config
