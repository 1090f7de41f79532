#include "waypoint/proxy/acceptor.h"

#include <fmt/format.h>

#include "userspace/base/log.h"
#include "userspace/codec/authority.h"
#include "userspace/rt/socket_options.h"
#include "waypoint/proxy/detect.h"

namespace meltemi::waypoint {
namespace {

log::Scope scope("waypoint");

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
  worker_.loop().retire(std::move(it->second));
  connections_.erase(it);
}

void Acceptor::serve_hbone(UniqueFd fd) {
  if (!worker_.tls()) {
    scope.warn("connection on the HBONE port refused: identity_unavailable: no certificate yet");
    return worker_.loop().close(std::move(fd));
  }
  server_.serve(std::move(fd), worker_.tls());
}

void Acceptor::on_tunnel_failed(const net::TunnelPeer& peer, const Error& error,
                                const std::shared_ptr<void>&) {
  if (!worker_.shared().tcp_metrics) return;
  telemetry::FlowInfo flow;
  flow.direction = telemetry::Direction::kInbound;
  flow.src = peer.address;
  flow.dst = peer.local;
  flow.source = source_peer(worker_, peer.identity, peer.address);
  telemetry::report_early_failure(*worker_.shared().tcp_metrics, worker_.shard(), flow,
                                  error.reason, error.detail);
}

void Acceptor::on_connect(std::unique_ptr<net::ConnectRequest> request) {
  const auto refuse = [&](uint16_t status, Reason reason, std::string_view detail) {
    request->reject(status);
    telemetry::FlowInfo flow;
    flow.direction = telemetry::Direction::kInbound;
    flow.security = telemetry::Security::kMutualTls;
    flow.src = request->peer().address;
    flow.dst = request->peer().local;
    flow.hbone_host = log::escape(request->authority());
    flow.source = source_peer(worker_, request->peer().identity, request->peer().address);
    if (!worker_.shared().tcp_metrics) return;
    telemetry::report_early_failure(*worker_.shared().tcp_metrics, worker_.shard(), flow, reason,
                                    detail);
  };
  if (request->method() != "CONNECT") {
    return refuse(400, Reason::kBadRequest, "method is not CONNECT");
  }
  const auto authority = codec::Authority::parse(request->authority());
  if (!authority) return refuse(400, Reason::kBadRequest, "malformed authority");
  // Only what the control plane attached to this waypoint is served: no open proxy.
  if (!authority->ip) return refuse(404, Reason::kNoRoute, "authority is not an address");
  const SocketAddress local{*authority->ip, authority->port};
  if (!worker_.snapshot()) return refuse(503, Reason::kNoRoute, "no configuration yet");
  const ListenerPtr* listener = worker_.snapshot()->find_virtual(local);
  if (!listener) return refuse(404, Reason::kNoRoute, "no listener for this destination");
  if (draining_) return refuse(503, Reason::kShutdown, "draining");

  ClientInfo client;
  client.identity = request->peer().identity;
  client.remote = request->peer().address;
  client.local = local;
  client.remote_ip = client.remote.ip.to_string();
  client.security = telemetry::Security::kMutualTls;
  client.source = source_peer(worker_, client.identity, client.remote);
  begin(std::move(client), *listener, request->accept());
}

void Acceptor::serve_plain(UniqueFd fd, const std::string& name) {
  if (draining_ || connections_.size() >= worker_.shared().limits.max_connections) {
    worker_.stats().limit_hits.fetch_add(!draining_, std::memory_order_relaxed);
    return worker_.loop().close(std::move(fd));
  }
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
  begin(std::move(client), std::move(listener),
        net::make_tcp_stream(worker_.loop(), std::move(fd), worker_.shared().hbone.held));
}

void Acceptor::begin(ClientInfo client, ListenerPtr listener, net::StreamPtr stream) {
  worker_.stats().connections.fetch_add(1, std::memory_order_relaxed);
  if (!listener->needs_detection()) {
    const FilterChain* chain = listener->chain_for(Detected::kOther);
    if (chain && chain->tcp()) {
      return serve_tcp(std::move(client), *chain->tcp(), std::move(stream), {});
    }
    const HttpChain* http = chain ? chain->http() : nullptr;
    if (http && http->options.codec != CodecType::kAuto) {
      const bool h2 = http->options.codec == CodecType::kHttp2;
      return serve(std::move(client), *listener, std::move(stream),
                   h2 ? Detected::kH2 : Detected::kHttp1, {});
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
  connection_gone(d);
  serve(std::move(client), *listener, std::move(stream), protocol, std::move(early));
}

void Acceptor::serve(ClientInfo client, const Listener& listener, net::StreamPtr stream,
                     Detected protocol, std::string early) {
  const FilterChain* chain = listener.chain_for(protocol);
  if (!chain) return;  // nothing takes it: the stream is aborted
  if (chain->tcp()) {
    return serve_tcp(std::move(client), *chain->tcp(), std::move(stream), std::move(early));
  }
  const HttpOptions& options = chain->http()->options;
  ConnectionOwner& owner = *this;
  if (protocol == Detected::kH2) {
    own<H2Server>(worker_, owner, std::move(client), options, std::move(stream), as_bytes(early));
  } else {
    own<H1Server>(worker_, owner, std::move(client), options, std::move(stream), as_bytes(early));
  }
}

void Acceptor::serve_tcp(ClientInfo client, const TcpChain& chain, net::StreamPtr stream,
                         std::string early) {
  model::PolicyInput input;
  input.source_ip = client.remote.ip;
  const model::Identity identity = client.identity;
  input.identity = identity.present() ? &identity : nullptr;
  input.destination = client.local;
  TcpFlow& flow = own<TcpFlow>(*this, std::move(client), std::move(stream), std::move(early),
                               chain.idle_timeout);
  const model::PolicyVerdict verdict = authorize(chain.rbac, input);
  if (!verdict.allowed) return flow.refuse(verdict.reason, verdict.detail());
  flow.start(chain);
}

void Acceptor::drain() {
  draining_ = true;
  server_.drain();
  // Objects may leave the table while they drain.
  std::vector<rt::Retirable*> all;
  for (const auto& [connection, owned] : connections_) all.push_back(connection);
  for (rt::Retirable* connection : all) {
    if (!connections_.contains(connection)) continue;
    if (auto* h1 = dynamic_cast<H1Server*>(connection)) h1->drain();
    if (auto* h2 = dynamic_cast<H2Server*>(connection)) h2->drain();
  }
}

void Acceptor::close(Reason reason) {
  draining_ = true;
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
  stream->set_events(this);
  const FilterChain* chain = listener->chain_for(Detected::kHttp1);
  const Duration wait = http_only && chain && chain->http()
                            ? chain->http()->options.headers_timeout
                            : acceptor.worker().shared().limits.detect_timeout;
  timer_.set(acceptor.worker().now() + wait);
  stream->resume_read();
}

void Detector::on_data(const net::Slices& data) {
  if (finished_) return;
  for (size_t i = 0; i < data.count; ++i) {
    early.append(static_cast<const char*>(data.pieces[i].iov_base), data.pieces[i].iov_len);
  }
  const auto protocol = detect_protocol(as_bytes(early));
  if (protocol) done(*protocol);
}

void Detector::on_deadline() {
  if (http_only_) return close();
  done(Detected::kOther);  // the server speaks first, or nobody does
}

void Detector::done(Detected protocol) {
  finished_ = true;
  stream->pause_read();
  // What is not HTTP on a port that is HTTP gets HTTP's own answer, a 400.
  if (http_only_ && protocol == Detected::kOther) protocol = Detected::kHttp1;
  acceptor_.detected(*this, protocol);
}

void Detector::close() {
  if (finished_) return;
  finished_ = true;
  stream.reset();
  acceptor_.connection_gone(*this);
}

// --- TCP --------------------------------------------------------------------------------------

TcpFlow::TcpFlow(Acceptor& acceptor, ClientInfo client, net::StreamPtr stream, std::string early,
                 Duration idle_timeout)
    : acceptor_(acceptor),
      client_(std::move(client)),
      stream_(std::move(stream)),
      early_(std::move(early)),
      idle_timeout_(idle_timeout),
      dial_(acceptor.worker().loop()),
      soon_([this] { connect(); }) {
  telemetry::FlowInfo info;
  info.direction = telemetry::Direction::kInbound;
  info.security = client_.security;
  info.src = client_.remote;
  info.dst = client_.local;
  info.source = client_.source;
  ProxyWorker& worker = acceptor_.worker();
  if (!worker.shared().tcp_metrics) return;
  report_ = std::make_unique<telemetry::ConnectionReport>(
      *worker.shared().tcp_metrics, worker.shard(), std::move(info), worker.now());
}

TcpFlow::~TcpFlow() {
  if (host_) host_->add_active(-1);
}

void TcpFlow::start(const TcpChain& chain) {
  cluster_name_ = chain.choose(acceptor_.worker().random().next()).cluster;
  attempts_left_ = chain.connect_attempts;
  connect();
}

void TcpFlow::refuse(Reason reason, std::string_view detail) { end(reason, detail); }

void TcpFlow::connect() {
  ProxyWorker& worker = acceptor_.worker();
  ClusterState* cluster = worker.upstreams().find(cluster_name_);
  if (!cluster) return end(Reason::kNoService, cluster_name_.view());
  const auto host = cluster->pick(tried_, client_.local);
  if (!host) return end(host.error().reason, host.error().detail);
  if (host_) host_->add_active(-1);
  host_ = *host;
  host_->add_active(1);
  tried_.push_back(host_->id());
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
  if (--attempts_left_ == 0) return end(error.reason, error.detail);
  acceptor_.worker().loop().start(soon_, acceptor_.worker().now());
}

void TcpFlow::relay(net::StreamPtr upstream) {
  if (!early_.empty()) upstream->write(as_bytes(early_));
  relay_ = std::make_unique<net::Relay>(std::move(stream_), std::move(upstream), *this,
                                        idle_timeout_);
  relay_->start();
}

void TcpFlow::on_relay_end(net::Relay&, const net::RelayReport& r) {
  if (report_) {
    report_->progress(r.bytes_up + early_.size(), r.bytes_down);
  }
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
  if (ended_) return;
  ended_ = true;
  if (report_) report_->finish(reason, detail, acceptor_.worker().now());
  stream_.reset();
  acceptor_.connection_gone(*this);
}

}  // namespace meltemi::waypoint
