// The store: every index follows every change, in any order of arrival, and readers see whole batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "tests/unit/model/build.h"

namespace meltemi::model {
namespace {

using test::ip;
using test::make_service;
using test::make_workload;
using test::sym;

constexpr std::string_view kCatalog = "shop/catalog.shop.svc.cluster.local";

TEST(Store, FindsAWorkloadEveryWay) {
  MeshStore store;
  auto w = make_workload({.name = "web-1", .address = "10.0.0.1", .sa = "web"});
  w->hostname = sym("web-1.example");
  store.apply({.workloads = {w}});
  const auto s = store.snapshot();
  EXPECT_EQ(s->workload(w->uid), w);
  EXPECT_EQ(s->workload_by_ip({Symbol(), ip("10.0.0.1")}), w);
  EXPECT_EQ(s->workload_by_ip({sym("other"), ip("10.0.0.1")}), nullptr);
  EXPECT_EQ(s->workload_by_hostname("shop/web-1.example"), w);
  EXPECT_EQ(s->workload_by_name("shop", "web-1", "web"), w);
  EXPECT_EQ(s->workload_by_name("shop", "web-1", "other"), nullptr);
  store.apply({.removed_addresses = {std::string(w->uid.view())}});
  const auto after = store.snapshot();
  EXPECT_EQ(after->workload(w->uid), nullptr);
  EXPECT_EQ(after->workload_by_ip({Symbol(), ip("10.0.0.1")}), nullptr);
  EXPECT_EQ(after->workload_by_hostname("shop/web-1.example"), nullptr);
  EXPECT_EQ(after->workload_by_name("shop", "web-1", "web"), nullptr);
  EXPECT_EQ(s->workload(w->uid), w) << "the old snapshot does not change";
}

TEST(Store, OneAddressOfSeveralWorkloadsPrefersPodsThenHbone) {
  MeshStore store;
  auto entry = make_workload({.name = "e", .address = "10.0.0.1", .uid = "Kubernetes/networking/x"});
  auto plain = make_workload({.name = "plain", .address = "10.0.0.1", .hbone = false});
  auto pod = make_workload({.name = "pod", .address = "10.0.0.1"});
  auto host = make_workload({.name = "host", .address = "10.0.0.1"});
  host->network_mode = NetworkMode::kHostNetwork;
  const NetworkAddress at{Symbol(), ip("10.0.0.1")};
  store.apply({.workloads = {host}});
  EXPECT_EQ(store.snapshot()->workload_by_ip(at), nullptr);
  store.apply({.workloads = {entry}});
  EXPECT_EQ(store.snapshot()->workload_by_ip(at), entry);
  store.apply({.workloads = {plain}});
  EXPECT_EQ(store.snapshot()->workload_by_ip(at), plain);
  store.apply({.workloads = {pod}});
  EXPECT_EQ(store.snapshot()->workload_by_ip(at), pod);
  store.apply({.removed_addresses = {pod->uid.str()}});
  EXPECT_EQ(store.snapshot()->workload_by_ip(at), plain);
}

TEST(Store, EndpointsDoNotCareWhoComesFirst) {
  const auto service = make_service("shop", "catalog", "10.96.0.1", {{80, 8080}});
  const auto w = make_workload({.name = "c-1", .address = "10.0.0.2", .service = std::string(kCatalog)});
  for (bool workload_first : {false, true}) {
    MeshStore store;
    if (workload_first) {
      store.apply({.workloads = {w}});
      EXPECT_EQ(store.snapshot()->service(kCatalog), nullptr);
      store.apply({.services = {service}});
    } else {
      store.apply({.services = {service}});
      store.apply({.workloads = {w}});
    }
    const ServiceEntry* entry = store.snapshot()->service(kCatalog);
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->endpoints.size(), 1u);
    // The service goes and comes back; its endpoints are still known.
    store.apply({.removed_addresses = {std::string(kCatalog)}});
    EXPECT_EQ(store.snapshot()->service(kCatalog), nullptr);
    EXPECT_EQ(store.snapshot()->service_by_vip({Symbol(), ip("10.96.0.1")}, "shop"), nullptr);
    store.apply({.services = {service}});
    EXPECT_EQ(store.snapshot()->service(kCatalog)->endpoints.size(), 1u);
    // The workload leaves the service.
    auto left = std::make_shared<Workload>(*w);
    left->services.clear();
    store.apply({.workloads = {left}});
    EXPECT_TRUE(store.snapshot()->service(kCatalog)->endpoints.empty());
  }
}

TEST(Store, HealthPolicyChangeRestoresUnhealthyEndpoints) {
  MeshStore store;
  auto service = make_service("shop", "catalog", "", {{80, 8080}});
  store.apply({.workloads = {make_workload({.name = "c", .address = "10.0.0.2",
                                            .service = std::string(kCatalog), .healthy = false})},
               .services = {service}});
  EXPECT_EQ(store.snapshot()->service(kCatalog)->endpoints.weight(), 0u);
  auto all = std::make_shared<Service>(*service);
  all->load_balancing.health = HealthPolicy::kAllowAll;
  store.apply({.services = {all}});
  EXPECT_EQ(store.snapshot()->service(kCatalog)->endpoints.weight(), 1u);
  store.apply({.services = {service}});
  EXPECT_EQ(store.snapshot()->service(kCatalog)->endpoints.weight(), 0u);
}

TEST(Store, VipsRankByNamespaceThenCanonicalAndCidrsByLength) {
  MeshStore store;
  const auto a = make_service("a", "x", "10.96.0.1", {{80, 80}});
  auto b = make_service("b", "x", "10.96.0.1", {{80, 80}});
  b->canonical = true;
  auto hidden = make_service("c", "x", "10.96.0.1", {{80, 80}});
  hidden->visibility = Visibility::kNamespace;
  auto wide = make_service("a", "wide", "", {{80, 80}});
  wide->cidr_vips = {{Symbol(), *Cidr::parse("10.96.0.0/16")}};
  auto narrow = make_service("a", "narrow", "", {{80, 80}});
  narrow->cidr_vips = {{Symbol(), *Cidr::parse("10.96.7.0/24")}};
  store.apply({.services = {a, b, hidden, wide, narrow}});
  const auto s = store.snapshot();
  const NetworkAddress vip{Symbol(), ip("10.96.0.1")};
  EXPECT_EQ(s->service_by_vip(vip, "a")->service, a);
  EXPECT_EQ(s->service_by_vip(vip, "b")->service, b);
  EXPECT_EQ(s->service_by_vip(vip, "c")->service, hidden);
  EXPECT_EQ(s->service_by_vip(vip, "elsewhere")->service, b);
  EXPECT_EQ(s->service_by_vip({Symbol(), ip("10.96.7.9")}, "a")->service, narrow);
  EXPECT_EQ(s->service_by_vip({Symbol(), ip("10.96.8.9")}, "a")->service, wide);
  EXPECT_EQ(s->service_by_vip({Symbol(), ip("10.97.0.1")}, "a"), nullptr);
  EXPECT_EQ(s->service_by_hostname("x.a.svc.cluster.local", "b")->service, a);
  // An endpoint of a CIDR service is seen through the CIDR (the peer's index goes stale here).
  store.apply({.workloads = {make_workload({.name = "e", .ns = "a", .address = "10.0.0.9",
                                            .service = "a/narrow.a.svc.cluster.local"})}});
  EXPECT_EQ(store.snapshot()->service_by_vip({Symbol(), ip("10.96.7.9")}, "a")->endpoints.size(), 1u);
}

TEST(Store, NothingNewPublishesNothing) {
  MeshStore store;
  int changes = 0;
  store.on_change([&] { ++changes; });
  const auto w = make_workload({.name = "w", .address = "10.0.0.1"});
  const uint64_t v = store.apply({.workloads = {w}});
  EXPECT_EQ(store.apply({.workloads = {std::make_shared<Workload>(*w)}}), v);
  EXPECT_EQ(store.apply({.removed_addresses = {"nobody"}, .removed_policies = {"x/y"}}), v);
  EXPECT_EQ(changes, 1);
}

// The indexes after a random history equal those of a store that was told the final state only.
TEST(Store, RandomHistoryEqualsFreshState) {
  std::mt19937 rng(5);
  std::map<std::string, WorkloadPtr> workloads;
  std::map<std::string, ServicePtr> services;
  MeshStore store;
  for (int step = 0; step < 3000; ++step) {
    Batch batch;
    const std::string n = std::to_string(rng() % 30);
    const std::string s = std::to_string(rng() % 5);
    const std::string hostkey = "shop/s" + s + ".shop.svc.cluster.local";
    switch (rng() % 4) {
      case 0:
      case 1: {
        auto w = make_workload({.name = "w" + n, .address = "10.0.0." + std::to_string(rng() % 20 + 1),
                                .service = hostkey, .healthy = rng() % 4 != 0,
                                .capacity = static_cast<uint32_t>(1 + rng() % 3)});
        workloads[w->uid.str()] = w;
        batch.workloads.push_back(w);
        break;
      }
      case 2: {
        auto v = make_service("shop", "s" + s, "10.96.0." + std::to_string(rng() % 3 + 1), {{80, 8080}});
        if (rng() % 2) v->load_balancing.health = HealthPolicy::kAllowAll;
        services[v->key.str()] = v;
        batch.services.push_back(v);
        break;
      }
      default:
        if (rng() % 2) {
          batch.removed_addresses.push_back("Kubernetes//Pod/shop/w" + n);
          workloads.erase(batch.removed_addresses.back());
        } else {
          batch.removed_addresses.push_back(hostkey);
          services.erase(hostkey);
        }
    }
    store.apply(batch);
  }
  Batch final_state;
  for (const auto& [k, v] : workloads) final_state.workloads.push_back(v);
  for (const auto& [k, v] : services) final_state.services.push_back(v);
  MeshStore fresh;
  fresh.apply(final_state);
  const auto a = store.snapshot(), b = fresh.snapshot();
  EXPECT_EQ(a->workload_count(), b->workload_count());
  for (int i = 1; i <= 20; ++i) {
    const NetworkAddress at{Symbol(), ip("10.0.0." + std::to_string(i))};
    EXPECT_EQ(a->workload_by_ip(at), b->workload_by_ip(at));
  }
  for (int i = 1; i <= 3; ++i) {
    const NetworkAddress at{Symbol(), ip("10.96.0." + std::to_string(i))};
    const auto *x = a->service_by_vip(at, "shop"), *y = b->service_by_vip(at, "shop");
    ASSERT_EQ(x == nullptr, y == nullptr);
    if (x) {
      EXPECT_EQ(x->service, y->service);
    }
  }
  size_t seen = 0;
  b->each_service([&](const ServiceEntry& e) {
    ++seen;
    const ServiceEntry* other = a->service(e.service->key);
    ASSERT_NE(other, nullptr);
    EXPECT_EQ(other->endpoints.size(), e.endpoints.size());
    EXPECT_EQ(other->endpoints.weight(), e.endpoints.weight());
  });
  EXPECT_EQ(seen, services.size());
}

// Readers on other threads while the writer goes on: each snapshot is a whole batch (two workloads
// always change together).
TEST(Store, ReadersSeeWholeBatches) {
  MeshStore store;
  const auto pair = [](int n) {
    const std::string node = "n" + std::to_string(n);
    return Batch{.workloads = {make_workload({.name = "a", .address = "10.0.0.1", .node = node}),
                               make_workload({.name = "b", .address = "10.0.0.2", .node = node})}};
  };
  store.apply(pair(0));
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  std::atomic<size_t> looks{0};
  for (int t = 0; t < 2; ++t) {
    readers.emplace_back([&] {
      SnapshotReader reader(store);
      while (!stop) {
        const Snapshot& s = reader.get();
        const auto a = s.workload("Kubernetes//Pod/shop/a"), b = s.workload("Kubernetes//Pod/shop/b");
        ASSERT_EQ(a->node, b->node);
        ++looks;
      }
    });
  }
  for (int i = 1; i < 3000; ++i) store.apply(pair(i));
  stop = true;
  for (auto& t : readers) t.join();
  EXPECT_GT(looks, 0u);
}

}  // namespace
}  // namespace meltemi::model
