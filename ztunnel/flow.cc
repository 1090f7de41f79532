// What both kinds of flow have in common: relay, report, end.
#include "ztunnel/flow.h"

namespace meltemi::ztunnel {

Flow::Flow(ProxyWorker& worker, PodLocalPtr pod)
    : worker_(worker), pod_(std::move(pod)), start_(worker.loop().now()) {}

Flow::~Flow() {
  if (report_) report_->finish(Reason::kShutdown, "the worker ended", MonoClock::now());
}

void Flow::cut(Reason reason) {
  if (gone_) return;
  if (relay_) {
    relay_->abort(reason);
    return;
  }
  const telemetry::FlowInfo info = describe();
  end(reason, {}, &info);
}

void Flow::tick() {
  if (relay_ && report_) report_->progress(relay_->bytes_up(), relay_->bytes_down());
}

void Flow::relay(net::StreamPtr client, net::StreamPtr server, telemetry::FlowInfo info) {
  report_ = std::make_unique<telemetry::ConnectionReport>(*worker_.shared().metrics,
                                                          worker_.shard(), std::move(info), start_);
  if (policy_) report_->set_policy(*std::exchange(policy_, std::nullopt));
  relay_ = std::make_unique<net::Relay>(std::move(client), std::move(server),
                                        static_cast<net::RelayOwner&>(*this),
                                        worker_.settings().idle_timeout);
  relay_->start();
}

void Flow::on_relay_end(net::Relay&, const net::RelayReport& report) {
  report_->progress(report.bytes_up, report.bytes_down);
  std::string_view detail;
  if (report.reason != Reason::kOk) {
    detail = report.closed_by == net::RelaySide::kClient   ? "closed by the client's side"
             : report.closed_by == net::RelaySide::kServer ? "closed by the server's side"
                                                           : "";
  }
  end(report.reason, detail);
}

void Flow::end(Reason reason, std::string_view detail, const telemetry::FlowInfo* info) {
  if (gone_) return;
  if (!report_ && info) {
    report_ = std::make_unique<telemetry::ConnectionReport>(*worker_.shared().metrics,
                                                            worker_.shard(), *info, start_);
    if (policy_) report_->set_policy(*policy_);
  }
  if (report_) report_->finish(reason, detail, MonoClock::now());
  leave();
}

void Flow::end_unknown(const Error& error, const telemetry::FlowInfo& info) {
  if (gone_) return;
  telemetry::report_early_failure(*worker_.shared().metrics, worker_.shard(), info, error.reason,
                                  error.detail);
  leave();
}

void Flow::leave() {
  gone_ = true;
  stop_work();
  worker_.retire(*this);
}

net::StreamPtr Flow::tcp(UniqueFd fd) {
  return net::make_tcp_stream(worker_.loop(), std::move(fd), &worker_.shared().held);
}

MonoTime Flow::connect_deadline() const {
  return MonoClock::now() + worker_.settings().connect_timeout;
}

}  // namespace meltemi::ztunnel
