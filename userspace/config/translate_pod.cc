// A Pod as ztunnel sees it (istio.workload.Address) and as its node's agent does (PodEnrolment).
#include <fmt/format.h>

#include <charconv>
#include <set>

#include "meltemi/node/v1/node.pb.h"
#include "userspace/config/mesh.h"
#include "userspace/config/names.h"
#include "userspace/config/policy_fields.h"
#include "userspace/config/units.h"
#include "userspace/model/enrolment.h"

namespace meltemi::config {
namespace {

namespace wl = ::istio::workload;
namespace node = ::meltemi::node::v1;

std::string first_of(const Object& pod, std::initializer_list<std::string_view> labels,
                     std::string fallback) {
  for (std::string_view key : labels) {
    if (auto value = pod.label(key); !value.empty()) return std::string(value);
  }
  return fallback;
}

void fill_services(View& view, const Object& pod, wl::Workload* out) {
  for (const ObjectPtr& service : view.selecting(Kind::kService, pod.ns(), pod.meta().labels())) {
    wl::PortList ports;
    for (const auto& port : service->as<kube::Service>().spec().ports()) {
      if (!is_tcp(port)) continue;
      uint32_t target = target_port(port, pod);
      if (target == 0) continue;  // a named port that this pod does not have
      wl::Port* entry = ports.add_ports();
      entry->set_service_port(static_cast<uint32_t>(port.port()));
      entry->set_target_port(target);
      entry->set_app_protocol(wire_protocol(protocol_of(port)));
    }
    std::string host = service_host(service->name(), service->ns(), view.names().cluster_domain);
    (*out->mutable_services())[fmt::format("{}/{}", service->ns(), host)] = std::move(ports);
  }
}

// Selector policies by name: those of the pod's namespace and of the root namespace, and what mTLS
// mode is not the default.
void fill_policies(View& view, const Object& pod, wl::Workload* out) {
  std::set<std::string> namespaces = {pod.ns(), view.names().root_namespace};
  for (const std::string& ns : namespaces) {
    for (const ObjectPtr& policy :
         view.selecting(Kind::kAuthorizationPolicy, ns, pod.meta().labels())) {
      const auto& spec = policy->as<kube::AuthorizationPolicy>().spec();
      using Policy = ::istio::security::v1beta1::AuthorizationPolicy;
      bool enforced = spec.action() == Policy::ALLOW || spec.action() == Policy::DENY;
      if (!enforced || binds_to_target(spec)) continue;
      out->add_authorization_policies(fmt::format("{}/{}", ns, policy->name()));
    }
  }
  MtlsDecision mtls = mtls_of_pod(view, pod);
  if (mtls.ported) {
    out->add_authorization_policies(
        fmt::format("{}/{}", mtls.ported->ns(), converted_policy_name(*mtls.ported)));
  } else if (mtls.base == MtlsMode::kStrict) {
    out->add_authorization_policies(
        fmt::format("{}/{}", view.names().root_namespace, kStrictPolicyName));
  }
}

// Where the pod's node stands, by the labels that clouds and operators give to nodes.
void fill_locality(View& view, const std::string& node, wl::Workload* out) {
  if (node.empty()) return;
  const ObjectPtr object = view.object(Kind::kNode, "", node);
  if (!object) return;
  const std::string region(object->label("topology.kubernetes.io/region"));
  const std::string zone(object->label("topology.kubernetes.io/zone"));
  const std::string subzone(object->label("topology.istio.io/subzone"));
  if (region.empty() && zone.empty() && subzone.empty()) return;
  wl::Locality* locality = out->mutable_locality();
  locality->set_region(region);
  locality->set_zone(zone);
  locality->set_subzone(subzone);
}

void translate_workload(View& view, const Object& pod, Outputs* out) {
  const kube::Pod& body = pod.as<kube::Pod>();
  std::vector<IpAddress> ips = pod_ips(pod);
  if (ips.empty() || pod_ended(pod)) return;
  const MeshNames& names = view.names();
  wl::Address address;
  wl::Workload* w = address.mutable_workload();
  w->set_uid(pod_workload_uid(pod, names));
  w->set_name(pod.name());
  w->set_namespace_(pod.ns());
  for (const IpAddress& ip : ips) w->add_addresses(ip.wire());
  w->set_network(names.network);
  w->set_cluster_id(names.cluster_id);
  if (names.trust_domain != "cluster.local") w->set_trust_domain(names.trust_domain);
  w->set_service_account(pod_service_account(pod));
  w->set_node(body.spec().node_name());
  fill_locality(view, body.spec().node_name(), w);
  std::string workload = pod_workload_name(pod);
  w->set_workload_name(workload);
  w->set_workload_type(wl::POD);
  w->set_canonical_name(first_of(
      pod, {"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"}, workload));
  w->set_canonical_revision(
      first_of(pod, {"service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"},
               "latest"));
  w->set_status(pod_ready(pod) ? wl::HEALTHY : wl::UNHEALTHY);
  if (body.spec().host_network()) w->set_network_mode(wl::HOST_NETWORK);
  if (!body.spec().host_network() && pod_speaks_hbone(view, pod)) {
    w->set_tunnel_protocol(wl::HBONE);
    w->set_native_tunnel(is_waypoint_part(pod) ||
                         pod.label("networking.istio.io/tunnel") == "http");
  }
  WaypointBinding waypoint = resolve_waypoint(view, pod, Traffic::kWorkload);
  if (waypoint.bound) fill_gateway_address(waypoint, w->mutable_waypoint());
  fill_services(view, pod, w);
  fill_policies(view, pod, w);
  std::string uid = w->uid();
  out->add(ResourceType::kAddress, kEveryone, std::move(uid), address);
}

model::Labels to_model(const Labels& labels) {
  model::Labels out;
  for (const auto& [key, value] : labels) out.emplace(key, value);
  return out;
}

// Ports that the kubelet connects to, so that the agent lets the probe address pass.
std::set<uint32_t> probe_ports(const kube::PodSpec& spec) {
  std::set<uint32_t> out;
  for (const kube::Container& container : spec.containers()) {
    auto resolve = [&](const kube::IntOrString& port) {
      if (port.value_case() == kube::IntOrString::kNumber) {
        out.insert(static_cast<uint32_t>(port.number()));
        return;
      }
      for (const auto& declared : container.ports()) {
        if (declared.name() == port.text()) {
          out.insert(static_cast<uint32_t>(declared.container_port()));
        }
      }
    };
    for (const kube::Probe* probe :
         {&container.readiness_probe(), &container.liveness_probe(), &container.startup_probe()}) {
      if (probe->has_http_get()) resolve(probe->http_get().port());
      if (probe->has_tcp_socket()) resolve(probe->tcp_socket().port());
    }
  }
  return out;
}

template <typename F>
void each_of_list(std::string_view list, F&& each) {
  while (!list.empty()) {
    size_t comma = list.find(',');
    std::string_view item = list.substr(0, comma);
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    if (!item.empty()) each(item);
  }
}

void fill_exclusions(const Object& pod, node::PodEnrolment* out) {
  each_of_list(pod.annotation("traffic.sidecar.istio.io/excludeOutboundIPRanges"),
               [&](std::string_view item) {
                 if (auto cidr = Cidr::parse(item))
                   out->add_exclude_outbound_cidrs(cidr->to_string());
               });
  each_of_list(pod.annotation("traffic.sidecar.istio.io/excludeOutboundPorts"),
               [&](std::string_view item) {
                 uint16_t port = 0;
                 auto [end, error] = std::from_chars(item.data(), item.data() + item.size(), port);
                 if (error == std::errc() && end == item.data() + item.size() && port != 0) {
                   out->add_exclude_outbound_ports(port);
                 }
               });
}

}  // namespace

model::EnrolmentDecision enrolment_of(View& view, const Object& pod) {
  const kube::Pod& body = pod.as<kube::Pod>();
  ObjectPtr ns = view.object(Kind::kNamespace, "", pod.ns());
  model::Labels ns_labels = ns ? to_model(ns->meta().labels()) : model::Labels();
  model::Labels labels = to_model(pod.meta().labels());
  model::Labels annotations = to_model(pod.meta().annotations());
  model::EnrolmentInput input;
  input.ns = pod.ns();
  input.namespace_labels = ns ? &ns_labels : nullptr;
  input.labels = &labels;
  input.annotations = &annotations;
  for (const auto& container : body.spec().containers())
    input.containers.push_back(container.name());
  for (const auto& container : body.spec().init_containers()) {
    input.containers.push_back(container.name());
  }
  input.host_network = body.spec().host_network();
  input.phase = body.status().phase();
  return model::decide_enrolment(input, model::EnrolmentPolicy());
}

namespace {

void translate_enrolment(View& view, const Object& pod, Outputs* out) {
  const kube::Pod& body = pod.as<kube::Pod>();
  if (pod.meta().uid().empty() || body.spec().node_name().empty() || pod_ended(pod)) return;
  const model::EnrolmentDecision decision = enrolment_of(view, pod);
  node::PodEnrolment enrolment;
  enrolment.set_uid(pod.meta().uid());
  enrolment.set_name(pod.name());
  enrolment.set_namespace_(pod.ns());
  enrolment.set_service_account(pod_service_account(pod));
  for (const IpAddress& ip : pod_ips(pod)) enrolment.add_addresses(ip.wire());
  enrolment.set_enrol(decision.enrol);
  enrolment.set_reason(std::string(model::enrolment_reason_name(decision.reason)));
  for (uint32_t port : probe_ports(body.spec())) enrolment.add_probe_ports(port);
  MtlsDecision mtls = mtls_of_pod(view, pod);
  bool strict = mtls.base == MtlsMode::kStrict || mtls.ported != nullptr;
  enrolment.set_inbound_mode(strict ? node::STRICT : node::PERMISSIVE);
  fill_exclusions(pod, &enrolment);
  const ObjectPtr ns = view.object(Kind::kNamespace, "", pod.ns());
  enrolment.set_unguarded(ns && ns->annotation("meltemi.io/egress-guard") == "disabled");
  out->add(ResourceType::kPodEnrolment, node_scope(body.spec().node_name()), pod.meta().uid(),
           enrolment);
}

}  // namespace

void translate_pod(View& view, const Object& pod, Outputs* out) {
  translate_workload(view, pod, out);
  translate_enrolment(view, pod, out);
}

}  // namespace meltemi::config
