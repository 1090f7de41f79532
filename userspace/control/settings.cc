// See settings.h.
#include "userspace/control/settings.h"

#include <fmt/format.h>

namespace meltemi::control {

ConfigTable Settings::table() {
  using std::chrono::hours;
  using std::chrono::minutes;
  using std::chrono::seconds;
  ConfigTable table("meltemid", "Meltemi's control plane: configuration, identity, enrolment.");
  table.text(&config_dir, "config-dir", "CONFIG_DIR",
             "Directory of Kubernetes manifests that is the mesh's configuration.")
      .text(&state_dir, "state-dir", "STATE_DIR",
            "Where generated objects and statuses are written; default CONFIG_DIR/state/control.")
      .list(&xds_listen, "xds-listen", "XDS_LISTEN",
            "Addresses of xDS, CA and node status with TLS; [::] is both families.")
      .list(&xds_plaintext_listen, "xds-plaintext-listen", "XDS_PLAINTEXT_LISTEN",
            "Loopback addresses of the same without TLS; none by default.")
      .list(&monitoring_listen, "monitoring-listen", "MONITORING_LISTEN",
            "Addresses of /metrics, /ready and /debug.")
      .text(&ca_dir, "ca-dir", "CA_DIR",
            "Directory of the mesh root, the issuer and their keys; created if absent.")
      .list(&token_public_key, "token-public-key", "TOKEN_PUBLIC_KEY",
            "Files of the keys that callers' bearer tokens are verified with: PEM or JSON Web Key Set, "
            "read again when they change.")
      .list(&token_issuers, "token-issuers", "TOKEN_ISSUERS",
            "Issuers (iss) whose tokens are accepted.")
      .list(&token_audiences, "token-audiences", "TOKEN_AUDIENCES",
            "Audiences (aud) of which a token needs one.")
      .text(&trust_domain, "trust-domain", "TRUST_DOMAIN", "SPIFFE trust domain of the mesh.")
      .text(&root_namespace, "root-namespace", "ROOT_NAMESPACE",
            "Namespace whose policies hold for the whole mesh.")
      .text(&cluster_id, "cluster-id", "CLUSTER_ID", "Name of this cluster in workload ids.")
      .text(&network, "network", "NETWORK", "Network of this cluster's workloads.")
      .duration(&cert_ttl, "cert-ttl", "CERT_TTL", seconds(10), hours(24 * 90),
                "Lifetime of workload certificates when the caller asks for none.")
      .duration(&max_cert_ttl, "max-cert-ttl", "MAX_CERT_TTL", seconds(10), hours(24 * 365),
                "Longest lifetime that a caller may ask for; a root rotation takes twice this long.")
      .number(&signing_burst, "signing-burst", "CA_SIGNING_BURST", "", 1, 100'000,
              "Certificates that one caller may have signed at once for one identity.")
      .duration(&signing_interval, "signing-interval", "CA_SIGNING_INTERVAL", Duration(0), hours(1),
                "After those, one more in this time; 0s is without a limit.")
      .list(&trusted_node_accounts, "trusted-node-accounts", "CA_TRUSTED_NODE_ACCOUNTS",
            "Service accounts (namespace/name) that may ask for identities of pods on their node.")
      .list(&agent_accounts, "agent-accounts", "AGENT_ACCOUNTS",
            "Service accounts (namespace/name) of node agents.")
      .text(&discovery_address, "discovery-address", "DISCOVERY_ADDRESS",
            "Address that waypoints are told to reach this control plane at.")
      .text(&waypoint_image, "waypoint-image", "WAYPOINT_IMAGE",
            "Image of the waypoint Deployments.")
      .list(&server_names, "server-names", "SERVER_NAMES",
            "Further DNS names in the server's own certificate.")
      .duration(&drain, "drain", "DRAIN", Duration(0), minutes(10),
                "How long running calls may take when the process ends.");
  table.duration(&max_connection_age, "max-connection-age", "MAX_CONNECTION_AGE", seconds(10),
                 hours(24 * 365),
                 "Age at which a client of xDS is asked to connect anew, +-10 %.");
  admission.describe(table);
  logging.describe(table);
  return table;
}

Status Settings::check() {
  const auto missing = [](std::string_view flag, std::string_view what) {
    return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("--{} is needed: {}", flag, what));
  };
  if (config_dir.empty()) return missing("config-dir", "the directory of manifests");
  if (ca_dir.empty()) return missing("ca-dir", "the directory of the mesh root");
  if (token_public_key.empty()) {
    return missing("token-public-key", "without it no caller can be told from another");
  }
  if (token_issuers.empty()) return missing("token-issuers", "the iss of the tokens");
  if (token_audiences.empty()) return missing("token-audiences", "the aud of the tokens");
  if (state_dir.empty()) state_dir = config_dir + "/state/control";
  MELTEMI_TRY(parse_listen("xds-listen", xds_listen));
  MELTEMI_TRY(parse_listen("xds-plaintext-listen", xds_plaintext_listen));
  MELTEMI_TRY(parse_listen("monitoring-listen", monitoring_listen));
  if (cert_ttl > max_cert_ttl) {
    return fail(Reason::kBadConfig, Fault::kConfig, "--cert-ttl is longer than --max-cert-ttl");
  }
  return {};
}

config::MeshNames Settings::names() const {
  config::MeshNames out;
  out.trust_domain = trust_domain;
  out.root_namespace = root_namespace;
  out.cluster_id = cluster_id;
  out.network = network;
  return out;
}

Result<std::vector<SocketAddress>> parse_listen(std::string_view flag,
                                                const std::vector<std::string>& addresses) {
  std::vector<SocketAddress> out;
  for (const std::string& text : addresses) {
    const auto address = SocketAddress::parse(text);
    if (!address) {
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("--{}: \"{}\" is not ADDRESS:PORT", flag, text));
    }
    out.push_back(*address);
  }
  return out;
}

}  // namespace meltemi::control
