#include "waypoint/proxy/acceptor.h"

#include <fmt/format.h>

#include "userspace/base/log.h"
#include "userspace/codec/authority.h"
#include "userspace/rt/socket_options.h"
#include "userspace/telemetry/refusal.h"
#include "waypoint/http/waypoints.h"
#include "waypoint/proxy/detect.h"

namespace meltemi::waypoint {
namespace {

log::Scope scope("waypoint");

// A client of HTTP sends its request at once; one that has said nothing for so long may be waiting for
// the server's greeting. Short enough not to be felt, long enough that few connections are made for
// nothing.
constexpr Duration kSilence = std::chrono::milliseconds(2);

telemetry::Peer source_peer(ProxyWorker& worker, const model::Identity& identity,
                            const SocketAddress& address) {
  telemetry::Peer peer;
  peer.identity = identity;
  if (worker.has_mesh()) {
    peer.workload = worker.mesh().workload_by_ip({worker.shared().network, address.ip});
  }
  return peer;
}

}  // namespace

Acceptor::Acceptor(ProxyWorker& worker)
    : worker_(worker),
      server_(worker.loop(), worker.shared().hbone, *this, worker.hbone_stats()) {}

Acceptor::~Acceptor() = default;

template <typename T, typename... A>
T& Acceptor::own(A&&... args) {
  auto owned = std::make_unique<T>(std::forward<A>(args)...);
  T& object = *owned;
  connections_.emplace(&object, std::move(owned));
  return object;
}

void Acceptor::connection_gone(rt::Retirable& connection) {
  const auto it = connections_.find(&connection);
  if (it == connections_.end()) return;
  flows_.erase(&connection);
  http_.erase(&connection);
  unnamed_.erase(&connection);
  worker_.loop().retire(std::move(it->second));
  connections_.erase(it);
}

template <typename T, typename F>
void Acceptor::each(const std::unordered_set<rt::Retirable*>& some, F&& act) {
  const std::vector<rt::Retirable*> now(some.begin(), some.end());
  for (rt::Retirable* one : now) {
    if (some.contains(one)) act(static_cast<T&>(*one));
  }
}

void Acceptor::configuration_changed() {
  const SnapshotRef snapshot = worker_.snapshot();
  if (!snapshot) return;
  each<TcpFlow>(flows_, [&](TcpFlow& flow) { flow.judge_again(*snapshot); });
  each<HttpConnection>(http_, [&](HttpConnection& connection) {
    const ClientInfo& client = connection.client();
    if (!client.listener.empty()) return;
    const ListenerPtr* listener = snapshot->find_virtual(client.local);
    if (!listener) return connection.drain();
    if ((*listener)->leaving) connection.leave();
  });
  each<Unnamed>(unnamed_, [&](Unnamed& waiting) {
    const ListenerPtr* listener = snapshot->find_virtual(waiting.to);
    if (!listener) return;
    auto request = std::move(waiting.request);
    rt::Lease lease = std::move(waiting.lease);
    const SocketAddress to = waiting.to;
    connection_gone(waiting);
    connect(std::move(request), to, *listener, std::move(lease));
  });
}

void Acceptor::serve_hbone(UniqueFd fd, rt::Lease lease) {
  if (!worker_.tls()) {
    scope.warn("connection on the HBONE port refused: identity_unavailable: no certificate yet");
    return worker_.loop().close(std::move(fd));
  }
  server_.serve(std::move(fd), worker_.tls(), nullptr, std::move(lease));
}

void Acceptor::on_tunnel_failed(const net::TunnelPeer& peer, const Error& error,
                                const std::shared_ptr<void>&) {
  if (!worker_.shared().tcp_metrics) return;
  telemetry::FlowInfo flow;
  flow.direction = telemetry::Direction::kInbound;
  flow.src = peer.address;
  flow.dst = peer.local;
  flow.source = source_peer(worker_, peer.identity, peer.address);
  if (peer.identity.present()) flow.security = telemetry::Security::kMutualTls;
  telemetry::report_early_failure(*worker_.shared().tcp_metrics, worker_.shard(), flow,
                                  error.reason, error.detail);
}

void Acceptor::refuse(net::ConnectRequest& request, uint16_t status, Reason reason,
                      std::string_view detail) {
  const codec::HeaderField why{telemetry::kRefusalHeader, reason_name(reason)};
  request.reject(status, {&why, 1});
  if (!worker_.shared().tcp_metrics) return;
  telemetry::FlowInfo flow;
  flow.direction = telemetry::Direction::kInbound;
  flow.security = telemetry::Security::kMutualTls;
  flow.src = request.peer().address;
  flow.dst = request.peer().local;
  flow.hbone_host = log::escape(request.authority());
  flow.source = source_peer(worker_, request.peer().identity, request.peer().address);
  telemetry::report_early_failure(*worker_.shared().tcp_metrics, worker_.shard(), flow, reason,
                                  detail);
}

void Acceptor::refuse_unnamed(net::ConnectRequest& request) {
  if (!worker_.snapshot()) return refuse(request, 503, Reason::kNoRoute, "no configuration yet");
  refuse(request, 404, Reason::kNoRoute, "no listener for this destination");
}

void Acceptor::on_connect(std::unique_ptr<net::ConnectRequest> request) {
  if (request->method() != "CONNECT") {
    return refuse(*request, 400, Reason::kBadRequest, "method is not CONNECT");
  }
  const auto authority = codec::Authority::parse(request->authority());
  if (!authority) return refuse(*request, 400, Reason::kBadRequest, "malformed authority");
  // Only what the control plane attached to this waypoint is served: no open proxy.
  if (!authority->ip) return refuse(*request, 404, Reason::kNoRoute, "authority is not an address");
  if (draining_) return refuse(*request, 503, Reason::kShutdown, "draining");
  const SocketAddress to{*authority->ip, authority->port};
  const ListenerPtr* listener =
      worker_.snapshot() ? worker_.snapshot()->find_virtual(to) : nullptr;
  if (!listener && worker_.shared().limits.destination_wait == Duration::zero()) {
    return refuse_unnamed(*request);
  }
  Doors& doors = *worker_.shared().doors;
  auto lease = doors.admission.admit(doors.streams, {.source = request->peer().address.ip},
                                     worker_.now());
  if (!lease) return refuse(*request, 503, lease.error().reason, lease.error().detail);
  if (listener) return connect(std::move(request), to, *listener, std::move(*lease));
  unnamed_.insert(&own<Unnamed>(*this, std::move(request), to, std::move(*lease)));
}

Unnamed::Unnamed(Acceptor& acceptor, std::unique_ptr<net::ConnectRequest> connect,
                 const SocketAddress& destination, rt::Lease place)
    : request(std::move(connect)),
      to(destination),
      lease(std::move(place)),
      acceptor_(acceptor),
      timer_(acceptor.worker().loop(), *this) {
  const MonoTime now = acceptor.worker().now();
  lease.idle(now);
  lease.on_give_way(rt::post_to(acceptor.worker().loop()),
                    [this](rt::GiveWay why) {
                      acceptor_.refuse(*request, 503, rt::reason_of(why), rt::to_string(why));
                      acceptor_.connection_gone(*this);
                    });
  request->on_cancel([this](Reason reason) {
    acceptor_.refuse(*request, 404, reason, "gave up waiting for a listener for this destination");
    acceptor_.connection_gone(*this);
  });
  timer_.set(now + acceptor.worker().shared().limits.destination_wait);
}

void Acceptor::nobody_came(Unnamed& waiting) {
  refuse_unnamed(*waiting.request);
  connection_gone(waiting);
}

void Acceptor::connect(std::unique_ptr<net::ConnectRequest> request, const SocketAddress& to,
                       const ListenerPtr& listener, rt::Lease lease) {
  ClientInfo client;
  client.identity = request->peer().identity;
  client.remote = request->peer().address;
  client.local = to;
  client.remote_ip = client.remote.ip.to_string();
  client.security = telemetry::Security::kMutualTls;
  client.source = source_peer(worker_, client.identity, client.remote);
  client.waypoints = request->header(kWaypointsHeader);
  client.lease = std::move(lease);
  client.believed = worker_.believes(client.identity, client.remote.ip);
  begin(std::move(client), listener, request->accept());
}

void Acceptor::serve_plain(UniqueFd fd, const std::string& name, rt::Lease lease) {
  if (draining_) return worker_.loop().close(std::move(fd));
  const auto remote = rt::peer_address(fd.get());
  const auto local = rt::local_address(fd.get());
  ListenerPtr listener;
  if (worker_.snapshot()) {
    for (const ListenerPtr& l : worker_.snapshot()->bound_listeners) {
      if (l->name == name) listener = l;
    }
  }
  if (!remote || !local || !listener) return worker_.loop().close(std::move(fd));
  ClientInfo client;
  client.remote = *remote;
  client.local = *local;
  client.remote_ip = remote->ip.to_string();
  client.security = telemetry::Security::kUnknown;
  client.source = source_peer(worker_, client.identity, client.remote);
  client.listener = name;
  client.lease = std::move(lease);
  begin(std::move(client), std::move(listener),
        net::make_tcp_stream(worker_.loop(), std::move(fd), worker_.shared().hbone.held));
}

void Acceptor::begin(ClientInfo client, ListenerPtr listener, net::StreamPtr stream) {
  worker_.stats().connections.fetch_add(1, std::memory_order_relaxed);
  if (!listener->needs_detection()) {
    const FilterChain* chain = listener->chain_for(Detected::kOther);
    if (chain && chain->tcp()) {
      return serve_tcp(std::move(client), *chain->tcp(), std::move(stream), {}, false);
    }
    const HttpChain* http = chain ? chain->http() : nullptr;
    if (http && http->options.codec != CodecType::kAuto) {
      const bool h2 = http->options.codec == CodecType::kHttp2;
      return serve(std::move(client), *listener, std::move(stream),
                   h2 ? Detected::kH2 : Detected::kHttp1, {}, false, nullptr);
    }
  }
  const bool http_only = !listener->needs_detection();
  own<Detector>(*this, std::move(client), std::move(listener), std::move(stream), http_only);
}

void Acceptor::detected(Detector& d, Detected protocol) {
  ClientInfo client = std::move(d.client);
  const ListenerPtr listener = std::move(d.listener);
  net::StreamPtr stream = std::move(d.stream);
  std::string early = std::move(d.early);
  const bool ended = d.ended;
  TcpFlow* const ahead = std::exchange(d.ahead, nullptr);
  connection_gone(d);
  serve(std::move(client), *listener, std::move(stream), protocol, std::move(early), ended, ahead);
}

void Acceptor::dial_ahead(Detector& d) {
  const FilterChain* chain = d.listener->chain_for(Detected::kOther);
  if (!chain || !chain->tcp()) return;
  d.ahead = &own<TcpFlow>(*this, d.client.without_lease(), nullptr, std::string(), false,
                          chain->tcp()->idle_timeout);
  if (!d.ahead->start_ahead(*chain->tcp(), d)) d.ahead->forget();
}

void Acceptor::serve(ClientInfo client, const Listener& listener, net::StreamPtr stream,
                     Detected protocol, std::string early, bool ended, TcpFlow* ahead) {
  const FilterChain* chain = listener.chain_for(protocol);
  if (chain && chain->tcp() && ahead) {
    flows_.insert(ahead);
    return ahead->take(*chain->tcp(), std::move(client), std::move(stream), std::move(early), ended);
  }
  if (ahead) ahead->forget();
  if (!chain) return;  // nothing takes it: the stream is aborted
  if (chain->tcp()) {
    return serve_tcp(std::move(client), *chain->tcp(), std::move(stream), std::move(early), ended);
  }
  const HttpOptions& options = chain->http()->options;
  ConnectionOwner& owner = *this;
  if (protocol == Detected::kH2) {
    http_.insert(&own<H2Server>(worker_, owner, std::move(client), options, std::move(stream),
                                as_bytes(early)));
  } else {
    http_.insert(&own<H1Server>(worker_, owner, std::move(client), options, std::move(stream),
                                as_bytes(early)));
  }
}

void Acceptor::serve_tcp(ClientInfo client, const TcpChain& chain, net::StreamPtr stream,
                         std::string early, bool ended) {
  TcpFlow& flow = own<TcpFlow>(*this, std::move(client), std::move(stream), std::move(early), ended,
                               chain.idle_timeout);
  flows_.insert(&flow);
  flow.start(chain);
}

void Acceptor::drain() {
  draining_ = true;
  server_.drain();
  each<HttpConnection>(http_, [](HttpConnection& connection) { connection.drain(); });
  each<Unnamed>(unnamed_, [this](Unnamed& waiting) {
    refuse(*waiting.request, 503, Reason::kShutdown, "draining");
    connection_gone(waiting);
  });
}

void Acceptor::close(Reason reason) {
  draining_ = true;
  each<TcpFlow>(flows_, [reason](TcpFlow& flow) { flow.abort(reason); });
  http_.clear();
  unnamed_.clear();
  connections_.clear();
  server_.close(reason);
}

// --- first bytes ------------------------------------------------------------------------------

Detector::Detector(Acceptor& acceptor, ClientInfo client_info, ListenerPtr listener_ptr,
                   net::StreamPtr stream_ptr, bool http_only)
    : client(std::move(client_info)),
      listener(std::move(listener_ptr)),
      stream(std::move(stream_ptr)),
      acceptor_(acceptor),
      timer_(acceptor.worker().loop(), *this),
      http_only_(http_only) {
  client.lease.idle(acceptor.worker().now());
  client.lease.on_give_way(rt::post_to(acceptor.worker().loop()),
                           [this](rt::GiveWay) { close(); });
  stream->set_events(this);
  if (http_only_) {
    wait_for_http();
  } else {
    const MonoTime now = acceptor.worker().now();
    deadline_ = now + acceptor.worker().shared().limits.detect_timeout;
    timer_.set(std::min(deadline_, now + kSilence));
  }
  stream->resume_read();
}

void Detector::wait_for_http() {
  const FilterChain* chain = listener->chain_for(Detected::kHttp1);
  if (!chain || !chain->http()) return;
  const HttpOptions& options = chain->http()->options;
  const Duration wait = early.empty() ? options.connection_idle : options.headers_timeout;
  deadline_ = wait > Duration::zero() ? acceptor_.worker().now() + wait : MonoTime::max();
  timer_.set(deadline_);
}

void Detector::on_data(const net::Slices& data) {
  if (finished_) return;
  const bool first = early.empty();
  for (size_t i = 0; i < data.count; ++i) {
    early.append(static_cast<const char*>(data.pieces[i].iov_base), data.pieces[i].iov_len);
  }
  const ByteView bytes = as_bytes(early);
  const auto protocol = http_only_ ? detect_http(bytes) : detect_protocol(bytes);
  if (protocol) return done(*protocol);
  if (first && http_only_) wait_for_http();
}

void Detector::on_deadline() {
  if (finished_) return;  // its first bytes came in the same turn
  if (http_only_) return close();
  if (acceptor_.worker().now() < deadline_) {
    timer_.set(deadline_);
    if (early.empty()) acceptor_.dial_ahead(*this);
    return;
  }
  // Silence: the server speaks first, or nobody does. Half a request line is HTTP's to answer.
  done(early.find(' ') == std::string::npos ? Detected::kOther : Detected::kHttp1);
}

void Detector::done(Detected protocol) {
  if (std::exchange(finished_, true)) return;
  stream->pause_read();
  acceptor_.detected(*this, protocol);
}

void Detector::on_read_end() {
  if (finished_) return;
  // Without a whole request line nothing of HTTP follows; of bytes, the server's half does.
  if (http_only_ || early.find(' ') != std::string::npos) return close();
  ended = true;
  done(Detected::kOther);
}

void Detector::close() {
  if (finished_) return;
  finished_ = true;
  stream.reset();
  if (ahead) ahead->forget();
  acceptor_.connection_gone(*this);
}

// --- TCP --------------------------------------------------------------------------------------

TcpFlow::TcpFlow(Acceptor& acceptor, ClientInfo client, net::StreamPtr stream, std::string early,
                 bool ended, Duration idle_timeout)
    : acceptor_(acceptor),
      client_(std::move(client)),
      stream_(std::move(stream)),
      early_(std::move(early)),
      read_ended_(ended),
      idle_timeout_(idle_timeout),
      dial_(acceptor.worker().loop()),
      soon_([this] { connect(); }),
      started_(acceptor.worker().now()) {
  info_.direction = telemetry::Direction::kInbound;
  info_.security = client_.security;
  info_.src = client_.remote;
  info_.dst = client_.local;
  info_.source = client_.source;
}

TcpFlow::~TcpFlow() {
  if (host_) host_->add_active(-1);
}

// It works from now on; told to go before that, it has to.
void TcpFlow::keep_place() {
  client_.lease.on_give_way(rt::post_to(acceptor_.worker().loop()),
                            [this](rt::GiveWay why) { abort(rt::reason_of(why)); });
  client_.lease.active();
}

void TcpFlow::start(const TcpChain& chain) {
  keep_place();
  cluster_name_ = chain.choose(acceptor_.worker().random().next()).cluster;
  attempts_left_ = chain.connect_attempts;
  if (ClusterState* cluster = acceptor_.worker().upstreams().find(cluster_name_)) {
    info_.service = cluster->service();
  }
  const model::PolicyVerdict verdict = judge(chain);
  if (!verdict.allowed) return end(verdict.reason, verdict.detail());
  connect();
}

bool TcpFlow::start_ahead(const TcpChain& chain, Detector& detector) {
  detector_ = &detector;
  cluster_name_ = chain.choose(acceptor_.worker().random().next()).cluster;
  if (!judge(chain).allowed) return false;
  if (ClusterState* cluster = acceptor_.worker().upstreams().find(cluster_name_)) {
    info_.service = cluster->service();
  }
  connect();
  return true;
}

void TcpFlow::take(const TcpChain& chain, ClientInfo client, net::StreamPtr stream,
                   std::string early, bool ended) {
  detector_ = nullptr;
  client_ = std::move(client);
  keep_place();
  stream_ = std::move(stream);
  early_ = std::move(early);
  read_ended_ = ended;
  attempts_left_ = chain.connect_attempts;
  const model::PolicyVerdict verdict = judge(chain);  // they may have changed
  if (!verdict.allowed) return end(verdict.reason, verdict.detail());
  if (upstream_) relay(std::move(upstream_));
}

void TcpFlow::forget() {
  if (ended_) return;
  ended_ = true;
  if (detector_) detector_->ahead = nullptr;
  detector_ = nullptr;
  upstream_.reset();
  leave();
}

// What it waits for may come in this very turn.
void TcpFlow::leave() {
  dial_.cancel();
  net::TunnelConnect::cancel();
  acceptor_.worker().loop().stop(soon_);
  acceptor_.connection_gone(*this);
}

void TcpFlow::on_data(const net::Slices& data) {
  for (size_t i = 0; i < data.count; ++i) {
    greeting_.append(static_cast<const char*>(data.pieces[i].iov_base), data.pieces[i].iov_len);
  }
  upstream_->pause_read();
  if (detector_) std::exchange(detector_, nullptr)->server_spoke();
}

model::PolicyVerdict TcpFlow::judge(const TcpChain& chain) const {
  model::PolicyInput input;
  input.source_ip = client_.remote.ip;
  input.identity = client_.identity.present() ? &client_.identity : nullptr;
  input.destination = client_.local;
  const model::PolicyVerdict verdict = authorize(chain.rbac, input);
  const ClusterState* cluster = acceptor_.worker().upstreams().find(cluster_name_);
  if (!verdict.allowed || !cluster) return verdict;
  // Another service than the client has asked for has policies of its own.
  input.destination = cluster->config().service_address;
  return authorize(cluster->config().rbac, input);
}

void TcpFlow::judge_again(const Snapshot& snapshot) {
  const ListenerPtr* listener = snapshot.find_virtual(client_.local);
  if (ended_ || !listener) return;  // what is no longer served here may end as its two ends want
  const FilterChain* chain = (*listener)->chain_for(Detected::kOther);
  if (chain && chain->tcp() && !judge(*chain->tcp()).allowed) abort(Reason::kPolicyChanged);
}

void TcpFlow::connect() {
  ProxyWorker& worker = acceptor_.worker();
  ClusterState* cluster = worker.upstreams().find(cluster_name_);
  if (!cluster) return end(Reason::kNoService, cluster_name_.view());
  const auto host = cluster->pick(tried_, client_.local, client_.remote.ip);
  if (!host) return end(host.error().reason, host.error().detail);
  headers.clear();
  if (!(*host)->endpoint().waypoint.empty()) {
    auto way = (*host)->way(client_.waypoints, client_.identity);
    if (!way) return end(way.error().reason, way.error().detail);
    headers.push_back({std::string(kWaypointsHeader), std::move(*way)});
  }
  if (host_) host_->add_active(-1);
  host_ = *host;
  host_->add_active(1);
  tried_.push_back(host_->id());
  info_.destination = host_->peer();
  const Endpoint& e = host_->endpoint();
  const MonoTime deadline = worker.now() + cluster->config().connect_timeout;
  const net::SocketFactory factory = [](const SocketAddress& to) { return rt::make_tcp_socket(to); };
  if (!e.tunnel) {
    dial_.start(factory, e.address, deadline, [this, &worker](Result<UniqueFd> fd) {
      if (!fd) return failed(fd.error());
      relay(net::make_tcp_stream(worker.loop(), std::move(*fd), worker.shared().hbone.held));
    });
    return;
  }
  const telemetry::Peer& peer = host_->peer();
  if (!peer.workload || !worker.tls()) {
    return end(Reason::kIdentityUnavailable,
               fmt::format("no identity to pin for {}", e.address.to_string()));
  }
  authority = codec::format_authority(e.address);
  net::TunnelTarget target;
  target.source = worker.tls()->identity().uri();
  target.address = *e.tunnel;
  target.expected.push_back(peer.workload->identity);
  worker.tunnels().open(target, net::TunnelDial{worker.tls(), factory}, *this, deadline);
}

void TcpFlow::on_connected(net::StreamPtr stream, const net::ConnectAnswer&) {
  relay(std::move(stream));
}

void TcpFlow::on_connect_failed(const Error& error, const net::ConnectAnswer*) { failed(error); }

void TcpFlow::failed(const Error& error) {
  if (detector_) return forget();
  if (--attempts_left_ == 0) return end(error.reason, error.detail);
  acceptor_.worker().loop().start(soon_, acceptor_.worker().now());
}

void TcpFlow::relay(net::StreamPtr upstream) {
  ProxyWorker& worker = acceptor_.worker();
  if (detector_) {
    upstream_ = std::move(upstream);
    upstream_->set_events(this);
    return upstream_->resume_read();
  }
  if (worker.shared().tcp_metrics) {
    report_ = std::make_unique<telemetry::ConnectionReport>(*worker.shared().tcp_metrics,
                                                            worker.shard(), info_, started_);
  }
  if (!early_.empty()) upstream->write(as_bytes(early_));
  if (!greeting_.empty()) stream_->write(as_bytes(greeting_));
  relay_ = std::make_unique<net::Relay>(std::move(stream_), std::move(upstream), *this,
                                        idle_timeout_);
  relay_->start(read_ended_);
}

void TcpFlow::on_relay_end(net::Relay&, const net::RelayReport& r) {
  if (report_) report_->progress(r.bytes_up, r.bytes_down);
  end(r.reason, "");
}

void TcpFlow::abort(Reason reason) {
  if (relay_) {
    relay_->abort(reason);
  } else {
    end(reason, "");
  }
}

void TcpFlow::end(Reason reason, std::string_view detail) {
  if (detector_) return forget();
  if (ended_) return;
  ended_ = true;
  ProxyWorker& worker = acceptor_.worker();
  if (report_) {
    report_->finish(reason, detail, worker.now());
  } else if (worker.shared().tcp_metrics) {
    telemetry::report_early_failure(*worker.shared().tcp_metrics, worker.shard(), info_, reason,
                                    detail);
  }
  stream_.reset();
  leave();
}

}  // namespace meltemi::waypoint
