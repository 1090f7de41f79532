// Where a channel ends: never where the last of its calls happened to let go of it.
#include <gmock/gmock.h>

#include "userspace/xds/grpc_runtime.h"

namespace meltemi::xds {
namespace {

ChannelOptions nobody() {
  ChannelOptions out;
  out.address = "http://127.0.0.1:1";
  return out;
}

TEST(Channel, StaysOpenWhileAContextOfACallHoldsIt) {
  init_grpc();
  auto channel = *make_channel(nobody());
  auto of_context = channel->shared_from_this();  // as gRPC gives it to a ClientContext
  const std::weak_ptr<grpc::Channel> watched = of_context;
  channel = nullptr;
  close_dropped_channels();
  of_context = nullptr;  // on one of gRPC's threads this must not be the end of the channel
  EXPECT_FALSE(watched.expired());
  close_dropped_channels();
  EXPECT_TRUE(watched.expired());
}

TEST(Channel, IsClosedByTheNextOneThatIsOpened) {
  init_grpc();
  auto channel = *make_channel(nobody());
  const std::weak_ptr<grpc::Channel> watched = channel->shared_from_this();
  channel = nullptr;
  EXPECT_FALSE(watched.expired());
  const auto next = *make_channel(nobody());
  EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace meltemi::xds
