#include "ztunnel/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace meltemi::ztunnel {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

Status one_of(std::string_view row, std::string_view value,
              std::initializer_list<std::string_view> accepted) {
  if (std::find(accepted.begin(), accepted.end(), value) != accepted.end()) return {};
  return bad(fmt::format("{} is \"{}\": use {}", row, value, fmt::join(accepted, ", ")));
}

}  // namespace

void Settings::describe(ConfigTable& t) {
  logging.describe(t);
  t.text(&proxy_mode, "proxy-mode", "PROXY_MODE",
         "shared: serve the pods that the agent names. dedicated: serve one workload in the own "
         "network namespace.");
  t.text(&workload_info, "workload-info", "PROXY_WORKLOAD_INFO",
         "Dedicated mode: namespace/name/serviceaccount of the workload.");
  t.text(&zds_socket, "zds-socket", "INPOD_UDS", "The agent's ZDS socket.");
  discovery.describe(t);
  t.text(&local_xds_path, "local-xds-path", "LOCAL_XDS_PATH",
         "YAML file with workloads, services and policies, read once.");
  t.text(&local_ca_dir, "local-ca-dir", "LOCAL_CA_DIR",
         "Sign certificates with the CA in this directory instead of asking one.");
  t.text(&workers_text, "worker-threads", "ZTUNNEL_WORKER_THREADS",
         "Data path threads: n, n% of the cores, 0 for all; default the larger of 2 and a quarter "
         "of the cores.");
  t.text(&io_backend, "io-backend", "IO_BACKEND", "auto, uring or epoll.");
  t.number(&packet_mark, "packet-mark", "PACKET_MARK", "", 1, 0xffffffff,
           "SO_MARK of every socket in a pod's network namespace.");
  t.number(&capture_mark, "capture-mark", "CAPTURE_MARK", "", 1, 0xffffffff,
           "SO_MARK of connections to the app that keep the client's address.");
  t.text(&preserve_source, "enable-orig-src", "ENABLE_ORIG_SRC",
         "Apps see the client's address: true, false, or auto (shared mode only).");
  t.boolean(&ipv6, "ipv6-enabled", "IPV6_ENABLED", "Listen on IPv6 as well.");
  t.boolean(&listener_fds, "zds-listener-fds", "ZDS_LISTENER_FDS",
            "Take the pods' listeners from the agent, where it offers them.");
  t.boolean(&response_baggage, "response-baggage", "ENABLE_RESPONSE_BAGGAGE",
            "Tell clients who answered, by the baggage header.");
  t.number(&pool_max_streams, "pool-max-streams", "POOL_MAX_STREAMS_PER_CONNECTION", "streams", 1,
           10000, "Streams of one tunnel before another is dialled.");
  t.duration(&pool_idle, "pool-unused-release-timeout", "POOL_UNUSED_RELEASE_TIMEOUT", seconds(1),
             hours(24), "How long an unused tunnel is kept.");
  t.number(&stream_window, "http2-stream-window", "HTTP2_STREAM_WINDOW_SIZE", "bytes", 65535,
           1 << 30, "The largest window of one stream.");
  t.number(&connection_window, "http2-connection-window", "HTTP2_CONNECTION_WINDOW_SIZE", "bytes",
           65535, 1 << 30, "The window of one tunnel.");
  t.number(&frame_size, "http2-frame-size", "HTTP2_FRAME_SIZE", "bytes", 16384, (1 << 24) - 1,
           "The largest HTTP/2 frame accepted.");
  t.duration(&connect_timeout, "connect-timeout", "CONNECT_TIMEOUT", milliseconds(10), hours(1),
             "Limit of every connect to an app, tunnel or outside address.");
  admission.describe(t);
  t.duration(&credential_grace, "credential-grace", "CREDENTIAL_GRACE", Duration::zero(),
             hours(24 * 365), "How long streams of a tunnel outlive its certificates; no new ones do.");
  t.duration(&config_patience, "config-patience", "CONFIG_PATIENCE", milliseconds(0), hours(1),
             "How long a new connection waits for its workload's configuration and certificate.");
  t.duration(&idle_timeout, "idle-timeout", "IDLE_TIMEOUT", Duration::zero(), hours(24 * 30),
             "Close flows on which nothing moved for this long; 0s: never.");
  t.boolean(&keepalive, "keepalive", "KEEPALIVE_ENABLED", "TCP keepalive on all connections.");
  t.duration(&keepalive_time, "keepalive-time", "KEEPALIVE_TIME", seconds(1), hours(24),
             "Silence before the first probe.");
  t.duration(&keepalive_interval, "keepalive-interval", "KEEPALIVE_INTERVAL", seconds(1), hours(1),
             "Time between probes.");
  t.number(&keepalive_retries, "keepalive-retries", "KEEPALIVE_RETRIES", "probes", 1, 127,
           "Unanswered probes before the connection is dead.");
  t.number(&held_bytes_limit, "held-bytes-limit", "HELD_BYTES_LIMIT", "bytes", 1 << 20,
           int64_t{1} << 40, "Memory for bytes that slow readers have not taken, all connections.");
  t.number(&window_bytes_limit, "window-bytes-limit", "WINDOW_BYTES_LIMIT", "bytes", 1 << 20,
           int64_t{1} << 40, "HTTP/2 windows granted beyond the first, all tunnels.");
  t.duration(&drain_deadline, "connection-termination-deadline", "CONNECTION_TERMINATION_DEADLINE",
             Duration::zero(), hours(24 * 7),
             "How long open connections may go on after SIGTERM; 0s: from the grace period.");
  t.number(&grace_seconds, "termination-grace-period", "TERMINATION_GRACE_PERIOD_SECONDS",
           "seconds", 0, 604800, "The pod's grace period.");
  series.describe(t, false);
  operators.describe(t);
}

Status Settings::check() const {
  MELTEMI_TRY(one_of("proxy-mode", proxy_mode, {"shared", "dedicated"}));
  MELTEMI_TRY(one_of("io-backend", io_backend, {"auto", "uring", "epoll"}));
  MELTEMI_TRY(one_of("enable-orig-src", preserve_source, {"auto", "true", "false"}));
  if (!shared() && std::count(workload_info.begin(), workload_info.end(), '/') != 2) {
    return bad(fmt::format("workload-info is \"{}\": dedicated mode needs "
                           "namespace/name/serviceaccount",
                           workload_info));
  }
  if (discovery.address.empty() && local_xds_path.empty()) {
    return bad("neither xds-address nor local-xds-path is set: no source of configuration");
  }
  if (discovery.ca_address.empty() && discovery.address.empty() && local_ca_dir.empty()) {
    return bad("none of ca-address, xds-address, local-ca-dir is set: no certificate authority");
  }
  MELTEMI_TRY(operators.check());
  MELTEMI_TRY(workers(1));
  return {};
}

Result<uint32_t> Settings::workers(uint32_t cores) const {
  cores = std::max(cores, 1u);
  if (workers_text.empty()) return std::max(2u, (cores + 3) / 4);
  std::string_view text = workers_text;
  const bool percent = text.ends_with('%');
  if (percent) text.remove_suffix(1);
  uint32_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || n > 1024) {
    return bad(fmt::format("worker-threads is \"{}\": use a number up to 1024, a percentage, or 0",
                           workers_text));
  }
  if (percent) return std::clamp((cores * n + 99) / 100, 1u, 1024u);
  return n == 0 ? cores : n;
}

namespace {

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
}

}  // namespace

std::string Settings::state_directory() const {
  if (discovery.keeps_state()) return discovery.state_dir;
  if (discovery.state_dir == "none" || !shared()) return {};
  return directory_of(zds_socket);
}

std::string Settings::key_socket() const {
  if (!shared() || !listener_fds) return {};
  return directory_of(zds_socket) + "/keys.sock";
}

Duration Settings::drain() const {
  if (drain_deadline > Duration::zero()) return drain_deadline;
  if (grace_seconds > 10) return seconds(grace_seconds - 5);
  if (grace_seconds > 0) return seconds(std::max<int64_t>(1, grace_seconds - 1));
  return seconds(5);
}

}  // namespace meltemi::ztunnel
