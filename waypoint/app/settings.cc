#include "waypoint/app/settings.h"

#include <fmt/format.h>

#include "userspace/base/address.h"

namespace meltemi::waypoint {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

}  // namespace

void Settings::describe(ConfigTable& t) {
  t.text(&log_level, "log-level", "LOG_LEVEL",
         "Level, and levels of scopes: info, or warn,access=info.");
  t.text(&log_format, "log-format", "LOG_FORMAT", "plain or json.");
  t.text(&pod_name, "pod-name", "POD_NAME", "Own pod.");
  t.text(&pod_namespace, "pod-namespace", "POD_NAMESPACE", "Own namespace.");
  t.text(&service_account, "service-account", "SERVICE_ACCOUNT",
         "Own service account; with the namespace it is the identity.");
  t.text(&instance_ip, "instance-ip", "INSTANCE_IP", "Own address, for the xDS node id.");
  t.text(&gateway_name, "gateway-name", "GATEWAY_NAME", "The Gateway object that this pod serves.");
  t.text(&trust_domain, "trust-domain", "TRUST_DOMAIN", "Trust domain of the own identity.");
  t.text(&cluster_id, "cluster-id", "CLUSTER_ID", "Cluster of this pod.");
  t.text(&cluster_domain, "cluster-domain", "CLUSTER_DOMAIN", "DNS domain, for the xDS node id.");
  t.text(&network, "network", "NETWORK", "Network of this pod.");
  t.text(&node_name, "node-name", "NODE_NAME", "Node of this pod.");
  t.text(&xds_address, "xds-address", "XDS_ADDRESS", "Control plane.");
  t.text(&xds_root_ca, "xds-root-ca", "XDS_ROOT_CA", "PEM file, inline PEM, or SYSTEM.");
  t.text(&xds_server_name, "xds-server-name", "ALT_XDS_HOSTNAME",
         "Name expected in the control plane's certificate instead of its address.");
  t.text(&ca_address, "ca-address", "CA_ADDRESS",
         "Certificate authority; empty: as the control plane.");
  t.text(&ca_root_ca, "ca-root-ca", "CA_ROOT_CA", "As --xds-root-ca, for the CA; empty: the same.");
  t.text(&ca_server_name, "ca-server-name", "ALT_CA_HOSTNAME",
         "Name expected in the CA's certificate instead of its address.");
  t.text(&auth_token, "auth-token", "AUTH_TOKEN", "File with the bearer token.");
  t.duration(&secret_ttl, "secret-ttl", "SECRET_TTL", seconds(10), hours(24 * 365),
             "Lifetime asked for in certificate requests.");
  t.text(&static_config, "static-config", "STATIC_CONFIG",
         "YAML or JSON file with listeners and clusters in Envoy's form; no control "
         "plane, no HBONE.");
  t.number(&workers, "worker-threads", "WAYPOINT_WORKER_THREADS", "threads", 0, 1024,
           "Data path threads; 0: one per core.");
  t.text(&io_backend, "io-backend", "IO_BACKEND", "auto, uring or epoll.");
  t.text(&hbone_listen, "hbone-listen", "HBONE_LISTEN", "Address of the HBONE port.");
  t.number(&max_connections, "max-connections", "MAX_CONNECTIONS", "connections", 1, 10'000'000,
           "Client connections of one worker; more are refused.");
  t.number(&retry_buffer, "retry-buffer-bytes", "RETRY_BUFFER_BYTES", "bytes", 0, 64 << 20,
           "How much of a request body is kept for a retry; a larger one is not retried.");
  t.number(&stream_buffer, "stream-buffer-bytes", "STREAM_BUFFER_BYTES", "bytes", 4096, 64 << 20,
           "Bytes of one HTTP/2 stream that may wait for a slow reader.");
  t.number(&pipeline_buffer, "pipeline-buffer-bytes", "PIPELINE_BUFFER_BYTES", "bytes", 4096,
           64 << 20, "Bytes of pipelined HTTP/1 requests that may wait for their turn.");
  t.number(&held_bytes_limit, "held-bytes-limit", "HELD_BYTES_LIMIT", "bytes", 1 << 20,
           int64_t{1} << 40, "Memory for bytes that slow readers have not taken, all connections.");
  t.duration(&detect_timeout, "detect-timeout", "DETECT_TIMEOUT", milliseconds(1), seconds(60),
             "Silence after which a client of a port of unknown protocol is taken for TCP.");
  t.duration(&config_patience, "config-patience", "CONFIG_PATIENCE", milliseconds(0), seconds(60),
             "How long a new configuration waits for the routes and endpoints that it names.");
  t.duration(&drain_timeout, "drain-timeout", "DRAIN_TIMEOUT", seconds(0), hours(24),
             "How long requests under way may go on after SIGTERM.");
  t.boolean(&access_log, "access-log", "ACCESS_LOG", "One line for every request.");
  t.text(&admin_listen, "admin-listen", "ADMIN_LISTEN", "Address of /config_dump and the like.");
  t.text(&metrics_listen, "metrics-listen", "METRICS_LISTEN", "Address of /metrics.");
  t.text(&readiness_listen, "readiness-listen", "READINESS_LISTEN", "Address of /healthz/ready.");
}

Status Settings::check() const {
  if (log_format != "plain" && log_format != "json") {
    return bad(fmt::format("log-format is \"{}\": use plain or json", log_format));
  }
  if (io_backend != "auto" && io_backend != "uring" && io_backend != "epoll") {
    return bad(fmt::format("io-backend is \"{}\": use auto, uring or epoll", io_backend));
  }
  for (const auto& [row, value] : {std::pair("admin-listen", &admin_listen),
                                   std::pair("metrics-listen", &metrics_listen),
                                   std::pair("readiness-listen", &readiness_listen),
                                   std::pair("hbone-listen", &hbone_listen)}) {
    if (!SocketAddress::parse(*value)) {
      return bad(fmt::format("{} is \"{}\": use address:port", row, *value));
    }
  }
  if (has_control_plane() && xds_address.empty()) {
    return bad("xds-address is empty and static-config is not set: no source of configuration");
  }
  if (has_control_plane()) MELTEMI_TRY(identity());
  return {};
}

Result<model::Identity> Settings::identity() const {
  return model::Identity::make(trust_domain, pod_namespace, service_account);
}

}  // namespace meltemi::waypoint
