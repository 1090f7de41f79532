#include "waypoint/app/app.h"

#include <fmt/format.h>

#include <thread>

#include "userspace/base/log.h"
#include "userspace/rt/socket_options.h"
#include "userspace/sys/confine.h"
#include "userspace/telemetry/admission_metrics.h"
#include "userspace/xds/ca_client.h"
#include "waypoint/app/admin_pages.h"

namespace meltemi::waypoint {
namespace {

log::Scope scope("waypoint");
constexpr const char* kCertificateTask = "certificate";

// The client's connection and one to an endpoint.
constexpr uint32_t kDescriptorsPerConnection = 2;
constexpr Duration kBindPause = std::chrono::seconds(1);
constexpr Duration kRestorePause = std::chrono::seconds(1);

rt::Backend backend_of(const std::string& name) {
  if (name == "uring") return rt::Backend::kUring;
  return name == "epoll" ? rt::Backend::kEpoll : rt::Backend::kAuto;
}

}  // namespace

App::App(const Settings& settings, const ConfigTable& table)
    : settings_(settings),
      table_(table),
      held_("held_bytes", static_cast<uint64_t>(settings.held_bytes_limit)) {}

App::~App() {
  shutdown([] { return true; });
}

Status App::start() {
  MELTEMI_TRY(settings_.check());
  doors_ = std::make_unique<Doors>(
      settings_.admission.options(rt::raise_descriptor_limit(), kDescriptorsPerConnection));
  shared_.doors = doors_.get();
  telemetry::add_admission_metrics(registry_, doors_->admission);
  telemetry::add_process_metrics(registry_, "waypoint");
  MELTEMI_TRY(start_workers());
  feed_ = std::make_unique<ConfigFeed>(settings_, mesh_, registry_, readiness_,
                                       [this](const SnapshotPtr& s) { publish(s); });
  if (settings_.has_control_plane()) {
    MELTEMI_TRY(start_certificate());
    MELTEMI_TRY(listen_hbone());
  }
  MELTEMI_TRY(start_operators());
  MELTEMI_TRY(feed_->start());
  scope.info("started: {} workers, {}", pool_->size(),
             pool_->worker(0).loop().backend() == rt::Backend::kUring ? "io_uring" : "epoll");
  return {};
}

Status App::start_workers() {
  const uint32_t count = settings_.workers > 0 ? static_cast<uint32_t>(settings_.workers)
                                               : std::max(1u, std::thread::hardware_concurrency());
  rt::LoopOptions options;
  options.backend = backend_of(settings_.io_backend);
  pool_ = MELTEMI_TRY(rt::WorkerPool::start(count, "waypoint", options));
  MELTEMI_TRY(sys::no_more_rings());
  http_metrics_ = std::make_unique<telemetry::HttpMetrics>(registry_, count, "waypoint",
                                                            settings_.series.http());
  tcp_metrics_ =
      std::make_unique<telemetry::TcpMetrics>(registry_, count, settings_.series.tcp());
  registry_.add([this](telemetry::Exposition& out) { collect(out); });
  shared_.mesh = &mesh_;
  shared_.http_metrics = http_metrics_.get();
  shared_.tcp_metrics = tcp_metrics_.get();
  shared_.network = model::Symbol(settings_.discovery.network);
  shared_.name = fmt::format("{}/{}", settings_.discovery.pod_namespace, settings_.gateway_name);
  shared_.limits.retry_buffer = static_cast<size_t>(settings_.retry_buffer);
  shared_.limits.stream_buffer = static_cast<size_t>(settings_.stream_buffer);
  shared_.limits.pipeline_buffer = static_cast<size_t>(settings_.pipeline_buffer);
  shared_.limits.detect_timeout = settings_.detect_timeout;
  shared_.limits.drain_timeout = settings_.drain_timeout;
  shared_.limits.queue_timeout = settings_.queue_timeout;
  shared_.limits.destination_wait = settings_.destination_wait;
  shared_.believed = MELTEMI_TRY(Forwarders::parse(settings_.believed_forwarders));
  shared_.hbone.held = &held_;
  shared_.hbone.idle_place = [doors = doors_.get()](const net::TunnelTarget&) {
    return doors->admission.admit(doors->idle_tunnels, {}, MonoClock::now());
  };
  shared_.hbone.handshake_timeout = settings_.admission.handshake_timeout;
  shared_.hbone.credential_grace = settings_.credential_grace;
  shared_.access_log = settings_.access_log;
  lanes_.resize(count);
  pool_->run_on_all(
      [this](rt::Worker& w) { lanes_[w.index()] = std::make_unique<Lane>(w, shared_); });
  return {};
}

// --- listening --------------------------------------------------------------------------------

// One ring is woken by a listener, so all are accepted on worker 0 and handed to the least loaded.
std::unique_ptr<rt::Listener> App::listen(UniqueFd fd, rt::Admission::ClassId id, Accept accept) {
  rt::Loop& loop = pool_->worker(0).loop();
  return std::make_unique<rt::Listener>(loop, std::move(fd), [this, &loop, id,
                                                              accept](UniqueFd connection) {
    if (id == doors_->hbone) hbone_accepted_.fetch_add(1, std::memory_order_relaxed);
    rt::Visitor visitor;
    if (auto peer = rt::peer_address(connection.get())) visitor.source = peer->ip;
    auto lease = doors_->admission.admit(id, visitor, loop.now());
    if (!lease) {
      rt::set_reset_on_close(connection.get());
      return;
    }
    rt::Worker& worker = pool_->size() == 1 ? pool_->worker(0) : pool_->least_loaded();
    Lane* lane = lanes_[worker.index()].get();
    if (worker.index() == 0) return accept(*lane, std::move(connection), std::move(*lease));
    worker.post([lane, accept, connection = std::move(connection),
                 lease = std::move(*lease)]() mutable {
      accept(*lane, std::move(connection), std::move(lease));
    });
  });
}

Status App::listen_hbone() {
  const SocketAddress address = *SocketAddress::parse(settings_.hbone_listen);
  auto fd = rt::make_tcp_listener(address, {});
  if (!fd) {
    return fail(fd.error().reason, Fault::kConfig,
                fmt::format("hbone-listen {}: {}", settings_.hbone_listen, fd.error().detail));
  }
  hbone_queue_ = std::make_unique<telemetry::AcceptQueue>(
      fd->get(), [this] { return hbone_accepted_.load(std::memory_order_relaxed); });
  readiness_.check("hbone port", [this] { return hbone_queue_->ask(MonoClock::now()); });
  pool_->run_on_all([&](rt::Worker& w) {
    if (w.index() != 0) return;
    hbone_ = listen(std::move(*fd), doors_->hbone,
                    [](Lane& lane, UniqueFd connection, rt::Lease lease) {
                      lane.acceptor.serve_hbone(std::move(connection), std::move(lease));
                    });
  });
  return {};
}

void App::follow_bound(const Snapshot& snapshot) {
  std::map<SocketAddress, std::string> wanted;
  for (const ListenerPtr& l : snapshot.bound_listeners) {
    for (const SocketAddress& address : l->addresses) wanted[address] = l->name;
  }
  std::erase_if(bound_, [&](const auto& item) {
    const auto it = wanted.find(item.first);
    return it == wanted.end() || it->second != item.second.first;
  });
  for (const auto& [address, name] : wanted) {
    if (bound_.contains(address)) continue;
    auto fd = rt::make_tcp_listener(address, {});
    if (!fd) {
      scope.error("listener {} is not bound: {}: {}", name, address.to_string(),
                  fd.error().detail);
      unbound_ = true;
      continue;
    }
    bound_[address] = {
        name, listen(std::move(*fd), doors_->bound,
                     [name = name](Lane& lane, UniqueFd connection, rt::Lease lease) {
                       lane.acceptor.serve_plain(std::move(connection), name, std::move(lease));
                     })};
    scope.info("listener {} on {}", name, address.to_string());
  }
}

// A port that was in use or a lack of descriptors is not for ever.
void App::poll() {
  const MonoTime now = MonoClock::now();
  doors_->admission.sweep(now);
  feed_->poll();
  if (restore_again_ && now >= *restore_again_) {
    const model::Identity identity = *settings_.identity();
    restore_again_.reset();
    if (!certificates_->current(identity)) restore_certificate(identity);
  }
  if (!unbound_ || now < bind_again_) return;
  bind_again_ = now + kBindPause;
  Lane* lane = lanes_[0].get();
  pool_->worker(0).post([this, lane] {
    unbound_ = false;
    if (const SnapshotRef& snapshot = lane->proxy.snapshot()) follow_bound(*snapshot);
  });
}

// --- configuration and certificate ------------------------------------------------------------

void App::publish(const SnapshotPtr& snapshot) {
  {
    std::lock_guard lock(latest_mutex_);
    latest_ = snapshot;
  }
  for (size_t i = 0; i < pool_->size(); ++i) {
    Lane* lane = lanes_[i].get();
    pool_->worker(i).post([this, lane, snapshot] {
      lane->proxy.set_snapshot(snapshot);
      lane->acceptor.configuration_changed();
      if (lane->worker.index() == 0) follow_bound(*snapshot);
    });
  }
}

Status App::start_certificate() {
  readiness_.pending(kCertificateTask);
  const model::Identity identity = MELTEMI_TRY(settings_.identity());
  const xds::ChannelOptions channel = settings_.discovery.certificate_authority();
  MELTEMI_TRY(xds::check_address(channel.address));
  auto client = std::make_shared<xds::CaClient>(channel);
  pki::Signer signer = [client](pki::SigningRequest request, pki::SigningDone done) {
    client->sign(std::move(request.csr_pem), request.ttl, std::move(request.impersonate),
                 std::move(done));
  };
  pki::CertificateManagerOptions options;
  options.ttl = std::chrono::duration_cast<std::chrono::seconds>(settings_.discovery.secret_ttl);
  options.impersonate = false;
  certificates_ = std::make_unique<pki::CertificateManager>(
      options, std::move(signer),
      [this](const model::Identity&, const pki::WorkloadCertificatePtr& certificate) {
        publish_certificate(certificate);
      });
  restore_certificate(identity);
  certificates_->want(identity, true);
  return {};
}

// What an earlier life of this pod's waypoint had, so that it serves while the control plane is away.
void App::restore_certificate(const model::Identity& identity) {
  restore_again_.reset();
  if (!settings_.discovery.keeps_state()) return;
  auto file = IdentityFile::open(settings_.discovery.state_dir, settings_.keys_on_disk);
  if (!file) return scope.error("the key is not kept: {}", file.error().detail);
  auto kept = file->load(identity, std::chrono::system_clock::now());
  {
    const std::lock_guard lock(identity_mutex_);
    identity_file_ = *std::move(file);
  }
  if (kept) return certificates_->restore(*kept);
  if (kept.error().reason == Reason::kNotFound) return;
  // Out of descriptors, say: it is no worse than it was.
  const bool unread = kept.error().reason == Reason::kSystem;
  if (unread) restore_again_ = MonoClock::now() + kRestorePause;
  scope.warn("{} {}: {}", identity_file_->path(),
             unread ? "cannot be read and is tried again" : "is not used", kept.error().detail);
}

void App::keep_certificate(const pki::WorkloadCertificate& certificate) {
  const std::lock_guard lock(identity_mutex_);
  if (!identity_file_) return;
  if (const Status saved = identity_file_->save(certificate); !saved) {
    scope.error("the key is not kept: {}", saved.error().detail);
  }
}

void App::publish_certificate(const pki::WorkloadCertificatePtr& certificate) {
  std::shared_ptr<const net::TlsContext> context;
  if (certificate) {
    auto made = net::TlsContext::create(*certificate);
    if (!made) {
      scope.error("the new certificate cannot be used: {}", made.error().to_string());
      return;
    }
    context = *std::move(made);
    scope.info("certificate of {} is valid until {}", certificate->identity.uri(),
               format_rfc3339(certificate->not_after));
    readiness_.done(kCertificateTask);
    keep_certificate(*certificate);
  } else {
    scope.error("the certificate has expired and could not be renewed");
    readiness_.pending(kCertificateTask);
  }
  for (size_t i = 0; i < pool_->size(); ++i) {
    Lane* lane = lanes_[i].get();
    pool_->worker(i).post([lane, context] {
      if (context) lane->acceptor.check_roots(context);
      lane->proxy.set_tls(context);
    });
  }
}

// --- operators --------------------------------------------------------------------------------

Status App::start_operators() {
  operators_ = std::make_unique<telemetry::OperatorPorts>(&doors_->admission);
  AdminSources sources;
  sources.node_id =
      settings_.discovery.node("waypoint", settings_.service_account, settings_.cluster_domain).id;
  sources.cluster = shared_.name;
  sources.admin_listen = settings_.operators.admin_listen;
  sources.snapshot = [this] {
    std::lock_guard lock(latest_mutex_);
    return latest_;
  };
  sources.certificates = [this] {
    return certificates_ ? certificates_->entries() : std::vector<pki::CertificateEntry>();
  };
  sources.xds_dump = [this] { return feed_->dump_json(); };
  sources.status = [this] { return status(); };
  sources.registry = &registry_;
  sources.readiness = &readiness_;
  add_admin_pages(operators_->admin(), sources);
  operators_->admin().route("/settings", "GET", [this](const http::Request&) {
    return http::Response{200, table_.dump_json(), "application/json"};
  });
  return operators_->start(settings_.operators, registry_, readiness_, settings_.logging.levels,
                          [this] { quit_ = true; });
}

xds::ProcessStatus App::status() {
  const auto verdict = readiness_.verdict();
  xds::ProcessStatus out{.component = "waypoint",
                         .version = MELTEMI_VERSION,
                         .ready = verdict.ready,
                         .trouble = verdict.ready ? "" : verdict.text,
                         .control_plane = feed_->control_plane(),
                         .configuration = {},
                         .certificates = xds::ProcessStatus::Certificates(),
                         .counts = {},
                         .problems = {}};
  SnapshotPtr snapshot;
  {
    const std::lock_guard lock(latest_mutex_);
    snapshot = latest_;
  }
  if (snapshot) {
    out.configuration = fmt::to_string(snapshot->version);
    out.counts = {{"listeners", snapshot->virtual_listeners.size() + snapshot->bound_listeners.size()},
                  {"clusters", snapshot->clusters.size()}};
  }
  out.counts.emplace_back("connections", static_cast<uint64_t>(connections()));
  if (!certificates_) return out;
  for (const pki::CertificateEntry& entry : certificates_->entries()) {
    const bool any = entry.certificate && !entry.certificate->chain.empty();
    out.certificates->add(any ? entry.certificate->chain[0].not_after() : WallTime::max());
  }
  return out;
}

void App::collect(telemetry::Exposition& out) const {
  using telemetry::MetricType;
  const auto sum = [&](auto&& member) {
    uint64_t total = 0;
    for (const auto& lane : lanes_) {
      if (lane) total += (lane->proxy.stats().*member).load(std::memory_order_relaxed);
    }
    return total;
  };
  const auto counter = [&](std::string_view name, std::string_view help, uint64_t value) {
    out.family(name, MetricType::kCounter, help);
    out.sample(name, value);
  };
  counter("meltemi_requests_total", "Requests received", sum(&ProxyStats::requests));
  counter("meltemi_downstream_connections_total", "Client connections and CONNECT streams",
          sum(&ProxyStats::connections));
  counter("meltemi_upstream_connections_total", "Connections made to endpoints",
          sum(&ProxyStats::upstream_connections));
  counter("meltemi_retries_total", "Attempts after the first", sum(&ProxyStats::retries));
  counter("meltemi_retry_budget_exhausted_total", "Retries that the budget did not allow",
          sum(&ProxyStats::retry_budget_exhausted));
  counter("meltemi_rbac_shadow_denied_total", "Requests that dry-run policies would have denied",
          sum(&ProxyStats::shadow_denied));
  counter("meltemi_requests_sent_again_total",
          "Requests that an endpoint refused without acting on them (REFUSED_STREAM, GOAWAY)",
          sum(&ProxyStats::sent_again));
  counter("meltemi_limit_hits_total", "Times that a client ran into a named limit",
          sum(&ProxyStats::limit_hits));
  out.family("meltemi_held_bytes", MetricType::kGauge, "Bytes held for slow readers");
  out.sample("meltemi_held_bytes", held_.used());
}

// --- the end ----------------------------------------------------------------------------------

size_t App::connections() {
  std::atomic<size_t> total{0};
  pool_->run_on_all([&](rt::Worker& w) { total += lanes_[w.index()]->acceptor.connections(); });
  return total;
}

void App::shutdown(const std::function<bool()>& urgent) {
  if (!pool_) return;
  scope.info("shutting down; requests under way have {}", format_duration(settings_.drain_timeout));
  readiness_.pending("draining");
  if (feed_) feed_->stop();
  pool_->run_on_all([this](rt::Worker& w) {
    if (w.index() == 0) {
      hbone_.reset();
      bound_.clear();
    }
    if (!lanes_[w.index()]) return;
    lanes_[w.index()]->proxy.drain();
    lanes_[w.index()]->acceptor.drain();
  });
  const MonoTime deadline = MonoClock::now() + settings_.drain_timeout;
  while (!lanes_.empty() && lanes_.back() && connections() > 0 && MonoClock::now() < deadline &&
         !urgent()) {
    doors_->admission.sweep(MonoClock::now());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  if (certificates_) certificates_->stop();
  if (operators_) operators_->stop();
  pool_->run_on_all([this](rt::Worker& w) {
    if (lanes_[w.index()]) lanes_[w.index()]->acceptor.close(Reason::kShutdown);
  });
  pool_->run_on_all([this](rt::Worker& w) { lanes_[w.index()].reset(); });
  pool_->stop();
  pool_.reset();
  scope.info("stopped");
}

}  // namespace meltemi::waypoint
