// See ca_client.h.
#include "userspace/xds/ca_client.h"

#include <condition_variable>
#include <mutex>
#include <set>

#include "istio/v1/auth/ca.grpc.pb.h"
#include "userspace/xds/grpc_runtime.h"

namespace meltemi::xds {
namespace {

struct Call {
  grpc::ClientContext context;
  istio::v1::auth::IstioCertificateRequest request;
  istio::v1::auth::IstioCertificateResponse response;
  std::unique_ptr<istio::v1::auth::IstioCertificateService::Stub> stub;
  CaClient::Done done;
};

Result<std::vector<std::string>> answer_of(Call& call) {
  auto* chain = call.response.mutable_cert_chain();
  if (chain->empty()) {
    return fail(Reason::kIdentityUnavailable, Fault::kUpstream, "the CA sent an empty chain");
  }
  return std::vector<std::string>(std::make_move_iterator(chain->begin()),
                                  std::make_move_iterator(chain->end()));
}

}  // namespace

struct CaClient::Impl {
  explicit Impl(ChannelOptions options) : channel(std::move(options)) {}

  ChannelCache channel;
  std::mutex mutex;
  std::condition_variable idle;
  std::set<std::shared_ptr<Call>> calls;
  bool stopping = false;

  void finish(const std::shared_ptr<Call>& call, const grpc::Status& status) {
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) channel.drop();
    call->done(status.ok() ? answer_of(*call)
                           : fail(to_error(status, channel.options().address)));
    // The last thing that touches this object: the destructor waits for it.
    const std::lock_guard lock(mutex);
    calls.erase(call);
    if (calls.empty()) idle.notify_all();
  }
};

CaClient::CaClient(ChannelOptions channel) : impl_(std::make_unique<Impl>(std::move(channel))) {}

CaClient::~CaClient() {
  {
    std::unique_lock lock(impl_->mutex);
    impl_->stopping = true;
    for (const auto& call : impl_->calls) call->context.TryCancel();
    impl_->idle.wait(lock, [&] { return impl_->calls.empty(); });
  }
  impl_->channel.drop();
  close_dropped_channels();
}

void CaClient::sign(std::string csr_pem, std::chrono::seconds ttl, std::string impersonate,
                    Done done) {
  auto channel = impl_->channel.get();
  if (!channel) return done(fail(channel.error()));
  auto call = std::make_shared<Call>();
  if (const Status added = add_metadata(impl_->channel.options(), call->context); !added) {
    return done(fail(added.error()));
  }
  call->request.set_csr(std::move(csr_pem));
  call->request.set_validity_duration(ttl.count());
  if (!impersonate.empty()) {
    (*call->request.mutable_metadata()->mutable_fields())["ImpersonatedIdentity"].set_string_value(
        std::move(impersonate));
  }
  call->done = std::move(done);
  call->stub = istio::v1::auth::IstioCertificateService::NewStub(*channel);
  call->context.set_deadline(std::chrono::system_clock::now() + kSignDeadline);
  bool stopping;
  {
    const std::lock_guard lock(impl_->mutex);
    stopping = impl_->stopping;
    if (!stopping) impl_->calls.insert(call);
  }
  if (stopping) {
    return call->done(fail(Reason::kShutdown, Fault::kInternal, "the CA client stops"));
  }
  call->stub->async()->CreateCertificate(
      &call->context, &call->request, &call->response,
      [impl = impl_.get(), call](const grpc::Status& status) { impl->finish(call, status); });
}

}  // namespace meltemi::xds
