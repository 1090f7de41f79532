// Everything that configures a waypoint process, with Istio's names where they exist. Must be the only
// place of this binary that knows an environment variable.
#pragma once

#include <string>

#include "userspace/base/config.h"
#include "userspace/base/log_settings.h"
#include "userspace/model/identity.h"
#include "userspace/rt/admission_settings.h"
#include "userspace/telemetry/operator_ports.h"
#include "userspace/telemetry/series_settings.h"
#include "userspace/xds/settings.h"

namespace meltemi::waypoint {

struct Settings {
  log::Settings logging;
  xds::ClientSettings discovery{.pod_name = "waypoint", .pod_namespace = "default"};
  telemetry::OperatorSettings operators;
  telemetry::SeriesSettings series;

  std::string service_account = "waypoint", gateway_name = "waypoint";
  std::string cluster_domain = "cluster.local";
  std::string static_config;  // a file instead of a control plane

  int64_t workers = 0;
  std::string io_backend = "auto";
  std::string hbone_listen = "[::]:15008";
  rt::AdmissionSettings admission;
  int64_t retry_buffer = 64 * 1024;
  int64_t stream_buffer = 64 * 1024;
  int64_t pipeline_buffer = 64 * 1024;
  int64_t held_bytes_limit = 256 << 20;
  Duration detect_timeout = std::chrono::seconds(1);
  Duration config_patience = std::chrono::seconds(2);
  Duration drain_timeout = std::chrono::seconds(30);
  Duration queue_timeout = std::chrono::seconds(60);
  Duration destination_wait = std::chrono::seconds(1);
  Duration destination_drain = std::chrono::seconds(5);
  std::string believed_forwarders;
  Duration credential_grace = std::chrono::hours(1);
  bool access_log = true;
  bool keys_on_disk = false;

  // The rows; `this` must outlive the table.
  void describe(ConfigTable& table);
  // What cannot be said by one row. Errors name the row and the fix.
  Status check() const;
  bool has_control_plane() const { return static_config.empty(); }
  Result<model::Identity> identity() const;
};

}  // namespace meltemi::waypoint
