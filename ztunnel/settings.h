// Everything that configures a ztunnel process, with Istio's names where they exist. Must be the only
// place of this binary that knows an environment variable.
#pragma once

#include <cstdint>
#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/config.h"
#include "userspace/base/error.h"
#include "userspace/base/log_settings.h"
#include "userspace/rt/admission_settings.h"
#include "userspace/telemetry/operator_ports.h"
#include "userspace/telemetry/series_settings.h"
#include "userspace/xds/settings.h"

namespace meltemi::ztunnel {

inline constexpr uint16_t kReadinessPort = 15021;

struct Settings {
  log::Settings logging;
  xds::ClientSettings discovery{.pod_name = "ztunnel", .pod_namespace = "istio-system"};
  telemetry::OperatorSettings operators;
  telemetry::SeriesSettings series;

  // shared: pods are told by the agent over ZDS. dedicated: one workload, own network namespace.
  std::string proxy_mode = "shared";
  std::string workload_info;  // dedicated: namespace/name/serviceaccount
  std::string zds_socket = "/var/run/ztunnel/ztunnel.sock";
  std::string local_xds_path;  // a file of workloads, services and policies
  std::string local_ca_dir;    // a certificate authority of its own, for tests and single machines

  std::string workers_text;
  std::string io_backend = "auto";
  int64_t packet_mark = 0x539;
  int64_t capture_mark = 0x6d31;
  std::string preserve_source = "auto";  // ENABLE_ORIG_SRC
  bool ipv6 = true;
  bool listener_fds = true;
  bool response_baggage = true;

  int64_t pool_max_streams = 100;
  Duration pool_idle = std::chrono::minutes(5);
  int64_t stream_window = 4 << 20;
  int64_t connection_window = 16 << 20;
  int64_t frame_size = 1 << 20;
  Duration connect_timeout = std::chrono::seconds(10);
  Duration credential_grace = std::chrono::hours(1);
  Duration config_patience = std::chrono::seconds(5);
  Duration idle_timeout{};
  bool keepalive = true;
  Duration keepalive_time = std::chrono::seconds(180);
  Duration keepalive_interval = std::chrono::seconds(180);
  int64_t keepalive_retries = 9;
  rt::AdmissionSettings admission;
  int64_t held_bytes_limit = 256 << 20;
  int64_t window_bytes_limit = int64_t{1} << 30;

  Duration drain_deadline{};                            // CONNECTION_TERMINATION_DEADLINE
  int64_t grace_seconds = 0;                            // TERMINATION_GRACE_PERIOD_SECONDS

  // The rows; `this` must outlive the table.
  void describe(ConfigTable& table);
  // What cannot be said by one row. Errors name the row and the fix.
  Status check() const;
  bool shared() const { return proxy_mode == "shared"; }
  // Where the last good configuration is kept: as told, else beside the ZDS socket; "": nowhere.
  std::string state_directory() const;
  // Where the agent keeps keys; "": nobody does.
  std::string key_socket() const;
  // "n", "n%" of the cores, "0" for all; default max(2, a quarter of the cores).
  Result<uint32_t> workers(uint32_t cores) const;
  // How long open connections may live after SIGTERM: the deadline, else from the pod's grace.
  Duration drain() const;
};

}  // namespace meltemi::ztunnel
