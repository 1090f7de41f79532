// The rows by which a proxy finds its control plane and certificate authority and says who it is, with
// Istio's names. Must not know what is then asked of them.
#pragma once

#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/config.h"
#include "userspace/xds/channel.h"
#include "userspace/xds/delta_client.h"
#include "userspace/xds/last_good.h"

namespace meltemi::xds {

struct ClientSettings {
  std::string pod_name, pod_namespace;
  std::string instance_ip, node_name, network;
  std::string cluster_id = "Kubernetes";
  std::string trust_domain = "cluster.local";

  std::string address = "https://istiod.istio-system.svc:15012";
  std::string root_ca = "./var/run/secrets/istio/root-cert.pem";
  std::string server_name;
  std::string ca_address;      // empty: as address
  std::string ca_root_ca;      // empty: as root_ca
  std::string ca_server_name;  // empty: as server_name
  std::string auth_token = "./var/run/secrets/tokens/istio-token";
  Duration secret_ttl = std::chrono::hours(24);
  std::string state_dir;  // of the last good configuration; "none": not kept
  Duration max_stale_age{};

  void describe(ConfigTable& table);  // the rows; `this` must outlive the table
  ChannelOptions control_plane() const;
  ChannelOptions certificate_authority() const;
  bool keeps_state() const { return !state_dir.empty() && state_dir != "none"; }
  // REQUIRES: keeps_state().
  LastGoodOptions last_good(std::string_view file, std::string subscriber) const;
  // The node that `role` ("ztunnel", "waypoint") says it is; metadata as above and SERVICE_ACCOUNT.
  Node node(std::string_view role, std::string_view service_account, std::string_view domain) const;
};

// The row of --max-stale-age, the same for whoever keeps a last good state.
void describe_max_stale_age(ConfigTable& table, Duration* age);

}  // namespace meltemi::xds
