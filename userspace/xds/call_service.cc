// See call_service.h.
#include "userspace/xds/call_service.h"

#include <fmt/format.h>

#include "userspace/base/log.h"
#include "userspace/xds/delta_stream.h"
#include "userspace/xds/unary_call.h"

namespace meltemi::xds {
namespace {

log::Scope scope("xds-server");

constexpr std::string_view kDelta =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
constexpr std::string_view kCreateCertificate =
    "/istio.v1.auth.IstioCertificateService/CreateCertificate";
constexpr std::string_view kNodeReport = "/meltemi.node.v1.NodeStatus/Report";

// A call that ends before it began. gRPC still drains what the client sent up to its window, no more.
class Refusal : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refusal(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::Status unauthenticated() {
  return {grpc::StatusCode::UNAUTHENTICATED, "request authenticate failure"};
}

grpc::ServerGenericBidiReactor* CallService::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  auto caller = core_->authenticate(*context);
  if (!caller) {
    ++core_->counters.refused;
    scope.warn("call of {} by {} refused: {}", log::escape(context->method()), context->peer(),
               caller.error().to_string());
    return new Refusal(unauthenticated());
  }
  const std::string& method = context->method();
  if (method == kDelta) return DeltaStream::begin(core_, std::move(*caller), context->peer());
  if (method == kCreateCertificate) {
    return new UnaryCall(core_, std::move(*caller), context->peer(), sign_certificate,
                         kMaxCertificateRequestBytes);
  }
  if (method == kNodeReport) {
    return new UnaryCall(core_, std::move(*caller), context->peer(), take_report,
                         kMaxNodeReportBytes);
  }
  return new Refusal({grpc::StatusCode::UNIMPLEMENTED,
                      fmt::format("{} is not served here", log::escape(method))});
}

}  // namespace meltemi::xds
