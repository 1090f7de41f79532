// What the gRPC clients and the server of this folder share. Private to xds.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/xds/channel.h"

namespace meltemi::xds {

// Sends gRPC's own log lines to ours. Call before any other use of gRPC.
void init_grpc();

// Closes the channels whose last reference went, wherever that was; one that a call's context still
// holds stays for the next time. Not from one of gRPC's threads.
void close_dropped_channels();

// A channel of its own connection: gRPC neither shares it nor follows proxy settings of the environment.
// Reads the root now. Error: kBadConfig, naming the file.
Result<std::shared_ptr<grpc::Channel>> make_channel(const ChannelOptions& options);

// Adds token (read now), cluster id and extra headers. Error: kBadConfig, naming the file.
Status add_metadata(const ChannelOptions& options, grpc::ClientContext& context);

Error to_error(const grpc::Status& status, std::string_view address);
grpc::Status to_grpc(const Error& error);

// One channel for unary calls, made anew when the root changed or the last call failed to connect.
class ChannelCache {
 public:
  explicit ChannelCache(ChannelOptions options) : options_(std::move(options)) {}
  const ChannelOptions& options() const { return options_; }
  Result<std::shared_ptr<grpc::Channel>> get();
  void drop();

 private:
  const ChannelOptions options_;
  std::mutex mutex_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string root_;
};

}  // namespace meltemi::xds
