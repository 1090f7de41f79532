// Who is believed about where a request came from.
#include "waypoint/proxy/forwarders.h"

#include <gtest/gtest.h>

#include "tests/unit/model/build.h"

namespace meltemi::waypoint {
namespace {

using model::test::ip;
using model::test::make_service;
using model::test::make_workload;

model::Identity sa(std::string_view ns, std::string_view account) {
  return *model::Identity::make("cluster.local", ns, account);
}
model::NetworkAddress at(std::string_view address) { return {model::Symbol(), ip(address)}; }

// Team B's waypoint, through which its shop is reached; a pod that speaks HBONE for itself; an app.
std::shared_ptr<model::MeshStore> mesh() {
  auto store = std::make_shared<model::MeshStore>();
  model::Batch batch;
  const auto gateway = make_service("b", "waypoint", "10.9.0.1", {});
  batch.services.push_back(gateway);
  const auto shop = make_service("b", "shop", "10.9.0.2", {});
  shop->waypoint = model::GatewayAddress{};
  shop->waypoint->address = at("10.9.0.1");
  batch.services.push_back(shop);
  const auto pod = [&](const char* name, const char* address, const std::string& service,
                       bool native) {
    const auto w = make_workload({.name = name, .ns = "b", .address = address, .sa = name,
                                  .service = service});
    w->native_tunnel = native;
    batch.workloads.push_back(w);
  };
  pod("waypoint", "10.0.0.1", std::string(gateway->key.view()), true);
  pod("own-tunnel", "10.0.0.2", std::string(shop->key.view()), true);
  pod("app", "10.0.0.3", std::string(gateway->key.view()), false);
  store->apply(batch);
  return store;
}

TEST(ForwardersTest, OnlyProxiesOfTheMeshAreBelieved) {
  const auto store = mesh();
  const auto snapshot = store->snapshot();
  Forwarders forwarders;
  EXPECT_TRUE(forwarders.believes(*snapshot, sa("b", "waypoint"), at("10.0.0.1")));
  EXPECT_FALSE(forwarders.believes(*snapshot, sa("b", "waypoint"), at("10.0.0.3")))
      << "the identity of another pod";
  EXPECT_FALSE(forwarders.believes(*snapshot, sa("b", "app"), at("10.0.0.1")));
  EXPECT_FALSE(forwarders.believes(*snapshot, model::Identity(), at("10.0.0.1"))) << "plaintext";
  EXPECT_FALSE(forwarders.believes(*snapshot, sa("b", "own-tunnel"), at("10.0.0.2")))
      << "HBONE alone makes no proxy of the mesh";
  EXPECT_FALSE(forwarders.believes(*snapshot, sa("b", "app"), at("10.0.0.3")))
      << "nor does a label that its Service selects";
}

TEST(ForwardersTest, OrWhomTheOperatorNames) {
  const auto store = mesh();
  Forwarders forwarders(*Forwarders::parse("spiffe://cluster.local/ns/in/sa/ingress , "
                                           "spiffe://cluster.local/ns/b/sa/app"));
  EXPECT_TRUE(forwarders.believes(*store->snapshot(), sa("in", "ingress"), at("10.0.0.9")));
  EXPECT_TRUE(forwarders.believes(*store->snapshot(), sa("b", "app"), at("10.0.0.3")));
  EXPECT_FALSE(forwarders.believes(*store->snapshot(), sa("b", "other"), at("10.0.0.3")));
  const auto wrong = Forwarders::parse("spiffe://cluster.local/ns/in/sa/ingress,ingress");
  ASSERT_FALSE(wrong);
  EXPECT_NE(wrong.error().detail.find("\"ingress\""), std::string::npos);
}

TEST(ForwardersTest, AWaypointThatIsNoLongerOneIsNotBelieved) {
  const auto store = mesh();
  Forwarders forwarders;
  EXPECT_TRUE(forwarders.believes(*store->snapshot(), sa("b", "waypoint"), at("10.0.0.1")));
  model::Batch batch;
  batch.services.push_back(make_service("b", "shop", "10.9.0.2", {}));
  store->apply(batch);
  EXPECT_FALSE(forwarders.believes(*store->snapshot(), sa("b", "waypoint"), at("10.0.0.1")));
}

}  // namespace
}  // namespace meltemi::waypoint
