// The receiving end of HBONE tunnels on one worker: accepted sockets of port 15008 go in, CONNECT
// requests with a verified peer come out, and each accepted one is a ByteStream.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "userspace/base/fd.h"
#include "userspace/net/hbone.h"
#include "userspace/net/stream.h"
#include "userspace/net/tls_context.h"
#include "userspace/rt/admission.h"

namespace meltemi::net {

class ServerTunnel;
struct ServerRequest;

// One CONNECT (or another method: answer 400) that waits for its answer. Destroying it unanswered
// answers 503. It may be answered at any later time, on the same thread.
class ConnectRequest {
 public:
  ~ConnectRequest();
  ConnectRequest(const ConnectRequest&) = delete;
  ConnectRequest& operator=(const ConnectRequest&) = delete;

  std::string_view method() const { return method_; }        // "CONNECT"
  std::string_view authority() const { return authority_; }  // as sent: not validated
  // Value of the first header of that lower-case name, "" if absent: baggage, forwarded, traceparent.
  std::string_view header(std::string_view name) const;
  const std::vector<Header>& headers() const { return headers_; }
  const TunnelPeer& peer() const { return peer_; }
  // What serve() was given.
  const std::shared_ptr<void>& context() const { return context_; }
  rt::Loop& loop() const { return loop_; }

  // Called (at most once, on the loop) when the peer gives up or the tunnel dies before the answer.
  void on_cancel(std::move_only_function<void(Reason)> fn) { on_cancel_ = std::move(fn); }
  bool cancelled() const { return cancelled_; }

  // 200. The stream is paused until resume_read(). If the peer is gone already, the stream closes
  // with the reason soon after. Once only.
  StreamPtr accept(std::span<const codec::HeaderField> headers = {});
  // 4xx or 5xx, with the end of the stream. Once only.
  void reject(uint16_t status, std::span<const codec::HeaderField> headers = {});

 private:
  friend class ServerTunnel;
  explicit ConnectRequest(rt::Loop& loop) : loop_(loop) {}
  rt::Loop& loop_;
  ServerRequest* node_ = nullptr;  // its place in the tunnel; null when answered or cancelled
  Reason cancel_reason_ = Reason::kClientClosedEarly;
  bool cancelled_ = false;
  bool answered_ = false;
  std::string method_, authority_;
  std::vector<Header> headers_;
  TunnelPeer peer_;
  std::shared_ptr<void> context_;
  std::move_only_function<void(Reason)> on_cancel_;
};

class HboneHandler {
 public:
  virtual void on_connect(std::unique_ptr<ConnectRequest> request) = 0;
  // A connection that did not become a tunnel: garbage, wrong identity, timeout. `peer.identity` is
  // empty unless it was verified.
  virtual void on_tunnel_failed(const TunnelPeer& peer, const Error& error,
                                const std::shared_ptr<void>& context) = 0;

 protected:
  ~HboneHandler() = default;
};

class HboneServer {
 public:
  // All arguments must outlive it.
  HboneServer(rt::Loop& loop, const HboneOptions& options, HboneHandler& handler,
              HboneStats& stats);
  // Cuts what is left.
  ~HboneServer();
  HboneServer(const HboneServer&) = delete;
  HboneServer& operator=(const HboneServer&) = delete;

  // Takes an accepted socket. `context` is the caller's (which pod, which listener) and comes back
  // with each request; it is also the handle for drain() and close(). `lease` is the connection's
  // place: a tunnel without streams gives way, by GOAWAY, and one that is silent is closed.
  void serve(UniqueFd fd, std::shared_ptr<const TlsContext> tls,
             std::shared_ptr<void> context = nullptr, rt::Lease lease = {});
  // GOAWAY: streams that are there go on, no new ones. All tunnels, or those of one context.
  void drain(const void* context = nullptr);
  // Ends tunnels and their streams now.
  void close(Reason reason, const void* context = nullptr);
  // Ends the tunnels whose peer the predicate names (revoked certificate).
  void close_if(Reason reason, const std::function<bool(const TunnelPeer&)>& predicate);
  // Does at once what the ends of certificates ask for; the server does so by itself, in time.
  void check_credentials();
  // The roots of an identity changed: ends its tunnels whose peer none of them vouches for.
  void check_roots(const std::shared_ptr<const TlsContext>& renewed);
  size_t tunnels() const;
  size_t streams() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace meltemi::net
