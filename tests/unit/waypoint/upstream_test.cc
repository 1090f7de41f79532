// What a worker keeps of clusters that have left while something still uses them. Run under ASan, too.
#include "waypoint/proxy/upstream.h"

#include <gtest/gtest.h>

#include <set>

#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "protos.h"

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
  Host* host = *worker.upstreams().find(cluster->name)->pick({}, there, {});
  host->add_active(1);
  for (int i = 0; i < 3; ++i) worker.set_snapshot(snapshot_with(nullptr));
  EXPECT_EQ(worker.upstreams().leaving(), 1u);
  EXPECT_EQ(host->endpoint().address, there);
  host->add_active(-1);
  worker.set_snapshot(snapshot_with(nullptr));
  EXPECT_EQ(worker.upstreams().leaving(), 0u) << "nothing uses it any more";
}

ClusterPtr cluster_of(const char* name, bool client_affinity = false) {
  auto cluster = std::make_shared<Cluster>();
  cluster->name = model::Symbol(name);
  cluster->client_affinity = client_affinity;
  cluster->original_dst = std::string_view(name) == "encap";
  return cluster;
}

std::shared_ptr<model::Workload> workload_at(const char* ip, model::TunnelProtocol protocol) {
  auto w = std::make_shared<model::Workload>();
  w->uid = model::Symbol(ip);
  w->addresses = {*IpAddress::parse(ip)};
  w->protocol = protocol;
  return w;
}

// Assignments of plaintext endpoints at these addresses, port 80.
EndpointSetPtr plain_endpoints(std::initializer_list<const char*> ips) {
  std::string json;
  for (const char* ip : ips) {
    json += std::string(json.empty() ? "" : ",") +
            R"({"endpoint":{"address":{"socket_address":{"address":")" + ip + R"(","port_value":80}}}})";
  }
  return *EndpointSet::compile(from_json<envoy::config::endpoint::v3::ClusterLoadAssignment>(
      R"({"endpoints":[{"lb_endpoints":[)" + json + "]}]}"));
}

SnapshotPtr serving(const ClusterPtr& cluster, EndpointSetPtr endpoints) {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->clusters[cluster->name] = ClusterEntry{cluster, std::move(endpoints)};
  return snapshot;
}

// It was reached by HBONE and has vanished from the mesh: an old list of endpoints, or an address that a
// client names, is no reason to talk to whoever is there in plaintext.
TEST(UpstreamSet, PlaintextNeverGoesToWhatHasDepartedFromTheMesh) {
  auto loop = rt::Loop::create({.backend = rt::Backend::kEpoll});
  ASSERT_TRUE(loop);
  model::MeshStore mesh;
  mesh.apply({.workloads = {workload_at("10.0.0.1", model::TunnelProtocol::kHbone),
                            workload_at("10.0.0.2", model::TunnelProtocol::kTcp)}});
  ProxyShared shared;
  shared.mesh = &mesh;
  ProxyWorker worker(**loop, 0, shared);
  const auto both = cluster_of("both"), one = cluster_of("one"), encap = cluster_of("encap");
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->clusters[both->name] = {both, plain_endpoints({"10.0.0.1", "10.0.0.2"})};
  snapshot->clusters[one->name] = {one, plain_endpoints({"10.0.0.1"})};
  snapshot->clusters[encap->name] = {encap, nullptr};
  worker.set_snapshot(snapshot);
  const SocketAddress first = *SocketAddress::parse("10.0.0.1:80");
  const SocketAddress second = *SocketAddress::parse("10.0.0.2:80");
  const auto pick = [&](const ClusterPtr& cluster, const SocketAddress& authority) {
    return worker.upstreams().find(cluster->name)->pick({}, authority, {});
  };
  ASSERT_TRUE(pick(one, {}));
  EXPECT_TRUE((*pick(encap, first))->endpoint().tunnel);

  mesh.apply({.removed_addresses = {"10.0.0.1", "10.0.0.2"}});
  for (const auto& refused : {pick(one, {}), pick(encap, first)}) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().reason, Reason::kNoEndpoint);
    EXPECT_NE(refused.error().detail.find("10.0.0.1:80 was in the mesh"), std::string::npos)
        << refused.error().detail;
  }
  for (int i = 0; i < 50; ++i) {
    const auto other = pick(both, {});
    ASSERT_TRUE(other) << other.error().detail;
    EXPECT_EQ((*other)->endpoint().address, second) << "never spoke HBONE";
  }
  EXPECT_TRUE(pick(encap, second));

  // A decision that it is outside of the mesh ends it.
  mesh.apply({.workloads = {workload_at("10.0.0.1", model::TunnelProtocol::kTcp)}});
  EXPECT_TRUE(pick(one, {}));
  EXPECT_FALSE((*pick(encap, first))->endpoint().tunnel);
}

TEST(UpstreamSet, ClientsKeepToAnEndpointInEveryWorkerWhereTheServiceSaysSo) {
  auto loop = rt::Loop::create({.backend = rt::Backend::kEpoll});
  ASSERT_TRUE(loop);
  ProxyShared shared;
  ProxyWorker one(**loop, 0, shared), two(**loop, 1, shared);
  const auto keeping = cluster_of("keeping", true);
  one.set_snapshot(serving(keeping, plain_endpoints({"10.0.0.1", "10.0.0.2", "10.0.0.3"})));
  two.set_snapshot(serving(keeping, plain_endpoints({"10.0.0.3", "10.0.0.2", "10.0.0.1"})));
  std::set<SocketAddress> used;
  for (uint32_t c = 0; c < 64; ++c) {
    const IpAddress client = IpAddress::v4(0x0af40000 + c);
    const auto at = [&](ProxyWorker& worker) {
      return (*worker.upstreams().find(keeping->name)->pick({}, {}, client))->endpoint().address;
    };
    const SocketAddress kept = at(one);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(at(one), kept);
    EXPECT_EQ(at(two), kept);
    used.insert(kept);
  }
  EXPECT_EQ(used.size(), 3u);
}

}  // namespace
}  // namespace meltemi::waypoint
