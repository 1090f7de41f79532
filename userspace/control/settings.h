// What meltemid is told: flags, environment and their defaults in one table.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/config.h"
#include "userspace/base/error.h"
#include "userspace/base/log_settings.h"
#include "userspace/config/validate.h"
#include "userspace/control/signing_rate.h"
#include "userspace/pki/token.h"
#include "userspace/rt/admission_settings.h"
#include "userspace/xds/server.h"

namespace meltemi::control {

struct Settings {
  std::string config_dir;
  std::string state_dir;  // "": <config_dir>/state/control
  std::vector<std::string> xds_listen = {"[::]:15012"};
  std::vector<std::string> xds_plaintext_listen;
  std::vector<std::string> monitoring_listen = {"0.0.0.0:15014"};
  std::string ca_dir;
  std::vector<std::string> token_public_key;
  std::vector<std::string> token_issuers = {std::string(pki::kTokenIssuer)};
  std::vector<std::string> token_audiences = {std::string(pki::kTokenAudience)};
  std::string trust_domain = "cluster.local";
  std::string root_namespace = "istio-system";
  std::string cluster_id = "Kubernetes";
  std::string network;
  Duration cert_ttl = std::chrono::hours(24);
  // Nothing but its end ends a certificate yet, so longer wishes are cut to this; Istio cuts at 90 d.
  Duration max_cert_ttl = std::chrono::hours(24);
  int64_t signing_burst = SigningLimits().burst;
  Duration signing_interval = SigningLimits().interval;
  std::vector<std::string> trusted_node_accounts = {"istio-system/ztunnel"};
  std::vector<std::string> agent_accounts = {"istio-system/meltemi-agent"};
  std::string discovery_address = "https://meltemid.istio-system.svc:15012";
  std::string waypoint_image = "meltemi/waypoint";
  std::vector<std::string> server_names;  // more names for the server's certificate
  Duration drain = std::chrono::seconds(1);
  rt::AdmissionSettings admission;
  Duration max_connection_age = xds::ServerOptions().max_connection_age;
  log::Settings logging;

  ConfigTable table();  // REQUIRES: *this outlives it
  Status check();       // fills derived defaults. Error: kBadConfig, naming the flag
  config::MeshNames names() const;
};

// Each as HOST:PORT. Error kBadConfig names the flag.
Result<std::vector<SocketAddress>> parse_listen(std::string_view flag,
                                                const std::vector<std::string>& addresses);

}  // namespace meltemi::control
