// One proxied connection. Outbound: an app's captured connection, from decision to relay. Inbound: a
// CONNECT or a plaintext connection, from authorization to relay. Each reports how it ended, exactly
// once. Must never reach an app before policy has spoken.
#pragma once

#include <array>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/model/routing.h"
#include "userspace/net/relay.h"
#include "ztunnel/proxy_worker.h"

namespace meltemi::ztunnel {

class Flow : public rt::Retirable, protected net::RelayOwner {
 public:
  Flow(ProxyWorker& worker, PodLocalPtr pod);
  ~Flow() override;

  // Mesh or certificates changed, or a second passed: a flow that waits tries again.
  virtual void poke() = 0;
  // Policies or the workload changed: ends the flow if it is no longer allowed.
  virtual void recheck() {}
  // Ends the flow now.
  void cut(Reason reason);
  // Moves the byte counters of a long flow.
  void tick();
  const PodLocalPtr& pod() const { return pod_; }
  virtual FlowRow row() const = 0;

 protected:
  // Joins the two ends; `info` is what the report says.
  void relay(net::StreamPtr client, net::StreamPtr server, telemetry::FlowInfo info);
  // The last word. With `info` the flow never relayed but both ends are known.
  void end(Reason reason, std::string_view detail, const telemetry::FlowInfo* info = nullptr);
  void end_unknown(const Error& error, const telemetry::FlowInfo& info);
  bool relaying() const { return relay_ != nullptr; }
  net::StreamPtr tcp(UniqueFd fd);
  MonoTime connect_deadline() const;
  // Cancels whatever is under way; the flow is about to go.
  virtual void stop_work() = 0;
  virtual telemetry::FlowInfo describe() const = 0;

  ProxyWorker& worker_;
  PodLocalPtr pod_;
  MonoTime start_;
  std::optional<std::string> policy_;  // that allowed it, for the log

 private:
  friend class ProxyWorker;
  rt::Lease lease_;  // goes after the sockets: members of Flow are destroyed in reverse
  void on_relay_end(net::Relay& relay, const net::RelayReport& report) override;
  void leave();

  std::unique_ptr<net::Relay> relay_;
  std::unique_ptr<telemetry::ConnectionReport> report_;
  std::list<std::unique_ptr<Flow>>::iterator self_;
  bool gone_ = false;
};

// Keeps a TcpDial that is on the stack alive until the turn is over.
struct DialHolder final : rt::Retirable {
  explicit DialHolder(rt::Loop& loop) : dial(loop) {}
  net::TcpDial dial;
};

class OutboundFlow final : public Flow {
 public:
  OutboundFlow(ProxyWorker& worker, PodLocalPtr pod, UniqueFd client);
  ~OutboundFlow() override;
  void begin();
  void poke() override;
  FlowRow row() const override;

 private:
  // Endpoints tried before the client hears of a failed connect.
  static constexpr size_t kMaxAttempts = 3;
  // How long a connection waits for a first endpoint of its service to be healthy; looked at when the mesh
  // changes and every second.
  static constexpr Duration kEndpointPatience = std::chrono::seconds(1);
  struct Call;

  void advance();
  void wait_for(Reason reason, std::string detail);
  void dial();
  void open_tunnel(TlsContextPtr tls);
  void connected(net::StreamPtr server, const model::Identity& peer);
  void connect_failed(const Error& error);
  void stop_work() override;
  telemetry::FlowInfo describe() const override;

  UniqueFd client_;
  SocketAddress src_, dst_;
  model::OutboundDecision decision_;
  bool decided_ = false;
  model::Identity peer_;  // as verified
  std::unique_ptr<DialHolder> dial_;
  std::unique_ptr<Call> call_;
  std::optional<Error> waiting_;  // why it waits, if it does
  MonoTime patience_;
  uint8_t attempts_ = 0;
  std::array<SocketAddress, kMaxAttempts> tried_;  // the first attempts_ of them
};

class InboundFlow final : public Flow {
 public:
  InboundFlow(ProxyWorker& worker, PodLocalPtr pod, UniqueFd client);
  InboundFlow(ProxyWorker& worker, PodLocalPtr pod, std::unique_ptr<net::ConnectRequest> request);
  void begin();
  void poke() override;
  void recheck() override;
  FlowRow row() const override;

 private:
  void begin_plaintext();
  void begin_hbone();
  bool authorize();
  model::PolicyVerdict verdict();
  void dial();
  void connected(UniqueFd fd);
  void refuse(const Error& error);
  void stop_work() override;
  telemetry::FlowInfo describe() const override;

  UniqueFd client_;
  std::unique_ptr<net::ConnectRequest> request_;
  bool hbone_;
  model::Identity identity_;
  SocketAddress src_;        // TCP peer
  SocketAddress accepted_;   // where the connection came in
  SocketAddress app_;        // where it goes
  std::string authority_;
  model::ServicePtr service_;
  model::WorkloadPtr workload_;
  uint64_t checked_version_ = 0;
  std::unique_ptr<DialHolder> dial_;
  bool waiting_ = false;
  MonoTime patience_;
};

}  // namespace meltemi::ztunnel
