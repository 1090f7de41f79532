// One aggregated delta stream of one client, as a gRPC reactor. Private to xds.
#pragma once

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "userspace/xds/server_core.h"
#include "userspace/xds/subscription.h"

namespace meltemi::xds {

class DeltaStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // A stream that keeps itself alive until gRPC is done with it.
  static DeltaStream* begin(std::shared_ptr<ServerCore> core, Caller caller, std::string peer);
  DeltaStream(std::shared_ptr<ServerCore> core, Caller caller, std::string peer)
      : core_(core), call_(std::move(core), std::move(peer)), caller_(std::move(caller)) {}

  // Sends what there is to send, if no response is under way. Any thread.
  void pump();
  // Ends the stream; idempotent. Any thread.
  // False: it has ended already.
  bool end(const grpc::Status& why);
  StreamInfo info() const;
  Status ask(const std::function<Status(const Caller&, const Node&)>& question) const;
  WallTime expires() const { return caller_.expires; }

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  void start(std::shared_ptr<DeltaStream> self);
  // All REQUIRE the lock.
  Status take_request(const Subscription::Request& request);
  // *out stays null: the type is not for this caller.
  Status open_subscription(const Subscription::Request& request, Subscription** out);
  Status refuse_type(const std::string& type_url, const Error& why);
  void pump_locked();
  void finish_locked(const grpc::Status& status);
  size_t total_names() const;

  const std::shared_ptr<ServerCore> core_;
  const OpenCall call_;
  const Caller caller_;

  mutable std::mutex mutex_;
  grpc::ByteBuffer incoming_, outgoing_;
  Node node_;
  bool node_known_ = false, writing_ = false, finished_ = false;
  std::map<std::string, std::string> refused_;  // types that are not for the caller, and why
  std::vector<std::unique_ptr<Subscription>> subscriptions_;  // in the order of kOrder
  std::shared_ptr<DeltaStream> self_;
};

}  // namespace meltemi::xds
