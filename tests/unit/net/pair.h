// The two ends of a tunnel as small proxies: Far takes HBONE and dials an upstream, Near takes TCP
// and sends it through a pool. What ztunnel does, without policy; for tests and the tuning bench.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "userspace/net/hbone_server.h"
#include "userspace/net/relay.h"
#include "userspace/net/tunnel_pool.h"
#include "userspace/rt/listener.h"
#include "userspace/rt/socket_options.h"

namespace meltemi::net::test {

// Relays that live until they end; collects their reports.
class Flows final : public RelayOwner {
 public:
  explicit Flows(rt::Loop& loop) : loop_(loop) {}
  Relay& join(StreamPtr client, StreamPtr server) {
    auto relay = std::make_unique<Relay>(std::move(client), std::move(server), *this);
    Relay& r = *relay;
    relays_[&r] = std::move(relay);
    r.start();
    return r;
  }
  void on_relay_end(Relay& relay, const RelayReport& report) override {
    if (keep_reports) reports.push_back(report);
    ++ended;
    auto it = relays_.find(&relay);
    loop_.retire(std::move(it->second));
    relays_.erase(it);
  }
  size_t running() const { return relays_.size(); }
  Relay* first() { return relays_.empty() ? nullptr : relays_.begin()->first; }
  std::vector<RelayReport> reports;
  size_t ended = 0;
  bool keep_reports = true;

 private:
  rt::Loop& loop_;
  std::unordered_map<Relay*, std::unique_ptr<Relay>> relays_;
};

class Far final : public HboneHandler {
 public:
  Far(rt::Loop& loop, std::shared_ptr<const TlsContext> tls, SocketAddress upstream,
      const HboneOptions& options = {}, const char* listen = "127.0.0.1:0")
      : loop_(loop), options_(options), tls(std::move(tls)), upstream(upstream), flows(loop),
        server(loop, options_, *this, stats) {
    auto fd = rt::make_tcp_listener(*SocketAddress::parse(listen), {});
    address = *rt::local_address(fd->get());
    listener_ = std::make_unique<rt::Listener>(loop, std::move(*fd), [this](UniqueFd c) {
      server.serve(std::move(c), this->tls, nullptr, admit ? admit() : rt::Lease());
    });
  }
  void on_connect(std::unique_ptr<ConnectRequest> request) override {
    last_authority = request->authority();
    last_peer = request->peer().identity;
    if (reject_with) return request->reject(reject_with);
    auto owner = std::make_unique<Dial>(std::move(request), loop_);
    Dial* dial = owner.get();
    dials_[dial] = std::move(owner);
    dial->request->on_cancel([this, dial](Reason) { drop(dial); });
    dial->dial.start({}, upstream, loop_.now() + std::chrono::seconds(10),
                     [this, dial](Result<UniqueFd> fd) {
                       if (!dials_.contains(dial)) return;  // cancelled in this turn
                       if (fd) {
                         flows.join(dial->request->accept(),
                                    make_tcp_stream(loop_, std::move(*fd), options_.held));
                       } else {
                         dial->request->reject(503);
                       }
                       drop(dial);
                     });
  }
  void on_tunnel_failed(const TunnelPeer&, const Error& error,
                        const std::shared_ptr<void>&) override {
    failures.push_back(error);
  }

 private:
  struct Dial : rt::Retirable {
    Dial(std::unique_ptr<ConnectRequest> r, rt::Loop& loop) : request(std::move(r)), dial(loop) {}
    std::unique_ptr<ConnectRequest> request;
    TcpDial dial;
  };
  void drop(Dial* dial) {
    auto it = dials_.find(dial);
    dial->dial.cancel();  // it may complete in this very turn
    loop_.retire(std::move(it->second));
    dials_.erase(it);
  }
  rt::Loop& loop_;
  HboneOptions options_;
  std::unordered_map<Dial*, std::unique_ptr<Dial>> dials_;

 public:
  std::shared_ptr<const TlsContext> tls;
  SocketAddress upstream, address;
  std::string last_authority;
  model::Identity last_peer;
  uint16_t reject_with = 0;
  std::function<rt::Lease()> admit;  // asked for every connection, if set
  std::vector<Error> failures;
  HboneStats stats;
  Flows flows;
  HboneServer server;

 private:
  std::unique_ptr<rt::Listener> listener_;
};

class Near final {
 public:
  Near(rt::Loop& loop, std::shared_ptr<const TlsContext> tls, SocketAddress far,
       std::vector<model::Identity> expected, const HboneOptions& options = {},
       const char* listen = "127.0.0.1:0")
      : loop_(loop), options_(options), dial{std::move(tls), {}},
        target{"test", far, std::move(expected)}, flows(loop), pool(loop, options_, stats) {
    auto fd = rt::make_tcp_listener(*SocketAddress::parse(listen), {});
    (void)rt::limit_receive_buffer(fd->get(), 128 * 1024);  // as ztunnel's for apps
    address = *rt::local_address(fd->get());
    listener_ = std::make_unique<rt::Listener>(loop, std::move(*fd),
                                               [this](UniqueFd c) { accept(std::move(c)); });
  }
  ~Near() {
    for (auto& [call, owner] : calls_) call->cancel();
  }
  void accept(UniqueFd c) {
    auto call = std::make_unique<Call>(*this, std::move(c));
    call->authority = authority;
    Call* raw = call.get();
    calls_[raw] = std::move(call);
    pool.open(target, dial, *raw);
  }

 private:
  struct Call final : TunnelConnect, rt::Retirable {
    Call(Near& near, UniqueFd c) : near(near), client(std::move(c)) {}
    void on_connected(StreamPtr stream, const ConnectAnswer& answer) override {
      near.last_answer = answer;
      near.flows.join(make_tcp_stream(near.loop_, std::move(client), near.options_.held),
                      std::move(stream));
      near.drop(this);
    }
    void on_connect_failed(const Error& error, const ConnectAnswer* answer) override {
      near.failures.push_back(error);
      near.statuses.push_back(answer ? answer->status : 0);
      near.drop(this);
    }
    Near& near;
    UniqueFd client;
  };
  void drop(Call* call) {
    auto it = calls_.find(call);
    loop_.retire(std::move(it->second));
    calls_.erase(it);
  }
  rt::Loop& loop_;
  HboneOptions options_;
  std::unordered_map<Call*, std::unique_ptr<Call>> calls_;

 public:
  TunnelDial dial;
  TunnelTarget target;
  std::string authority = "10.1.2.3:80";  // what CONNECT asks for
  SocketAddress address;
  ConnectAnswer last_answer;
  std::vector<Error> failures;
  std::vector<uint16_t> statuses;
  HboneStats stats;
  Flows flows;
  TunnelPool pool;

 private:
  std::unique_ptr<rt::Listener> listener_;
};

}  // namespace meltemi::net::test
