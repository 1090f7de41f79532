// Builds the objects of a waypoint field by field; the shape follows Istio's own waypoint manifest.
#include "userspace/control/gateway_controller.h"

#include <fmt/format.h>

namespace meltemi::control {
namespace {

using config::Kind;
using config::Object;
namespace kube = config::kube;

constexpr std::string_view kTokenDir = "/var/run/secrets/tokens";
constexpr std::string_view kRootDir = "/var/run/secrets/istio";
constexpr std::string_view kStateDir = "/var/run/meltemi";
constexpr std::string_view kServiceAccountAnnotation = "gateway.istio.io/service-account";
constexpr int64_t kTokenLifetimeSeconds = 43200;

// Labels and owner that every object of a Gateway carries.
void mark(Object* object, const Object& gateway) {
  kube::ObjectMeta& meta = object->mutable_meta();
  auto& labels = *meta.mutable_labels();
  const auto& infrastructure = gateway.as<kube::Gateway>().spec().infrastructure();
  for (const auto& [key, value] : infrastructure.labels()) labels[key] = value;
  for (const auto& [key, value] : infrastructure.annotations())
    (*meta.mutable_annotations())[key] = value;
  labels[std::string(kManagedLabel)] = kManagedBy;
  labels[std::string(kGatewayNameLabel)] = gateway.name();
  labels[std::string(kGatewayClassLabel)] = gateway.as<kube::Gateway>().spec().gateway_class_name();
  kube::OwnerReference* owner = meta.add_owner_references();
  owner->set_api_version(gateway.api_version());
  owner->set_kind("Gateway");
  owner->set_name(gateway.name());
  owner->set_uid(gateway.meta().uid());
  owner->set_controller(true);
}

std::string service_account(const Object& gateway) {
  const std::string_view wanted = gateway.annotation(kServiceAccountAnnotation);
  return wanted.empty() ? gateway.name() : std::string(wanted);
}

void env(kube::Container* container, std::string_view name, std::string_view value) {
  kube::EnvVar* variable = container->add_env();
  variable->set_name(std::string(name));
  variable->set_value(std::string(value));
}

void env_field(kube::Container* container, std::string_view name, std::string_view path) {
  kube::EnvVar* variable = container->add_env();
  variable->set_name(std::string(name));
  variable->mutable_value_from()->mutable_field_ref()->set_field_path(std::string(path));
}

void mount(kube::Container* container, std::string_view name, std::string_view path,
           bool read_only = true) {
  kube::VolumeMount* volume = container->add_volume_mounts();
  volume->set_name(std::string(name));
  volume->set_mount_path(std::string(path));
  volume->set_read_only(read_only);
}

void fill_container(kube::Container* c, const Object& gateway, const WaypointSettings& s) {
  c->set_name("waypoint");
  c->set_image(s.image);
  c->add_command("waypoint");
  // It filters its system calls itself, more narrowly; containerd's default would take io_uring away.
  auto& security = *c->mutable_security_context()->mutable_struct_value()->mutable_fields();
  (*security["seccompProfile"].mutable_struct_value()->mutable_fields())["type"].set_string_value(
      "Unconfined");
  env_field(c, "POD_NAME", "metadata.name");
  env_field(c, "POD_NAMESPACE", "metadata.namespace");
  env_field(c, "INSTANCE_IP", "status.podIP");
  env_field(c, "SERVICE_ACCOUNT", "spec.serviceAccountName");
  env_field(c, "NODE_NAME", "spec.nodeName");
  env(c, "GATEWAY_NAME", gateway.name());
  env(c, "XDS_ADDRESS", s.discovery_address);
  env(c, "CA_ADDRESS", s.discovery_address);
  env(c, "XDS_ROOT_CA", fmt::format("{}/root-cert.pem", kRootDir));
  env(c, "CA_ROOT_CA", fmt::format("{}/root-cert.pem", kRootDir));
  env(c, "AUTH_TOKEN", fmt::format("{}/istio-token", kTokenDir));
  env(c, "TRUST_DOMAIN", s.names.trust_domain);
  env(c, "CLUSTER_ID", s.names.cluster_id);
  env(c, "LOG_LEVEL", s.log_level);
  env(c, "STATE_DIR", kStateDir);
  const auto port = [&](std::string_view name, uint16_t number) {
    kube::ContainerPort* p = c->add_ports();
    p->set_name(std::string(name));
    p->set_container_port(number);
    p->set_protocol("TCP");
  };
  port("mesh", kHbonePort);
  port("metrics", 15020);
  port("status-port", kStatusPort);
  kube::Probe* ready = c->mutable_readiness_probe();
  ready->mutable_http_get()->set_path("/healthz/ready");
  ready->mutable_http_get()->mutable_port()->set_number(kStatusPort);
  ready->set_period_seconds(1);
  ready->set_failure_threshold(4);
  mount(c, "istio-token", kTokenDir);
  mount(c, "istiod-ca-cert", kRootDir);
  mount(c, "state", kStateDir, /*read_only=*/false);
}

void fill_volumes(kube::PodSpec* spec) {
  kube::Volume* token = spec->add_volumes();
  token->set_name("istio-token");
  auto* projection = token->mutable_projected()->add_sources()->mutable_service_account_token();
  projection->set_audience("istio-ca");
  projection->set_expiration_seconds(kTokenLifetimeSeconds);
  projection->set_path("istio-token");
  kube::Volume* root = spec->add_volumes();
  root->set_name("istiod-ca-cert");
  root->mutable_config_map()->set_name(std::string(kRootCertConfigMap));
  // The last good configuration and the own key outlive the container, not the pod: in memory, as a key
  // must not be on a disk.
  kube::Volume* state = spec->add_volumes();
  state->set_name("state");
  state->mutable_empty_dir()->mutable_medium()->set_string_value("Memory");
}

Object deployment_of(const Object& gateway, const WaypointSettings& settings) {
  Object object = Object::make(Kind::kDeployment, gateway.ns(), gateway.name());
  mark(&object, gateway);
  object.edit<kube::Deployment>([&](kube::Deployment& d) {
    const std::string name_label(kGatewayNameLabel);
    d.mutable_spec()->set_replicas(1);
    (*d.mutable_spec()->mutable_selector()->mutable_match_labels())[name_label] = gateway.name();
    kube::PodTemplateSpec* pod = d.mutable_spec()->mutable_template_();
    auto& labels = *pod->mutable_metadata()->mutable_labels();
    labels = object.meta().labels();
    // A waypoint terminates HBONE itself: it must never be captured, nor get a sidecar.
    labels["istio.io/dataplane-mode"] = "none";
    labels["sidecar.istio.io/inject"] = "false";
    labels["service.istio.io/canonical-name"] = gateway.name();
    labels["service.istio.io/canonical-revision"] = "latest";
    auto& annotations = *pod->mutable_metadata()->mutable_annotations();
    annotations["prometheus.io/port"] = "15020";
    annotations["prometheus.io/path"] = "/stats/prometheus";
    annotations["prometheus.io/scrape"] = "true";
    pod->mutable_spec()->set_service_account_name(service_account(gateway));
    pod->mutable_spec()->set_termination_grace_period_seconds(2);
    fill_container(pod->mutable_spec()->add_containers(), gateway, settings);
    fill_volumes(pod->mutable_spec());
  });
  return object;
}

Object service_of(const Object& gateway) {
  Object object = Object::make(Kind::kService, gateway.ns(), gateway.name());
  mark(&object, gateway);
  object.edit<kube::Service>([&](kube::Service& s) {
    (*s.mutable_spec()->mutable_selector())[std::string(kGatewayNameLabel)] = gateway.name();
    s.mutable_spec()->set_ip_family_policy("PreferDualStack");
    const auto port = [&](std::string_view name, uint16_t number, std::string_view protocol) {
      kube::ServicePort* p = s.mutable_spec()->add_ports();
      p->set_name(std::string(name));
      p->set_port(number);
      p->mutable_target_port()->set_number(number);
      p->set_protocol("TCP");
      if (!protocol.empty()) p->set_app_protocol(std::string(protocol));
    };
    port("status-port", kStatusPort, "");
    port("mesh", kHbonePort, "hbone");
  });
  return object;
}

Object root_cert_of(const Object& gateway, const WaypointSettings& settings) {
  Object object = Object::make(Kind::kConfigMap, gateway.ns(), kRootCertConfigMap);
  (*object.mutable_meta().mutable_labels())["istio.io/config"] = "true";
  object.edit<kube::ConfigMap>([&](kube::ConfigMap& map) {
    (*map.mutable_data())["root-cert.pem"] = settings.root_cert_pem;
  });
  return object;
}

bool has_hbone_listener(const kube::Gateway& gateway) {
  return gateway.spec().listeners_size() == 1 && gateway.spec().listeners(0).port() == kHbonePort &&
         gateway.spec().listeners(0).protocol() == "HBONE";
}

bool pod_ready(const Object& pod) {
  if (!pod.meta().deletion_timestamp().empty()) return false;
  for (const auto& condition : pod.as<kube::Pod>().status().conditions())
    if (condition.type() == "Ready") return condition.status() == "True";
  return false;
}

// The Service that carries the waypoint's traffic: of the Gateway's name, or the one that a manual
// Gateway names by hostname in its own namespace.
config::ObjectPtr service_for(const Object& gateway, const config::ObjectStore& store) {
  std::string name = gateway.name();
  for (const auto& address : gateway.as<kube::Gateway>().spec().addresses())
    if (address.type() == "Hostname") name = address.value().substr(0, address.value().find('.'));
  return store.find(Kind::kService, gateway.ns(), name);
}

class Conditions {
 public:
  Conditions(const google::protobuf::RepeatedPtrField<kube::Condition>& before, std::string_view now,
             int64_t generation)
      : before_(before), now_(now), generation_(generation) {}

  void add(google::protobuf::RepeatedPtrField<kube::Condition>* to, std::string_view type, bool status,
           std::string_view reason, std::string_view message) const {
    kube::Condition* c = to->Add();
    c->set_type(std::string(type));
    c->set_status(status ? "True" : "False");
    c->set_reason(std::string(reason));
    c->set_message(std::string(message));
    c->set_observed_generation(generation_);
    c->set_last_transition_time(std::string(now_));
    for (const auto& old : before_)
      if (old.type() == c->type() && old.status() == c->status() &&
          !old.last_transition_time().empty())
        c->set_last_transition_time(old.last_transition_time());
  }

 private:
  const google::protobuf::RepeatedPtrField<kube::Condition>& before_;
  std::string_view now_;
  int64_t generation_;
};

void add_address(kube::Gateway::Status* status, std::string_view type, const std::string& value) {
  kube::GatewayAddress* address = status->add_addresses();
  address->set_type(std::string(type));
  address->set_value(value);
}

}  // namespace

bool is_waypoint_class(std::string_view gateway_class) {
  return gateway_class == "meltemi-waypoint" || gateway_class == "istio-waypoint";
}

bool is_waypoint(const Object& gateway) {
  return gateway.kind() == Kind::kGateway &&
         is_waypoint_class(gateway.as<kube::Gateway>().spec().gateway_class_name());
}

bool is_managed(const Object& gateway) {
  if (!is_waypoint(gateway)) return false;
  const auto& addresses = gateway.as<kube::Gateway>().spec().addresses();
  return addresses.empty() || (addresses.size() == 1 && addresses[0].type() != "Hostname");
}

std::vector<Object> waypoint_objects(const Object& gateway, const WaypointSettings& settings) {
  if (!is_managed(gateway) || !has_hbone_listener(gateway.as<kube::Gateway>())) return {};
  std::vector<Object> objects;
  Object account = Object::make(Kind::kServiceAccount, gateway.ns(), service_account(gateway));
  mark(&account, gateway);
  objects.push_back(std::move(account));
  objects.push_back(root_cert_of(gateway, settings));
  objects.push_back(deployment_of(gateway, settings));
  objects.push_back(service_of(gateway));
  return objects;
}

kube::Gateway::Status gateway_status(const Object& gateway, const config::ObjectStore& store,
                                     std::string_view now, const WaypointSettings& settings) {
  const auto& body = gateway.as<kube::Gateway>();
  kube::Gateway::Status status;
  const Conditions conditions(body.status().conditions(), now, gateway.meta().generation());
  auto* list = status.mutable_conditions();
  if (!has_hbone_listener(body)) {
    constexpr std::string_view kMessage =
        "Expected a single listener on port 15008 with protocol \"HBONE\"";
    conditions.add(list, "Accepted", false, "ListenersNotValid", kMessage);
    conditions.add(list, "Programmed", false, "Invalid", kMessage);
    return status;
  }
  conditions.add(list, "Accepted", true, "Accepted", "Resource accepted");

  const config::ObjectPtr service = service_for(gateway, store);
  const std::string host = fmt::format("{}.{}.svc.{}", service ? service->name() : gateway.name(),
                                       gateway.ns(), settings.names.cluster_domain);
  bool ready = false;
  if (service)
    for (const auto& pod :
         store.pods_selected(gateway.ns(), service->as<kube::Service>().spec().selector()))
      ready = ready || pod_ready(*pod);
  const std::string ip = service ? service->as<kube::Service>().spec().cluster_ip() : "";
  const bool usable = service && ready && !ip.empty();
  if (usable)
    conditions.add(list, "Programmed", true, "Programmed",
                   fmt::format("Resource programmed, assigned to service(s) {}:{}", host, kHbonePort));
  else if (!service)
    conditions.add(list, "Programmed", false, "AddressNotUsable",
                   fmt::format("Failed to assign to any requested addresses: hostname \"{}\" not found",
                               host));
  else
    conditions.add(list, "Programmed", false, "AddressNotAssigned",
                   fmt::format("Service {} has no ready endpoint yet", host));

  // An address that was handed out stays: withdrawing it would send callers around the waypoint.
  if (usable && ip != "None") {
    add_address(&status, "IPAddress", ip);
    add_address(&status, "Hostname", host);
  } else if (usable) {
    add_address(&status, "Hostname", host);
  } else {
    *status.mutable_addresses() = body.status().addresses();
  }

  kube::GatewayListenerStatus* listener = status.add_listeners();
  listener->set_name(body.spec().listeners(0).name());
  const Conditions of_listener(body.status().listeners_size() == 1
                                   ? body.status().listeners(0).conditions()
                                   : body.status().conditions(),
                               now, gateway.meta().generation());
  of_listener.add(listener->mutable_conditions(), "Accepted", true, "Accepted", "No errors found");
  of_listener.add(listener->mutable_conditions(), "Conflicted", false, "NoConflicts",
                  "No errors found");
  of_listener.add(listener->mutable_conditions(), "Programmed", usable,
                  usable ? "Programmed" : "Pending", usable ? "No errors found" : "no ready endpoint");
  of_listener.add(listener->mutable_conditions(), "ResolvedRefs", true, "ResolvedRefs",
                  "No errors found");
  return status;
}

}  // namespace meltemi::control
