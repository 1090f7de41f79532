// The waypoint deployer: what a Gateway of a waypoint class wants to exist, and what its status is.
// Pure: objects in, objects out. It must never touch a Gateway of another class, nor an object that
// does not carry its own mark (label gateway.istio.io/managed).
//
// A managed Gateway yields a ServiceAccount, a Deployment and a Service of the Gateway's own name
// (Istio's shape, so that its tools and dashboards find them), and the ConfigMap with the mesh's root
// certificate in its namespace. A Gateway with a Hostname address is manual: it points at a Service
// that somebody else runs, and yields nothing.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/config/validate.h"

namespace meltemi::control {

inline constexpr std::string_view kManagedLabel = "gateway.istio.io/managed";
inline constexpr std::string_view kManagedBy = "istio.io-mesh-controller";
inline constexpr std::string_view kGatewayNameLabel = "gateway.networking.k8s.io/gateway-name";
inline constexpr std::string_view kGatewayClassLabel = "gateway.networking.k8s.io/gateway-class-name";
inline constexpr std::string_view kRootCertConfigMap = "istio-ca-root-cert";
inline constexpr uint16_t kHbonePort = 15008;
inline constexpr uint16_t kStatusPort = 15021;

struct WaypointSettings {
  std::string discovery_address = "https://meltemid.istio-system.svc:15012";
  std::string root_cert_pem;
  std::string image = "meltemi/waypoint";
  std::string log_level = "info";
  config::MeshNames names;
};

// meltemi-waypoint and istio-waypoint.
bool is_waypoint_class(std::string_view gateway_class);
bool is_waypoint(const config::Object& gateway);
// A waypoint Gateway that we deploy (no address, or one IP address).
bool is_managed(const config::Object& gateway);

// What must exist for a managed Gateway, in an order that can be applied. Empty for any other.
std::vector<config::Object> waypoint_objects(const config::Object& gateway,
                                             const WaypointSettings& settings);

// Status of a waypoint Gateway, from the objects as they are now: Accepted (a single HBONE listener on
// 15008), Programmed (a ready endpoint), addresses once it is programmed (and never withdrawn).
// `now` is RFC 3339; transition times of unchanged conditions are kept from the Gateway's own status.
config::kube::Gateway::Status gateway_status(const config::Object& gateway,
                                             const config::ObjectStore& store,
                                             std::string_view now, const WaypointSettings& settings);

}  // namespace meltemi::control
