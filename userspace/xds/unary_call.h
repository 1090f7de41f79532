// One call with one request and one answer, for the certificate authority and the agents' reports: a
// reactor that reads its one message after the token was checked, bounded by what the method can need.
// Private to xds.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "userspace/xds/server_core.h"

namespace meltemi::xds {

class UnaryCall : public grpc::ServerGenericBidiReactor {
 public:
  struct Question {
    ServerCore& core;
    const Caller& caller;
    const std::string& peer;
    grpc::ByteBuffer& message;
  };
  // The status, and with OK the answer's bytes.
  using Method = grpc::Status (*)(const Question&, grpc::ByteBuffer* answer);

  UnaryCall(std::shared_ptr<ServerCore> core, Caller caller, std::string peer, Method method,
            size_t max_bytes);

 private:
  void OnReadDone(bool ok) override;
  void OnDone() override;

  const OpenCall call_;
  const Caller caller_;
  const Method method_;
  const size_t max_bytes_;
  grpc::ByteBuffer request_, answer_;
};

// istio.v1.auth.IstioCertificateService/CreateCertificate.
grpc::Status sign_certificate(const UnaryCall::Question& question, grpc::ByteBuffer* answer);
// meltemi.node.v1.NodeStatus/Report.
grpc::Status take_report(const UnaryCall::Question& question, grpc::ByteBuffer* answer);

}  // namespace meltemi::xds
