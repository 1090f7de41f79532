// What a worker keeps of clusters that have left while something still uses them. Run under ASan, too.
#include "waypoint/proxy/upstream.h"

#include <gtest/gtest.h>

namespace meltemi::waypoint {
namespace {

SnapshotPtr snapshot_with(const ClusterPtr& cluster) {
  auto snapshot = std::make_shared<Snapshot>();
  if (cluster) snapshot->clusters[cluster->name] = ClusterEntry{cluster, nullptr};
  return snapshot;
}

// A byte flow holds its endpoint by address from connect() to its end, like TcpFlow.
TEST(UpstreamSet, AnEndpointOutlivesItsClusterWhileAByteFlowHoldsIt) {
  auto loop = rt::Loop::create({.backend = rt::Backend::kEpoll});
  ASSERT_TRUE(loop);
  ProxyShared shared;
  ProxyWorker worker(**loop, 0, shared);
  auto cluster = std::make_shared<Cluster>();
  cluster->name = model::Symbol("encap");
  cluster->original_dst = true;
  worker.set_snapshot(snapshot_with(cluster));
  const SocketAddress there = *SocketAddress::parse("10.0.0.1:8080");
  Host* host = *worker.upstreams().find(cluster->name)->pick({}, there);
  host->add_active(1);
  for (int i = 0; i < 3; ++i) worker.set_snapshot(snapshot_with(nullptr));
  EXPECT_EQ(worker.upstreams().leaving(), 1u);
  EXPECT_EQ(host->endpoint().address, there);
  host->add_active(-1);
  worker.set_snapshot(snapshot_with(nullptr));
  EXPECT_EQ(worker.upstreams().leaving(), 0u) << "nothing uses it any more";
}

}  // namespace
}  // namespace meltemi::waypoint
