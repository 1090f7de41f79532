// See hbone_server.h.
#include "userspace/net/hbone_server.h"

#include <unordered_set>

#include "userspace/net/tunnel.h"
#include "userspace/rt/socket_options.h"

namespace meltemi::net {

struct HboneServer::Impl {
  Impl(rt::Loop& loop, const HboneOptions& options, HboneHandler& handler, HboneStats& stats)
      : loop(loop), options(options), handler(handler), stats(stats),
        watch(loop, options.wall_clock, [this](WallTime now) { return check(now); }) {}
  std::vector<ServerTunnel*> all() const { return {tunnels.begin(), tunnels.end()}; }
  WallTime check(WallTime now);

  rt::Loop& loop;
  const HboneOptions& options;
  HboneHandler& handler;
  HboneStats& stats;
  std::unordered_set<ServerTunnel*> tunnels;
  CredentialWatch watch;
};

// A request that the session's stream points to until it is answered.
struct ServerRequest final : StreamUser, rt::Retirable {
  ServerRequest(ServerTunnel& tunnel, uint32_t stream, ConnectRequest& request)
      : StreamUser(Kind::kRequest), tunnel(&tunnel), stream(stream), request(&request) {}
  ServerTunnel* tunnel;
  uint32_t stream;
  ConnectRequest* request;
  rt::ByteQueue early;  // DATA before the answer: at most one window
  bool ended = false;   // END_STREAM before the answer
  ServerRequest* prev = nullptr;
  ServerRequest* next = nullptr;
};

class ServerTunnel final : public Tunnel {
 public:
  ServerTunnel(HboneServer::Impl& server, std::shared_ptr<void> context, rt::Lease lease)
      : Tunnel(server.loop, server.options, server.stats, codec::TunnelRole::kServer),
        server_(server), context_(std::move(context)), lease_(std::move(lease)) {
    lease_.on_give_way(rt::post_to(loop_), [this](rt::GiveWay why) { give_way(why); });
  }

  const void* context() const { return context_.get(); }
  StreamPtr accept(ServerRequest& node, std::span<const codec::HeaderField> headers);
  void reject(ServerRequest& node, uint16_t status, std::span<const codec::HeaderField> headers);

 protected:
  bool on_first_byte() override { return lease_.handshaking(loop_.now()); }
  void on_ready() override {
    ready_ = true;
    lease_.idle(loop_.now());
    server_.watch.add(credential().end);
  }
  void on_stream_gone() override { one_less(); }
  void on_event(const codec::TunnelEvent& e) override;
  void on_dead(const Error& error) override;

 private:
  friend class ConnectRequest;
  void on_request(const codec::TunnelEvent& e);
  void cancel(ServerRequest& node, Reason reason);
  void unlink(ServerRequest& node);
  void one_less();
  void give_way(rt::GiveWay why);

  HboneServer::Impl& server_;
  std::shared_ptr<void> context_;
  rt::Lease lease_;
  uint32_t under_way_ = 0;  // requests and streams
  ServerRequest* requests_ = nullptr;
  bool ready_ = false;
};

void ServerTunnel::on_event(const codec::TunnelEvent& e) {
  using Kind = codec::TunnelEventKind;
  if (e.kind == Kind::kRequest) return on_request(e);
  auto* user = static_cast<StreamUser*>(e.user);
  if (!user || user->kind != StreamUser::Kind::kRequest) return;
  auto* node = static_cast<ServerRequest*>(user);
  if (!node->request) return;
  if (e.kind == Kind::kData) node->early.append(e.data);
  if (e.kind == Kind::kEnd || e.end_stream) node->ended = true;
  if (e.kind == Kind::kReset) cancel(*node, Reason::kClientClosedEarly);
}

void ServerTunnel::one_less() {
  if (--under_way_ == 0) lease_.idle(loop_.now());
}

void ServerTunnel::give_way(rt::GiveWay why) {
  // A stream may have come after it was chosen: GOAWAY lets it go on.
  if (ready() && why == rt::GiveWay::kRoom) return drain();
  die({rt::reason_of(why), Fault::kDownstream, Retry::kSafe, std::string(rt::to_string(why))});
}

void ServerTunnel::on_request(const codec::TunnelEvent& e) {
  // Not processed, so the client tries it on a new tunnel.
  if (credential_over()) {
    session().reset(e.stream, codec::H2Code::kRefusedStream);
    check_credential(options_.wall_clock());
    return;
  }
  if (under_way_++ == 0) lease_.active();
  std::unique_ptr<ConnectRequest> request(new ConnectRequest(loop_));
  for (const codec::HeaderField& f : e.headers) {
    if (f.name == ":method") request->method_ = f.value;
    else if (f.name == ":authority") request->authority_ = f.value;
    else if (!f.name.starts_with(':')) request->headers_.push_back({std::string(f.name), std::string(f.value)});
  }
  request->peer_ = peer_;
  request->context_ = context_;
  auto* node = new ServerRequest(*this, e.stream, *request);
  node->early.set_budget(options_.held);
  node->ended = e.end_stream;
  node->next = requests_;
  if (requests_) requests_->prev = node;
  requests_ = node;
  request->node_ = node;
  session().set_user(e.stream, static_cast<StreamUser*>(node));
  server_.handler.on_connect(std::move(request));
}

void ServerTunnel::unlink(ServerRequest& node) {
  (node.prev ? node.prev->next : requests_) = node.next;
  if (node.next) node.next->prev = node.prev;
  if (node.request) node.request->node_ = nullptr;
  node.request = nullptr;
  loop_.retire(std::unique_ptr<rt::Retirable>(&node));
}

void ServerTunnel::cancel(ServerRequest& node, Reason reason) {
  ConnectRequest& request = *node.request;
  request.cancelled_ = true;
  request.cancel_reason_ = reason;
  unlink(node);
  one_less();
  auto fn = std::move(request.on_cancel_);
  if (fn) fn(reason);  // may destroy the request
}

StreamPtr ServerTunnel::accept(ServerRequest& node, std::span<const codec::HeaderField> headers) {
  session().respond(node.stream, 200, headers, false);
  auto* stream = new HboneStream(*this, node.stream);
  stream->rx_ = std::move(node.early);
  stream->read_end_ = node.ended;
  session().set_user(node.stream, static_cast<StreamUser*>(stream));
  unlink(node);
  want_flush();
  return StreamPtr(stream);
}

void ServerTunnel::reject(ServerRequest& node, uint16_t status,
                          std::span<const codec::HeaderField> headers) {
  session().respond(node.stream, status, headers, true);
  unlink(node);
  one_less();
  want_flush();
}

void ServerTunnel::on_dead(const Error& error) {
  while (requests_) cancel(*requests_, error.reason == Reason::kOk ? Reason::kShutdown : error.reason);
  server_.tunnels.erase(this);
  if (!ready_) {
    server_.handler.on_tunnel_failed(peer_, error, context_);
  }
  loop_.retire(std::unique_ptr<rt::Retirable>(this));
}

// --- ConnectRequest --------------------------------------------------------------------------------

namespace {

// A stream whose peer left before it was accepted: closes as soon as it is asked to do anything.
class LostStream final : public ByteStream, private rt::TurnHook {
 public:
  LostStream(rt::Loop& loop, Reason reason) : loop_(loop), reason_(reason) {}
  rt::Loop& loop() override { return loop_; }
  bool write(const Slices&) override { return true; }
  size_t write_room() const override { return 1; }
  void shutdown_write() override { tell(); }
  void close() override { tell(); }
  void abort(Reason) override { tell(); }
  void pause_read() override {}
  void resume_read() override { tell(); }
  void limit_read(size_t) override {}
  void detach() override { told_ = true; }

 private:
  void tell() {
    if (!told_) loop_.at_turn_end(*this);
  }
  void on_turn_end() override {
    if (std::exchange(told_, true)) return;
    if (events_) events_->on_closed({reason_, true, true});
  }
  rt::Loop& loop_;
  Reason reason_;
  bool told_ = false;
};

}  // namespace

ConnectRequest::~ConnectRequest() {
  on_cancel_ = nullptr;
  if (!answered_) reject(503);
}

std::string_view ConnectRequest::header(std::string_view name) const {
  for (const Header& h : headers_)
    if (h.name == name) return h.value;
  return {};
}

StreamPtr ConnectRequest::accept(std::span<const codec::HeaderField> headers) {
  answered_ = true;
  if (!node_) return StreamPtr(new LostStream(loop_, cancel_reason_));
  return node_->tunnel->accept(*node_, headers);
}

void ConnectRequest::reject(uint16_t status, std::span<const codec::HeaderField> headers) {
  answered_ = true;
  if (node_) node_->tunnel->reject(*node_, status, headers);
}

// --- HboneServer -----------------------------------------------------------------------------------

HboneServer::HboneServer(rt::Loop& loop, const HboneOptions& options, HboneHandler& handler,
                         HboneStats& stats)
    : impl_(new Impl(loop, options, handler, stats)) {}

HboneServer::~HboneServer() { close(Reason::kShutdown); }

void HboneServer::serve(UniqueFd fd, std::shared_ptr<const TlsContext> tls,
                        std::shared_ptr<void> context, rt::Lease lease) {
  auto* tunnel = new ServerTunnel(*impl_, std::move(context), std::move(lease));
  impl_->tunnels.insert(tunnel);
  tunnel->rest_on(std::move(tls));
  tunnel->start(std::move(fd), {});
}

void HboneServer::drain(const void* context) {
  for (ServerTunnel* t : std::vector<ServerTunnel*>(impl_->tunnels.begin(), impl_->tunnels.end()))
    if (!context || t->context() == context) t->drain();
}

void HboneServer::close(Reason reason, const void* context) {
  for (ServerTunnel* t : std::vector<ServerTunnel*>(impl_->tunnels.begin(), impl_->tunnels.end()))
    if (!context || t->context() == context) t->die({reason, Fault::kInternal, Retry::kNo, "closed"});
}

void HboneServer::close_if(Reason reason, const std::function<bool(const TunnelPeer&)>& predicate) {
  for (ServerTunnel* t : std::vector<ServerTunnel*>(impl_->tunnels.begin(), impl_->tunnels.end()))
    if (predicate(t->peer())) t->die({reason, Fault::kDownstream, Retry::kNo, "closed"});
}

WallTime HboneServer::Impl::check(WallTime now) {
  WallTime next = WallTime::max();
  for (ServerTunnel* t : all()) next = std::min(next, t->check_credential(now));
  return next;
}

void HboneServer::check_credentials() { impl_->watch.look(); }

void HboneServer::check_roots(const std::shared_ptr<const TlsContext>& renewed) {
  for (ServerTunnel* t : impl_->all()) t->check_root(renewed);
}

size_t HboneServer::tunnels() const { return impl_->tunnels.size(); }

size_t HboneServer::streams() const {
  size_t n = 0;
  for (const ServerTunnel* t : impl_->tunnels) n += t->stream_count();
  return n;
}

}  // namespace meltemi::net
