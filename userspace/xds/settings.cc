// Rows, and what is derived from them; see settings.h.
#include "userspace/xds/settings.h"

#include <fmt/format.h>

namespace meltemi::xds {
namespace {

// Istio's stand-in where a process does not know its address.
constexpr std::string_view kUnknownIp = "1.1.1.1";

const std::string& either(const std::string& own, const std::string& general) {
  return own.empty() ? general : own;
}

}  // namespace

void ClientSettings::describe(ConfigTable& t) {
  t.text(&pod_name, "pod-name", "POD_NAME", "Own pod.");
  t.text(&pod_namespace, "pod-namespace", "POD_NAMESPACE", "Own namespace.");
  t.text(&instance_ip, "instance-ip", "INSTANCE_IP", "Own address, for the xDS node id.");
  t.text(&node_name, "node-name", "NODE_NAME", "Own node.");
  t.text(&network, "network", "NETWORK", "Network of this node.");
  t.text(&cluster_id, "cluster-id", "CLUSTER_ID", "Cluster of this node.");
  t.text(&trust_domain, "trust-domain", "TRUST_DOMAIN", "Trust domain of local identities.");
  t.text(&address, "xds-address", "XDS_ADDRESS", "Control plane; empty: none.");
  t.text(&root_ca, "xds-root-ca", "XDS_ROOT_CA", "PEM file, inline PEM, or SYSTEM.");
  t.text(&server_name, "xds-server-name", "ALT_XDS_HOSTNAME",
         "Name expected in the control plane's certificate instead of its address.");
  t.text(&ca_address, "ca-address", "CA_ADDRESS",
         "Certificate authority; empty: as the control plane.");
  t.text(&ca_root_ca, "ca-root-ca", "CA_ROOT_CA", "As --xds-root-ca, for the CA; empty: the same.");
  t.text(&ca_server_name, "ca-server-name", "ALT_CA_HOSTNAME",
         "Name expected in the CA's certificate instead of its address.");
  t.text(&auth_token, "auth-token", "AUTH_TOKEN", "File with the bearer token.");
  t.duration(&secret_ttl, "secret-ttl", "SECRET_TTL", std::chrono::seconds(10),
             std::chrono::hours(24 * 365), "Lifetime asked for in certificate requests.");
  t.text(&state_dir, "state-dir", "STATE_DIR",
         "Directory of the last good configuration, served when the control plane is away at a "
         "start; empty: ztunnel's is beside its ZDS socket, a waypoint has none; none: not kept.");
  describe_max_stale_age(t, &max_stale_age);
}

// No limit by default: what is refused is not served, and certificates, which end by themselves, bound
// how long a node without a control plane carries traffic.
void describe_max_stale_age(ConfigTable& t, Duration* age) {
  t.duration(age, "max-stale-age", "MAX_STALE_AGE", Duration::zero(),
             std::chrono::hours(24 * 365),
             "Refuse the last good configuration at a start when the control plane's last word is "
             "older, and serve nothing until it answers; 0s: any age is used.");
}

LastGoodOptions ClientSettings::last_good(std::string_view file, std::string subscriber) const {
  LastGoodOptions out;
  out.path = fmt::format("{}/{}", state_dir, file);
  out.owner = {std::move(subscriber), node_name, cluster_id, trust_domain};
  out.max_age = max_stale_age;
  return out;
}

ChannelOptions ClientSettings::control_plane() const {
  ChannelOptions out;
  out.address = address;
  out.root_ca = root_ca;
  out.token_file = auth_token;
  out.server_name = server_name;
  out.cluster_id = cluster_id;
  return out;
}

ChannelOptions ClientSettings::certificate_authority() const {
  ChannelOptions out = control_plane();
  out.address = either(ca_address, address);
  out.root_ca = either(ca_root_ca, root_ca);
  out.server_name = either(ca_server_name, server_name);
  return out;
}

Node ClientSettings::node(std::string_view role, std::string_view service_account,
                          std::string_view domain) const {
  Node out = make_node(role, instance_ip.empty() ? kUnknownIp : std::string_view(instance_ip),
                       pod_name, pod_namespace, domain);
  out.metadata = {{"NAME", pod_name},
                  {"NAMESPACE", pod_namespace},
                  {"NODE_NAME", node_name},
                  {"INSTANCE_IPS", instance_ip},
                  {"SERVICE_ACCOUNT", std::string(service_account)},
                  {"CLUSTER_ID", cluster_id}};
  return out;
}

}  // namespace meltemi::xds
