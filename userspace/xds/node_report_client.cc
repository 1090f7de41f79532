// See node_report_client.h.
#include "userspace/xds/node_report_client.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "meltemi/node/v1/node.grpc.pb.h"
#include "userspace/base/log.h"
#include "userspace/xds/grpc_runtime.h"

namespace meltemi::xds {
namespace {

log::Scope scope("node_report");

}  // namespace

struct NodeReportClient::Impl {
  explicit Impl(ChannelOptions options) : channel(std::move(options)) {}

  ChannelCache channel;
  mutable std::mutex mutex;
  std::condition_variable wake;
  std::optional<node::v1::NodeReport> newest;
  bool dirty = false;     // `newest` waits to be sent
  bool acknowledged = false;  // `newest` arrived
  bool stopping = false;
  grpc::ClientContext* in_flight = nullptr;
  std::string last_error;
  std::thread thread;

  Status send(const node::v1::NodeReport& report);
  void run();
};

Status NodeReportClient::Impl::send(const node::v1::NodeReport& report) {
  auto stub = node::v1::NodeStatus::NewStub(MELTEMI_TRY(channel.get()));
  grpc::ClientContext context;
  MELTEMI_TRY(add_metadata(channel.options(), context));
  context.set_deadline(std::chrono::system_clock::now() + kReportDeadline);
  {
    const std::lock_guard lock(mutex);
    if (stopping) return fail(Reason::kShutdown, Fault::kInternal, "the report client stops");
    in_flight = &context;
  }
  node::v1::NodeReportAck ack;
  const grpc::Status status = stub->Report(&context, report, &ack);
  {
    const std::lock_guard lock(mutex);
    in_flight = nullptr;
  }
  if (status.ok()) return {};
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) channel.drop();
  return fail(to_error(status, channel.options().address));
}

void NodeReportClient::Impl::run() {
  std::mt19937_64 rng(std::random_device{}());
  std::uniform_real_distribution<double> unit(0, 1);
  unsigned failures = 0;
  std::unique_lock lock(mutex);
  while (!stopping) {
    if (failures == 0) {
      wake.wait_for(lock, kReportRepeat, [&] { return stopping || dirty; });
    } else {
      wake.wait_for(lock, backoff(failures, unit(rng)), [&] { return stopping; });
    }
    if (stopping || !newest) continue;
    const node::v1::NodeReport report = *newest;
    dirty = false;
    lock.unlock();
    const Status sent = send(report);
    lock.lock();
    if (sent) {
      acknowledged = !dirty;
      failures = 0;
      last_error.clear();
      continue;
    }
    if (failures++ == 0 && !stopping) {
      scope.warn("node status not reported: {}", sent.error().to_string());
    }
    dirty = true;
    last_error = sent.error().to_string();
  }
}

NodeReportClient::NodeReportClient(ChannelOptions channel)
    : impl_(std::make_unique<Impl>(std::move(channel))) {
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

NodeReportClient::~NodeReportClient() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    if (impl_->in_flight != nullptr) impl_->in_flight->TryCancel();
    impl_->wake.notify_all();
  }
  impl_->thread.join();
}

void NodeReportClient::report(node::v1::NodeReport report) {
  const std::lock_guard lock(impl_->mutex);
  impl_->newest = std::move(report);
  impl_->dirty = true;
  impl_->acknowledged = false;
  impl_->wake.notify_all();
}

bool NodeReportClient::acknowledged() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->acknowledged;
}

std::string NodeReportClient::last_error() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->last_error;
}

}  // namespace meltemi::xds
