// A connection for a local app: a CONNECT from a verified peer, or plaintext. Check the destination,
// ask the policies, dial the app with the client's address, relay.
#include <fmt/format.h>

#include "userspace/codec/baggage.h"
#include "userspace/codec/forwarded.h"
#include "userspace/telemetry/refusal.h"
#include "ztunnel/flow.h"

namespace meltemi::ztunnel {
namespace {

bool is_own_port(uint16_t port) {
  return port == model::kHbonePort || port == model::kOutboundPort ||
         port == model::kInboundPlaintextPort;
}

}  // namespace

InboundFlow::InboundFlow(ProxyWorker& worker, PodLocalPtr pod, UniqueFd client)
    : Flow(worker, std::move(pod)),
      client_(std::move(client)),
      hbone_(false),
      patience_(start_ + worker.settings().config_patience) {}

InboundFlow::InboundFlow(ProxyWorker& worker, PodLocalPtr pod,
                         std::unique_ptr<net::ConnectRequest> request)
    : Flow(worker, std::move(pod)),
      request_(std::move(request)),
      hbone_(true),
      identity_(request_->peer().identity),
      src_(request_->peer().address),
      accepted_(request_->peer().local),
      authority_(request_->authority()),
      patience_(start_ + worker.settings().config_patience) {}

void InboundFlow::begin() { return hbone_ ? begin_hbone() : begin_plaintext(); }

void InboundFlow::poke() {
  if (waiting_) begin();
}

void InboundFlow::begin_plaintext() {
  waiting_ = false;
  const auto src = rt::peer_address(client_.get());
  const auto dst = pod_->pod->original_destination(client_.get());
  if (!src || !dst) {
    return end_unknown({Reason::kClientClosedEarly, Fault::kDownstream, Retry::kNo,
                        "the connection was gone before it was looked at"},
                       describe());
  }
  src_ = *src;
  accepted_ = app_ = *dst;
  workload_ = worker_.workload(*pod_);
  if (!workload_ && worker_.loop().now() < patience_) {
    waiting_ = true;  // without its workload nobody knows its policies: fail closed, but not at once
    return;
  }
  if (!workload_) {
    return end_unknown({Reason::kUnknownDestination, Fault::kInternal, Retry::kNo,
                        "the pod is not in the mesh's state"},
                       describe());
  }
  if (is_own_port(app_.port)) {
    return refuse({Reason::kSelfCall, Fault::kDownstream, Retry::kNo,
                   fmt::format("port {} belongs to the proxy", app_.port)});
  }
  if (authorize()) dial();
}

void InboundFlow::begin_hbone() {
  request_->on_cancel([this](Reason reason) {
    const telemetry::FlowInfo info = describe();
    end(reason, "the peer gave up before the app was reached", &info);
  });
  if (request_->method() != "CONNECT") {
    return refuse({Reason::kBadRequest, Fault::kDownstream, Retry::kNo, "the method is not CONNECT"});
  }
  workload_ = worker_.workload(*pod_);
  if (!workload_) {
    return refuse({Reason::kUnknownDestination, Fault::kInternal, Retry::kSafe,
                   "the pod is not in the mesh's state"});
  }
  auto target = model::validate_inbound(worker_.mesh(), *workload_, accepted_.ip, authority_);
  if (!target) return refuse(target.error());
  if (target->proxy_protocol) {
    return refuse({Reason::kUnsupported, Fault::kConfig, Retry::kNo,
                   "application tunnel PROXY is not supported yet"});
  }
  app_ = {accepted_.ip, target->port};
  service_ = std::move(target->service);
  if (!service_) {
    const codec::Forwarded f = codec::parse_forwarded(request_->header("forwarded"));
    const model::ServiceEntry* entry =
        f.host.empty() ? nullptr : worker_.mesh().service_by_hostname(f.host, workload_->ns);
    if (entry) service_ = entry->service;  // a label only
  }
  if (authorize()) dial();
}

model::PolicyVerdict InboundFlow::verdict() {
  const model::PolicyInput input{src_.ip, identity_.present() ? &identity_ : nullptr, app_};
  checked_version_ = worker_.mesh().version();
  return worker_.mesh().authorize(*workload_, input);
}

bool InboundFlow::authorize() {
  const model::PolicyVerdict v = verdict();
  if (v.allowed) {
    if (v.policy) policy_ = v.policy->key.str();
    return true;
  }
  refuse({v.reason, Fault::kDownstream, Retry::kNo, v.detail()});
  return false;
}

void InboundFlow::recheck() {
  if (!workload_ || checked_version_ == worker_.mesh().version()) return;
  if (const model::WorkloadPtr& now = worker_.workload(*pod_)) workload_ = now;
  const model::PolicyVerdict v = verdict();
  if (v.allowed) return;
  if (relaying()) return cut(Reason::kPolicyChanged);
  refuse({v.reason, Fault::kDownstream, Retry::kNo, v.detail()});
}

void InboundFlow::dial() {
  // The app sees its client, unless that is the app's own address: then nothing needs spoofing.
  std::optional<IpAddress> source;
  if (pod_->pod->preserve_source && src_.ip != app_.ip && src_.ip.is_v4() == app_.ip.is_v4()) {
    source = src_.ip;
  }
  dial_ = std::make_unique<DialHolder>(worker_.loop());
  const PodPtr pod = pod_->pod;
  dial_->dial.start([pod, source](const SocketAddress& to) { return pod->dial_socket(to, source); },
                    app_, connect_deadline(), [this](Result<UniqueFd> fd) {
                      worker_.loop().retire(std::move(dial_));
                      if (!fd) return refuse(fd.error());
                      connected(*std::move(fd));
                    });
}

void InboundFlow::connected(UniqueFd fd) {
  worker_.keep_alive(fd.get());
  (void)rt::limit_receive_buffer(fd.get(), kAppReceiveBuffer);
  net::StreamPtr server = tcp(std::move(fd));
  if (!hbone_) return relay(tcp(std::move(client_)), std::move(server), describe());
  const codec::HeaderField header{"baggage", pod_->baggage};
  const bool say = worker_.settings().response_baggage && !pod_->baggage.empty();
  const std::span<const codec::HeaderField> headers(&header, say ? 1 : 0);
  telemetry::FlowInfo info = describe();
  net::StreamPtr client = request_->accept(headers);
  request_.reset();
  relay(std::move(client), std::move(server), std::move(info));
}

void InboundFlow::refuse(const Error& error) {
  const telemetry::FlowInfo info = describe();
  if (request_) {
    request_->on_cancel({});
    const codec::HeaderField why{telemetry::kRefusalHeader, reason_name(error.reason)};
    request_->reject(static_cast<uint16_t>(model::connect_status(error.reason)), {&why, 1});
  }
  end(error.reason, error.detail, &info);
}

void InboundFlow::stop_work() {
  if (dial_) {
    dial_->dial.cancel();
    worker_.loop().retire(std::move(dial_));
  }
  if (request_) {
    request_->on_cancel({});
    request_.reset();  // unanswered: 503
  }
  if (client_) {
    rt::set_reset_on_close(client_.get());
    client_.reset();
  }
}

telemetry::FlowInfo InboundFlow::describe() const {
  telemetry::FlowInfo info;
  info.direction = telemetry::Direction::kInbound;
  info.src = src_;
  info.dst = accepted_;
  info.service = service_;
  info.destination.workload = workload_ ? workload_ : pod_->workload;
  if (!info.destination.workload) {
    info.destination.name = model::Symbol(pod_->pod->name);
    info.destination.ns = model::Symbol(pod_->pod->ns);
  }
  info.source.workload = worker_.mesh().workload_by_ip({
      info.destination.workload ? info.destination.workload->network : model::Symbol(), src_.ip});
  if (!hbone_) return info;
  // Behind a waypoint or a NAT the address belongs to somebody else than the proven identity.
  if (info.source.workload && info.source.workload->identity != identity_) {
    info.source.workload.reset();
  }
  info.security = telemetry::Security::kMutualTls;
  info.source.identity = identity_;
  if (info.destination.workload) info.destination.identity = info.destination.workload->identity;
  if (app_.port != 0) {
    info.hbone = SocketAddress::parse(authority_);
  }
  if (!info.hbone) info.hbone_host = authority_;
  if (!info.source.workload && request_) {
    const codec::Baggage b = codec::parse_baggage(request_->header("baggage"));
    info.source.name = model::Symbol(b.workload_name);
    info.source.ns = model::Symbol(b.namespace_name);
    info.source.canonical_name = model::Symbol(b.service);
    info.source.canonical_revision = model::Symbol(b.version);
    info.source.cluster = model::Symbol(b.cluster);
  }
  return info;
}

FlowRow InboundFlow::row() const {
  return {pod_->pod->uid, true, src_, accepted_, app_, hbone_ ? "HBONE" : "TCP"};
}

}  // namespace meltemi::ztunnel
