// Everything that configures a waypoint process, with Istio's names where they exist. Must be the only
// place of this binary that knows an environment variable.
#pragma once

#include <string>

#include "userspace/base/config.h"
#include "userspace/model/identity.h"

namespace meltemi::waypoint {

struct Settings {
  std::string log_level = "info";
  std::string log_format = "plain";

  std::string pod_name = "waypoint", pod_namespace = "default", service_account = "waypoint";
  std::string instance_ip, gateway_name = "waypoint";
  std::string trust_domain = "cluster.local", cluster_id = "Kubernetes", network, node_name;
  std::string cluster_domain = "cluster.local";

  std::string xds_address = "https://istiod.istio-system.svc:15012";
  std::string xds_root_ca = "./var/run/secrets/istio/root-cert.pem";
  std::string xds_server_name;
  std::string ca_address;  // empty: as xds_address
  std::string ca_root_ca;
  std::string ca_server_name;
  std::string auth_token = "./var/run/secrets/tokens/istio-token";
  Duration secret_ttl = std::chrono::hours(24);
  std::string static_config;  // a file instead of a control plane

  int64_t workers = 0;
  std::string io_backend = "auto";
  std::string hbone_listen = "[::]:15008";
  int64_t max_connections = 20'000;
  int64_t retry_buffer = 64 * 1024;
  int64_t stream_buffer = 64 * 1024;
  int64_t pipeline_buffer = 64 * 1024;
  int64_t held_bytes_limit = 256 << 20;
  Duration detect_timeout = std::chrono::seconds(1);
  Duration config_patience = std::chrono::seconds(2);
  Duration drain_timeout = std::chrono::seconds(30);
  bool access_log = true;

  std::string admin_listen = "127.0.0.1:15000";
  std::string metrics_listen = "[::]:15020";
  std::string readiness_listen = "[::]:15021";

  // The rows; `this` must outlive the table.
  void describe(ConfigTable& table);
  // What cannot be said by one row. Errors name the row and the fix.
  Status check() const;
  bool has_control_plane() const { return static_config.empty(); }
  Result<model::Identity> identity() const;
};

}  // namespace meltemi::waypoint
