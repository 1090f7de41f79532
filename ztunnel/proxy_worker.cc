#include "ztunnel/proxy_worker.h"

#include <fmt/format.h>
#include <sys/random.h>

#include "userspace/base/log.h"
#include "userspace/codec/baggage.h"
#include "ztunnel/flow.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("proxy");

constexpr Duration kTick = std::chrono::seconds(1);

net::HboneOptions hbone_options(Shared& shared) {
  const Settings& s = *shared.settings;
  net::HboneOptions o;
  o.h2.max_stream_window = static_cast<uint32_t>(s.stream_window);
  o.h2.connection_window = static_cast<uint32_t>(s.connection_window);
  o.h2.max_frame_size = static_cast<uint32_t>(s.frame_size);
  o.handshake_timeout = s.admission.handshake_timeout;
  o.credential_grace = s.credential_grace;
  o.connect_timeout = s.connect_timeout;
  // The far end dials its app before it answers.
  o.response_timeout = s.connect_timeout + std::chrono::seconds(5);
  o.idle_release = s.pool_idle;
  o.max_streams = static_cast<uint32_t>(s.pool_max_streams);
  o.held = &shared.held;
  o.windows = &shared.windows;
  return o;
}

std::string baggage_of(const model::Workload& w) {
  codec::Baggage b;
  b.cluster = w.cluster.view();
  b.namespace_name = w.ns.view();
  b.workload_type = model::to_string(w.type);
  b.workload_name = w.workload_name.view();
  b.service = w.canonical_name.view();
  b.version = w.canonical_revision.view();
  b.region = w.locality.region.view();
  b.zone = w.locality.zone.view();
  return codec::format_baggage(b);
}

uint64_t random_seed() {
  uint64_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed) seed = reinterpret_cast<uintptr_t>(&seed);
  return seed;
}

}  // namespace

ProxyWorker::ProxyWorker(Shared& shared, rt::Worker& worker)
    : shared_(shared),
      worker_(worker),
      options_(hbone_options(shared)),
      reader_(*shared.store),
      random_{random_seed()},
      tunnels_(worker.loop(), options_, stats_),
      server_(worker.loop(), options_, *this, stats_),
      timer_([this] { tick(); }) {
  options_.idle_place = [this](const net::TunnelTarget& target) { return admit_idle(target); };
  worker_.loop().start(timer_, MonoClock::now() + kTick);
}

ProxyWorker::~ProxyWorker() {
  draining_ = true;
  listeners_.clear();
  parked_.clear();
  cut(Reason::kShutdown);
  flows_.clear();
}

// --- listeners ------------------------------------------------------------------------------

void ProxyWorker::listen(const PodPtr& pod,
                         std::vector<std::pair<ListenerKind, UniqueFd>> listeners) {
  if (draining_) return;
  auto& mine = listeners_[pod->uid];
  for (auto& [kind, fd] : listeners) {
    prepare_listener(kind, fd.get());
    mine.push_back(std::make_unique<rt::Listener>(
        loop(), std::move(fd),
        [this, pod, kind = kind](UniqueFd accepted) { spread(pod, kind, std::move(accepted)); }));
  }
}

// What accepted sockets inherit costs no system calls for each of them. None of it is worth losing a
// pod for, so failures do not count.
void ProxyWorker::prepare_listener(ListenerKind kind, int fd) const {
  if (kind == ListenerKind::kHbone) return;  // tunnels have PING
  keep_alive(fd);
  if (kind == ListenerKind::kOutbound) (void)rt::limit_receive_buffer(fd, kAppReceiveBuffer);
}

void ProxyWorker::keep_alive(int fd) const {
  const Settings& s = settings();
  if (!s.keepalive) return;
  // Failing to set it costs nothing but the detection of a dead peer.
  (void)rt::set_keepalive(fd, {s.keepalive_time, s.keepalive_interval,
                               static_cast<int>(s.keepalive_retries)});
}

void ProxyWorker::stop_listening(const std::string& uid) { listeners_.erase(uid); }

// An app's own connections are counted to its pod alone, what comes to it also to who sends it.
Result<rt::Lease> ProxyWorker::admit(ListenerKind kind, std::string_view pod, int fd) {
  rt::Visitor visitor{.pod = pod};
  if (kind != ListenerKind::kOutbound) {
    if (auto peer = rt::peer_address(fd)) visitor.source = peer->ip;
  }
  Doors& doors = *shared_.doors;
  return doors.admission.admit(doors.accepted[static_cast<size_t>(kind)], visitor, loop().now());
}

Result<rt::Lease> ProxyWorker::admit_idle(const net::TunnelTarget& target) {
  rt::Visitor visitor;
  for (const auto& [raw, p] : pods_) {
    if (p->tunnel_source == target.source) visitor.pod = p->name;
  }
  return shared_.doors->admission.admit(shared_.doors->idle_tunnels, visitor, loop().now());
}

// A listener wakes one ring only, so its worker deals the connections out.
void ProxyWorker::spread(const PodPtr& pod, ListenerKind kind, UniqueFd fd) {
  if (kind == ListenerKind::kHbone && shared_.port_watch.is_question(*pod, fd.get())) return;
  auto lease = admit(kind, local(pod)->name, fd.get());
  if (!lease) {
    rt::set_reset_on_close(fd.get());
    return;
  }
  shared_.connections.fetch_add(1, std::memory_order_relaxed);
  rt::Worker& to = shared_.pool->least_loaded();
  to.add_load(1);
  ProxyWorker* target = shared_.workers[to.index()].get();
  if (target == this) return accept(pod, kind, std::move(fd), std::move(*lease));
  to.post([target, pod, kind, fd = std::move(fd), lease = std::move(*lease)]() mutable {
    target->accept(pod, kind, std::move(fd), std::move(lease));
  });
}

void ProxyWorker::accept(const PodPtr& pod, ListenerKind kind, UniqueFd fd, rt::Lease lease) {
  PodLocalPtr local_pod = local(pod);
  if (draining_ || local_pod->removed) {
    worker_.add_load(-1);
    shared_.connections.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  switch (kind) {
    case ListenerKind::kHbone:
      return serve_tunnel(std::move(local_pod), std::move(fd), std::move(lease));
    case ListenerKind::kOutbound:
      return begin<OutboundFlow>(std::move(lease), std::move(local_pod), std::move(fd));
    case ListenerKind::kInbound:
      return begin<InboundFlow>(std::move(lease), std::move(local_pod), std::move(fd));
  }
}

template <typename F, typename... A>
void ProxyWorker::begin(rt::Lease lease, A&&... args) {
  auto flow = std::make_unique<F>(*this, std::forward<A>(args)...);
  F& f = *flow;
  f.lease_ = std::move(lease);
  add(std::move(flow));
  f.begin();
}

Flow& ProxyWorker::add(std::unique_ptr<Flow> flow) {
  Flow& f = *flow;
  f.self_ = flows_.insert(flows_.end(), std::move(flow));
  return f;
}

void ProxyWorker::retire(Flow& flow) {
  std::unique_ptr<Flow> owned = std::move(*flow.self_);
  flows_.erase(flow.self_);
  loop().retire(std::move(owned));
  worker_.add_load(-1);
  shared_.connections.fetch_sub(1, std::memory_order_relaxed);
}

// --- pods and the mesh ----------------------------------------------------------------------

PodLocalPtr ProxyWorker::local(const PodPtr& pod) {
  PodLocalPtr& l = pods_[pod.get()];
  if (!l) {
    l = std::make_shared<PodLocal>();
    l->pod = pod;
    l->name = fmt::format("{}/{}", pod->ns, pod->name);
  }
  return l;
}

const model::WorkloadPtr& ProxyWorker::workload(PodLocal& p) {
  const model::Snapshot& mesh = reader_.get();
  if (p.version == mesh.version()) return p.workload;
  p.version = mesh.version();
  model::WorkloadPtr found = mesh.workload_by_name(p.pod->ns, p.pod->name, p.pod->service_account);
  if (found == p.workload) return p.workload;
  p.workload = std::move(found);
  p.tunnel_source =
      p.workload ? fmt::format("{}|{}", p.workload->identity.uri(), p.pod->uid) : std::string();
  p.baggage = p.workload ? baggage_of(*p.workload) : std::string();
  return p.workload;
}

TlsContextPtr ProxyWorker::tls(const model::Identity& identity) {
  const auto it = tls_.find(identity);
  if (it != tls_.end()) return it->second;
  shared_.want_certificate(identity);
  return nullptr;
}

void ProxyWorker::set_tls(const model::Identity& identity, TlsContextPtr tls) {
  if (!tls) {
    tls_.erase(identity);
    return;
  }
  server_.check_roots(tls);
  tunnels_.check_roots(tls);
  const bool renewed = tls_.contains(identity);
  tls_[identity] = std::move(tls);
  if (!renewed) return retry_parked();
  // Tunnels of the old certificate serve out their streams; new ones are made with the new.
  for (const auto& [raw, p] : pods_) {
    if (p->workload && p->workload->identity == identity) tunnels_.drain(p->tunnel_source);
  }
}

void ProxyWorker::mesh_changed() {
  const model::Snapshot& mesh = reader_.get();
  const bool policies = std::exchange(checked_policies_, mesh.policy_generation()) !=
                        mesh.policy_generation();
  std::vector<PodLocal*> moved;
  for (const auto& [raw, p] : pods_) {
    const model::WorkloadPtr before = p->workload;
    if (workload(*p) != before) moved.push_back(p.get());
  }
  if (policies || !moved.empty()) {
    for (auto it = flows_.begin(); it != flows_.end();) {
      Flow& f = **it++;  // recheck() may end the flow, which leaves the list
      const bool touched =
          policies || std::find(moved.begin(), moved.end(), f.pod().get()) != moved.end();
      if (touched) f.recheck();
    }
  }
  retry_parked();
}

void ProxyWorker::remove_pod(const PodPtr& pod) {
  const auto it = pods_.find(pod.get());
  if (it == pods_.end()) return;
  const PodLocalPtr p = it->second;
  p->removed = true;
  pods_.erase(it);
  std::erase_if(parked_, [&](ParkedTunnel& t) {
    if (t.pod != p) return false;
    worker_.add_load(-1);
    shared_.connections.fetch_sub(1, std::memory_order_relaxed);
    return true;
  });
  for (auto f = flows_.begin(); f != flows_.end();) {
    Flow& flow = **f++;
    if (flow.pod() == p) flow.cut(Reason::kShutdown);
  }
  server_.close(Reason::kShutdown, p.get());
  if (!p->tunnel_source.empty()) tunnels_.close(Reason::kShutdown, p->tunnel_source);
}

// --- tunnels in -----------------------------------------------------------------------------

void ProxyWorker::serve_tunnel(PodLocalPtr pod, UniqueFd fd, rt::Lease lease) {
  if (try_tunnel(pod, fd, lease)) return;
  // That nothing was read of it is our doing: it may wait as long as a handshake. One that has to go
  // meanwhile goes when it is served or given up.
  if (!lease.handshaking(loop().now())) {
    worker_.add_load(-1);
    shared_.connections.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  parked_.push_back({std::move(pod), std::move(fd), std::move(lease),
                     loop().now() + settings().config_patience});
}

// The tunnel counts as load while it is parked or in its handshake; then its streams do.
bool ProxyWorker::try_tunnel(const PodLocalPtr& pod, UniqueFd& fd, rt::Lease& lease) {
  const model::WorkloadPtr& w = workload(*pod);
  TlsContextPtr context = w ? tls(w->identity) : nullptr;
  if (!context) return false;
  server_.serve(std::move(fd), std::move(context), pod, std::move(lease));
  worker_.add_load(-1);
  shared_.connections.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

void ProxyWorker::on_connect(std::unique_ptr<net::ConnectRequest> request) {
  auto pod = std::static_pointer_cast<PodLocal>(request->context());
  if (draining_ || pod->removed) return request->reject(503);
  Doors& doors = *shared_.doors;
  const rt::Visitor visitor{.source = request->peer().address.ip, .pod = pod->name};
  auto lease = doors.admission.admit(doors.streams, visitor, loop().now());
  if (!lease) return request->reject(503);
  shared_.connections.fetch_add(1, std::memory_order_relaxed);
  worker_.add_load(1);
  begin<InboundFlow>(std::move(*lease), std::move(pod), std::move(request));
}

void ProxyWorker::on_tunnel_failed(const net::TunnelPeer& peer, const Error& error,
                                   const std::shared_ptr<void>& context) {
  const auto pod = std::static_pointer_cast<PodLocal>(context);
  telemetry::FlowInfo info;
  info.direction = telemetry::Direction::kInbound;
  info.src = peer.address;
  info.dst = peer.local;
  info.source.identity = peer.identity;
  if (peer.identity.present()) info.security = telemetry::Security::kMutualTls;  // it was verified
  info.destination.workload = pod->workload;
  telemetry::report_early_failure(*shared_.metrics, shard(), info, error.reason, error.detail);
}

// --- time -----------------------------------------------------------------------------------

void ProxyWorker::retry_parked() {
  std::vector<ParkedTunnel> parked = std::exchange(parked_, {});
  for (ParkedTunnel& t : parked) {
    if (try_tunnel(t.pod, t.fd, t.lease)) continue;
    if (t.deadline <= loop().now()) {
      give_up_parked(t);
    } else {
      parked_.push_back(std::move(t));
    }
  }
  for (auto it = flows_.begin(); it != flows_.end();) {
    Flow& f = **it++;
    f.poke();
  }
}

void ProxyWorker::give_up_parked(ParkedTunnel& t) {
  telemetry::FlowInfo info;
  info.direction = telemetry::Direction::kInbound;
  if (auto a = rt::peer_address(t.fd.get())) info.src = *a;
  if (auto a = rt::local_address(t.fd.get())) info.dst = *a;
  info.destination.workload = t.pod->workload;
  const bool known = t.pod->workload != nullptr;
  telemetry::report_early_failure(
      *shared_.metrics, shard(), info,
      known ? Reason::kIdentityUnavailable : Reason::kUnknownDestination,
      known ? "no certificate for the workload in time" : "the pod is not in the mesh's state");
  worker_.add_load(-1);
  shared_.connections.fetch_sub(1, std::memory_order_relaxed);
}

void ProxyWorker::tick() {
  loop().start(timer_, MonoClock::now() + kTick);
  for (const auto& f : flows_) f->tick();
  retry_parked();
}

// --- end ------------------------------------------------------------------------------------

void ProxyWorker::drain() {
  draining_ = true;
  listeners_.clear();
  server_.drain();
}

void ProxyWorker::cut(Reason reason) {
  for (ParkedTunnel& t : std::exchange(parked_, {})) give_up_parked(t);
  for (auto it = flows_.begin(); it != flows_.end();) {
    Flow& f = **it++;
    f.cut(reason);
  }
  server_.close(reason);
  tunnels_.close(reason);
}

std::vector<FlowRow> ProxyWorker::rows() const {
  std::vector<FlowRow> out;
  out.reserve(flows_.size());
  for (const auto& f : flows_) out.push_back(f->row());
  return out;
}

}  // namespace meltemi::ztunnel
