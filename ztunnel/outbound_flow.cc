// An app's captured connection: find its workload, decide, dial or open a tunnel, relay.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "userspace/codec/forwarded.h"
#include "userspace/codec/traceparent.h"
#include "userspace/telemetry/refusal.h"
#include "ztunnel/flow.h"

namespace meltemi::ztunnel {

using model::OutboundDecision;

namespace {

// Why the other end refused, in its words where it is one of ours; else what the status says.
Error refusal(const Error& error, const net::ConnectAnswer& answer) {
  Error out = error;
  out.detail = fmt::format("http status: {}", answer.status);
  for (const net::Header& header : answer.headers) {
    if (header.name != telemetry::kRefusalHeader) continue;
    // A closed set: what a peer writes goes into the log only if it is a reason.
    if (const auto reason = telemetry::refusal_of(header.value)) {
      out.detail += fmt::format(", the other end says {}: {}", reason_name(*reason),
                                reason_meaning(*reason));
    }
    return out;
  }
  if (answer.status == 401) out.detail += ", a policy of the destination refuses this client";
  if (answer.status == 404) out.detail += ", the other end does not serve this destination";
  if (answer.status == 503) out.detail += ", the destination cannot be reached from its node";
  return out;
}

}  // namespace

// The CONNECT under way. A separate object, so that a relaying flow does not carry it.
struct OutboundFlow::Call final : net::TunnelConnect {
  explicit Call(OutboundFlow& f) : flow(f) {}
  void on_connected(net::StreamPtr stream, const net::ConnectAnswer& answer) override {
    flow.connected(std::move(stream), answer.peer.identity);
  }
  void on_connect_failed(const Error& error, const net::ConnectAnswer* answer) override {
    if (!answer) return flow.connect_failed(error);
    flow.peer_ = answer->peer.identity;
    flow.connect_failed(refusal(error, *answer));
  }
  OutboundFlow& flow;
};

namespace {

std::string fresh_traceparent(model::Random& random) {
  std::array<uint8_t, 24> bytes;
  for (size_t i = 0; i < bytes.size(); i += 8) store_be(&bytes[i], random.next());
  return codec::Traceparent::from_random(bytes).to_string();
}

bool owns(const model::Workload& w, const IpAddress& ip) {
  return std::find(w.addresses.begin(), w.addresses.end(), ip) != w.addresses.end();
}

}  // namespace

OutboundFlow::OutboundFlow(ProxyWorker& worker, PodLocalPtr pod, UniqueFd client)
    : Flow(worker, std::move(pod)),
      client_(std::move(client)),
      patience_(start_ + worker.settings().config_patience) {}

OutboundFlow::~OutboundFlow() = default;

void OutboundFlow::begin() {
  const auto src = rt::peer_address(client_.get());
  const auto dst = pod_->pod->original_destination(client_.get());
  if (!src || !dst) {
    return end_unknown({Reason::kClientClosedEarly, Fault::kDownstream, Retry::kNo,
                        "the connection was gone before it was looked at"},
                       describe());
  }
  src_ = *src;
  dst_ = *dst;
  advance();
}

void OutboundFlow::poke() {
  if (waiting_) advance();
}

void OutboundFlow::wait_for(Reason reason, std::string detail) {
  waiting_ = Error{reason, Fault::kInternal, Retry::kSafe, std::move(detail)};
  if (worker_.loop().now() < patience_) return;
  const Error error = *waiting_;
  if (decided_) {
    const telemetry::FlowInfo info = describe();
    return end(error.reason, error.detail, &info);
  }
  end_unknown(error, describe());
}

void OutboundFlow::advance() {
  waiting_.reset();
  const model::WorkloadPtr source = worker_.workload(*pod_);
  if (!source) {
    return wait_for(Reason::kUnknownSource,
                    fmt::format("pod {}/{} is not in the mesh's state", pod_->pod->ns,
                                pod_->pod->name));
  }
  // A captured connection never has an own address as destination (bpf/abi.h): somebody dialled the
  // listener itself.
  if (dst_.ip.is_loopback() || owns(*source, dst_.ip)) {
    return end_unknown({Reason::kSelfCall, Fault::kDownstream, Retry::kNo,
                        "the listener is for captured connections only"},
                       describe());
  }
  auto decision = model::decide_outbound(worker_.mesh(), *source, dst_, worker_.random(),
                                         std::span(tried_).first(attempts_));
  if (!decision) {
    // A pod that became ready, or took over from one that went, is known here a moment later than to
    // whoever made it so.
    if (decision.error().reason == Reason::kNoHealthyEndpoint && attempts_ == 0 &&
        worker_.loop().now() < start_ + kEndpointPatience) {
      waiting_ = decision.error();
      return;
    }
    const telemetry::FlowInfo info = describe();
    return end(decision.error().reason, decision.error().detail, &info);
  }
  decision_ = *std::move(decision);
  decided_ = true;
  if (decision_.kind != OutboundDecision::Kind::kHbone) return dial();
  TlsContextPtr tls = worker_.tls(source->identity);
  if (!tls) {
    return wait_for(Reason::kIdentityUnavailable,
                    fmt::format("no certificate for {} yet", source->identity.uri()));
  }
  open_tunnel(std::move(tls));
}

void OutboundFlow::dial() {
  tried_[attempts_++] = decision_.target;
  dial_ = std::make_unique<DialHolder>(worker_.loop());
  const PodPtr pod = pod_->pod;
  dial_->dial.start([pod](const SocketAddress& to) { return pod->dial_socket(to, std::nullopt); },
                    decision_.target, connect_deadline(), [this](Result<UniqueFd> fd) {
                      worker_.loop().retire(std::move(dial_));
                      if (!fd) return connect_failed(fd.error());
                      worker_.keep_alive(fd->get());
                      connected(tcp(*std::move(fd)), model::Identity());
                    });
}

void OutboundFlow::open_tunnel(TlsContextPtr tls) {
  tried_[attempts_++] = decision_.target;
  net::TunnelTarget target{pod_->tunnel_source, decision_.target, decision_.expected()};
  const PodPtr pod = pod_->pod;
  const bool keepalive = worker_.settings().keepalive;
  const rt::Keepalive probes{worker_.settings().keepalive_time,
                             worker_.settings().keepalive_interval,
                             static_cast<int>(worker_.settings().keepalive_retries)};
  net::TunnelDial how{std::move(tls), [pod, keepalive, probes](const SocketAddress& to) {
                        Result<UniqueFd> fd = pod->dial_socket(to, std::nullopt);
                        if (fd && keepalive) (void)rt::set_keepalive(fd->get(), probes);
                        return fd;
                      }};
  call_ = std::make_unique<Call>(*this);
  call_->authority = decision_.authority.to_string();
  const std::string_view host =
      decision_.service ? decision_.service->hostname.view() : std::string_view();
  call_->headers = {{"baggage", pod_->baggage},
                    {"forwarded", codec::format_forwarded(src_, host)},
                    {"traceparent", fresh_traceparent(worker_.random())}};
  worker_.tunnels().open(target, how, *call_,
                         connect_deadline() + worker_.settings().admission.handshake_timeout);
}

void OutboundFlow::connected(net::StreamPtr server, const model::Identity& peer) {
  peer_ = peer;
  const std::unique_ptr<Call> done = std::move(call_);  // its callback is on the stack until we return
  relay(tcp(std::move(client_)), std::move(server), describe());
}

void OutboundFlow::connect_failed(const Error& failure) {
  const Error error = failure;  // it may belong to the call
  call_.reset();
  // Another endpoint, or replica of the waypoint, may answer, and no byte of the client has left yet.
  const bool balanced = decision_.service || decision_.gateway;
  if (error.retry == Retry::kSafe && balanced && attempts_ < kMaxAttempts &&
      error.reason != Reason::kShutdown) {
    return advance();
  }
  const telemetry::FlowInfo info = describe();
  end(error.reason, error.detail, &info);
}

void OutboundFlow::stop_work() {
  call_.reset();
  if (dial_) {
    dial_->dial.cancel();
    worker_.loop().retire(std::move(dial_));
  }
  // RST rather than FIN: the app must not take a failed connection for an empty answer.
  if (client_) {
    rt::set_reset_on_close(client_.get());
    client_.reset();
  }
}

telemetry::FlowInfo OutboundFlow::describe() const {
  telemetry::FlowInfo info;
  info.direction = telemetry::Direction::kOutbound;
  info.src = src_;
  info.dst = decided_ ? decision_.target : dst_;
  info.source.workload = pod_->workload;
  if (!pod_->workload) {
    info.source.name = model::Symbol(pod_->pod->name);
    info.source.ns = model::Symbol(pod_->pod->ns);
  }
  if (!decided_) return info;
  info.destination.workload = decision_.upstream;
  info.service = decision_.service;
  if (decision_.kind == OutboundDecision::Kind::kHbone) {
    info.security = telemetry::Security::kMutualTls;
    info.hbone = decision_.authority;
    if (pod_->workload) info.source.identity = pod_->workload->identity;
    info.destination.identity = peer_;
  }
  return info;
}

FlowRow OutboundFlow::row() const {
  return {pod_->pod->uid, false, src_, dst_, decided_ ? decision_.target : dst_,
          decided_ && decision_.kind == OutboundDecision::Kind::kHbone ? "HBONE" : "TCP"};
}

}  // namespace meltemi::ztunnel
