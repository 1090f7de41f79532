#include "waypoint/app/settings.h"

#include <fmt/format.h>

#include "userspace/base/address.h"
#include "waypoint/proxy/forwarders.h"

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
  logging.describe(t);
  discovery.describe(t);
  t.text(&service_account, "service-account", "SERVICE_ACCOUNT",
         "Own service account; with the namespace it is the identity.");
  t.text(&gateway_name, "gateway-name", "GATEWAY_NAME", "The Gateway object that this pod serves.");
  t.text(&cluster_domain, "cluster-domain", "CLUSTER_DOMAIN", "DNS domain, for the xDS node id.");
  t.text(&static_config, "static-config", "STATIC_CONFIG",
         "YAML or JSON file with listeners and clusters in Envoy's form; no control "
         "plane, no HBONE.");
  t.number(&workers, "worker-threads", "WAYPOINT_WORKER_THREADS", "threads", 0, 1024,
           "Data path threads; 0: one per core.");
  t.text(&io_backend, "io-backend", "IO_BACKEND", "auto, uring or epoll.");
  t.text(&hbone_listen, "hbone-listen", "HBONE_LISTEN", "Address of the HBONE port.");
  admission.describe(t);
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
  t.duration(&queue_timeout, "queue-timeout", "QUEUE_TIMEOUT", milliseconds(1), hours(24),
             "How long a request waits for room at an endpoint: all connections that it allows are "
             "full, or it refuses streams.");
  t.duration(&destination_wait, "destination-wait", "DESTINATION_WAIT", seconds(0), seconds(60),
             "How long a connection to an address that is not served waits for the control plane to "
             "name it: its client may have heard of this waypoint first. 0: refused at once.");
  t.duration(&destination_drain, "destination-drain", "DESTINATION_DRAIN", seconds(0), hours(1),
             "How long an address that the control plane has taken away is still served to clients "
             "that have not heard of it yet; they are asked to come no more.");
  t.duration(&drain_timeout, "drain-timeout", "DRAIN_TIMEOUT", seconds(0), hours(24),
             "How long requests under way may go on after SIGTERM.");
  t.text(&believed_forwarders, "believed-forwarders", "BELIEVED_FORWARDERS",
         "SPIFFE IDs, separated by commas, of clients whose X-Forwarded-* and Forwarded go on to the "
         "app, e.g. an ingress controller's. Of others but the mesh's own waypoints they are "
         "replaced.");
  t.duration(&credential_grace, "credential-grace", "CREDENTIAL_GRACE", Duration::zero(),
             hours(24 * 365), "How long streams of a tunnel outlive its certificates; no new ones do.");
  t.boolean(&access_log, "access-log", "ACCESS_LOG", "One line for every request.");
  t.boolean(&keys_on_disk, "keys-on-disk", "KEYS_ON_DISK",
            "Keep the own key in state-dir even if that is not in memory (tmpfs).");
  series.describe(t, true);
  operators.describe(t);
}

Status Settings::check() const {
  if (io_backend != "auto" && io_backend != "uring" && io_backend != "epoll") {
    return bad(fmt::format("io-backend is \"{}\": use auto, uring or epoll", io_backend));
  }
  MELTEMI_TRY(operators.check());
  if (const auto named = Forwarders::parse(believed_forwarders); !named) {
    return bad("believed-forwarders: " + named.error().detail);
  }
  if (!SocketAddress::parse(hbone_listen)) {
    return bad(fmt::format("hbone-listen is \"{}\": use address:port", hbone_listen));
  }
  if (has_control_plane() && discovery.address.empty()) {
    return bad("xds-address is empty and static-config is not set: no source of configuration");
  }
  if (has_control_plane()) MELTEMI_TRY(identity());
  return {};
}

Result<model::Identity> Settings::identity() const {
  return model::Identity::make(discovery.trust_domain, discovery.pod_namespace, service_account);
}

}  // namespace meltemi::waypoint
