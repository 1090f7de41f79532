// One request and its response: the pipeline. Phases, each with what it may do:
//
//   normalise   target and host, or 400; everything after sees only the result
//   authorize   RBAC filters on the verified identity, or 403
//   route       first match, or 404; redirects and direct responses end here; where it leads to
//               another service than the client's, that one's RBAC filters too
//   attempt     cluster, endpoint, connection, send; as often as the retry policy allows
//   respond     header changes, body, trailers; a response that has begun cannot be retried
//   report      exactly once: metrics and one log line with the reason
//
// A new phase is a function between two of these that either lets the request on or calls reply().
// Holds at most the retry buffer of a body. One exchange at a time; the object is used again for the
// next request of its connection or stream. Must never outlive its ServerSide's connection.
#pragma once

#include <string>
#include <vector>

#include "userspace/rt/admission.h"
#include "waypoint/proxy/upstream.h"

namespace meltemi::waypoint {

// The client's connection, as far as requests on it need to know.
struct ClientInfo {
  model::Identity identity;  // verified, or absent for plaintext
  SocketAddress remote;
  SocketAddress local;       // what the client wanted to reach (CONNECT authority), or where it came in
  std::string remote_ip;     // text of remote.ip
  telemetry::Security security = telemetry::Security::kUnknown;
  telemetry::Peer source;
  std::string listener;      // name, for bound ones; empty: found by `local`
  std::string waypoints;     // passed on the way here, if the CONNECT says so
  rt::Lease lease;           // its place; whoever serves it says whether it works or is idle
  // A proxy of the mesh, or one that the operator named: what it says about where a request came from
  // is believed (X-Forwarded-*, Forwarded).
  bool believed = false;

  // The same client, but not its place.
  ClientInfo without_lease() const;

  // The HTTP chain for a request now; config may have changed since the last one. Null: none.
  const HttpChain* chain(const Snapshot& snapshot, bool h2) const;
};

class Exchange final : private UpstreamEvents, private LazyTimer::Owner {
 public:
  explicit Exchange(ProxyWorker& worker);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // --- from the client's codec ---
  void start(const RequestHead& head, ServerSide& server, const ClientInfo& client);
  // A request that could not be parsed: answers and reports it.
  void refuse(const RequestHead& head, ServerSide& server, const ClientInfo& client,
              uint16_t status, const Error& error);
  void request_body(ByteView data);
  void request_end(const Fields& trailers);
  // The body cannot be parsed any further: answers if nothing was sent yet. False: too late.
  bool bad_body(uint16_t status, const Error& error);
  void client_room();
  void client_gone(Reason reason);  // connection or stream is lost; no call to ServerSide follows
  bool active() const { return state_ != State::kDone; }
  // The request goes to an endpoint as an upgrade; else the codec must parse it as an ordinary one.
  bool upgrading() const { return active() && head_.websocket; }

 private:
  enum class State : uint8_t { kDone, kConnecting, kBackoff, kSent, kResponding, kTunnel };

  // phases
  void open(const RequestHead& head, ServerSide& server, const ClientInfo& client);
  bool normalise(const HttpChain& chain);
  bool authorize(const std::vector<RbacFilter>& filters, const SocketAddress& destination);
  // False: the request has passed as many proxies as it may, and was answered.
  bool may_pass();
  bool route(const HttpChain& chain);
  bool forward(const ForwardAction& action, const HttpChain& chain);
  void attempt();
  IpAddress origin() const;
  bool tell_waypoint(Host& host);
  void send_buffered();
  // Bytes of a WebSocket client wait for the endpoint's 101.
  bool may_send() const { return side_ && (!head_.websocket || state_ == State::kTunnel); }

  // outcomes
  void reply(Reason reason, std::string_view detail, uint16_t status = 0);
  void reply_redirect(const RedirectAction& action);
  void send_local(uint16_t status, int grpc_status, std::string_view body,
                  std::string_view location, std::string_view type = "text/plain");
  void complete(Reason reason, std::string_view detail);
  bool try_again(const AttemptOutcome& outcome);
  // The endpoint has refused the request and not acted on it. False: it cannot be sent again.
  bool send_again();
  void end_attempt();
  void drop_attempt();
  void arm_timer();
  MonoTime idle_deadline() const;

  // UpstreamEvents
  void on_attempt_started(ClientSide& side, const SocketAddress& endpoint) override;
  void on_informational(const ResponseHead& head) override;
  void on_response(const ResponseHead& head, bool end) override;
  void on_response_body(ByteView data) override;
  void on_response_end(const Fields* trailers) override;
  void on_attempt_failed(const AttemptFailure& failure) override;
  void on_upstream_room() override;
  void on_deadline() override;

  void report(Reason reason, std::string_view detail);
  void describe(telemetry::RequestInfo& info) const;  // what only the log needs

  ProxyWorker& worker_;
  ServerSide* server_ = nullptr;
  const ClientInfo* client_ = nullptr;
  Arena arena_;
  LazyTimer timer_;
  SnapshotRef snapshot_;

  RequestHead head_;
  Target target_;
  RequestView view_;
  const Route* route_ = nullptr;
  const ForwardAction* action_ = nullptr;
  const ClusterChoice* choice_ = nullptr;
  const RetryPolicy* retry_ = nullptr;
  ClusterState* cluster_ = nullptr;
  Host* host_ = nullptr;
  ClientSide* side_ = nullptr;
  AttemptPlan plan_;
  std::vector<uint64_t> tried_;  // Host::id()
  std::string body_;       // what was received and may have to be sent (again)
  Fields trailers_;        // of the request
  Fields response_;        // head with the route's changes
  std::array<char, 36> request_id_;

  State state_ = State::kDone;
  bool request_complete_ = false;
  bool replayable_ = true;
  bool request_paused_ = false;
  bool response_paused_ = false;
  bool in_retry_ = false;
  bool counted_ = false;       // in the cluster's request count
  uint32_t attempts_ = 0;
  uint32_t refusals_ = 0;
  uint16_t status_ = 0;
  int grpc_status_ = -1;
  uint64_t received_ = 0, sent_ = 0;
  MonoTime started_{}, attempt_started_{}, last_active_{};
  MonoTime total_deadline_ = MonoTime::max(), try_deadline_ = MonoTime::max();
  MonoTime backoff_until_ = MonoTime::max();
  MonoTime queue_deadline_ = MonoTime::max();   // to wait for room at an endpoint
  MonoTime refused_until_ = MonoTime::max();    // to be refused
  Duration idle_{};
  Duration upstream_time_{};
  telemetry::Peer destination_;
  model::ServicePtr service_;
  std::optional<SocketAddress> endpoint_;
};

}  // namespace meltemi::waypoint
