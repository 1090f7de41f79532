// The building blocks of the store against plain oracles: interning, the persistent map, LPM.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>

#include "tests/unit/model/build.h"

namespace meltemi::model {
namespace {

using test::sym;

TEST(Symbol, EqualTextIsOnePointerAndDiesWithItsLastUser) {
  const size_t before = Symbol::live();
  {
    Symbol a("a-name-only-this-test-uses"), b(std::string("a-name-only-this-test-") + "uses");
    EXPECT_EQ(a, b);
    EXPECT_EQ(a.view().data(), b.view().data());
    EXPECT_EQ(Symbol::live(), before + 1);
    Symbol moved = std::move(a);
    EXPECT_EQ(moved, b);
  }
  EXPECT_EQ(Symbol::live(), before);
  EXPECT_TRUE(Symbol("").empty());
  EXPECT_EQ(Symbol(), Symbol(""));
}

TEST(Symbol, ManyThreadsMakeAndDropTheSameNames) {
  const size_t before = Symbol::live();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (int i = 0; i < 20'000; ++i) {
        const std::string text = "race-" + std::to_string(i % 7);
        Symbol s(text);
        Symbol copy = s;
        ASSERT_EQ(copy.view(), text);
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(Symbol::live(), before);
}

// A hash that collides a lot, so that the deep levels and the collision lists are walked.
struct BadHash {
  size_t operator()(int v) const { return static_cast<size_t>(v % 17); }
};
struct GoodHash {
  size_t operator()(int v) const { return static_cast<size_t>(v) * 0x9E3779B97F4A7C15ull; }
};
struct WeighValue {
  uint64_t operator()(const uint64_t& v) const { return v; }
};

template <typename Hash>
void random_edits_match_std_map() {
  std::mt19937 rng(7);
  PersistentMap<int, uint64_t, Hash, WeighValue> map;
  std::map<int, uint64_t> oracle;
  std::vector<std::pair<decltype(map), decltype(oracle)>> snapshots;
  for (int step = 0; step < 6000; ++step) {
    const int key = static_cast<int>(rng() % 400);
    if (rng() % 3 != 0) {
      const uint64_t value = rng() % 5;
      map.set(key, value);
      oracle[key] = value;
    } else {
      EXPECT_EQ(map.erase(key), oracle.erase(key) == 1);
    }
    if (step % 1000 == 500) snapshots.emplace_back(map, oracle);
  }
  snapshots.emplace_back(map, oracle);
  for (const auto& [snapshot, expected] : snapshots) {
    ASSERT_EQ(snapshot.size(), expected.size());
    uint64_t sum = 0;
    for (const auto& [k, v] : expected) {
      const uint64_t* found = snapshot.find(k);
      ASSERT_NE(found, nullptr);
      EXPECT_EQ(*found, v);
      sum += v;
    }
    EXPECT_EQ(snapshot.weight(), sum);
    size_t visited = 0;
    snapshot.for_each([&](int, uint64_t) { ++visited; });
    EXPECT_EQ(visited, expected.size());
    // Every position belongs to exactly one entry, as often as it weighs.
    std::map<int, uint64_t> hits;
    for (uint64_t i = 0; i < sum; ++i) ++hits[snapshot.pick(i)->key];
    for (const auto& [k, n] : hits) EXPECT_EQ(n, expected.at(k));
    EXPECT_EQ(snapshot.pick(sum), nullptr);
  }
}

TEST(PersistentMap, RandomEditsMatchAnOracle) { random_edits_match_std_map<GoodHash>(); }
TEST(PersistentMap, CollidingHashesMatchAnOracle) { random_edits_match_std_map<BadHash>(); }

TEST(PersistentMap, EmptiesCompletely) {
  PersistentMap<int, uint64_t, BadHash, WeighValue> map;
  for (int i = 0; i < 100; ++i) map.set(i, 1);
  const auto copy = map;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(map.erase(i));
  EXPECT_TRUE(map.empty());
  EXPECT_EQ(map.weight(), 0u);
  EXPECT_EQ(map.find(3), nullptr);
  EXPECT_EQ(copy.size(), 100u);
}

IpAddress random_ip(std::mt19937& rng, bool v4) {
  if (v4) return IpAddress::v4(0x0A000000u | (rng() & 0x3FFF));
  std::array<uint8_t, 16> bytes{0xfd};
  for (int i = 10; i < 16; ++i) bytes[i] = static_cast<uint8_t>(rng() & 3);
  return *IpAddress::from_bytes(bytes);
}

TEST(LpmTable, MatchesANaiveScan) {
  std::mt19937 rng(11);
  const Symbol networks[] = {Symbol(), sym("other")};
  LpmTable<int> table;
  std::vector<std::pair<NetworkCidr, int>> oracle;
  for (int step = 0; step < 3000; ++step) {
    const bool v4 = rng() % 2;
    const uint32_t length = v4 ? 18 + rng() % 15 : 80 + rng() % 49;
    const NetworkCidr key{networks[rng() % 2], *Cidr::make(random_ip(rng, v4), length)};
    const auto same = [&](const auto& e) { return e.first == key; };
    if (rng() % 3 == 0) {
      EXPECT_EQ(table.erase(key), std::erase_if(oracle, same) == 1);
    } else {
      std::erase_if(oracle, same);
      oracle.emplace_back(key, step);
      table.set(key, step);
    }
    const IpAddress probe = random_ip(rng, rng() % 2);
    const Symbol network = networks[rng() % 2];
    std::map<int, int, std::greater<>> expected;  // by length
    for (const auto& [k, v] : oracle) {
      if (k.network == network && k.cidr.contains(probe)) expected[k.cidr.length] = v;
    }
    std::vector<std::pair<int, int>> got;
    table.match(network, probe, [&](int v, uint8_t l) {
      got.emplace_back(l, v);
      return false;
    });
    ASSERT_EQ(got, (std::vector<std::pair<int, int>>(expected.begin(), expected.end())));
  }
  EXPECT_EQ(table.size(), oracle.size());
}

TEST(LpmTable, DefaultRouteAndHostRoute) {
  LpmTable<int> table;
  table.set({Symbol(), *Cidr::parse("0.0.0.0/0")}, 1);
  table.set({Symbol(), *Cidr::parse("10.1.2.3/32")}, 2);
  int found = 0;
  const auto first = [&](int v, uint8_t) { return found = v, true; };
  EXPECT_TRUE(table.match(Symbol(), test::ip("10.1.2.3"), first));
  EXPECT_EQ(found, 2);
  EXPECT_TRUE(table.match(Symbol(), test::ip("10.1.2.4"), first));
  EXPECT_EQ(found, 1);
  EXPECT_FALSE(table.match(Symbol(), test::ip("::1"), first));
  EXPECT_FALSE(table.match(sym("other"), test::ip("10.1.2.3"), first));
}

}  // namespace
}  // namespace meltemi::model
