#include "waypoint/proxy/upstream.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/codec/authority.h"
#include "userspace/rt/socket_options.h"
#include "waypoint/http/waypoints.h"
#include "waypoint/proxy/h1_client.h"
#include "waypoint/proxy/h2_client.h"

namespace meltemi::waypoint {
namespace {

std::unexpected<Error> limit(const char* name) {
  return fail(Reason::kLimitExceeded, Fault::kConfig, name);
}

std::unexpected<Error> gone(const SocketAddress& address) {
  return fail(Reason::kNoEndpoint, Fault::kUpstream,
              fmt::format("{} was in the mesh and is known no longer: it is gone, or the control plane "
                          "has lost it; not tried in plaintext",
                          address.to_string()),
              Retry::kSafe);
}

}  // namespace

// --- dialling ---------------------------------------------------------------------------------

Dial::Dial(Host& host, bool h2, MonoTime deadline)
    : host_(host),
      h2_(h2),
      deadline_(deadline),
      tcp_(host.worker().loop()),
      soon_([this] { failed(error_); }) {}

Dial::~Dial() = default;

void Dial::start() {
  ProxyWorker& worker = host_.worker();
  const Endpoint& e = host_.endpoint();
  const net::SocketFactory factory = [](const SocketAddress& to) { return rt::make_tcp_socket(to); };
  if (!e.tunnel) {
    tcp_.start(factory, e.address, deadline_, [this, &worker](Result<UniqueFd> fd) {
      if (!fd) return failed(fd.error());
      connected(net::make_tcp_stream(worker.loop(), std::move(*fd), worker.shared().hbone.held));
    });
    return;
  }
  auto identity = host_.identity();
  if (!identity) return fail_soon(identity.error());
  if (!worker.tls()) {
    return fail_soon(Error{Reason::kIdentityUnavailable, Fault::kInternal, Retry::kSafe,
                           "no certificate yet"});
  }
  authority = codec::format_authority(e.address);
  net::TunnelTarget target;
  target.source = worker.tls()->identity().uri();
  target.address = *e.tunnel;
  target.expected.push_back(*identity);
  worker.tunnels().open(target, net::TunnelDial{worker.tls(), factory}, *this, deadline_);
}

void Dial::fail_soon(Error error) {
  error_ = std::move(error);
  host_.worker().loop().start(soon_, host_.worker().now());
}

void Dial::on_connected(net::StreamPtr stream, const net::ConnectAnswer&) {
  connected(std::move(stream));
}

void Dial::on_connect_failed(const Error& error, const net::ConnectAnswer* answer) {
  Error e = error;
  if (answer) e.detail = fmt::format("endpoint answered CONNECT with {}", answer->status);
  failed(e);
}

void Dial::connected(net::StreamPtr stream) { host_.dial_done(*this, std::move(stream)); }
void Dial::failed(const Error& error) { host_.dial_failed(*this, error); }

// --- endpoint ---------------------------------------------------------------------------------

Host::Host(ProxyWorker& worker, ClusterState& cluster, Endpoint endpoint)
    : worker_(worker), cluster_(cluster), endpoint_(std::move(endpoint)) {
  static std::atomic<uint64_t> next{1};
  id_ = next.fetch_add(1, std::memory_order_relaxed);
}

Host::~Host() = default;

void Host::add_active(int n) {
  active_ = static_cast<uint32_t>(static_cast<int>(active_) + n);
  if (slot >= 0) cluster_.active_[static_cast<size_t>(slot)] = active_;
  if (n < 0 && active_ == 0) check_done();
}

const telemetry::Peer& Host::peer() {
  if (!worker_.has_mesh()) return peer_;
  const model::Snapshot& mesh = worker_.mesh();
  if (peer_version_ != mesh.version()) {
    peer_version_ = mesh.version();
    const IpAddress& ip = endpoint_.tunnel ? endpoint_.tunnel->ip : endpoint_.address.ip;
    peer_.workload = mesh.workload_by_ip({worker_.shared().network, ip});
    peer_.identity = endpoint_.tunnel && peer_.workload ? peer_.workload->identity
                                                        : model::Identity();
  }
  return peer_;
}

Result<model::Identity> Host::identity() {
  const telemetry::Peer& p = peer();
  if (p.workload) return p.workload->identity;
  return fail(Reason::kIdentityUnavailable, Fault::kConfig,
              fmt::format("no workload is known at {}", endpoint_.tunnel->ip.to_string()),
              Retry::kSafe);
}

Result<std::string> Host::way(std::string_view passed, const model::Identity& client) {
  // Another product's waypoint sends no header, but shows who it is.
  const model::WorkloadPtr& next = peer().workload;
  if (next && client.present() && next->identity == client) passed = endpoint_.waypoint.view();
  return waypoints_for(passed, worker_.shared().name, endpoint_.waypoint.view());
}

Result<ClientSide*> Host::start(AttemptPlan& plan) {
  if (waiting_[plan.h2].empty()) [[likely]] {  // else those who came before are served first
    auto side = start_now(plan);
    if (!side || *side) return side;
  }
  if (cluster_.pending >= cluster_.config().max_pending_requests) {
    return limit("max_pending_requests");
  }
  ++cluster_.pending;
  plan.waiting = true;
  waiting_[plan.h2].push_back(&plan);
  dial_for_waiting(plan.h2);
  return nullptr;
}

bool Host::has_room(bool h2) const {
  if (!h2) return !idle_.empty();
  return std::any_of(h2_.begin(), h2_.end(), [](const auto& c) { return c->can_request(); });
}

Result<ClientSide*> Host::start_now(AttemptPlan& plan) {
  if (plan.h2) {
    for (const auto& client : h2_) {
      if (client->can_request()) return client->start(plan);
    }
    return nullptr;
  }
  if (idle_.empty()) return nullptr;
  H1Client* client = idle_.back();
  idle_.pop_back();
  if (const Status ok = client->start(plan); !ok) {
    idle_.push_back(client);  // nothing was written to it
    return fail(ok.error());
  }
  return static_cast<ClientSide*>(client);
}

AttemptPlan& Host::next_waiting(bool h2) {
  AttemptPlan& plan = *waiting_[h2].front();
  waiting_[h2].pop_front();
  plan.waiting = false;
  --cluster_.pending;
  return plan;
}

void Host::serve_waiting(bool h2) {
  while (!waiting_[h2].empty() && has_room(h2)) {
    AttemptPlan& plan = next_waiting(h2);
    const auto side = start_now(plan);
    if (!side) {
      AttemptFailure failure;
      failure.reason = side.error().reason;
      const std::string detail = side.error().detail;
      failure.detail = detail;
      failure.connected = true;  // a head that this connection cannot carry: no other could
      plan.events->on_attempt_failed(failure);
    } else if (*side) {
      plan.events->on_attempt_started(**side, endpoint_.address);
    }
  }
  dial_for_waiting(h2);
}

size_t Host::dials(bool h2) const {
  return static_cast<size_t>(std::count_if(dials_.begin(), dials_.end(),
                                           [h2](const auto& d) { return d->h2() == h2; }));
}

void Host::dial_for_waiting(bool h2) {
  // How many requests an HTTP/2 connection takes is known when its SETTINGS have come: one at a time,
  // and none beside one that takes nothing.
  const auto tells = [this] {
    return std::any_of(h2_.begin(), h2_.end(), [](const auto& c) { return c->settling() ||
                                                                         c->unwilling(); });
  };
  while (!waiting_[h2].empty() && (h2 ? dials(true) == 0 && !tells()
                                      : dials(false) < waiting_[false].size())) {
    // Without any connection nobody who waits here would ever be served, so one may be made although
    // other endpoints have taken all.
    const bool none = (h2 ? h2_.empty() : h1_.empty()) && dials(h2) == 0;
    if (!none && cluster_.connections >= cluster_.config().max_connections) return;
    ++cluster_.connections;
    worker_.stats().upstream_connections.fetch_add(1, std::memory_order_relaxed);
    dials_.push_back(std::make_unique<Dial>(*this, h2,
                                            worker_.now() + cluster_.config().connect_timeout));
    dials_.back()->start();
  }
}

void Host::fail_waiting(bool h2, size_t count, const AttemptFailure& failure) {
  for (; count > 0 && !waiting_[h2].empty(); --count) {
    next_waiting(h2).events->on_attempt_failed(failure);
  }
}

void Host::on_turn_end() {
  // A cluster that left the configuration has no other endpoint: who waits began under the old rules, and
  // is served as they say.
  if (leaving_ && cluster_.has_endpoints()) {
    AttemptFailure failure;
    failure.reason = Reason::kNoEndpoint;
    failure.detail = "the endpoint has gone";
    failure.connected = failure.unprocessed = true;  // nothing was sent: it goes to another one
    fail_waiting(false, waiting_[false].size(), failure);
    fail_waiting(true, waiting_[true].size(), failure);
    return check_done();
  }
  serve_waiting(false);
  serve_waiting(true);
  if (leaving_) check_done();
}

void Host::cancel(AttemptPlan& plan) {
  if (!std::exchange(plan.waiting, false)) return;
  --cluster_.pending;
  std::erase(waiting_[plan.h2], &plan);
  // A connection that is being made goes on being made: the next request will want it.
}

std::unique_ptr<Dial> Host::take(Dial& dial) {
  const auto it = std::find_if(dials_.begin(), dials_.end(),
                               [&](const auto& d) { return d.get() == &dial; });
  std::unique_ptr<Dial> owned = std::move(*it);
  dials_.erase(it);
  return owned;
}

void Host::dial_done(Dial& dial, net::StreamPtr stream) {
  std::unique_ptr<Dial> owned = take(dial);
  const bool h2 = owned->h2();
  worker_.loop().retire(std::move(owned));
  if (h2) {
    h2_.push_back(std::make_unique<H2Client>(*this, std::move(stream)));
  } else {
    h1_.push_back(std::make_unique<H1Client>(*this, std::move(stream)));
    idle_.push_back(h1_.back().get());
  }
  serve_waiting(h2);
  if (leaving_) close_idle();
}

void Host::dial_failed(Dial& dial, const Error& error) {
  std::unique_ptr<Dial> owned = take(dial);
  const bool h2 = owned->h2();
  const Error kept = error;
  worker_.loop().retire(std::move(owned));
  --cluster_.connections;
  AttemptFailure failure;
  failure.reason = kept.reason;
  failure.detail = kept.detail;
  failure.unprocessed = kept.retry == Retry::kSafe;
  // It was made for one request of HTTP/1, whose place another connection may still take for others.
  const bool one = !h2 && (!h1_.empty() || dials(false) > 0);
  fail_waiting(h2, one ? 1 : waiting_[h2].size(), failure);
  check_done();
}

void Host::idle(H1Client& client) {
  if (leaving_ && waiting_[false].empty()) return client.close();
  idle_.push_back(&client);
  room_changed();
}

void Host::gone(H1Client& client) {
  --cluster_.connections;
  std::erase(idle_, &client);
  const auto it = std::find_if(h1_.begin(), h1_.end(),
                               [&](const auto& c) { return c.get() == &client; });
  worker_.loop().retire(std::move(*it));
  *it = std::move(h1_.back());
  h1_.pop_back();
  room_changed();
  check_done();
}

void Host::gone(H2Client& client) {
  --cluster_.connections;
  const auto it = std::find_if(h2_.begin(), h2_.end(),
                               [&](const auto& c) { return c.get() == &client; });
  worker_.loop().retire(std::move(*it));
  h2_.erase(it);
  room_changed();
  check_done();
}

void Host::close_idle() {
  while (!idle_.empty()) idle_.back()->close();
  const size_t n = h2_.size();
  for (size_t i = 0; i < n; ++i) h2_[i]->drain();
}

void Host::leave() {
  leaving_ = true;
  slot = -1;
  close_idle();
  room_changed();  // who waits goes to another endpoint
}

void Host::check_done() {
  if (leaving_ && !busy()) cluster_.remove(*this);
}

// --- cluster ----------------------------------------------------------------------------------

ClusterState::ClusterState(ProxyWorker& worker, ClusterEntry entry) : worker_(worker) {
  entry_.cluster = entry.cluster;
  fill_service();
  update(std::move(entry));
}

ClusterState::~ClusterState() = default;

void ClusterState::fill_service() {
  if (entry_.cluster->service_host.empty()) {
    service_ = nullptr;
    return;
  }
  auto service = std::make_shared<model::Service>();
  service->name = entry_.cluster->service_name;
  service->ns = entry_.cluster->service_namespace;
  service->hostname = entry_.cluster->service_host;
  service->seal();
  service_ = std::move(service);
}

void ClusterState::update(ClusterEntry entry) {
  const bool same = entry.endpoints == entry_.endpoints && entry.cluster == entry_.cluster;
  entry_ = std::move(entry);
  if (same) return;
  fill_service();
  static const std::vector<Endpoint> kNone;
  const std::vector<Endpoint>& wanted = entry_.endpoints ? entry_.endpoints->endpoints() : kNone;

  std::vector<std::unique_ptr<Host>> before = std::move(hosts_);
  hosts_.clear();
  active_.assign(wanted.size(), 0);
  for (size_t i = 0; i < wanted.size(); ++i) {
    // The same address reached the same way keeps its connections and counts.
    const auto it = std::find_if(before.begin(), before.end(), [&](const auto& h) {
      return h && h->endpoint().address == wanted[i].address &&
             h->endpoint().tunnel == wanted[i].tunnel;
    });
    if (it != before.end()) {
      hosts_.push_back(std::move(*it));
      hosts_.back()->set_endpoint(wanted[i]);
    } else {
      hosts_.push_back(std::make_unique<Host>(worker_, *this, wanted[i]));
    }
    hosts_.back()->slot = static_cast<int>(i);
    active_[i] = hosts_.back()->active_;
  }
  for (auto& host : before) {
    if (!host) continue;
    Host& leaver = *host;
    leaving_.push_back(std::move(host));
    leaver.leave();
    leaver.check_done();
  }
  balancer_.update(wanted);
}

void ClusterState::remove(Host& host) {
  const auto drop = [&](auto& list) {
    const auto it = std::find_if(list.begin(), list.end(),
                                 [&](const auto& h) { return h.get() == &host; });
    if (it == list.end()) return false;
    worker_.loop().retire(std::move(*it));
    list.erase(it);
    return true;
  };
  drop(leaving_);
}

Result<Host*> ClusterState::original(const SocketAddress& authority) {
  if (originals_.size() >= kMaxOriginals) {
    for (auto it = originals_.begin(); it != originals_.end();) {
      it->second->close_idle();
      if (it->second->busy()) {
        ++it;
        continue;
      }
      worker_.loop().retire(std::move(it->second));  // it may be on the stack
      it = originals_.erase(it);
    }
  }
  Endpoint e;
  e.address = authority;
  const model::WorkloadPtr workload =
      worker_.has_mesh() ? worker_.mesh().workload_by_ip({worker_.shared().network, authority.ip})
                         : nullptr;
  if (workload && workload->protocol == model::TunnelProtocol::kHbone) {
    e.tunnel = SocketAddress{authority.ip, model::kHbonePort};
  }
  if (departed(e)) return gone(authority);
  auto& host = originals_[authority];
  if (host && host->endpoint().tunnel != e.tunnel) {  // the workload joined or left the mesh
    Host& old = *host;
    leaving_.push_back(std::move(host));
    old.leave();
    old.check_done();
  }
  if (!host) host = std::make_unique<Host>(worker_, *this, e);
  return host.get();
}

Result<Host*> ClusterState::pick(std::span<const uint64_t> tried, const SocketAddress& authority,
                                 const IpAddress& client) {
  if (entry_.cluster->original_dst) return original(authority);
  if (hosts_.empty() && entry_.cluster->closed != Reason::kOk) return closed();
  if (hosts_.empty()) {
    return fail(Reason::kNoEndpoint, Fault::kConfig,
                entry_.endpoints ? entry_.cluster->name.str()
                                 : entry_.cluster->name.str() + ": endpoints not received yet");
  }
  int avoid[16];
  size_t n = 0;
  for (const uint64_t id : tried) {
    for (const auto& host : hosts_) {
      if (n < std::size(avoid) && host->id() == id) avoid[n++] = host->slot;
    }
  }
  for (;;) {
    const int index = entry_.cluster->client_affinity && !client.is_unspecified()
                          ? balancer_.pick_for(client, {avoid, n})
                          : balancer_.pick(entry_.cluster->lb, entry_.cluster->choice_count, active_,
                                           {avoid, n}, worker_.random());
    if (index < 0 && entry_.cluster->closed != Reason::kOk) return closed();
    if (index < 0) {
      return fail(Reason::kNoHealthyEndpoint, Fault::kUpstream, entry_.cluster->name.str());
    }
    Host* host = hosts_[static_cast<size_t>(index)].get();
    if (!departed(host->endpoint())) [[likely]] return host;
    if (n == std::size(avoid) || std::find(avoid, avoid + n, index) != avoid + n) {
      return gone(host->endpoint().address);
    }
    avoid[n++] = index;
  }
}

bool ClusterState::departed(const Endpoint& endpoint) const {
  return !endpoint.tunnel && worker_.has_mesh() &&
         worker_.mesh().departed({worker_.shared().network, endpoint.address.ip});
}

std::unexpected<Error> ClusterState::closed() const {
  return fail(entry_.cluster->closed, Fault::kConfig, entry_.cluster->closed_detail);
}

Status ClusterState::begin_request() {
  if (active_requests_ >= entry_.cluster->max_requests) return limit("max_requests");
  ++active_requests_;
  return {};
}

bool ClusterState::begin_retry() {
  const bool allowed = entry_.cluster->max_retries
                           ? active_retries_ < *entry_.cluster->max_retries
                           : entry_.cluster->retry_budget.allows(active_requests_, active_retries_);
  if (allowed) ++active_retries_;
  return allowed;
}

void ClusterState::close_idle(bool only_tunnels) {
  const auto close = [only_tunnels](Host& host) {
    if (!only_tunnels || host.endpoint().tunnel) host.close_idle();
  };
  for (const auto& host : hosts_) close(*host);
  for (const auto& [address, host] : originals_) close(*host);
}

bool ClusterState::in_use() const {
  // A byte flow is no request: what it holds is its endpoint, which goes with this object.
  const auto busy = [](const auto& original) { return original.second->busy(); };
  return active_requests_ > 0 || !leaving_.empty() ||
         std::any_of(originals_.begin(), originals_.end(), busy);
}

// --- all clusters -----------------------------------------------------------------------------

UpstreamSet::~UpstreamSet() = default;

ClusterState* UpstreamSet::find(const model::Symbol& name) {
  const auto it = clusters_.find(name);
  return it == clusters_.end() ? nullptr : it->second.get();
}

void UpstreamSet::close_idle() {
  for (const auto& [name, cluster] : clusters_) cluster->close_idle();
}

void UpstreamSet::leave_tunnels() {
  for (const auto& [name, cluster] : clusters_) cluster->close_idle(true);
}

void UpstreamSet::update(const Snapshot& snapshot) {
  std::erase_if(leaving_, [](const auto& c) { return !c->in_use(); });
  for (auto it = clusters_.begin(); it != clusters_.end();) {
    if (snapshot.clusters.contains(it->first)) {
      ++it;
      continue;
    }
    it->second->update(ClusterEntry{it->second->shared_config(), nullptr});  // no endpoints
    it->second->close_idle();
    leaving_.push_back(std::move(it->second));
    it = clusters_.erase(it);
  }
  for (const auto& [name, entry] : snapshot.clusters) {
    auto& state = clusters_[name];
    if (state) {
      state->update(entry);
    } else {
      state = std::make_unique<ClusterState>(worker_, entry);
    }
  }
}

}  // namespace meltemi::waypoint
