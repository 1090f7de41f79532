// The one door of all calls: no method is registered with gRPC, so each call comes here with its headers
// alone. Its token is checked before anything else is looked at, and not a byte of a message is read for
// a caller without one; then the call goes to the object that serves its method. Private to xds.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <memory>

#include "userspace/xds/server_core.h"

namespace meltemi::xds {

class CallService : public grpc::CallbackGenericService {
 public:
  explicit CallService(std::shared_ptr<ServerCore> core) : core_(std::move(core)) {}

 private:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override;

  const std::shared_ptr<ServerCore> core_;
};

// What a caller without the right gets: nothing about why, nor about what there is.
grpc::Status unauthenticated();

}  // namespace meltemi::xds
