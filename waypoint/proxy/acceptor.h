// Where client connections of one worker begin: CONNECT requests of HBONE tunnels and accepted sockets of
// bound listeners. Finds the listener, tells protocols apart, and makes the connection's object: HTTP/1,
// HTTP/2 or a TCP flow. Owns all of them until they end. Must never serve a destination that no listener
// names.
#pragma once

#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "userspace/net/hbone_server.h"
#include "userspace/net/relay.h"
#include "waypoint/proxy/h1_server.h"
#include "waypoint/proxy/h2_server.h"

namespace meltemi::waypoint {

class Detector;
class TcpFlow;
class Unnamed;

class Acceptor final : public net::HboneHandler, private ConnectionOwner {
 public:
  explicit Acceptor(ProxyWorker& worker);
  ~Acceptor();
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // An accepted socket of port 15008. Refused (closed) until there is a certificate.
  void serve_hbone(UniqueFd fd, rt::Lease lease);
  // An accepted socket of the bound listener of that name.
  void serve_plain(UniqueFd fd, const std::string& listener, rt::Lease lease);

  // Ends the byte flows that the policies of now would not let in (requests are asked one by one), asks
  // connections to what leaves to come no more, and begins those whose destination has been named.
  void configuration_changed();
  // Connections finish what is under way and take nothing new.
  void drain();
  // The own roots changed: tunnels whose peer none of them vouches for end.
  void check_roots(const std::shared_ptr<const net::TlsContext>& renewed) {
    server_.check_roots(renewed);
  }
  // Ends everything now.
  void close(Reason reason);
  size_t connections() const { return connections_.size() + server_.streams(); }

  // --- from parts ---
  ProxyWorker& worker() { return worker_; }
  void detected(Detector& detector, Detected protocol);
  // The client is silent: connects to where its bytes would go, in case the server speaks first.
  void dial_ahead(Detector& detector);
  // Answers, logs and counts.
  void refuse(net::ConnectRequest& request, uint16_t status, Reason reason, std::string_view detail);
  // No listener has named its destination in time.
  void nobody_came(Unnamed& waiting);
  void connection_gone(rt::Retirable& connection) override;

 private:
  void on_connect(std::unique_ptr<net::ConnectRequest> request) override;
  void on_tunnel_failed(const net::TunnelPeer& peer, const Error& error,
                        const std::shared_ptr<void>& context) override;
  void connect(std::unique_ptr<net::ConnectRequest> request, const SocketAddress& to,
               const ListenerPtr& listener, rt::Lease lease);
  void refuse_unnamed(net::ConnectRequest& request);
  void begin(ClientInfo client, ListenerPtr listener, net::StreamPtr stream);
  void serve(ClientInfo client, const Listener& listener, net::StreamPtr stream,
             Detected protocol, std::string early, bool ended, TcpFlow* ahead);
  void serve_tcp(ClientInfo client, const TcpChain& chain, net::StreamPtr stream, std::string early,
                 bool ended);
  template <typename T, typename... A>
  T& own(A&&... args);
  // Calls `act` with each of `some`, which are of type T; they may leave the table in it.
  template <typename T, typename F>
  void each(const std::unordered_set<rt::Retirable*>& some, F&& act);

  ProxyWorker& worker_;
  net::HboneServer server_;
  std::unordered_map<rt::Retirable*, std::unique_ptr<rt::Retirable>> connections_;
  // Those of them that are a TcpFlow, an HttpConnection, an Unnamed.
  std::unordered_set<rt::Retirable*> flows_, http_, unnamed_;
  bool draining_ = false;
};

// A CONNECT to an address that no listener names yet: whoever configures both ends may have told the
// client first.
class Unnamed final : public rt::Retirable, private LazyTimer::Owner {
 public:
  Unnamed(Acceptor& acceptor, std::unique_ptr<net::ConnectRequest> request, const SocketAddress& to,
          rt::Lease lease);
  std::unique_ptr<net::ConnectRequest> request;
  const SocketAddress to;
  rt::Lease lease;

 private:
  void on_deadline() override { acceptor_.nobody_came(*this); }
  Acceptor& acceptor_;
  LazyTimer timer_;
};

// Waits for the first bytes of a connection: of the client, which tell its protocol, and, once the client
// has been silent for a moment, of the server too, which tell that it is not HTTP.
class Detector final : public rt::Retirable, private net::StreamEvents, private LazyTimer::Owner {
 public:
  Detector(Acceptor& acceptor, ClientInfo client, ListenerPtr listener, net::StreamPtr stream,
           bool http_only);
  ClientInfo client;
  ListenerPtr listener;
  net::StreamPtr stream;
  std::string early;
  bool ended = false;  // the client sends no more than `early`
  TcpFlow* ahead = nullptr;  // connects meanwhile

  // Of `ahead`.
  void server_spoke() { done(Detected::kOther); }

 private:
  void on_data(const net::Slices& data) override;
  void on_read_end() override;
  void on_writable() override {}
  void on_closed(const net::StreamEnd&) override { close(); }
  void on_deadline() override;
  void close();
  void done(Detected protocol);
  // Of a port that is HTTP for sure: a connection without a request is idle, and one with half of its
  // first line is slow.
  void wait_for_http();

  Acceptor& acceptor_;
  LazyTimer timer_;
  MonoTime deadline_;
  bool http_only_;
  bool finished_ = false;
};

// A connection that is relayed as it is.
class TcpFlow final : public rt::Retirable,
                      public net::RelayOwner,
                      private net::TunnelConnect,
                      private net::StreamEvents {
 public:
  // `early`: bytes that were read already; `ended`: and no more follow.
  TcpFlow(Acceptor& acceptor, ClientInfo client, net::StreamPtr stream, std::string early, bool ended,
          Duration idle_timeout);
  ~TcpFlow() override;
  // Asks the chain's policies, then connects.
  void start(const TcpChain& chain);
  // The same before it is known that the connection is one of bytes; it has no stream yet. What the
  // server says meanwhile is kept, and told to `detector`. Ends without a word if it does not come
  // about, and the flow that is made later tries again. False: the policies would not let it in.
  bool start_ahead(const TcpChain& chain, Detector& detector);
  // It is one of bytes.
  void take(const TcpChain& chain, ClientInfo client, net::StreamPtr stream, std::string early,
            bool ended);
  // It is not.
  void forget();
  // The configuration has changed: ends the flow if its client would not be let in any more.
  void judge_again(const Snapshot& snapshot);
  void abort(Reason reason);

 private:
  void on_connected(net::StreamPtr stream, const net::ConnectAnswer& answer) override;
  void on_connect_failed(const Error& error, const net::ConnectAnswer* answer) override;
  void on_relay_end(net::Relay& relay, const net::RelayReport& report) override;
  // StreamEvents: of the server, while it is ahead.
  void on_data(const net::Slices& data) override;
  void on_read_end() override { forget(); }
  void on_writable() override {}
  void on_closed(const net::StreamEnd&) override { forget(); }
  void keep_place();
  void connect();
  void relay(net::StreamPtr upstream);
  void failed(const Error& error);
  model::PolicyVerdict judge(const TcpChain& chain) const;
  void end(Reason reason, std::string_view detail);
  void leave();

  Acceptor& acceptor_;
  ClientInfo client_;
  net::StreamPtr stream_;
  std::string early_;
  Detector* detector_ = nullptr;  // while it is ahead
  net::StreamPtr upstream_;       // and connected
  std::string greeting_;          // and the server has spoken
  bool read_ended_;
  Duration idle_timeout_;
  net::TcpDial dial_;
  rt::FnTimer soon_;
  std::unique_ptr<net::Relay> relay_;
  MonoTime started_;
  telemetry::FlowInfo info_;
  std::unique_ptr<telemetry::ConnectionReport> report_;  // once there is a connection
  model::Symbol cluster_name_;
  Host* host_ = nullptr;
  std::vector<uint64_t> tried_;
  uint32_t attempts_left_ = 1;
  bool ended_ = false;
};

}  // namespace meltemi::waypoint
