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
  std::set<Call*> calls;  // that can be cancelled
  size_t unfinished = 0;  // calls that exist
  bool stopping = false;

  void finish(std::unique_ptr<Call> call, const grpc::Status& status) {
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) channel.drop();
    call->done(status.ok() ? answer_of(*call)
                           : fail(to_error(status, channel.options().address)));
    {
      const std::lock_guard lock(mutex);
      calls.erase(call.get());
    }
    call = nullptr;  // lets go of the channel while the destructor, which closes it, still waits
    // The last thing that touches this object.
    const std::lock_guard lock(mutex);
    if (--unfinished == 0) idle.notify_all();
  }
};

CaClient::CaClient(ChannelOptions channel) : impl_(std::make_unique<Impl>(std::move(channel))) {}

CaClient::~CaClient() {
  {
    std::unique_lock lock(impl_->mutex);
    impl_->stopping = true;
    for (Call* call : impl_->calls) call->context.TryCancel();
    impl_->idle.wait(lock, [&] { return impl_->unfinished == 0; });
  }
  impl_->channel.drop();
  close_dropped_channels();
}

void CaClient::sign(std::string csr_pem, std::chrono::seconds ttl, std::string impersonate,
                    Done done) {
  auto channel = impl_->channel.get();
  if (!channel) return done(fail(channel.error()));
  auto call = std::make_unique<Call>();
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
    if (!stopping) {
      impl_->calls.insert(call.get());
      ++impl_->unfinished;
    }
  }
  if (stopping) {
    return call->done(fail(Reason::kShutdown, Fault::kInternal, "the CA client stops"));
  }
  Call* const raw = call.release();  // the callback, which comes once, owns it
  raw->stub->async()->CreateCertificate(
      &raw->context, &raw->request, &raw->response,
      [impl = impl_.get(), raw](const grpc::Status& status) {
        impl->finish(std::unique_ptr<Call>(raw), status);
      });
}

}  // namespace meltemi::xds
