// Start-up order of the agent: take over what is there, attach, serve; see agent.h.
#include "userspace/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <mutex>
#include <utility>

#include "userspace/agent/bpf_store.h"
#include "userspace/agent/capture.h"
#include "userspace/agent/control_link.h"
#include "userspace/agent/key_keeper.h"
#include "userspace/agent/local_server.h"
#include "userspace/agent/loop.h"
#include "userspace/agent/node.h"
#include "userspace/agent/node_probe.h"
#include "userspace/base/log.h"
#include "userspace/sys/files.h"
#include "userspace/telemetry/admission_metrics.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/pages.h"
#include "userspace/telemetry/staleness.h"
#include "userspace/xds/status_page.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("agent");

// How long a start waits for its own state file and /proc, and how often it looks.
constexpr Duration kRestorePatience = std::chrono::seconds(10);
constexpr int kRestoreRetryMs = 250;

ProbeAddresses probe_addresses(const Options& o) {
  return {*IpAddress::parse(o.probe_v4), *IpAddress::parse(o.probe_v6)};
}

BpfOptions bpf_options(const Options& o, uint64_t node_cookie) {
  BpfOptions out;
  out.directory = o.bpf_dir;
  out.capture_mark = static_cast<uint32_t>(o.capture_mark);
  out.tunnel_mark = static_cast<uint32_t>(o.tunnel_mark);
  out.probe_v4 = probe_addresses(o).v4;
  out.probe_v6 = probe_addresses(o).v6;
  out.node_netns_cookie = node_cookie;
  return out;
}

// One agent a run directory: two would undo each other's work.
Result<UniqueFd> lock_run_directory(const std::string& run_dir) {
  const std::string path = run_dir + "/agent.lock";
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return fail_errno(errno, "open " + path);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) < 0)
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("another meltemi-agent runs on {}", run_dir));
  return fd;
}

Result<UniqueFd> signal_fd() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return fail_errno(errno, "signalfd");
  return fd;
}

// Four descriptors a pod and one a kept key: more than the usual soft limit of 1024.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) scope.warn("the limit of descriptors stays");
}

// What the health server shows, copied from the loop's thread once a second.
class Gauges {
 public:
  void set(const Node::Numbers& numbers, const std::array<uint64_t, MELTEMI_COUNTERS>& counters,
           const KeyKeeper& keys) {
    const std::lock_guard lock(mutex_);
    keys_kept_ = keys.kept();
    keys_refused_ = keys.refused();
    numbers_ = numbers;
    counters_ = counters;
  }
  void collect(telemetry::Exposition& out) const {
    const std::lock_guard lock(mutex_);
    gauge(out, "meltemi_agent_pods", "Pods that the agent knows.", numbers_.pods);
    gauge(out, "meltemi_agent_pods_wanted", "Pods that are to be in the mesh.", numbers_.wanted);
    gauge(out, "meltemi_agent_pods_enrolled", "Pods that the kernel captures.", numbers_.enrolled);
    gauge(out, "meltemi_agent_pods_draining", "Pods that leave the mesh.", numbers_.draining);
    gauge(out, "meltemi_agent_pods_guarded", "Enrolled pods that the guard watches.",
          numbers_.guarded);
    gauge(out, "meltemi_agent_ztunnel_connected", "1 while a ztunnel is connected.",
          numbers_.ztunnel_connected);
    gauge(out, "meltemi_agent_prober_known", "1 while the kubelet's cgroup is known.",
          numbers_.prober_known);
    gauge(out, "meltemi_agent_keys_kept", "Certificates kept for ztunnel in memory files.",
          keys_kept_);
    out.family("meltemi_agent_keys_refused_total", telemetry::MetricType::kCounter,
               "Keys and packets of ztunnel that were not taken.");
    out.sample("meltemi_agent_keys_refused_total", keys_refused_);
    out.family("meltemi_agent_ztunnels_refused_total", telemetry::MetricType::kCounter,
               "Connections of ztunnels that take no listeners over ZDS.");
    out.sample("meltemi_agent_ztunnels_refused_total", numbers_.ztunnels_refused);
    out.family("meltemi_capture_events_total", telemetry::MetricType::kCounter,
               "What the BPF programs of this node did.");
    static constexpr std::string_view kLabels[] = {"event"};
    static constexpr std::string_view kEvents[MELTEMI_COUNTERS] = {
        "captured",        "excluded",           "capture_failed",     "probe_bound",
        "probe_failed",    "outbound_dropped",   "inbound_dropped",    "inbound_passed",
        "link_local_refused", "mark_refused",    "probe_passed",       "probe_refused",
        "guard_dropped",   "guard_unreadable"};
    for (size_t i = 0; i < MELTEMI_COUNTERS; ++i)
      out.sample("meltemi_capture_events_total", kLabels, {&kEvents[i], 1}, counters_[i]);
  }

  std::vector<std::pair<std::string, uint64_t>> counts() const {
    const std::lock_guard lock(mutex_);
    return {{"pods", numbers_.pods},
            {"wanted", numbers_.wanted},
            {"enrolled", numbers_.enrolled},
            {"guarded", numbers_.guarded},
            {"keysKept", keys_kept_},
            {"guardDropped", counters_[MELTEMI_COUNT_GUARD_DROPPED]},
            {"probesPassed", counters_[MELTEMI_COUNT_PROBE_PASSED]}};
  }

 private:
  static void gauge(telemetry::Exposition& out, std::string_view name, std::string_view help,
                    uint64_t value) {
    out.family(name, telemetry::MetricType::kGauge, help);
    out.sample(name, value);
  }
  mutable std::mutex mutex_;
  Node::Numbers numbers_;
  uint64_t keys_kept_ = 0, keys_refused_ = 0;
  std::array<uint64_t, MELTEMI_COUNTERS> counters_{};
};

void refresh_gauges(Loop& loop, const Node& node, const BpfStore& bpf, const KeyKeeper& keys,
                    Gauges& gauges) {
  if (const auto counters = bpf.counters()) gauges.set(node.numbers(), *counters, keys);
  loop.after(std::chrono::seconds(1), [l = &loop, n = &node, b = &bpf, k = &keys, g = &gauges] {
    refresh_gauges(*l, *n, *b, *k, *g);
  });
}

// Waits for what cannot be read to become readable; the kernel and ztunnel go on meanwhile.
Result<bool> restore(Node& node, int signals) {
  const MonoTime deadline = MonoClock::now() + kRestorePatience;
  for (bool said = false;;) {
    Result<bool> restored = node.restore();
    if (restored || restored.error().reason != Reason::kSystem) return restored;
    if (!std::exchange(said, true))
      scope.error("{}; tried again for {} s", restored.error().to_string(),
                  std::chrono::floor<std::chrono::seconds>(kRestorePatience).count());
    if (MonoClock::now() >= deadline) {
      restored.error().detail += "; nothing was changed. What lies there is not written over: move it away "
                                 "to start without it";
      return restored;
    }
    pollfd stop{signals, POLLIN, 0};
    if (::poll(&stop, 1, kRestoreRetryMs) > 0)
      return fail(Reason::kShutdown, Fault::kConfig, "stopped before the start was over");
  }
}

}  // namespace

Status run_agent(const Options& o) {
  MELTEMI_TRY(check(o));
  raise_descriptor_limit();
  MELTEMI_TRY(sys::make_directories(o.run_dir, 0700));
  const UniqueFd lock = MELTEMI_TRY(lock_run_directory(o.run_dir));
  const UniqueFd signals = MELTEMI_TRY(signal_fd());
  const sys::Cgroup cgroup = MELTEMI_TRY(sys::Cgroup::open_configured(o.cgroup));
  const sys::Netns home = MELTEMI_TRY(sys::Netns::current());
  const uint64_t cookie = MELTEMI_TRY(home.cookie());
  const uint64_t inode = MELTEMI_TRY(home.id()).inode;
  const std::unique_ptr<BpfStore> bpf =
      MELTEMI_TRY(BpfStore::load(bpf_options(o, cookie)));
  MELTEMI_TRY(set_up_probe_addresses(probe_addresses(o)));

  const std::unique_ptr<Loop> loop = MELTEMI_TRY(Loop::create());
  Capture capture(
      *bpf, {static_cast<uint32_t>(o.capture_mark), static_cast<uint32_t>(o.tunnel_mark)}, cookie);
  std::unique_ptr<ControlLink> control;
  NodeOptions node_options{.name = o.node_name,
                           .state_file = o.run_dir + "/enrolments.json",
                           .prober_cgroup = o.prober_cgroup,
                           .reconcile_interval = o.reconcile_interval,
                           .drain_timeout = o.drain_timeout,
                           .add_timeout = o.add_timeout};
  Node node(*loop, capture, *bpf, MELTEMI_TRY(sys::Cgroup::open_configured(o.cgroup)), inode,
            std::move(node_options), [&](const meltemi::node::v1::NodeReport& report) {
              if (control) control->report(report);
            });
  // Maps first, then the hooks that read them: a new layout takes over without a gap.
  const bool knows_all = MELTEMI_TRY(restore(node, signals.get()));
  MELTEMI_TRY(bpf->attach(cgroup));
  Status served;
  bool serves_ztunnel = false;
  const auto serve_ztunnel = [&] {
    if (std::exchange(serves_ztunnel, true)) return;
    served = node.serve_ztunnel(o.run_dir + "/ztunnel.sock");
    if (!served) loop->stop();
  };
  if (knows_all || o.xds_address.empty()) {
    serve_ztunnel();
    MELTEMI_TRY(served);
  } else {
    scope.warn("ztunnel goes on with the pods that it has until the control plane answers");
  }
  LocalServer local(*loop, [&](meltemi::local::v1::Request request, LocalServer::Reply reply) {
    node.handle(std::move(request), std::move(reply));
  });
  MELTEMI_TRY(local.listen(o.run_dir + "/agent.sock"));
  KeyKeeper keys(*loop);
  MELTEMI_TRY(keys.listen(o.run_dir + "/keys.sock"));
  node.start_reconciling();

  if (!o.xds_address.empty()) {
    control = std::make_unique<ControlLink>(o, *loop, [&](auto changed, const auto& removed, bool saved) {
      node.apply(std::move(changed), removed, saved);
      if (!saved) serve_ztunnel();
    });
    MELTEMI_TRY(control->start());
  } else {
    scope.warn("no --xds-address: pods are enrolled only as enrolments.json says");
  }

  Gauges gauges;
  telemetry::Registry registry;
  registry.add([&](telemetry::Exposition& out) {
    gauges.collect(out);
    if (!control) return;
    const xds::ClientStatus status = control->status();
    telemetry::add_staleness(out, xds::staleness(status, std::chrono::system_clock::now()),
                             status.serving_saved);
  });
  telemetry::Readiness readiness;
  readiness.check("xds", [&] {
    return !control || control->synced() ? "" : "the control plane has not answered yet";
  });
  readiness.note("control plane", [&] {
    return control ? xds::staleness_note(control->status(), std::chrono::system_clock::now()) : "";
  });
  http::Router pages;
  telemetry::add_metrics_routes(pages, registry);
  telemetry::add_readiness_route(pages, readiness);
  pages.route(
      "/status", "GET",
      [&](const http::Request&) {
        const auto verdict = readiness.verdict();
        xds::ProcessStatus status{.component = "meltemi-agent",
                                  .version = MELTEMI_VERSION,
                                  .ready = verdict.ready,
                                  .trouble = verdict.ready ? "" : verdict.text,
                                  .control_plane = {},
                                  .configuration = {},
                                  .certificates = {},
                                  .counts = gauges.counts(),
                                  .problems = {}};
        if (control) status.control_plane = control->status();
        return http::Response{200, xds::status_page(status, std::chrono::system_clock::now()),
                              "application/json"};
      },
      http::Access::kLoopback);
  http::Server health;
  telemetry::add_server_metrics(registry, health);
  telemetry::add_admission_metrics(registry, health.admission());
  refresh_gauges(*loop, node, *bpf, keys, gauges);
  if (!o.health_listen.empty()) {
    MELTEMI_TRY(health.listen(pages, *SocketAddress::parse(o.health_listen)));
    MELTEMI_TRY(health.start());
  }

  MELTEMI_TRY(loop->watch(signals.get(), EPOLLIN, [&](uint32_t) { loop->stop(); }));
  scope.info("agent of node {} serves {} (cgroup {}, pins {})", o.node_name, o.run_dir,
             cgroup.path(), bpf->version_directory());
  loop->run();
  scope.info("stops; captured pods go on");
  health.stop();
  control.reset();
  return served;
}

namespace {

// Errors before anything is changed: the file says which pods have routing and sysctls to be undone.
Status unenrol_all(Capture& capture, const std::string& state_file) {
  const KeptRecords kept = MELTEMI_TRY(read_records(state_file));
  if (!kept.problem.empty()) scope.error("{}", kept.problem);
  for (const PodRecord& r : kept.records) {
    if (r.netns_path.empty()) continue;
    Result<CapturedPod> pod = capture.open(r.netns_path, {});
    if (!pod) {  // its namespace is gone, and the routing with it
      scope.info("pod {}: {}", r.label(), pod.error().detail);
      continue;
    }
    pod->saved_sysctls = r.saved_sysctls;
    pod->probed_addresses = r.probed_addresses;
    pod->probed_ports = r.probed_ports;
    const Status status = pod->cookie == r.cookie ? capture.finish(*pod) : Status();
    if (!status) scope.error("pod {}: {}", r.label(), status.error().to_string());
  }
  ::unlink(state_file.c_str());
  return {};
}

}  // namespace

Status uninstall_agent(const Options& o) {
  MELTEMI_TRY(check(o));
  MELTEMI_TRY(sys::make_directories(o.run_dir, 0700));
  const UniqueFd lock = MELTEMI_TRY(lock_run_directory(o.run_dir));
  const uint64_t cookie = MELTEMI_TRY(MELTEMI_TRY(sys::Netns::current()).cookie());
  const std::unique_ptr<BpfStore> bpf =
      MELTEMI_TRY(BpfStore::load(bpf_options(o, cookie)));
  Capture capture(
      *bpf, {static_cast<uint32_t>(o.capture_mark), static_cast<uint32_t>(o.tunnel_mark)}, cookie);
  MELTEMI_TRY(unenrol_all(capture, o.run_dir + "/enrolments.json"));
  MELTEMI_TRY(bpf->uninstall());
  return remove_probe_addresses(probe_addresses(o));
}

}  // namespace meltemi::agent
