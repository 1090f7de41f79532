// The outbound decision tree, load balancing and the inbound check, branch by branch.
#include "userspace/model/routing.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <span>

#include "tests/unit/model/build.h"

namespace meltemi::model {
namespace {

using Kind = OutboundDecision::Kind;
using Via = OutboundDecision::Via;
using test::at;
using test::ip;
using test::make_service;
using test::make_workload;
using test::sym;

constexpr const char* kCatalog = "shop/catalog.shop.svc.cluster.local";
constexpr const char* kWaypoint = "shop/waypoint.shop.svc.cluster.local";

class Routing : public testing::Test {
 protected:
  Routing() {
    client_ = make_workload({.name = "client", .address = "10.0.0.1", .sa = "client", .region = "r1", .zone = "z1"});
    catalog_ = make_service("shop", "catalog", "10.96.0.1", {{80, 8080}, {90, 0}});
    waypoint_ = make_service("shop", "waypoint", "10.96.0.9", {{15008, 15008}});
    c1_ = endpoint("c1", "10.0.0.2");
    store_.apply({.workloads = {client_, c1_}, .services = {catalog_}});
  }
  std::shared_ptr<Workload> endpoint(std::string name, std::string address) {
    return make_workload({.name = name, .address = address, .sa = "catalog", .service = kCatalog});
  }
  void put(std::shared_ptr<Workload> w) { store_.apply({.workloads = {w}}); }
  void put(std::shared_ptr<Service> s) { store_.apply({.services = {s}}); }
  void start_waypoint() {
    store_.apply({.workloads = {make_workload({.name = "wp", .address = "10.0.0.9", .sa = "waypoint", .service = kWaypoint})},
                  .services = {waypoint_}});
  }
  std::shared_ptr<Service> with_waypoint() {
    auto s = std::make_shared<Service>(*catalog_);
    s->waypoint = GatewayAddress{sym(kWaypoint), std::nullopt, 15008};
    return s;
  }
  Result<OutboundDecision> to(std::string_view address) {
    return decide_outbound(*store_.snapshot(), *client_, at(address), random_);
  }
  Result<InboundTarget> inbound(const Workload& local, std::string_view authority) {
    return validate_inbound(*store_.snapshot(), local, local.addresses[0], authority);
  }

  MeshStore store_;
  Random random_{1};
  std::shared_ptr<Workload> client_, c1_;
  std::shared_ptr<Service> catalog_, waypoint_;
};

TEST_F(Routing, WhatFailedIsChosenAgainOnlyIfNobodyElseIsLeft) {
  put(endpoint("c2", "10.0.0.3"));
  put(endpoint("c3", "10.0.0.4"));
  const SocketAddress failed[] = {at("10.0.0.2:15008"), at("10.0.0.4:15008"), at("10.0.0.3:15008")};
  const auto avoiding = [&](size_t n) {
    return decide_outbound(*store_.snapshot(), *client_, at("10.96.0.1:80"), random_, std::span(failed).first(n));
  };
  std::set<std::string> of_all;
  for (int i = 0; i < 200; ++i) {
    EXPECT_NE(avoiding(1)->target, failed[0]);
    EXPECT_EQ(avoiding(2)->target, failed[2]);
    of_all.insert(avoiding(3)->target.to_string());
  }
  EXPECT_EQ(of_all.size(), 3u);
}

TEST_F(Routing, FailoverGoesToTheNextLocalityAfterAFailureStrictDoesNot) {
  put(make_workload({.name = "c1", .address = "10.0.0.2", .sa = "catalog", .region = "r1", .service = kCatalog}));
  put(make_workload({.name = "far", .address = "10.0.0.3", .sa = "catalog", .region = "r2", .service = kCatalog}));
  const SocketAddress failed[] = {at("10.0.0.2:15008")};
  for (const auto& [mode, second] : {std::pair{LbMode::kFailover, "10.0.0.3:15008"},
                                     std::pair{LbMode::kStrict, "10.0.0.2:15008"}}) {
    auto s = std::make_shared<Service>(*catalog_);
    s->load_balancing = {.preference = {Scope::kRegion}, .mode = mode};
    put(s);
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(to("10.96.0.1:80")->target, failed[0]);
      const auto d = decide_outbound(*store_.snapshot(), *client_, at("10.96.0.1:80"), random_, failed);
      EXPECT_EQ(d->target, at(second));
    }
  }
}

TEST_F(Routing, AnotherReplicaOfTheWaypointAfterAFailure) {
  start_waypoint();
  put(with_waypoint());
  put(make_workload({.name = "wp2", .address = "10.0.0.10", .sa = "waypoint", .service = kWaypoint}));
  const SocketAddress failed[] = {at("10.0.0.9:15008")};
  for (int i = 0; i < 50; ++i) {
    const auto d = decide_outbound(*store_.snapshot(), *client_, at("10.96.0.1:80"), random_, failed);
    EXPECT_EQ(d->target, at("10.0.0.10:15008"));
  }
}

TEST_F(Routing, UnknownAddressesPassThrough) {
  const auto d = to("93.184.216.34:443");
  ASSERT_TRUE(d.has_value());
  EXPECT_EQ(d->kind, Kind::kPassthrough);
  EXPECT_EQ(d->target, at("93.184.216.34:443"));
  EXPECT_EQ(d->upstream, nullptr);
}

TEST_F(Routing, ADestinationThatWasHboneFailsInsteadOfFallingBackToPlaintext) {
  ASSERT_EQ(to("10.0.0.2:80")->kind, Kind::kHbone);
  store_.apply({.removed_addresses = {c1_->uid.str()}});  // the control plane knows it no longer
  auto gone = to("10.0.0.2:80");
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().reason, Reason::kNoEndpoint);
  EXPECT_NE(gone.error().detail.find("10.0.0.2"), std::string::npos) << gone.error().detail;
  // It comes back as what it was, and then leaves the mesh by decision: that is said of it.
  put(c1_);
  EXPECT_EQ(to("10.0.0.2:80")->kind, Kind::kHbone);
  auto plain = std::make_shared<Workload>(*c1_);
  plain->protocol = TunnelProtocol::kTcp;
  put(plain);
  EXPECT_EQ(to("10.0.0.2:80")->kind, Kind::kDirect);
  store_.apply({.removed_addresses = {c1_->uid.str()}});
  EXPECT_EQ(to("10.0.0.2:80")->kind, Kind::kPassthrough) << "it was plaintext before";
}

TEST_F(Routing, AnAddressThatSomebodyElseGotIsItsOwn) {
  store_.apply({.removed_addresses = {c1_->uid.str()}});
  auto next = endpoint("next", "10.0.0.2");
  next->protocol = TunnelProtocol::kTcp;
  put(next);
  EXPECT_EQ(to("10.0.0.2:80")->kind, Kind::kDirect);
  // One that moved to another address left the old one.
  auto moved = std::make_shared<Workload>(*c1_);
  put(std::make_shared<Workload>(*c1_));
  moved->addresses = {ip("10.0.0.77")};
  put(moved);
  EXPECT_EQ(to("10.0.0.77:80")->kind, Kind::kHbone);
}

TEST_F(Routing, AVanishedServiceOfTheMeshIsNotCalledInPlaintext) {
  ASSERT_EQ(to("10.96.0.1:80")->kind, Kind::kHbone);
  store_.apply({.removed_addresses = {kCatalog}});
  auto gone = to("10.96.0.1:80");
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().reason, Reason::kNoEndpoint);
  put(catalog_);
  EXPECT_EQ(to("10.96.0.1:80")->kind, Kind::kHbone);
}

TEST_F(Routing, AServiceIsWhatItLastWasWhenItsWorkloadsGoFirst) {
  const auto vanishes = [&](std::vector<std::string> first, std::vector<std::string> then) {
    put(catalog_);
    put(c1_);
    store_.apply({.removed_addresses = std::move(first)});
    store_.apply({.removed_addresses = std::move(then)});
    return to("10.96.0.1:80");
  };
  EXPECT_FALSE(vanishes({c1_->uid.str(), kCatalog}, {}));
  EXPECT_FALSE(vanishes({kCatalog, c1_->uid.str()}, {}));
  EXPECT_FALSE(vanishes({c1_->uid.str()}, {kCatalog}));
  // The last of its workloads was plain by decision.
  put(catalog_);
  put(c1_);
  auto plain = std::make_shared<Workload>(*c1_);
  plain->protocol = TunnelProtocol::kTcp;
  put(plain);
  store_.apply({.removed_addresses = {c1_->uid.str()}});
  store_.apply({.removed_addresses = {kCatalog}});
  EXPECT_EQ(to("10.96.0.1:80")->kind, Kind::kPassthrough);
}

TEST_F(Routing, OnlySoManyDepartedAddressesAreRemembered) {
  const auto leave = [&](uint32_t number) {
    auto w = endpoint("w" + std::to_string(number), "10.0.0.3");
    w->addresses = {IpAddress::v4(0x0b000000 + number)};
    put(w);
    store_.apply({.removed_addresses = {w->uid.str()}});
  };
  for (uint32_t i = 0; i <= kMaxDeparted; ++i) leave(i);
  const auto seen = store_.snapshot();
  EXPECT_FALSE(seen->departed({client_->network, IpAddress::v4(0x0b000000)})) << "the oldest";
  EXPECT_TRUE(seen->departed({client_->network, IpAddress::v4(0x0b000001)}));
}

TEST_F(Routing, WhatDepartedIsToldAndASuccessorStillRefusesPlaintext) {
  std::map<std::string, uint64_t> kept;
  store_.on_departure([&](const NetworkAddress& at, uint64_t number) {
    if (number == 0) {
      kept.erase(at.ip.to_string());
    } else {
      kept[at.ip.to_string()] = number;
    }
  });
  store_.apply({.removed_addresses = {c1_->uid.str(), kCatalog}});
  EXPECT_TRUE(kept.contains("10.0.0.2"));
  EXPECT_TRUE(kept.contains("10.96.0.1"));

  // Another process, which knows all but those two, and what was kept of them.
  MeshStore next;
  next.apply({.workloads = {client_}});
  const auto decide = [&](const char* to) {
    return decide_outbound(*next.snapshot(), *client_, at(to), random_);
  };
  EXPECT_EQ(decide("10.0.0.2:80")->kind, Kind::kPassthrough) << "without it";
  next.restore_departed({{client_->network, ip("10.0.0.2")},
                         {client_->network, ip("10.96.0.1")},
                         {client_->network, client_->addresses[0]}});
  EXPECT_EQ(decide("10.0.0.2:80").error().reason, Reason::kNoEndpoint);
  EXPECT_EQ(decide("10.96.0.1:80").error().reason, Reason::kNoEndpoint);
  EXPECT_FALSE(next.snapshot()->departed({client_->network, client_->addresses[0]})) << "it is there";

  // A decision that it is plain, and another owner of the address, end it, and are told.
  auto plain = std::make_shared<Workload>(*c1_);
  plain->protocol = TunnelProtocol::kTcp;
  put(plain);
  put(catalog_);
  EXPECT_TRUE(kept.empty());
}

TEST_F(Routing, ProxyPortsOnLoopbackAreRefused) {
  for (const char* a : {"127.0.0.1:15008", "127.0.0.1:15001", "[::1]:15006"}) {
    EXPECT_EQ(to(a).error().reason, Reason::kSelfCall) << a;
  }
  EXPECT_TRUE(to("127.0.0.1:80").has_value());
}

TEST_F(Routing, ServiceVipGoesByHboneToATargetPort) {
  const auto d = to("10.96.0.1:80");
  ASSERT_TRUE(d.has_value());
  EXPECT_EQ(d->kind, Kind::kHbone);
  EXPECT_EQ(d->via, Via::kEndpoint);
  EXPECT_EQ(d->target, at("10.0.0.2:15008"));
  EXPECT_EQ(d->authority, at("10.0.0.2:8080"));
  EXPECT_EQ(d->upstream, c1_);
  EXPECT_EQ(d->service, catalog_);
  EXPECT_TRUE(d->expects(c1_->identity));
  EXPECT_FALSE(d->expects(client_->identity));
  EXPECT_FALSE(d->expects(Identity()));
}

TEST_F(Routing, ServiceSansAreExpectedToo) {
  auto s = std::make_shared<Service>(*catalog_);
  const Identity san = *Identity::make("partner", "x", "y");
  s->subject_alt_names = {san};
  put(s);
  const auto d = to("10.96.0.1:80");
  EXPECT_TRUE(d->expects(san));
  EXPECT_TRUE(d->expects(c1_->identity));
  EXPECT_EQ(d->expected().size(), 2u);
}

TEST_F(Routing, PodIpKeepsThePort) {
  const auto d = to("10.0.0.2:9999");
  EXPECT_EQ(d->authority, at("10.0.0.2:9999"));
  EXPECT_EQ(d->target, at("10.0.0.2:15008"));
  EXPECT_EQ(d->service, nullptr);
}

TEST_F(Routing, WorkloadWithoutHboneGetsPlaintext) {
  put(make_workload({.name = "c1", .address = "10.0.0.2", .sa = "catalog", .service = kCatalog, .hbone = false}));
  const auto d = to("10.96.0.1:80");
  EXPECT_EQ(d->kind, Kind::kDirect);
  EXPECT_EQ(d->target, at("10.0.0.2:8080"));
}

TEST_F(Routing, FailuresOfAServiceHaveTheirReasons) {
  EXPECT_EQ(to("10.96.0.1:81").error().reason, Reason::kNoTargetPort);
  EXPECT_EQ(to("10.96.0.1:90").error().reason, Reason::kNoHealthyEndpoint) << "named port, no map";
  auto sick = endpoint("c1", "10.0.0.2");
  sick->healthy = false;
  put(sick);
  EXPECT_EQ(to("10.96.0.1:80").error().reason, Reason::kNoHealthyEndpoint);
  store_.apply({.removed_addresses = {c1_->uid.str()}});
  EXPECT_EQ(to("10.96.0.1:80").error().reason, Reason::kNoEndpoint);
}

TEST_F(Routing, NamedTargetPortComesFromTheEndpoint) {
  auto named = endpoint("c2", "10.0.0.3");
  named->services[0].ports = {{90, 7777}};
  put(named);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(to("10.96.0.1:90")->authority, at("10.0.0.3:7777"));
}

TEST_F(Routing, PassthroughServiceKeepsTheDestination) {
  auto s = std::make_shared<Service>(*catalog_);
  s->load_balancing.mode = LbMode::kPassthrough;
  put(s);
  EXPECT_EQ(to("10.96.0.1:80")->kind, Kind::kPassthrough);
}

TEST_F(Routing, CapacityWeighsTheChoice) {
  auto heavy = endpoint("c2", "10.0.0.3");
  heavy->capacity = 3;
  put(heavy);
  std::map<std::string, int> hits;
  for (int i = 0; i < 8000; ++i) ++hits[to("10.96.0.1:80")->target.ip.to_string()];
  EXPECT_NEAR(hits["10.0.0.3"], 6000, 250);
  EXPECT_NEAR(hits["10.0.0.2"], 2000, 250);
}

TEST_F(Routing, FailoverPrefersNearAndStrictInsists) {
  const auto placed = [&](const char* name, const char* address, const char* region, const char* zone) {
    auto w = endpoint(name, address);
    w->locality = {sym(region), sym(zone), Symbol()};
    return w;
  };
  store_.apply({.workloads = {placed("c1", "10.0.0.2", "r2", "z1"), placed("c2", "10.0.0.3", "r1", "z2"),
                              placed("c3", "10.0.0.4", "r1", "z1"), placed("c4", "10.0.0.5", "r1", "z1")}});
  auto s = std::make_shared<Service>(*catalog_);
  s->load_balancing.preference = {Scope::kRegion, Scope::kZone};
  s->load_balancing.mode = LbMode::kFailover;
  put(s);
  std::map<std::string, int> hits;
  for (int i = 0; i < 400; ++i) ++hits[to("10.96.0.1:80")->target.ip.to_string()];
  EXPECT_EQ(hits.size(), 2u);
  EXPECT_GT(hits["10.0.0.4"], 100);
  EXPECT_GT(hits["10.0.0.5"], 100);
  store_.apply({.removed_addresses = {"Kubernetes//Pod/shop/c3", "Kubernetes//Pod/shop/c4"}});
  EXPECT_EQ(to("10.96.0.1:80")->target.ip, ip("10.0.0.3")) << "same region, other zone";
  s = std::make_shared<Service>(*s);
  s->load_balancing.mode = LbMode::kStrict;
  put(s);
  EXPECT_EQ(to("10.96.0.1:80").error().reason, Reason::kNoHealthyEndpoint);
  put(placed("c5", "10.0.0.6", "r1", "z1"));
  EXPECT_EQ(to("10.96.0.1:80")->target.ip, ip("10.0.0.6"));
}

TEST_F(Routing, ServiceWaypointKeepsTheVipAsAuthority) {
  start_waypoint();
  put(with_waypoint());
  const auto d = to("10.96.0.1:80");
  ASSERT_TRUE(d.has_value());
  EXPECT_EQ(d->kind, Kind::kHbone);
  EXPECT_EQ(d->via, Via::kServiceWaypoint);
  EXPECT_EQ(d->target, at("10.0.0.9:15008"));
  EXPECT_EQ(d->authority, at("10.96.0.1:80"));
  EXPECT_EQ(d->service->key, kCatalog);
  EXPECT_TRUE(d->expects(*Identity::make("cluster.local", "shop", "waypoint")));
  EXPECT_FALSE(d->expects(c1_->identity)) << "a backend may not answer for the waypoint";
}

TEST_F(Routing, MissingWaypointFailsClosed) {
  put(with_waypoint());
  EXPECT_EQ(to("10.96.0.1:80").error().reason, Reason::kWaypointUnknown);
  put(waypoint_);
  EXPECT_EQ(to("10.96.0.1:80").error().reason, Reason::kWaypointUnready);
}

TEST_F(Routing, WaypointByAddressAndWeights) {
  start_waypoint();
  auto s = std::make_shared<Service>(*catalog_);
  s->weighted_waypoints = {{GatewayAddress{Symbol(), NetworkAddress{Symbol(), ip("10.0.0.9")}, 15008}, 1},
                           {GatewayAddress{sym("shop/never"), std::nullopt, 15008}, 0}};
  put(s);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(to("10.96.0.1:80")->target, at("10.0.0.9:15008"));
  s = std::make_shared<Service>(*s);
  s->weighted_waypoints = {{GatewayAddress{Symbol(), NetworkAddress{Symbol(), ip("10.96.0.9")}, 15008}, 5}};
  put(s);
  EXPECT_EQ(to("10.96.0.1:80")->target, at("10.0.0.9:15008")) << "by the waypoint's VIP";
}

TEST_F(Routing, WorkloadWaypointOnlyForPodTraffic) {
  start_waypoint();
  auto w = endpoint("c1", "10.0.0.2");
  w->waypoint = GatewayAddress{sym(kWaypoint), std::nullopt, 15008};
  put(w);
  const auto pod = to("10.0.0.2:8080");
  EXPECT_EQ(pod->via, Via::kWorkloadWaypoint);
  EXPECT_EQ(pod->authority, at("10.0.0.2:8080"));
  EXPECT_EQ(pod->target, at("10.0.0.9:15008"));
  EXPECT_EQ(to("10.96.0.1:80")->via, Via::kEndpoint) << "a service never uses its workloads' waypoint";
  const auto wp = store_.snapshot()->workload("Kubernetes//Pod/shop/wp");
  const auto own = decide_outbound(*store_.snapshot(), *wp, at("10.0.0.2:8080"), random_);
  EXPECT_EQ(own->via, Via::kEndpoint) << "the waypoint itself reaches the workload";
}

TEST_F(Routing, AnotherNetworkIsRefusedNotLeaked) {
  put(make_workload({.name = "c1", .address = "10.0.0.2", .network = "far", .service = kCatalog}));
  EXPECT_EQ(to("10.96.0.1:80").error().reason, Reason::kUnsupported);
}

TEST_F(Routing, InboundAuthorityMustBeOurs) {
  EXPECT_EQ(inbound(*c1_, "10.0.0.2:8080")->port, 8080);
  EXPECT_EQ(inbound(*c1_, "10.0.0.3:8080").error().reason, Reason::kBadRequest);
  EXPECT_EQ(inbound(*c1_, "127.0.0.1:8080").error().reason, Reason::kBadRequest);
  EXPECT_EQ(inbound(*c1_, "169.254.169.254:80").error().reason, Reason::kBadRequest);
  for (const char* bad : {"", "10.0.0.2", "10.0.0.2:", "10.0.0.2:0", "10.0.0.2:99999", ":80", "[10.0.0.2]x:80"}) {
    EXPECT_EQ(inbound(*c1_, bad).error().reason, Reason::kBadRequest) << bad;
  }
  for (const char* own : {"10.0.0.2:15008", "10.0.0.2:15001", "10.0.0.2:15006"}) {
    EXPECT_EQ(inbound(*c1_, own).error().reason, Reason::kSelfCall) << own;
  }
}

TEST_F(Routing, InboundHostname) {
  const auto t = inbound(*c1_, "catalog.shop.svc.cluster.local:80");
  ASSERT_TRUE(t.has_value());
  EXPECT_EQ(t->port, 8080);
  EXPECT_EQ(t->service, catalog_);
  EXPECT_EQ(inbound(*c1_, "catalog.shop.svc.cluster.local:90").error().reason, Reason::kNoTargetPort);
  EXPECT_EQ(inbound(*c1_, "nobody.shop.svc:80").error().reason, Reason::kNoService);
  EXPECT_EQ(inbound(*client_, "catalog.shop.svc.cluster.local:80").error().reason, Reason::kUnknownDestination);
}

TEST_F(Routing, InboundWaypointTakesWhatItServes) {
  start_waypoint();
  put(with_waypoint());
  const auto wp = store_.snapshot()->workload("Kubernetes//Pod/shop/wp");
  EXPECT_EQ(inbound(*wp, "10.96.0.1:80")->port, 80);
  EXPECT_FALSE(inbound(*wp, "10.0.0.2:80").has_value()) << "c1 has no workload waypoint";
  auto w = endpoint("c1", "10.0.0.2");
  w->waypoint = GatewayAddress{sym(kWaypoint), std::nullopt, 15008};
  put(w);
  EXPECT_TRUE(inbound(*wp, "10.0.0.2:80").has_value());
}

TEST_F(Routing, ApplicationTunnelOverridesThePort) {
  auto w = endpoint("c1", "10.0.0.2");
  w->application_tunnel = ApplicationTunnel{AppTunnelProtocol::kProxy, 15088};
  put(w);
  const auto t = inbound(*w, "10.96.0.1:80");
  EXPECT_EQ(t->port, 15088);
  EXPECT_TRUE(t->proxy_protocol);
}

TEST(ConnectStatus, FollowsThePeer) {
  EXPECT_EQ(connect_status(Reason::kBadRequest), 400);
  EXPECT_EQ(connect_status(Reason::kPolicyDeny), 401);
  EXPECT_EQ(connect_status(Reason::kPolicyUnknown), 401);
  EXPECT_EQ(connect_status(Reason::kConnectRefused), 503);
  EXPECT_EQ(connect_status(Reason::kNoService), 503);
}

}  // namespace
}  // namespace meltemi::model
