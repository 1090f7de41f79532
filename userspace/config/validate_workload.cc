// Pods, what makes pods, Services and Gateways: the checks of the Kubernetes API server that matter
// to the sandbox and the mesh, and the mesh's own on waypoint Gateways.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "userspace/base/address.h"
#include "userspace/config/check.h"
#include "userspace/config/mesh_keys.h"
#include "userspace/config/names.h"

namespace meltemi::config {
namespace {

void check_port_reference(Check& check, const std::string& field, const kube::IntOrString& port,
                          const std::set<std::string>& names) {
  if (port.value_case() == kube::IntOrString::kNumber) {
    check.port(field, port.number());
  } else if (!names.contains(port.text())) {
    check.error(field, fmt::format("no container port is named \"{}\"", port.text()),
                "Name one of the container's ports, or give a number");
  }
}

void check_probe(Check& check, const std::string& field, const kube::Probe& probe,
                 const std::set<std::string>& port_names) {
  int actions = probe.has_http_get() + probe.has_tcp_socket() + probe.has_exec();
  if (actions != 1) {
    check.error(field, "a probe needs exactly one of httpGet, tcpSocket, exec",
                actions == 0 ? "Add one" : "Keep one");
  }
  if (probe.has_http_get()) {
    check_port_reference(check, field + ".httpGet.port", probe.http_get().port(), port_names);
    const std::string& scheme = probe.http_get().scheme();
    if (!scheme.empty() && scheme != "HTTP" && scheme != "HTTPS") {
      check.error(field + ".httpGet.scheme", fmt::format("unknown scheme \"{}\"", scheme),
                  "Write HTTP or HTTPS");
    }
  }
  if (probe.has_tcp_socket()) {
    check_port_reference(check, field + ".tcpSocket.port", probe.tcp_socket().port(), port_names);
  }
  if (probe.has_exec() && probe.exec().command().empty()) {
    check.error(field + ".exec.command", "exec.command is required", "Give the command to run");
  }
  for (auto [name, value] : {std::pair{"initialDelaySeconds", probe.initial_delay_seconds()},
                             {"periodSeconds", probe.period_seconds()},
                             {"timeoutSeconds", probe.timeout_seconds()},
                             {"successThreshold", probe.success_threshold()},
                             {"failureThreshold", probe.failure_threshold()}}) {
    if (value < 0) {
      check.error(fmt::format("{}.{}", field, name), fmt::format("{} is negative", value),
                  "Give 0 or more");
    }
  }
}

// Where an environment variable may come from, as the sandbox's kubelet fills it.
bool is_known_field_path(std::string_view path) {
  for (std::string_view known :
       {"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
        "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP",
        "status.podIPs", "metadata.labels", "metadata.annotations"}) {
    if (path == known) return true;
  }
  return (path.starts_with("metadata.labels['") || path.starts_with("metadata.annotations['")) &&
         path.ends_with("']");
}

void check_field_ref(Check& check, const std::string& field,
                     const kube::ObjectFieldSelector& selector) {
  if (!selector.api_version().empty() && selector.api_version() != "v1") {
    check.error(field + ".apiVersion",
                fmt::format("\"{}\" is not the version of a pod", selector.api_version()),
                "Write v1");
  }
  if (is_known_field_path(selector.field_path())) return;
  check.error(field + ".fieldPath",
              fmt::format("unknown field path \"{}\"", selector.field_path()),
              "Use metadata.name, metadata.namespace, metadata.uid, spec.nodeName, "
              "spec.serviceAccountName, status.podIP or status.hostIP");
}

void check_env(Check& check, const std::string& field, const kube::EnvVar& env) {
  if (env.name().empty() || env.name().find('=') != std::string::npos) {
    check.error(field + ".name", "an environment variable needs a name without '='",
                "Give it a name");
  }
  if (!env.has_value_from()) return;
  const kube::EnvVarSource& from = env.value_from();
  int sources = from.has_field_ref() + from.has_config_map_key_ref() + from.has_secret_key_ref();
  if (sources != 1 || !env.value().empty()) {
    check.error(field, "a variable has either `value` or one source in `valueFrom`",
                "Keep one of them");
  }
  if (from.has_field_ref()) {
    check_field_ref(check, field + ".valueFrom.fieldRef", from.field_ref());
  }
}

// Kubernetes' quantity: digits, perhaps a fraction, and one suffix.
bool is_quantity(std::string_view text) {
  if (!text.empty() && (text[0] == '+' || text[0] == '-')) text.remove_prefix(1);
  const size_t end = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string_view number = text.substr(0, end);
  if (number.empty() || number == "." || std::count(number.begin(), number.end(), '.') > 1) {
    return false;
  }
  std::string_view suffix = text.substr(end);
  for (std::string_view known : {"", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi",
                                 "Ti", "Pi", "Ei"}) {
    if (suffix == known) return true;
  }
  if (suffix[0] != 'e' && suffix[0] != 'E') return false;  // an exponent
  suffix.remove_prefix(1);
  if (!suffix.empty() && (suffix[0] == '+' || suffix[0] == '-')) suffix.remove_prefix(1);
  return !suffix.empty() && suffix.find_first_not_of("0123456789") == std::string_view::npos;
}

// Not limited here, but a quantity that no Kubernetes would take is told here as it would be there.
void check_resources(Check& check, const std::string& field, const google::protobuf::Value& value) {
  for (const auto& [list, amounts] : value.struct_value().fields()) {
    if (list != "limits" && list != "requests") continue;
    for (const auto& [name, amount] : amounts.struct_value().fields()) {
      if (amount.kind_case() == google::protobuf::Value::kNumberValue) continue;
      if (is_quantity(amount.string_value())) continue;
      check.error(fmt::format("{}.{}.{}", field, list, name),
                  fmt::format("\"{}\" is not a quantity", amount.string_value()),
                  "Write a number with a suffix such as m, Ki, Mi or Gi");
    }
  }
}

// Processes have the capabilities of an ordinary container, whatever is asked for.
void check_security_context(Check& check, const std::string& field,
                            const google::protobuf::Value& value) {
  const auto& fields = value.struct_value().fields();
  auto privileged = fields.find("privileged");
  if (privileged == fields.end() || !privileged->second.bool_value()) return;
  check.warn(field + ".privileged",
             "has no effect: the container is run with an ordinary container's capabilities",
             "Do not rely on it", kCodeIgnoredField);
}

void check_container(Check& check, const std::string& field, const kube::Container& container,
                     const std::set<std::string>& volumes, std::set<std::string>* names) {
  if (!is_dns_label(container.name())) {
    check.error(field + ".name",
                fmt::format("\"{}\" is not a legal container name", container.name()),
                "Use lower-case letters, digits and '-'");
  } else if (!names->insert(container.name()).second) {
    check.error(field + ".name", fmt::format("container name {} is used twice", container.name()),
                "Rename one of the two");
  }
  check_resources(check, field + ".resources", container.resources());
  check_security_context(check, field + ".securityContext", container.security_context());
  std::set<std::string> port_names;
  for (int i = 0; i < container.ports_size(); ++i) {
    const kube::ContainerPort& port = container.ports(i);
    std::string inner = fmt::format("{}.ports[{}]", field, i);
    check.port(inner + ".containerPort", port.container_port());
    if (port.name().empty()) continue;
    if (!is_port_name(port.name())) {
      check.error(inner + ".name", fmt::format("\"{}\" is not a legal port name", port.name()),
                  "Use at most 15 lower-case letters, digits and '-', with at least one letter");
    } else if (!port_names.insert(port.name()).second) {
      check.error(inner + ".name", fmt::format("port name {} is used twice", port.name()),
                  "Rename one of the two");
    }
  }
  for (int i = 0; i < container.env_size(); ++i) {
    check_env(check, fmt::format("{}.env[{}]", field, i), container.env(i));
  }
  for (int i = 0; i < container.volume_mounts_size(); ++i) {
    const kube::VolumeMount& mount = container.volume_mounts(i);
    std::string inner = fmt::format("{}.volumeMounts[{}]", field, i);
    if (!volumes.contains(mount.name())) {
      check.error(inner + ".name", fmt::format("no volume is named \"{}\"", mount.name()),
                  "Add it to spec.volumes");
    }
    if (!mount.mount_path().starts_with('/')) {
      check.error(inner + ".mountPath", "a mount path must be absolute", "Start it with '/'");
    }
  }
  if (container.has_readiness_probe()) {
    check_probe(check, field + ".readinessProbe", container.readiness_probe(), port_names);
  }
  if (container.has_liveness_probe()) {
    check_probe(check, field + ".livenessProbe", container.liveness_probe(), port_names);
  }
  if (container.has_startup_probe()) {
    check_probe(check, field + ".startupProbe", container.startup_probe(), port_names);
  }
}

void check_downward(Check& check, const std::string& field,
                    const kube::DownwardApiVolumeSource& source) {
  for (int i = 0; i < source.items_size(); ++i) {
    check_field_ref(check, fmt::format("{}.items[{}].fieldRef", field, i),
                    source.items(i).field_ref());
  }
}

void refuse_mode(Check& check, const std::string& field) {
  check.error(field + ".defaultMode", "a projection has no mode of its own",
              "Give projected.defaultMode", kCodeRefusedField);
}

void check_volume(Check& check, const std::string& field, const kube::Volume& volume,
                  std::set<std::string>* names) {
  if (!is_dns_label(volume.name())) {
    check.error(field + ".name", fmt::format("\"{}\" is not a legal volume name", volume.name()),
                "Use lower-case letters, digits and '-'");
  } else if (!names->insert(volume.name()).second) {
    check.error(field + ".name", fmt::format("volume name {} is used twice", volume.name()),
                "Rename one of the two");
  }
  int sources = volume.has_empty_dir() + volume.has_config_map() + volume.has_secret() +
                volume.has_projected() + volume.has_downward_api();
  if (sources != 1) {
    check.error(field, "a volume needs exactly one source",
                "Give one of emptyDir, configMap, secret, projected, downwardAPI");
  }
  const auto& projections = volume.projected().sources();
  for (int i = 0; i < projections.size(); ++i) {
    const std::string inner = fmt::format("{}.projected.sources[{}]", field, i);
    for (const auto& [name, source] : {std::pair{"configMap", &projections[i].config_map()},
                                       {"secret", &projections[i].secret()}}) {
      if (source->default_mode() != 0) refuse_mode(check, fmt::format("{}.{}", inner, name));
    }
    if (projections[i].downward_api().default_mode() != 0) {
      refuse_mode(check, inner + ".downwardAPI");
    }
    check_downward(check, inner + ".downwardAPI", projections[i].downward_api());
  }
  check_downward(check, field + ".downwardAPI", volume.downward_api());
}

// What Kubernetes has in containers only: nobody would look at them in between.
void check_init_container(Check& check, const std::string& field,
                          const kube::Container& container) {
  for (const auto& [given, name] :
       {std::pair{container.has_readiness_probe(), "readinessProbe"},
        {container.has_liveness_probe(), "livenessProbe"},
        {container.has_startup_probe(), "startupProbe"}}) {
    if (!given) continue;
    check.error(fmt::format("{}.{}", field, name), "an init container has no probes",
                "Remove it, or make it a container", kCodeRefusedField);
  }
}

void check_pod_spec(Check& check, const std::string& field, const kube::PodSpec& spec) {
  if (spec.containers().empty()) {
    check.error(field + ".containers", "a pod needs at least one container", "Add one");
  }
  std::set<std::string> volumes;
  for (int i = 0; i < spec.volumes_size(); ++i) {
    check_volume(check, fmt::format("{}.volumes[{}]", field, i), spec.volumes(i), &volumes);
  }
  std::set<std::string> names;
  for (int i = 0; i < spec.init_containers_size(); ++i) {
    check_container(check, fmt::format("{}.initContainers[{}]", field, i), spec.init_containers(i),
                    volumes, &names);
    check_init_container(check, fmt::format("{}.initContainers[{}]", field, i),
                         spec.init_containers(i));
  }
  for (int i = 0; i < spec.containers_size(); ++i) {
    check_container(check, fmt::format("{}.containers[{}]", field, i), spec.containers(i), volumes,
                    &names);
  }
  const std::string& policy = spec.restart_policy();
  if (!policy.empty() && policy != "Always" && policy != "OnFailure" && policy != "Never") {
    check.error(field + ".restartPolicy", fmt::format("unknown restart policy \"{}\"", policy),
                "Write Always, OnFailure or Never");
  }
  if (spec.termination_grace_period_seconds() < 0) {
    check.error(field + ".terminationGracePeriodSeconds", "a grace period cannot be negative",
                "Give 0 or more");
  }
  for (auto [name, value] : {std::pair{"serviceAccountName", spec.service_account_name()},
                             {"nodeName", spec.node_name()}}) {
    if (!value.empty() && !is_dns_subdomain(value)) {
      check.error(fmt::format("{}.{}", field, name),
                  fmt::format("\"{}\" is not a legal name", value),
                  "Use lower-case letters, digits and '-'");
    }
  }
}

// Of a template's metadata the pods get labels and annotations.
void name_unused_template_fields(Check& check, const kube::ObjectMeta& meta) {
  std::vector<const google::protobuf::FieldDescriptor*> given;
  meta.GetReflection()->ListFields(meta, &given);
  for (const auto* field : given) {
    if (field->name() == "labels" || field->name() == "annotations") continue;
    check.warn(fmt::format("spec.template.metadata.{}", field->json_name()),
               "has no effect: pods get labels and annotations of the template, the rest is theirs",
               "Remove it", kCodeIgnoredField);
  }
}

void check_template(Check& check, const kube::PodTemplateSpec& pod_template) {
  check.labels("spec.template.metadata.labels", pod_template.metadata().labels());
  check_mesh_keys(check, Kind::kPod, "spec.template.metadata", pod_template.metadata());
  name_unused_template_fields(check, pod_template.metadata());
  check_pod_spec(check, "spec.template.spec", pod_template.spec());
}

void check_replicas(Check& check, int32_t replicas) {
  if (replicas < 0) check.error("spec.replicas", "replicas cannot be negative", "Give 0 or more");
}

void check_selector_selects_template(Check& check, const kube::LabelSelector& selector,
                                     const kube::PodTemplateSpec& pod_template) {
  if (!selector.match_expressions().empty()) {
    check.unsupported("spec.selector.matchExpressions", "matchExpressions");
  }
  if (selector.match_labels().empty()) {
    check.error("spec.selector.matchLabels", "a selector is required",
                "Repeat the labels of spec.template.metadata.labels");
    return;
  }
  for (const auto& [key, value] : selector.match_labels()) {
    auto found = pod_template.metadata().labels().find(key);
    if (found != pod_template.metadata().labels().end() && found->second == value) continue;
    check.error(fmt::format("spec.selector.matchLabels[{}]", key),
                "the selector does not match the template's labels",
                fmt::format("Add {}: {} to spec.template.metadata.labels", key, value));
  }
}

void check_always_restarts(Check& check, const kube::PodSpec& spec) {
  if (spec.restart_policy().empty() || spec.restart_policy() == "Always") return;
  check.error("spec.template.spec.restartPolicy",
              fmt::format("{} pods always restart", check.object().info().name),
              "Remove restartPolicy, or use a Job");
}

bool is_ip(std::string_view text) {
  return IpAddress::parse(text).has_value();
}

void check_service_port(Check& check, const std::string& field, const kube::ServicePort& port,
                        bool several, std::set<std::string>* names,
                        std::set<std::string>* numbers) {
  check.port(field + ".port", port.port());
  std::string protocol = port.protocol().empty() ? "TCP" : port.protocol();
  if (protocol != "TCP" && protocol != "UDP" && protocol != "SCTP") {
    check.error(field + ".protocol", fmt::format("unsupported protocol \"{}\"", protocol),
                "Write TCP, UDP or SCTP");
  }
  if (!numbers->insert(fmt::format("{}/{}", port.port(), protocol)).second) {
    check.error(field + ".port", fmt::format("port {} is listed twice", port.port()),
                "Remove one of the two");
  }
  if (port.name().empty()) {
    if (several)
      check.error(field + ".name", "a Service with several ports needs port names", "Name it");
  } else if (!is_dns_label(port.name())) {
    check.error(field + ".name", fmt::format("\"{}\" is not a legal port name", port.name()),
                "Use lower-case letters, digits and '-'");
  } else if (!names->insert(port.name()).second) {
    check.error(field + ".name", fmt::format("port name {} is used twice", port.name()),
                "Rename one of the two");
  }
  if (port.has_target_port() && port.target_port().value_case() == kube::IntOrString::kNumber) {
    check.port(field + ".targetPort", port.target_port().number());
  }
}

}  // namespace

void validate_pod(Check& check) {
  const kube::Pod& pod = check.object().as<kube::Pod>();
  check_pod_spec(check, "spec", pod.spec());
  for (int i = 0; i < pod.status().pod_ips_size(); ++i) {
    if (!is_ip(pod.status().pod_ips(i).ip())) {
      check.error(fmt::format("status.podIPs[{}].ip", i),
                  fmt::format("\"{}\" is not an IP address", pod.status().pod_ips(i).ip()),
                  "Let the node write the status");
    }
  }
  if (!pod.status().pod_ip().empty() && !is_ip(pod.status().pod_ip())) {
    check.error("status.podIP", fmt::format("\"{}\" is not an IP address", pod.status().pod_ip()),
                "Let the node write the status");
  }
}

void validate_deployment(Check& check) {
  const auto& spec = check.object().as<kube::Deployment>().spec();
  check_replicas(check, spec.replicas());
  check_selector_selects_template(check, spec.selector(), spec.template_());
  check_template(check, spec.template_());
  check_always_restarts(check, spec.template_().spec());
}

void validate_replica_set(Check& check) {
  const auto& spec = check.object().as<kube::ReplicaSet>().spec();
  check_replicas(check, spec.replicas());
  check_selector_selects_template(check, spec.selector(), spec.template_());
  check_template(check, spec.template_());
  check_always_restarts(check, spec.template_().spec());
}

void validate_job(Check& check) {
  const auto& spec = check.object().as<kube::Job>().spec();
  check_template(check, spec.template_());
  const std::string& policy = spec.template_().spec().restart_policy();
  if (policy != "Never" && policy != "OnFailure") {
    check.error("spec.template.spec.restartPolicy", "a Job's pods must not always restart",
                "Write Never or OnFailure");
  }
  for (auto [name, value] : {std::pair{"backoffLimit", spec.backoff_limit()},
                             {"completions", spec.completions()},
                             {"parallelism", spec.parallelism()}}) {
    if (value < 0) {
      check.error(fmt::format("spec.{}", name), fmt::format("{} is negative", value),
                  "Give 0 or more");
    }
  }
}

namespace {

// What needs a way in from outside, or an endpoint choice that is not made here. Each is said once,
// with what happens instead.
void name_unused_service_fields(Check& check, const kube::Service::Spec& spec) {
  const auto unused = [&check](bool given, std::string_view field, std::string_view effect) {
    if (!given) return;
    check.warn(fmt::format("spec.{}", field), fmt::format("has no effect: {}", effect),
               "Do not rely on it", kCodeIgnoredField);
  };
  constexpr std::string_view kInside = "the Service is reached from inside of the mesh only";
  unused(spec.type() == "LoadBalancer" || spec.type() == "NodePort", "type", kInside);
  unused(!spec.external_ips().empty(), "externalIPs", kInside);
  unused(!spec.load_balancer_ip().empty(), "loadBalancerIP", kInside);
  unused(!spec.load_balancer_class().empty(), "loadBalancerClass", kInside);
  unused(spec.health_check_node_port() != 0, "healthCheckNodePort", kInside);
  unused(spec.external_traffic_policy() == "Local", "externalTrafficPolicy", kInside);
  unused(!spec.load_balancer_source_ranges().empty(), "loadBalancerSourceRanges",
         "nobody is kept out by it; write an AuthorizationPolicy with ipBlocks");
  unused(!spec.external_name().empty(), "externalName", "the type is not ExternalName");
  unused(spec.has_session_affinity_config() && spec.session_affinity() != "ClientIP",
         "sessionAffinityConfig", "sessionAffinity is not ClientIP");
  for (int i = 0; i < spec.ports_size(); ++i) {
    unused(spec.ports(i).node_port() != 0, fmt::format("ports[{}].nodePort", i), kInside);
  }
}

template <size_t N>
void one_of(Check& check, std::string_view field, const std::string& value,
            const std::string_view (&allowed)[N]) {
  if (value.empty() || std::find(allowed, allowed + N, value) != allowed + N) return;
  check.error(fmt::format("spec.{}", field), fmt::format("unknown value \"{}\"", value),
              fmt::format("One of: {}", fmt::join(allowed, ", ")));
}

// sessionAffinityConfig: {clientIP: {timeoutSeconds: 1..86400}}, as Kubernetes has it.
void check_affinity_config(Check& check, const google::protobuf::Value& config) {
  const auto refuse = [&check](std::string field, std::string message) {
    check.error("spec." + field, std::move(message),
                "Write sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}, or leave it out");
  };
  // Null unless `value` has the one field `name` or none.
  const auto only = [&refuse](const google::protobuf::Value& value, const std::string& path,
                              const std::string& name) -> const google::protobuf::Value* {
    if (!value.has_struct_value()) return refuse(path, "not an object"), nullptr;
    for (const auto& [key, unknown] : value.struct_value().fields()) {
      if (key != name) return refuse(path, fmt::format("unknown field \"{}\"", key)), nullptr;
    }
    const auto it = value.struct_value().fields().find(name);
    return it == value.struct_value().fields().end() ? nullptr : &it->second;
  };
  const auto* client = only(config, "sessionAffinityConfig", "clientIP");
  const auto* timeout =
      client ? only(*client, "sessionAffinityConfig.clientIP", "timeoutSeconds") : nullptr;
  if (!timeout) return;
  const std::string field = "sessionAffinityConfig.clientIP.timeoutSeconds";
  const double seconds = timeout->number_value();
  if (!timeout->has_number_value() || !(seconds >= 1 && seconds <= 86400) ||
      seconds != std::floor(seconds)) {
    return refuse(field, "not a whole number of seconds from 1 to 86400");
  }
  check.warn("spec." + field,
             "is the least: a client keeps to its pod for as long as that is ready, however long it "
             "was silent",
             "Do not rely on the end", kCodeIgnoredField);
}

// A waypoint keeps a client to a pod; the sender's ztunnel, which balances where there is none, does not.
void check_affinity(Check& check, const kube::Service::Spec& spec) {
  if (spec.session_affinity() != "ClientIP") return;
  if (spec.has_session_affinity_config()) check_affinity_config(check, spec.session_affinity_config());
  const std::string_view waypoint = check.object().label("istio.io/use-waypoint");
  if (!waypoint.empty() && waypoint != "none") return;
  check.warn("spec.sessionAffinity",
             "has an effect behind a waypoint only: without one each connection may reach another pod",
             "Label the Service or its namespace istio.io/use-waypoint", kCodeIgnoredField);
}

void check_service_choices(Check& check, const kube::Service::Spec& spec) {
  static constexpr std::string_view kAffinity[] = {"None", "ClientIP"};
  static constexpr std::string_view kPolicy[] = {"Cluster", "Local"};
  static constexpr std::string_view kDistribution[] = {"PreferClose", "PreferSameZone",
                                                       "PreferSameNode"};
  static constexpr std::string_view kFamilies[] = {"SingleStack", "PreferDualStack",
                                                   "RequireDualStack"};
  one_of(check, "sessionAffinity", spec.session_affinity(), kAffinity);
  one_of(check, "internalTrafficPolicy", spec.internal_traffic_policy(), kPolicy);
  one_of(check, "externalTrafficPolicy", spec.external_traffic_policy(), kPolicy);
  one_of(check, "trafficDistribution", spec.traffic_distribution(), kDistribution);
  one_of(check, "ipFamilyPolicy", spec.ip_family_policy(), kFamilies);
  for (int i = 0; i < spec.ip_families_size(); ++i) {
    const std::string& family = spec.ip_families(i);
    if (family == "IPv4" || family == "IPv6") continue;
    check.error(fmt::format("spec.ipFamilies[{}]", i), fmt::format("unknown value \"{}\"", family),
                "Write IPv4 or IPv6");
  }
}

}  // namespace

void validate_service(Check& check) {
  const auto& spec = check.object().as<kube::Service>().spec();
  const std::string& type = spec.type();
  if (!type.empty() && type != "ClusterIP" && type != "NodePort" && type != "LoadBalancer" &&
      type != "ExternalName") {
    check.error("spec.type", fmt::format("unknown type \"{}\"", type),
                "Write ClusterIP, NodePort, LoadBalancer or ExternalName");
  }
  if (type == "ExternalName") {
    check.unsupported("spec.type", "type ExternalName");
    return;
  }
  bool headless = spec.cluster_ip() == "None";
  if (spec.ports().empty() && !headless) {
    check.error("spec.ports", "a Service needs at least one port", "Add one");
  }
  std::set<std::string> names;
  std::set<std::string> numbers;
  for (int i = 0; i < spec.ports_size(); ++i) {
    check_service_port(check, fmt::format("spec.ports[{}]", i), spec.ports(i),
                       spec.ports_size() > 1, &names, &numbers);
  }
  check.labels("spec.selector", spec.selector());
  check_service_choices(check, spec);
  name_unused_service_fields(check, spec);
  check_affinity(check, spec);
  if (!spec.cluster_ip().empty() && !headless && !is_ip(spec.cluster_ip())) {
    check.error("spec.clusterIP", fmt::format("\"{}\" is not an IP address", spec.cluster_ip()),
                "Give an address, \"None\", or leave it out");
  }
  for (int i = 0; i < spec.cluster_ips_size(); ++i) {
    if (is_ip(spec.cluster_ips(i)) || spec.cluster_ips(i) == "None") continue;
    check.error(fmt::format("spec.clusterIPs[{}]", i),
                fmt::format("\"{}\" is not an IP address", spec.cluster_ips(i)),
                "Give an address, or leave it out");
  }
}

namespace {

bool is_waypoint_class(std::string_view name) {
  return name == "istio-waypoint" || name == "meltemi-waypoint";
}

}  // namespace

namespace {

// Who may use a waypoint: an operator that nobody knows would let nobody in.
void check_namespace_selector(Check& check, const std::string& field,
                              const kube::LabelSelector& selector) {
  static constexpr std::string_view kOperators[] = {"In", "NotIn", "Exists", "DoesNotExist"};
  for (int i = 0; i < selector.match_expressions_size(); ++i) {
    const std::string& given = selector.match_expressions(i).operator_();
    if (std::find(std::begin(kOperators), std::end(kOperators), given) != std::end(kOperators)) {
      continue;
    }
    check.error(fmt::format("{}.matchExpressions[{}].operator", field, i),
                fmt::format("unknown operator \"{}\"", given),
                fmt::format("One of: {}", fmt::join(kOperators, ", ")));
  }
}

void name_unused_addresses(Check& check, const kube::Gateway::Spec& spec) {
  for (int i = 0; i < spec.addresses_size(); ++i) {
    if (i == 0 && spec.addresses(i).type() == "Hostname") continue;
    check.warn(fmt::format("spec.addresses[{}]", i),
               "has no effect: a waypoint has the address of its Service, or the one host name "
               "that comes first here",
               "Remove it", kCodeIgnoredField);
  }
}

}  // namespace

void validate_gateway(Check& check) {
  const Object& object = check.object();
  const auto& spec = object.as<kube::Gateway>().spec();
  if (spec.gateway_class_name().empty()) {
    check.error("spec.gatewayClassName", "a Gateway needs a class", "Write meltemi-waypoint");
    return;
  }
  std::set<std::string> names;
  for (int i = 0; i < spec.listeners_size(); ++i) {
    const auto& listener = spec.listeners(i);
    std::string field = fmt::format("spec.listeners[{}]", i);
    if (!is_dns_subdomain(listener.name())) {
      check.error(field + ".name", fmt::format("\"{}\" is not a legal name", listener.name()),
                  "Use lower-case letters, digits and '-'");
    } else if (!names.insert(listener.name()).second) {
      check.error(field + ".name", fmt::format("listener name {} is used twice", listener.name()),
                  "Rename one of the two");
    }
    check.port(field + ".port", listener.port());
    const std::string& from = listener.allowed_routes().namespaces().from();
    if (!from.empty() && from != "All" && from != "Same" && from != "Selector" && from != "None") {
      check.error(field + ".allowedRoutes.namespaces.from",
                  fmt::format("unknown value \"{}\"", from), "Write All, Same, Selector or None");
    }
    check_namespace_selector(check, field + ".allowedRoutes.namespaces.selector",
                             listener.allowed_routes().namespaces().selector());
  }
  if (!is_waypoint_class(spec.gateway_class_name())) {
    check.unsupported("spec.gatewayClassName", fmt::format("class {}", spec.gateway_class_name()));
    return;
  }
  if (object.name() == "none") {
    check.error("metadata.name", "`none` is a reserved waypoint name", "Choose another name");
  }
  if (spec.listeners_size() != 1 || spec.listeners(0).port() != 15008 ||
      spec.listeners(0).protocol() != "HBONE") {
    check.error("spec.listeners",
                "Expected a single listener on port 15008 with protocol \"HBONE\"",
                "Write: listeners: [{name: mesh, port: 15008, protocol: HBONE}]");
  }
  name_unused_addresses(check, spec);
  std::string_view traffic = object.label("istio.io/waypoint-for");
  if (!traffic.empty() && traffic != "service" && traffic != "workload" && traffic != "all" &&
      traffic != "none") {
    check.error("metadata.labels[istio.io/waypoint-for]",
                fmt::format("unknown traffic type \"{}\"", traffic),
                "Write service, workload, all or none");
  }
  std::string_view account = object.annotation("istio.io/for-service-account");
  if (!account.empty() && !is_dns_subdomain(account)) {
    check.error("metadata.annotations[istio.io/for-service-account]",
                fmt::format("\"{}\" is not a legal service account", account),
                "Name one service account of the Gateway's namespace");
  }
}

}  // namespace meltemi::config
