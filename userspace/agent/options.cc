// The agent's option table; see options.h.
#include "userspace/agent/options.h"

#include <fmt/format.h>

#include "userspace/base/address.h"
#include "userspace/xds/settings.h"

namespace meltemi::agent {
namespace {

std::unexpected<Error> bad(std::string_view flag, std::string_view what) {
  return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("--{}: {}", flag, what));
}

}  // namespace

ConfigTable option_table(Options& o) {
  ConfigTable table(
      "meltemi-agent",
      "Captures the traffic of a node's pods: loads the BPF programs, enrols pods and "
      "hands their listeners to ztunnel.");
  using std::chrono::hours;
  using std::chrono::milliseconds;
  o.logging.describe(table);
  table.text(&o.node_name, "node-name", "NODE_NAME",
            "Name of this node, as in spec.nodeName. Required.")
      .text(&o.node_ip, "node-ip", "INSTANCE_IP",
            "Address of this agent, told to the control plane.")
      .text(&o.pod_name, "pod-name", "POD_NAME", "Name of the agent's own pod.")
      .text(&o.pod_namespace, "pod-namespace", "POD_NAMESPACE", "Namespace of the agent's own pod.")
      .text(&o.run_dir, "run-dir", "AGENT_RUN_DIR",
            "Directory of agent.sock, ztunnel.sock and enrolments.json.")
      .text(
          &o.cgroup, "cgroup", "AGENT_CGROUP",
          "The node's cgroup v2 subtree, to which the hooks are attached: absolute, or relative to "
          "the cgroup2 mount; \"/\" is all of it.")
      .text(&o.prober_cgroup, "prober-cgroup", "AGENT_PROBER_CGROUP",
            "The kubelet's cgroup, absolute or relative to the cgroup2 mount: only its processes reach "
            "declared probe ports past policy. Empty: the kubelet's that is found in the node's network "
            "namespace; where none is found, nobody's.")
      .text(&o.bpf_dir, "bpf-dir", "AGENT_BPF_DIR",
            "Directory on a bpffs, for pinned maps and links.")
      .text(&o.xds_address, "xds-address", "XDS_ADDRESS",
            "Control plane, https://HOST:PORT; empty: only what enrolments.json says.")
      .text(&o.xds_root_ca, "xds-root-ca", "XDS_ROOT_CA", "Root certificate of the mesh, PEM file.")
      .text(&o.auth_token, "auth-token", "AUTH_TOKEN",
            "File with the bearer token; read again for every attempt.")
      .text(&o.cluster_id, "cluster-id", "CLUSTER_ID", "Name of the cluster.")
      .text(&o.trust_domain, "trust-domain", "TRUST_DOMAIN", "Trust domain of the mesh.")
      .text(&o.health_listen, "health-listen", "AGENT_HEALTH_LISTEN",
            "Address of /healthz/ready and /metrics; empty: none.")
      .text(&o.probe_v4, "probe-address-v4", "HOST_PROBE_SNAT_IP",
            "IPv4 source of probes of enrolled pods.")
      .text(&o.probe_v6, "probe-address-v6", "HOST_PROBE_SNAT_IPV6",
            "IPv6 source of probes of enrolled pods.")
      .number(&o.capture_mark, "capture-mark", "CAPTURE_MARK", "", 1, 0xffffffff,
              "Socket mark of captured connections; the same for ztunnel.")
      .number(&o.tunnel_mark, "tunnel-mark", "PACKET_MARK", "", 1, 0xffffffff,
              "Socket mark of ztunnel's own connections; the same for ztunnel.")
      .duration(&o.reconcile_interval, "reconcile-interval", "AGENT_RECONCILE_INTERVAL",
                milliseconds(100), hours(1),
                "How often the kernel's state is read back and mended.")
      .duration(&o.drain_timeout, "drain-timeout", "AGENT_DRAIN_TIMEOUT", Duration(0), hours(24),
                "How long un-enrolment waits for captured connections to end.")
      .duration(&o.add_timeout, "add-timeout", "AGENT_ADD_TIMEOUT", milliseconds(100),
                std::chrono::minutes(5), "How long a CNI ADD waits if it names no deadline.")
      .boolean(&o.uninstall, "uninstall", "",
               "Detach every hook, remove every pin and probe address, and exit.");
  xds::describe_max_stale_age(table, &o.max_stale_age);
  return table;
}

Status check(const Options& o) {
  if (o.node_name.empty() && !o.uninstall) return bad("node-name", "is required (NODE_NAME)");
  if (o.capture_mark == o.tunnel_mark)
    return bad("capture-mark",
               "must differ from --tunnel-mark: captured and own connections are "
               "told apart by it");
  const auto v4 = IpAddress::parse(o.probe_v4);
  if (!v4 || !v4->is_v4())
    return bad("probe-address-v4", fmt::format("\"{}\" is no IPv4 address", o.probe_v4));
  const auto v6 = IpAddress::parse(o.probe_v6);
  if (!v6 || v6->is_v4())
    return bad("probe-address-v6", fmt::format("\"{}\" is no IPv6 address", o.probe_v6));
  if (!o.health_listen.empty() && !SocketAddress::parse(o.health_listen))
    return bad("health-listen", fmt::format("\"{}\" is no ADDRESS:PORT", o.health_listen));
  return {};
}

}  // namespace meltemi::agent
