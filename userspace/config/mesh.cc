#include "userspace/config/mesh.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/config/names.h"

namespace meltemi::config {

namespace wl = ::istio::workload;
namespace sec = ::istio::security::v1beta1;

bool is_waypoint_class(std::string_view gateway_class) {
  return gateway_class == "istio-waypoint" || gateway_class == "meltemi-waypoint";
}

bool is_waypoint_part(const Object& object) {
  return is_waypoint_class(object.label("gateway.networking.k8s.io/gateway-class-name")) ||
         object.label("gateway.istio.io/managed") == "istio.io-mesh-controller";
}

// --- pods ---------------------------------------------------------------------------------------

std::vector<IpAddress> pod_ips(const Object& pod) {
  const kube::PodStatus& status = pod.as<kube::Pod>().status();
  std::vector<IpAddress> out;
  auto add = [&](const std::string& text) {
    auto ip = IpAddress::parse(text);
    if (ip && std::find(out.begin(), out.end(), *ip) == out.end()) out.push_back(*ip);
  };
  for (const auto& ip : status.pod_ips()) add(ip.ip());
  if (out.empty()) add(status.pod_ip());
  return out;
}

bool pod_ended(const Object& pod) {
  const std::string& phase = pod.as<kube::Pod>().status().phase();
  return phase == "Succeeded" || phase == "Failed";
}

bool pod_ready(const Object& pod) {
  if (!pod.meta().deletion_timestamp().empty()) return false;
  for (const auto& condition : pod.as<kube::Pod>().status().conditions()) {
    if (condition.type() == "Ready") return condition.status() == "True";
  }
  return false;
}

std::string pod_service_account(const Object& pod) {
  const kube::PodSpec& spec = pod.as<kube::Pod>().spec();
  if (!spec.service_account_name().empty()) return spec.service_account_name();
  if (!spec.service_account().empty()) return spec.service_account();
  return "default";
}

std::string pod_workload_uid(const Object& pod, const MeshNames& names) {
  return fmt::format("{}//Pod/{}/{}", names.cluster_id, pod.ns(), pod.name());
}

std::string pod_workload_name(const Object& pod) {
  for (const auto& owner : pod.meta().owner_references()) {
    if (!owner.controller() && pod.meta().owner_references_size() > 1) continue;
    if (owner.kind() == "ReplicaSet") {
      // A Deployment's ReplicaSet is called <deployment>-<pod template hash>.
      std::string_view hash = pod.label("pod-template-hash");
      std::string suffix = fmt::format("-{}", hash);
      std::string name = owner.name();
      if (!hash.empty() && name.ends_with(suffix)) name.resize(name.size() - suffix.size());
      return name;
    }
    return owner.name();
  }
  return pod.name();
}

bool pod_speaks_hbone(View& view, const Object& pod) {
  if (is_waypoint_part(pod) || pod.label("networking.istio.io/tunnel") == "http") return true;
  return !pod.meta().uid().empty() && view.enrolled(pod.meta().uid());
}

// --- services -----------------------------------------------------------------------------------

bool is_tcp(const kube::ServicePort& port) {
  return port.protocol().empty() || port.protocol() == "TCP";
}

namespace {

Protocol protocol_named(std::string_view name) {
  struct Row {
    std::string_view name;
    Protocol protocol;
  };
  static constexpr Row kRows[] = {{"http", Protocol::kHttp},
                                  {"http2", Protocol::kHttp2},
                                  {"kubernetes.io/h2c", Protocol::kHttp2},
                                  {"kubernetes.io/ws", Protocol::kHttp},
                                  {"grpc", Protocol::kGrpc},
                                  {"grpc-web", Protocol::kHttp2},
                                  {"https", Protocol::kTls},
                                  {"kubernetes.io/wss", Protocol::kTls},
                                  {"tls", Protocol::kTls},
                                  {"tcp", Protocol::kTcp},
                                  {"mongo", Protocol::kTcp},
                                  {"redis", Protocol::kTcp},
                                  {"mysql", Protocol::kTcp}};
  for (const Row& row : kRows) {
    if (row.name == name) return row.protocol;
  }
  return Protocol::kUnknown;
}

}  // namespace

Protocol protocol_of(const kube::ServicePort& port) {
  if (!port.app_protocol().empty()) return protocol_named(port.app_protocol());
  // <protocol>[-<anything>]; "grpc-web" is a protocol of its own.
  std::string_view name = port.name();
  if (name.starts_with("grpc-web")) return Protocol::kHttp2;
  return protocol_named(name.substr(0, name.find('-')));
}

wl::AppProtocol wire_protocol(Protocol protocol) {
  switch (protocol) {
    case Protocol::kHttp:
      return wl::HTTP11;
    case Protocol::kHttp2:
      return wl::HTTP2;
    case Protocol::kGrpc:
      return wl::GRPC;
    case Protocol::kTcp:
      return wl::TCP;
    case Protocol::kTls:
      return wl::TLS;
    case Protocol::kUnknown:
      break;
  }
  return wl::UNKNOWN;
}

std::vector<IpAddress> service_vips(const Object& service) {
  const auto& spec = service.as<kube::Service>().spec();
  std::vector<IpAddress> out;
  auto add = [&](const std::string& text) {
    auto ip = IpAddress::parse(text);
    if (ip && std::find(out.begin(), out.end(), *ip) == out.end()) out.push_back(*ip);
  };
  for (const auto& ip : spec.cluster_ips()) add(ip);
  if (out.empty()) add(spec.cluster_ip());
  return out;
}

uint32_t target_port(const kube::ServicePort& port, const Object& pod) {
  const kube::IntOrString& target = port.target_port();
  switch (target.value_case()) {
    case kube::IntOrString::VALUE_NOT_SET:
      return static_cast<uint32_t>(port.port());
    case kube::IntOrString::kNumber:
      return static_cast<uint32_t>(target.number());
    case kube::IntOrString::kText:
      break;
  }
  for (const auto& container : pod.as<kube::Pod>().spec().containers()) {
    for (const auto& declared : container.ports()) {
      bool tcp = declared.protocol().empty() || declared.protocol() == "TCP";
      if (tcp && declared.name() == target.text()) {
        return static_cast<uint32_t>(declared.container_port());
      }
    }
  }
  return 0;
}

// --- waypoints ----------------------------------------------------------------------------------

namespace {

bool serves(std::string_view waypoint_for, Traffic traffic) {
  if (waypoint_for == "all") return true;
  return waypoint_for == (traffic == Traffic::kService ? "service" : "workload");
}

// The Gateway's own label, then its class's, then service.
std::string waypoint_for(View& view, const Object& gateway) {
  if (auto own = gateway.label("istio.io/waypoint-for"); !own.empty()) return std::string(own);
  ObjectPtr of_class =
      view.object(Kind::kGatewayClass, "", gateway.as<kube::Gateway>().spec().gateway_class_name());
  if (of_class) {
    auto label = of_class->label("istio.io/waypoint-for");
    if (!label.empty()) return std::string(label);
  }
  return gateway.annotation("istio.io/for-service-account").empty() ? "service" : "all";
}

bool admits(View& view, const Object& gateway, std::string_view ns) {
  const auto& spec = gateway.as<kube::Gateway>().spec();
  const kube::RouteNamespaces* rule = nullptr;
  for (const auto& listener : spec.listeners()) {
    if (listener.port() == static_cast<int>(kHbonePort))
      rule = &listener.allowed_routes().namespaces();
  }
  if (rule == nullptr || rule->from().empty() || rule->from() == "Same") return gateway.ns() == ns;
  if (rule->from() == "All") return true;
  if (rule->from() != "Selector") return false;
  ObjectPtr object = view.object(Kind::kNamespace, "", ns);
  if (!object || !labels_contain(object->meta().labels(), rule->selector().match_labels())) {
    return false;
  }
  for (const auto& part : rule->selector().match_expressions()) {
    auto found = object->meta().labels().find(part.key());
    bool has = found != object->meta().labels().end();
    bool in = has && std::find(part.values().begin(), part.values().end(), found->second) !=
                         part.values().end();
    bool ok = part.operator_() == "In"       ? in
              : part.operator_() == "NotIn"  ? !in
              : part.operator_() == "Exists" ? has
                                             : part.operator_() == "DoesNotExist" && !has;
    if (!ok) return false;
  }
  return true;
}

void set_host(View& view, const Object* gateway, WaypointBinding* out) {
  const std::string& domain = view.names().cluster_domain;
  out->host_ns = out->ns;
  out->host = service_host(out->gateway, out->ns, domain);
  if (gateway == nullptr) return;
  const auto& addresses = gateway->as<kube::Gateway>().spec().addresses();
  if (addresses.empty() || addresses[0].type() != "Hostname") return;
  out->host = addresses[0].value();
  std::string_view rest = out->host;
  std::string suffix = fmt::format(".svc.{}", domain);
  size_t dot = rest.find('.');
  if (rest.ends_with(suffix) && dot + suffix.size() < rest.size()) {
    rest.remove_suffix(suffix.size());
    out->host_ns = std::string(rest.substr(dot + 1));
  }
}

// What a label (or a service account's Gateway) asks for, and what comes of it.
WaypointBinding bind_to(View& view, const Object& object, Traffic traffic, std::string_view ns,
                        std::string_view name, bool asked_directly) {
  WaypointBinding out;
  out.ns = ns;
  out.gateway = name;
  ObjectPtr gateway = view.object(Kind::kGateway, ns, name);
  set_host(view, gateway.get(), &out);
  std::string full = fmt::format("{}/{}", ns, name);
  if (!gateway || !is_waypoint_class(gateway->as<kube::Gateway>().spec().gateway_class_name())) {
    out.bound = true;
    out.reason = "WaypointMissing";
    out.message = fmt::format(
        "waypoint {} does not exist; traffic is refused until it does (`meltemi waypoint apply -n "
        "{} "
        "--name {}`), or remove the label istio.io/use-waypoint",
        full, ns, name);
    return out;
  }
  if (!serves(waypoint_for(view, *gateway), traffic)) {
    if (!asked_directly) return {};
    out.reason = "UnsupportedTrafficType";
    out.message = fmt::format("waypoint {} does not serve {} traffic (istio.io/waypoint-for={})",
                              full, traffic == Traffic::kService ? "service" : "workload",
                              waypoint_for(view, *gateway));
    return out;
  }
  if (!admits(view, *gateway, object.ns())) {
    out.reason = "AttachmentDenied";
    out.message = fmt::format("waypoint {} does not admit namespace {} (allowedRoutes.namespaces)",
                              full, object.ns());
    return out;
  }
  out.bound = true;
  out.reason = "WaypointAccepted";
  out.message = fmt::format("bound to {}", full);
  return out;
}

// The Gateway of the object's namespace that is for the service account it runs as.
std::string gateway_for_account(View& view, const Object& object, Traffic traffic) {
  std::vector<ObjectPtr> candidates;
  for (const ObjectPtr& gateway : view.list(Kind::kGateway, object.ns())) {
    if (!gateway->annotation("istio.io/for-service-account").empty() &&
        is_waypoint_class(gateway->as<kube::Gateway>().spec().gateway_class_name())) {
      candidates.push_back(gateway);
    }
  }
  if (candidates.empty()) return {};
  std::string account;
  if (traffic == Traffic::kWorkload) {
    account = pod_service_account(object);
  } else {
    for (const ObjectPtr& pod : view.pods_selected(object.ns(), selector_of(object))) {
      if (pod_ended(*pod)) continue;
      std::string one = pod_service_account(*pod);
      if (!account.empty() && account != one) return {};
      account = one;
    }
  }
  for (const ObjectPtr& gateway : candidates) {
    if (gateway->annotation("istio.io/for-service-account") == account) return gateway->name();
  }
  return {};
}

}  // namespace

WaypointBinding resolve_waypoint(View& view, const Object& object, Traffic traffic) {
  if (is_waypoint_part(object)) return {};
  auto from_labels = [&](const Object& labelled, bool direct) {
    std::string_view name = labelled.label("istio.io/use-waypoint");
    std::string_view ns = labelled.label("istio.io/use-waypoint-namespace");
    return bind_to(view, object, traffic, ns.empty() ? std::string_view(object.ns()) : ns, name,
                   direct);
  };
  std::string_view own = object.label("istio.io/use-waypoint");
  if (own == "none") return {};
  if (!own.empty()) return from_labels(object, true);
  std::string for_account = gateway_for_account(view, object, traffic);
  if (!for_account.empty()) return bind_to(view, object, traffic, object.ns(), for_account, false);
  ObjectPtr ns = view.object(Kind::kNamespace, "", object.ns());
  if (!ns) return {};
  std::string_view inherited = ns->label("istio.io/use-waypoint");
  if (inherited.empty() || inherited == "none") return {};
  return from_labels(*ns, traffic == Traffic::kService);
}

void fill_gateway_address(const WaypointBinding& binding, wl::GatewayAddress* out) {
  out->mutable_hostname()->set_namespace_(binding.host_ns);
  out->mutable_hostname()->set_hostname(binding.host);
  out->set_hbone_mtls_port(kHbonePort);
}

// --- mTLS ---------------------------------------------------------------------------------------

namespace {

MtlsMode mode_of(const sec::PeerAuthentication::MutualTLS& mtls) {
  using Mtls = sec::PeerAuthentication::MutualTLS;
  if (mtls.mode() == Mtls::STRICT) return MtlsMode::kStrict;
  return mtls.mode() == Mtls::UNSET ? MtlsMode::kUnset : MtlsMode::kPermissive;
}

bool is_older(const Object& a, const Object& b) {
  // Times are RFC 3339 in UTC: text order is time order.
  if (a.meta().creation_timestamp() != b.meta().creation_timestamp()) {
    return a.meta().creation_timestamp() < b.meta().creation_timestamp();
  }
  return a.name() < b.name();
}

// Mode of the oldest PeerAuthentication of a namespace that has no selector.
MtlsMode mode_without_selector(View& view, std::string_view ns) {
  ObjectPtr oldest;
  for (const ObjectPtr& policy : view.list(Kind::kPeerAuthentication, ns)) {
    if (!selector_of(*policy).empty()) continue;
    if (!oldest || is_older(*policy, *oldest)) oldest = policy;
  }
  if (!oldest) return MtlsMode::kUnset;
  return mode_of(oldest->as<kube::PeerAuthentication>().spec().mtls());
}

}  // namespace

MtlsMode inherited_mtls(View& view, std::string_view ns) {
  const std::string& root = view.names().root_namespace;
  MtlsMode mode = ns == root ? MtlsMode::kUnset : mode_without_selector(view, ns);
  if (mode == MtlsMode::kUnset) mode = mode_without_selector(view, root);
  return mode == MtlsMode::kStrict ? MtlsMode::kStrict : MtlsMode::kPermissive;
}

PortModes port_modes(View& view, const Object& peer_authentication) {
  const auto& spec = peer_authentication.as<kube::PeerAuthentication>().spec();
  PortModes out;
  out.base = mode_of(spec.mtls());
  if (out.base == MtlsMode::kUnset) out.base = inherited_mtls(view, peer_authentication.ns());
  for (const auto& [port, mtls] : spec.port_level_mtls()) {
    MtlsMode mode = mode_of(mtls);
    if (mode == MtlsMode::kUnset || mode == out.base) continue;
    (mode == MtlsMode::kStrict ? out.strict : out.permissive).push_back(port);
  }
  std::sort(out.strict.begin(), out.strict.end());
  std::sort(out.permissive.begin(), out.permissive.end());
  return out;
}

MtlsDecision mtls_of_pod(View& view, const Object& pod) {
  ObjectPtr oldest;
  if (pod.ns() != view.names().root_namespace) {
    for (const ObjectPtr& policy :
         view.selecting(Kind::kPeerAuthentication, pod.ns(), pod.meta().labels())) {
      if (!oldest || is_older(*policy, *oldest)) oldest = policy;
    }
  }
  MtlsDecision out;
  if (!oldest) {
    out.base = inherited_mtls(view, pod.ns());
    return out;
  }
  PortModes modes = port_modes(view, *oldest);
  out.base = modes.base;
  if (modes.matters()) out.ported = oldest;
  return out;
}

std::string converted_policy_name(const Object& peer_authentication) {
  return fmt::format("converted_peer_authentication_{}", peer_authentication.name());
}

bool exported_to(const google::protobuf::RepeatedPtrField<std::string>& export_to,
                 std::string_view ns, std::string_view consumer) {
  if (export_to.empty()) return true;
  return std::any_of(export_to.begin(), export_to.end(), [&](const std::string& entry) {
    return entry == "*" || entry == consumer || (entry == "." && ns == consumer);
  });
}

}  // namespace meltemi::config
