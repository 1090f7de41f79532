// Questions about the mesh that several units ask: which waypoint serves an object, what a
// Service's ports are, where a pod is reachable, which mTLS mode holds. Internal to translation and
// analysis.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/config/view.h"
#include "workload/workload.pb.h"

namespace meltemi::config {

inline constexpr uint32_t kHbonePort = 15008;

bool is_waypoint_class(std::string_view gateway_class);
// A pod or Service that belongs to a waypoint: it never gets one itself.
bool is_waypoint_part(const Object& object);

// --- pods ---------------------------------------------------------------------------------------
std::vector<IpAddress> pod_ips(const Object& pod);  // status.podIPs, else podIP
bool pod_ended(const Object& pod);                  // Succeeded or Failed
bool pod_ready(const Object& pod);                  // Ready=True and not being deleted
std::string pod_service_account(const Object& pod);
std::string pod_workload_uid(const Object& pod,
                             const MeshNames& names);  // "Kubernetes//Pod/ns/name"
// Deployment, Job or the pod's own name, from the owner references.
std::string pod_workload_name(const Object& pod);
// True if ztunnel or the pod itself terminates HBONE on 15008.
bool pod_speaks_hbone(View& view, const Object& pod);

// --- services -----------------------------------------------------------------------------------
enum class Protocol : uint8_t { kUnknown, kHttp, kHttp2, kGrpc, kTcp, kTls };
bool is_tcp(const kube::ServicePort& port);
Protocol protocol_of(const kube::ServicePort& port);  // appProtocol, then the port's name
::istio::workload::AppProtocol wire_protocol(Protocol protocol);
std::vector<IpAddress> service_vips(const Object& service);  // none for headless
// Port of `pod` that `port` leads to; 0 if a named target port is not there.
uint32_t target_port(const kube::ServicePort& port, const Object& pod);

// --- waypoints ----------------------------------------------------------------------------------
struct WaypointBinding {
  bool bound = false;
  std::string ns;
  std::string gateway;
  // The Service that leads to it: the Gateway's own, or the one that a manual Gateway names in its
  // addresses (type Hostname).
  std::string host_ns;
  std::string host;
  // For status: why it is not bound although something asks for it. Empty if nothing does.
  std::string
      reason;  // WaypointAccepted, WaypointMissing, AttachmentDenied, UnsupportedTrafficType
  std::string message;
};
enum class Traffic : uint8_t { kService, kWorkload };
// The waypoint of a Service (kService) or Pod (kWorkload). Order: the object's own
// istio.io/use-waypoint, a Gateway for its service account, its namespace's istio.io/use-waypoint;
// `none` ends the search. A named waypoint that does not exist is still bound: traffic to it fails
// closed instead of passing by.
WaypointBinding resolve_waypoint(View& view, const Object& object, Traffic traffic);
void fill_gateway_address(const WaypointBinding& binding, ::istio::workload::GatewayAddress* out);

// --- mTLS ---------------------------------------------------------------------------------------
enum class MtlsMode : uint8_t { kUnset, kPermissive, kStrict };  // DISABLE counts as permissive
struct MtlsDecision {
  MtlsMode base = MtlsMode::kPermissive;  // never kUnset
  ObjectPtr ported;  // the workload policy whose portLevelMtls differs from base; may be null
};
// Mode that holds where no workload policy does: namespace, then root namespace.
MtlsMode inherited_mtls(View& view, std::string_view ns);
MtlsDecision mtls_of_pod(View& view, const Object& pod);
// The ports of a workload policy whose mode differs from what holds otherwise, sorted.
struct PortModes {
  MtlsMode base = MtlsMode::kPermissive;
  std::vector<uint32_t> strict;      // on a permissive base
  std::vector<uint32_t> permissive;  // on a strict base
  bool matters() const { return !strict.empty() || !permissive.empty(); }
};
PortModes port_modes(View& view, const Object& peer_authentication);
inline constexpr std::string_view kStrictPolicyName = "istio_converted_static_strict";
std::string converted_policy_name(const Object& peer_authentication);

// Whether `export_to` of an object in `ns` shows it to `consumer` namespace.
bool exported_to(const google::protobuf::RepeatedPtrField<std::string>& export_to,
                 std::string_view ns, std::string_view consumer);

}  // namespace meltemi::config
