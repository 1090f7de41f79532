#include "userspace/config/kinds.h"

#include <algorithm>
#include <array>
#include <string>

#include "meltemi/kube/v1/kube.pb.h"

namespace meltemi::config {
namespace {

namespace kube = ::meltemi::kube::v1;
using namespace std::string_view_literals;

constexpr std::string_view kV1[] = {"v1"};
constexpr std::string_view kIstioNetworking[] = {"v1", "v1beta1", "v1alpha3"};
constexpr std::string_view kIstioSecurity[] = {"v1", "v1beta1"};
constexpr std::string_view kGatewayApi[] = {"v1", "v1beta1"};
constexpr std::string_view kNs[] = {"ns"};
constexpr std::string_view kNo[] = {"no"};
constexpr std::string_view kSa[] = {"sa"};
constexpr std::string_view kPo[] = {"po"};
constexpr std::string_view kDeploy[] = {"deploy"};
constexpr std::string_view kRs[] = {"rs"};
constexpr std::string_view kSvc[] = {"svc"};
constexpr std::string_view kCm[] = {"cm"};
constexpr std::string_view kVs[] = {"vs"};
constexpr std::string_view kDr[] = {"dr"};
constexpr std::string_view kAp[] = {"ap"};
constexpr std::string_view kPa[] = {"pa"};
constexpr std::string_view kGtw[] = {"gtw"};
constexpr std::string_view kGc[] = {"gc"};

const std::array<KindInfo, kKindCount>& table() {
  static const std::array<KindInfo, kKindCount> kinds = {{
      {Kind::kNamespace, "Namespace", "", kV1, "namespace", "namespaces", kNs, false,
       &kube::Namespace::default_instance()},
      {Kind::kNode, "Node", "", kV1, "node", "nodes", kNo, false,
       &kube::Node::default_instance()},
      {Kind::kServiceAccount, "ServiceAccount", "", kV1, "serviceaccount", "serviceaccounts", kSa,
       true, &kube::ServiceAccount::default_instance()},
      {Kind::kPod, "Pod", "", kV1, "pod", "pods", kPo, true, &kube::Pod::default_instance()},
      {Kind::kDeployment, "Deployment", "apps", kV1, "deployment", "deployments", kDeploy, true,
       &kube::Deployment::default_instance()},
      {Kind::kReplicaSet, "ReplicaSet", "apps", kV1, "replicaset", "replicasets", kRs, true,
       &kube::ReplicaSet::default_instance()},
      {Kind::kJob, "Job", "batch", kV1, "job", "jobs", {}, true, &kube::Job::default_instance()},
      {Kind::kService, "Service", "", kV1, "service", "services", kSvc, true,
       &kube::Service::default_instance()},
      {Kind::kConfigMap, "ConfigMap", "", kV1, "configmap", "configmaps", kCm, true,
       &kube::ConfigMap::default_instance()},
      {Kind::kSecret,
       "Secret",
       "",
       kV1,
       "secret",
       "secrets",
       {},
       true,
       &kube::Secret::default_instance()},
      {Kind::kVirtualService, "VirtualService", "networking.istio.io", kIstioNetworking,
       "virtualservice", "virtualservices", kVs, true, &kube::VirtualService::default_instance()},
      {Kind::kDestinationRule, "DestinationRule", "networking.istio.io", kIstioNetworking,
       "destinationrule", "destinationrules", kDr, true,
       &kube::DestinationRule::default_instance()},
      {Kind::kAuthorizationPolicy, "AuthorizationPolicy", "security.istio.io", kIstioSecurity,
       "authorizationpolicy", "authorizationpolicies", kAp, true,
       &kube::AuthorizationPolicy::default_instance()},
      {Kind::kPeerAuthentication, "PeerAuthentication", "security.istio.io", kIstioSecurity,
       "peerauthentication", "peerauthentications", kPa, true,
       &kube::PeerAuthentication::default_instance()},
      {Kind::kGateway, "Gateway", "gateway.networking.k8s.io", kGatewayApi, "gateway", "gateways",
       kGtw, true, &kube::Gateway::default_instance()},
      {Kind::kGatewayClass, "GatewayClass", "gateway.networking.k8s.io", kGatewayApi,
       "gatewayclass", "gatewayclasses", kGc, false, &kube::GatewayClass::default_instance()},
  }};
  return kinds;
}

// group -> kinds that people have in their manifests and that nothing here acts on yet.
struct Unsupported {
  std::string_view group;
  std::string_view kind;
};
constexpr Unsupported kUnsupported[] = {
    {"networking.istio.io", "Gateway"},
    {"networking.istio.io", "ServiceEntry"},
    {"networking.istio.io", "WorkloadEntry"},
    {"networking.istio.io", "WorkloadGroup"},
    {"networking.istio.io", "Sidecar"},
    {"networking.istio.io", "EnvoyFilter"},
    {"networking.istio.io", "ProxyConfig"},
    {"security.istio.io", "RequestAuthentication"},
    {"telemetry.istio.io", "Telemetry"},
    {"extensions.istio.io", "WasmPlugin"},
    {"extensions.istio.io", "TrafficExtension"},
    {"gateway.networking.k8s.io", "HTTPRoute"},
    {"gateway.networking.k8s.io", "GRPCRoute"},
    {"gateway.networking.k8s.io", "TCPRoute"},
    {"gateway.networking.k8s.io", "TLSRoute"},
    {"gateway.networking.k8s.io", "UDPRoute"},
    {"gateway.networking.k8s.io", "ReferenceGrant"},
    {"gateway.networking.k8s.io", "BackendTLSPolicy"},
    {"gateway.networking.k8s.io", "ListenerSet"},
    {"apps", "StatefulSet"},
    {"apps", "DaemonSet"},
    {"apps", "ControllerRevision"},
    {"batch", "CronJob"},
    {"", "Endpoints"},
    {"", "Event"},
    {"", "ReplicationController"},
    {"", "PersistentVolume"},
    {"", "PersistentVolumeClaim"},
    {"", "LimitRange"},
    {"", "ResourceQuota"},
    {"", "PodTemplate"},
    {"discovery.k8s.io", "EndpointSlice"},
    {"networking.k8s.io", "Ingress"},
    {"networking.k8s.io", "IngressClass"},
    {"networking.k8s.io", "NetworkPolicy"},
    {"autoscaling", "HorizontalPodAutoscaler"},
    {"policy", "PodDisruptionBudget"},
    {"rbac.authorization.k8s.io", "Role"},
    {"rbac.authorization.k8s.io", "RoleBinding"},
    {"rbac.authorization.k8s.io", "ClusterRole"},
    {"rbac.authorization.k8s.io", "ClusterRoleBinding"},
    {"apiextensions.k8s.io", "CustomResourceDefinition"},
    {"admissionregistration.k8s.io", "MutatingWebhookConfiguration"},
    {"admissionregistration.k8s.io", "ValidatingWebhookConfiguration"},
    {"scheduling.k8s.io", "PriorityClass"},
    {"storage.k8s.io", "StorageClass"},
    {"coordination.k8s.io", "Lease"},
};

struct GroupVersion {
  std::string_view group;
  std::string_view version;
};

GroupVersion split(std::string_view api_version) {
  size_t slash = api_version.find('/');
  if (slash == std::string_view::npos) return {"", api_version};
  return {api_version.substr(0, slash), api_version.substr(slash + 1)};
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

}  // namespace

std::string KindInfo::api_version() const {
  if (group.empty()) return std::string(versions[0]);
  return std::string(group) + '/' + std::string(versions[0]);
}

const KindInfo& kind_info(Kind kind) {
  return table()[static_cast<size_t>(kind)];
}

std::span<const KindInfo> all_kinds() {
  return table();
}

const KindInfo* find_kind(std::string_view api_version, std::string_view kind) {
  GroupVersion wanted = split(api_version);
  for (const KindInfo& info : table()) {
    if (info.name != kind || info.group != wanted.group) continue;
    for (std::string_view version : info.versions) {
      if (version == wanted.version) return &info;
    }
  }
  return nullptr;
}

const KindInfo* find_kind_word(std::string_view word) {
  std::string wanted = lower(word);
  size_t dot = wanted.find('.');
  std::string group = dot == std::string::npos ? "" : wanted.substr(dot + 1);
  if (dot != std::string::npos) wanted.resize(dot);
  for (const KindInfo& info : table()) {
    if (!group.empty() && group != info.group) continue;
    if (wanted == info.singular || wanted == info.plural) return &info;
    for (std::string_view name : info.short_names) {
      if (wanted == name) return &info;
    }
  }
  return nullptr;
}

bool is_known_unsupported(std::string_view api_version, std::string_view kind) {
  GroupVersion wanted = split(api_version);
  return std::any_of(std::begin(kUnsupported), std::end(kUnsupported), [&](const Unsupported& u) {
    return u.kind == kind && u.group == wanted.group;
  });
}

}  // namespace meltemi::config
