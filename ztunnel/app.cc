#include "ztunnel/app.h"

#include <fmt/format.h>

#include <mutex>
#include <sstream>
#include <thread>

#include "userspace/base/log.h"
#include "userspace/sys/confine.h"
#include "userspace/telemetry/admission_metrics.h"
#include "ztunnel/config_dump.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("app");

constexpr uint32_t kDescriptorsPerFlow = 2;  // its two ends

rt::Backend backend_of(const std::string& name) {
  return name == "uring"   ? rt::Backend::kUring
         : name == "epoll" ? rt::Backend::kEpoll
                           : rt::Backend::kAuto;
}

}  // namespace

App::App(const Settings& settings, const ConfigTable& table)
    : settings_(settings),
      table_(table),
      shared_{.held = {"held_bytes", static_cast<uint64_t>(settings.held_bytes_limit)},
              .windows = {"window_bytes", static_cast<uint64_t>(settings.window_bytes_limit)}} {}

App::~App() { shutdown([] { return true; }); }

Status App::start() {
  MELTEMI_TRY(settings_.check());
  doors_ = std::make_unique<Doors>(
      settings_.admission.options(rt::raise_descriptor_limit(), kDescriptorsPerFlow));
  shared_.doors = doors_.get();
  telemetry::add_admission_metrics(registry_, doors_->admission);
  telemetry::add_process_metrics(registry_, "ztunnel");
  pki::Signer signer = MELTEMI_TRY(make_signer(settings_));
  MELTEMI_TRY(start_workers());
  certificates_ = std::make_unique<Certificates>(settings_, std::move(signer), shared_);
  feed_ = std::make_unique<MeshFeed>(settings_, store_, registry_, readiness_);
  pods_ = std::make_unique<PodManager>(shared_, registry_);
  if (settings_.shared()) {
    zds_ = std::make_unique<ZdsClient>(settings_.zds_socket, settings_.listener_fds, *pods_,
                                       readiness_);
  }
  readiness_.check("pods", [this] { return shared_.port_watch.trouble(); });
  readiness_.note("pods", [this] { return shared_.port_watch.note(); });
  MELTEMI_TRY(start_operators());
  store_.on_change([this] { mesh_changed(); });
  certificates_->start();
  MELTEMI_TRY(feed_->start());
  if (!settings_.shared()) {
    std::string ns, name, account;
    std::istringstream parts(settings_.workload_info);
    std::getline(parts, ns, '/');
    std::getline(parts, name, '/');
    std::getline(parts, account, '/');
    MELTEMI_TRY(pods_->add_own(ns, name, account));
  }
  poll();
  scope.info("started: {} workers, {}, at most {} connections", pool_->size(),
             pool_->worker(0).loop().backend() == rt::Backend::kUring ? "io_uring" : "epoll",
             doors_->admission.options().descriptors / kDescriptorsPerFlow);
  return {};
}

Status App::start_workers() {
  const uint32_t count =
      MELTEMI_TRY(settings_.workers(std::max(1u, std::thread::hardware_concurrency())));
  rt::LoopOptions options;
  options.backend = backend_of(settings_.io_backend);
  pool_ = MELTEMI_TRY(rt::WorkerPool::start(count, "ztunnel", options));
  MELTEMI_TRY(sys::no_more_rings());
  metrics_ = std::make_unique<telemetry::TcpMetrics>(registry_, count, settings_.series.tcp());
  registry_.add([this](telemetry::Exposition& out) { collect(out); });
  shared_.settings = &settings_;
  shared_.store = &store_;
  shared_.metrics = metrics_.get();
  shared_.pool = pool_.get();
  // Workers that ask before the manager is there wait for its first answer like everybody.
  shared_.want_certificate = [this](const model::Identity& identity) {
    if (certificates_) certificates_->want(identity, true);
  };
  shared_.workers.resize(count);
  pool_->run_on_all([this](rt::Worker& w) {
    shared_.workers[w.index()] = std::make_unique<ProxyWorker>(shared_, w);
  });
  return {};
}

Status App::start_operators() {
  operators_ = std::make_unique<telemetry::OperatorPorts>(&doors_->admission);
  operators_->admin().route("/config_dump", "GET",
                           [this](const http::Request&) { return dump(); },
                           http::Access::kLoopback);
  operators_->admin().route(
      "/status", "GET",
      [this](const http::Request&) {
        return http::Response{200, xds::status_page(status(), std::chrono::system_clock::now()),
                              "application/json"};
      },
      http::Access::kLoopback);
  telemetry::add_readiness_route(operators_->admin(), readiness_);
  operators_->admin().route("/", "GET", [](const http::Request&) {
    return http::Response{200,
                          "GET  /config_dump            workloads, services, policies, certificates, "
                          "connections: what istioctl ztunnel-config reads\n"
                          "GET  /healthz/ready          whether it serves, and what is pending\n"
                          "GET  /status                 in step with the control plane or since when "
                          "not, certificates, counts\n"
                          "POST /logging                the log's levels; ?level=debug or "
                          "?level=access=debug changes, ?reset\n"
                          "POST /quitquitquit           drains and ends the process\n"};
  });
  return operators_->start(settings_.operators, registry_, readiness_, settings_.logging.levels,
                          [this] { quit_ = true; });
}

// On the thread that applies configuration.
void App::mesh_changed() {
  certificates_->follow(*store_.snapshot());
  for (size_t i = 0; i < pool_->size(); ++i) {
    ProxyWorker* worker = shared_.workers[i].get();
    pool_->worker(i).post([worker] { worker->mesh_changed(); });
  }
}

void App::poll() {
  doors_->admission.sweep(MonoClock::now());
  // Connections that come before the mesh is known could only wait or fail: let them queue.
  if (zds_ && !zds_started_ && feed_->synced()) {
    zds_started_ = true;
    zds_->start();
  }
  if (feed_->synced()) certificates_->drop_unclaimed(MonoClock::now());
  shared_.port_watch.poll(*pods_, MonoClock::now());
}

void App::shutdown(const std::function<bool()>& urgent) {
  if (!pool_) return;
  scope.info("shutting down; open connections have {}", format_duration(settings_.drain()));
  if (zds_) zds_->stop();
  if (pods_) pods_->stop_listening();
  pool_->run_on_all([this](rt::Worker& w) { shared_.workers[w.index()]->drain(); });
  const MonoTime deadline = MonoClock::now() + settings_.drain();
  while (shared_.connections.load() > 0 && MonoClock::now() < deadline && !urgent()) {
    doors_->admission.sweep(MonoClock::now());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  if (const int64_t left = shared_.connections.load()) scope.warn("cutting {} connections", left);
  pool_->run_on_all(
      [this](rt::Worker& w) { shared_.workers[w.index()]->cut(Reason::kShutdown); });
  if (feed_) feed_->stop();
  if (certificates_) certificates_->stop();
  // Operators look at the workers: they go first.
  if (operators_) operators_->stop();
  pool_->run_on_all([this](rt::Worker& w) { shared_.workers[w.index()].reset(); });
  pool_->stop();
  pool_.reset();
  scope.info("stopped");
}

xds::ProcessStatus App::status() const {
  const auto verdict = readiness_.verdict();
  const model::SnapshotPtr mesh = store_.snapshot();
  xds::ProcessStatus out{.component = "ztunnel",
                         .version = MELTEMI_VERSION,
                         .ready = verdict.ready,
                         .trouble = verdict.ready ? "" : verdict.text,
                         .control_plane = feed_->control_plane(),
                         .configuration = fmt::to_string(mesh->version()),
                         .certificates = xds::ProcessStatus::Certificates(),
                         .counts = {{"pods", pods_->uids().size()},
                                    {"connections", static_cast<uint64_t>(shared_.connections.load())},
                                    {"workloads", mesh->workload_count()},
                                    {"policies", mesh->policy_count()}},
                         .problems = {}};
  uint64_t services = 0;
  mesh->each_service([&](const model::ServiceEntry&) { ++services; });
  out.counts.emplace_back("services", services);
  for (const pki::CertificateEntry& entry : certificates_->entries()) {
    const bool any = entry.certificate && !entry.certificate->chain.empty();
    out.certificates->add(any ? entry.certificate->chain[0].not_after() : WallTime::max());
  }
  return out;
}

http::Response App::dump() {
  const model::SnapshotPtr mesh = store_.snapshot();
  ConfigDumpInput input;
  input.mesh = mesh.get();
  std::mutex rows;
  pool_->run_on_all([&](rt::Worker& w) {
    std::vector<FlowRow> mine = shared_.workers[w.index()]->rows();
    std::lock_guard guard(rows);
    input.flows.insert(input.flows.end(), std::make_move_iterator(mine.begin()),
                       std::make_move_iterator(mine.end()));
  });
  input.pods = pods_->rows();
  input.certificates = certificates_->entries();
  input.config_json = table_.dump_json();
  input.control_plane = feed_->control_plane();
  return {200, config_dump(input), "application/json"};
}

void App::collect(telemetry::Exposition& out) const {
  using telemetry::MetricType;
  const auto one = [&](std::string_view name, MetricType type, std::string_view help, uint64_t v) {
    out.family(name, type, help);
    out.sample(name, v);
  };
  one("meltemi_connections", MetricType::kGauge, "Connections that are proxied now",
      static_cast<uint64_t>(shared_.connections.load()));
  one("meltemi_held_bytes", MetricType::kGauge, "Bytes held for slow readers",
      shared_.held.used());
  one("meltemi_held_bytes_refused_total", MetricType::kCounter,
      "Times that held-bytes-limit was reached", shared_.held.refused());
  one("meltemi_log_lines_dropped_total", MetricType::kCounter,
      "Log lines dropped because the queue was full", log::dropped_lines());
  one("meltemi_port_watch_failures_total", MetricType::kCounter,
      "Times that port 15008 of a pod did not answer", shared_.port_watch.failures());
  uint64_t opened = 0, closed = 0, failed = 0, limits = 0, outlived = 0;
  for (const auto& w : shared_.workers) {
    if (!w) continue;
    opened += w->hbone_stats().tunnels_opened.load();
    closed += w->hbone_stats().tunnels_closed.load();
    failed += w->hbone_stats().handshake_failures.load();
    limits += w->hbone_stats().limit_hits.load();
    outlived += w->hbone_stats().credential_ends.load();
  }
  one("meltemi_tunnels_opened_total", MetricType::kCounter, "HBONE tunnels set up", opened);
  one("meltemi_tunnels_closed_total", MetricType::kCounter, "HBONE tunnels ended", closed);
  one("meltemi_tunnel_handshake_failures_total", MetricType::kCounter,
      "Connections at 15008 that did not become tunnels", failed);
  one("meltemi_tunnel_limit_hits_total", MetricType::kCounter,
      "Times that a peer ran into a named limit", limits);
  one("meltemi_tunnel_credential_ends_total", MetricType::kCounter,
      "Tunnels whose certificates or root ended before they did", outlived);
}

}  // namespace meltemi::ztunnel
