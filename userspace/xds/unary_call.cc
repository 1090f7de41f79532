// See unary_call.h.
#include "userspace/xds/unary_call.h"

#include <fmt/format.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>

#include "istio/v1/auth/ca.pb.h"
#include "meltemi/node/v1/node.pb.h"
#include "userspace/base/log.h"
#include "userspace/xds/call_service.h"
#include "userspace/xds/grpc_runtime.h"

namespace meltemi::xds {
namespace {

log::Scope scope("xds-server");

template <typename Message>
Result<Message> parse(grpc::ByteBuffer& bytes) {
  Message out;
  grpc::ProtoBufferReader reader(&bytes);
  if (!reader.status().ok() || !out.ParseFromZeroCopyStream(&reader)) {
    return fail(Reason::kBadRequest, Fault::kDownstream,
                fmt::format("not a {}", Message::descriptor()->name()));
  }
  return out;
}

grpc::ByteBuffer encode(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

Result<CertificateCall> certificate_call(grpc::ByteBuffer& bytes) {
  const auto request = MELTEMI_TRY(parse<istio::v1::auth::IstioCertificateRequest>(bytes));
  CertificateCall out{.csr_pem = request.csr(), .ttl = {}, .impersonate = {}};
  out.ttl = std::chrono::seconds(std::max<int64_t>(request.validity_duration(), 0));
  const auto& fields = request.metadata().fields();
  if (const auto it = fields.find("ImpersonatedIdentity"); it != fields.end()) {
    out.impersonate = it->second.string_value();
  }
  return out;
}

Result<std::vector<std::string>> chain_for(const UnaryCall::Question& question) {
  const auto call = MELTEMI_TRY(certificate_call(question.message));
  return question.core.hooks.sign(question.caller, call);
}

Status report_of(const UnaryCall::Question& question) {
  const auto report = MELTEMI_TRY(parse<node::v1::NodeReport>(question.message));
  return question.core.hooks.report(question.caller, report);
}

}  // namespace

UnaryCall::UnaryCall(std::shared_ptr<ServerCore> core, Caller caller, std::string peer,
                     Method method, size_t max_bytes)
    : call_(std::move(core), std::move(peer)),
      caller_(std::move(caller)),
      method_(method),
      max_bytes_(max_bytes) {
  StartRead(&request_);
}

void UnaryCall::OnReadDone(bool ok) {
  if (!ok) return Finish({grpc::StatusCode::INVALID_ARGUMENT, "no request came"});
  call_.took(request_.Length());
  if (request_.Length() > max_bytes_) {
    ++call_.core().counters.refused;
    scope.warn("call of {}/{} at {} refused: a request of {} bytes, the limit of its method is {}",
               caller_.ns, caller_.service_account, call_.peer(), request_.Length(), max_bytes_);
    return Finish({grpc::StatusCode::RESOURCE_EXHAUSTED,
                   fmt::format("the request has {} bytes; this method takes at most {}",
                               request_.Length(), max_bytes_)});
  }
  const grpc::Status status = method_({call_.core(), caller_, call_.peer(), request_}, &answer_);
  request_.Clear();
  if (!status.ok()) return Finish(status);
  StartWriteAndFinish(&answer_, grpc::WriteOptions(), status);
}

void UnaryCall::OnDone() { delete this; }

grpc::Status sign_certificate(const UnaryCall::Question& question, grpc::ByteBuffer* answer) {
  ServerCounters& counters = question.core.counters;
  auto chain = chain_for(question);
  if (!chain) {
    const Error& error = chain.error();
    ++counters.certificates_refused;
    scope.warn("certificate for {} refused: {}", question.peer, log::escape(error.to_string()));
    // A caller without the right learns nothing about which identities there are.
    return error.reason == Reason::kPermission ? unauthenticated() : to_grpc(error);
  }
  ++counters.certificates;
  istio::v1::auth::IstioCertificateResponse response;
  for (std::string& pem : *chain) response.add_cert_chain(std::move(pem));
  *answer = encode(response);
  return grpc::Status::OK;
}

grpc::Status take_report(const UnaryCall::Question& question, grpc::ByteBuffer* answer) {
  if (const Status taken = report_of(question); !taken) {
    scope.warn("report from {} refused: {}", question.peer, log::escape(taken.error().to_string()));
    return to_grpc(taken.error());
  }
  ++question.core.counters.reports;
  *answer = encode(node::v1::NodeReportAck());
  return grpc::Status::OK;
}

}  // namespace meltemi::xds
