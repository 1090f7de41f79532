// What the agent can be told; one row each in its option table (--help, --config-reference).
#pragma once

#include <cstdint>
#include <string>

#include "bpf/abi.h"
#include "userspace/base/clock.h"
#include "userspace/base/config.h"
#include "userspace/base/log_settings.h"

namespace meltemi::agent {

struct Options {
  log::Settings logging;
  std::string node_name;
  std::string node_ip;
  std::string pod_name = "meltemi-agent";
  std::string pod_namespace = "istio-system";
  std::string run_dir = "/run/meltemi";
  std::string cgroup = "/";
  std::string prober_cgroup;
  std::string bpf_dir = "/sys/fs/bpf/meltemi";
  std::string xds_address;
  std::string xds_root_ca;
  std::string auth_token;
  std::string cluster_id = "Kubernetes";
  std::string trust_domain = "cluster.local";
  std::string health_listen = "127.0.0.1:15022";
  std::string probe_v4 = MELTEMI_PROBE_ADDRESS_V4;
  std::string probe_v6 = MELTEMI_PROBE_ADDRESS_V6;
  int64_t capture_mark = MELTEMI_CAPTURE_MARK;
  int64_t tunnel_mark = MELTEMI_TUNNEL_MARK;
  Duration reconcile_interval = std::chrono::seconds(5);
  Duration drain_timeout = std::chrono::seconds(60);
  Duration add_timeout = std::chrono::seconds(20);
  Duration max_stale_age{};  // of the last good decisions
  bool uninstall = false;
};

// Binds every row; `options` must outlive the table.
ConfigTable option_table(Options& options);
// What the table cannot check by itself. Errors name the flag.
Status check(const Options& options);

}  // namespace meltemi::agent
