// Admission with a clock that jumps and no sockets: who gets in, who gives way, and to whom.
#include "userspace/rt/admission.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <thread>

#include "userspace/rt/admission_settings.h"

namespace meltemi::rt {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Post here() {
  return [](std::move_only_function<void()> fn) { fn(); };
}

IpAddress ip(std::string_view text) { return *IpAddress::parse(text); }

// A connection as its owner holds it: it closes when it is told to.
struct Connection {
  explicit Connection(Lease l) : lease(std::move(l)) {
    lease.on_give_way(here(), [this](GiveWay w) { why = w; });
  }
  Connection(const Connection&) = delete;
  void close_if_told() {
    if (why) lease.release();
  }
  Lease lease;
  std::optional<GiveWay> why;
};
using ConnectionPtr = std::unique_ptr<Connection>;

class AdmissionTest : public testing::Test {
 protected:
  static AdmissionOptions small() {
    AdmissionOptions o;
    o.descriptors = 160;  // 10 for those that leave, 10 reserved: 140 for all
    o.reserved = 10;
    o.small_share = 4;
    o.pending = 60;
    return o;
  }
  void make(const AdmissionOptions& options) {
    door = std::make_unique<Admission>(options);
    tunnels = door->add_class({.name = "hbone"});
    captured = door->add_class({.name = "captured", .descriptors = 2, .starts_silent = false});
    pages = door->add_class({.name = "pages", .limit = 8, .probes = true});
  }
  void SetUp() override { make(small()); }

  ConnectionPtr come(Admission::ClassId id, std::string_view source, std::string_view pod = "") {
    Visitor v{.pod = pod};
    if (!source.empty()) v.source = ip(source);
    auto lease = door->admit(id, v, now);
    if (!lease) {
      refusal = lease.error().detail;
      return nullptr;
    }
    return std::make_unique<Connection>(std::move(*lease));
  }
  // Fills up from one source until it is refused or one of its own has to go; returns how many fit.
  size_t flood(Admission::ClassId id, std::string_view source, std::string_view pod,
               std::vector<ConnectionPtr>& out, bool active) {
    const size_t before = out.size();
    while (auto c = come(id, source, pod)) {
      if (active) c->lease.active();
      out.push_back(std::move(c));
      if (out[before]->why || out.size() > 10'000) {
        out.pop_back();
        break;
      }
    }
    return out.size() - before;
  }
  uint64_t outcome(Admission::ClassId id, Outcome o) const {
    return door->rows()[static_cast<size_t>(id)].outcomes[static_cast<size_t>(o)];
  }

  std::unique_ptr<Admission> door;
  Admission::ClassId tunnels{}, captured{}, pages{};
  MonoTime now{seconds(1000)};
  std::string refusal;
};

TEST_F(AdmissionTest, OneSourceNeverTakesMoreThanIsStillFree) {
  std::vector<ConnectionPtr> greedy, second, third;
  EXPECT_EQ(flood(tunnels, "10.0.0.1", "", greedy, true), 70u);  // half of 140
  EXPECT_NE(refusal.find("source_share: hbone connection from 10.0.0.1 (holds 70)"),
            std::string::npos) << refusal;
  EXPECT_EQ(flood(tunnels, "10.0.0.2", "", second, true), 35u);
  EXPECT_GE(flood(tunnels, "10.0.0.3", "", third, true), 17u);
  EXPECT_TRUE(come(tunnels, "10.0.0.4"));
  EXPECT_GT(outcome(tunnels, Outcome::kSourceShare), 0u);
}

TEST_F(AdmissionTest, OnePodNeverTakesMoreThanIsStillFree) {
  std::vector<ConnectionPtr> greedy;
  EXPECT_EQ(flood(captured, "", "shop/greedy", greedy, true), 35u);  // two descriptors each
  EXPECT_NE(refusal.find("pod_share: captured connection of pod shop/greedy (holds 70)"),
            std::string::npos) << refusal;
  EXPECT_TRUE(come(captured, "", "shop/web"));
  // What comes to it from many sources counts as well.
  EXPECT_FALSE(come(captured, "10.0.0.9", "shop/greedy"));
}

TEST_F(AdmissionTest, AnIpv6SourceIsItsSlash64) {
  std::vector<ConnectionPtr> greedy;
  EXPECT_EQ(flood(tunnels, "2001:db8::1", "", greedy, true), 70u);
  EXPECT_FALSE(come(tunnels, "2001:db8::ffff"));
  EXPECT_TRUE(come(tunnels, "2001:db8:0:1::1"));
}

TEST_F(AdmissionTest, ASilentConnectionGivesWayToANewOne) {
  std::vector<ConnectionPtr> silent;
  EXPECT_EQ(flood(tunnels, "10.0.0.1", "", silent, false), 30u);  // half of what may be pending
  EXPECT_EQ(silent[0]->why, GiveWay::kRoom);
  EXPECT_FALSE(silent[1]->why);
  auto fresh = come(tunnels, "10.0.0.2");  // somebody else costs nobody anything
  ASSERT_TRUE(fresh);
  EXPECT_FALSE(silent[1]->why);
  EXPECT_EQ(outcome(tunnels, Outcome::kGaveWay), 1u);
}

TEST_F(AdmissionTest, ManySilentSourcesGiveWayToTheNextOne) {
  std::vector<ConnectionPtr> silent;
  for (int i = 0; i < 60; ++i) silent.push_back(come(tunnels, fmt::format("10.0.1.{}", i)));
  EXPECT_EQ(door->pending(), 60u);
  auto fresh = come(tunnels, "10.0.0.2");
  ASSERT_TRUE(fresh);
  EXPECT_EQ(silent[0]->why, GiveWay::kRoom);
  EXPECT_EQ(door->pending(), 60u);
}

TEST_F(AdmissionTest, SilentGivesWayBeforeUnfinishedBeforeIdle) {
  auto idle = come(tunnels, "10.0.0.1");
  idle->lease.idle(now);
  auto unfinished = come(tunnels, "10.0.0.1");
  ASSERT_TRUE(unfinished->lease.handshaking(now));
  auto working = come(tunnels, "10.0.0.1");
  working->lease.active();
  auto silent = come(tunnels, "10.0.0.1");
  std::vector<ConnectionPtr> rest;
  while (!idle->why) {
    rest.push_back(come(tunnels, "10.0.0.1"));
    ASSERT_TRUE(rest.back());
    rest.back()->lease.active();
    if (silent->why == std::nullopt) EXPECT_FALSE(unfinished->why);
    if (unfinished->why == std::nullopt) EXPECT_FALSE(idle->why);
  }
  EXPECT_TRUE(silent->why && unfinished->why);
  EXPECT_FALSE(come(tunnels, "10.0.0.1"));  // nobody is left who does nothing
  EXPECT_FALSE(working->why);
}

TEST_F(AdmissionTest, TheOneThatIsIdleLongestGoesFirst) {
  std::vector<ConnectionPtr> all;
  for (int i = 0; i < 70; ++i) {
    all.push_back(come(tunnels, "10.0.0.1"));
    all.back()->lease.active();
  }
  now += seconds(5);
  all[40]->lease.idle(now);
  now += seconds(5);
  all[10]->lease.idle(now);
  all[41]->lease.idle(now);
  all[41]->lease.active();
  ASSERT_TRUE(come(tunnels, "10.0.0.1"));
  EXPECT_TRUE(all[40]->why);
  EXPECT_FALSE(all[10]->why || all[41]->why);
}

TEST_F(AdmissionTest, TheFirstByteAndTheHandshakeHaveDeadlines) {
  auto silent = come(tunnels, "10.0.0.1");
  auto slow = come(tunnels, "10.0.0.2");
  auto done = come(tunnels, "10.0.0.3");
  ASSERT_TRUE(slow->lease.handshaking(now));
  ASSERT_TRUE(done->lease.handshaking(now));
  done->lease.idle(now);
  now += milliseconds(1999);
  door->sweep(now);
  EXPECT_FALSE(silent->why);
  now += milliseconds(1);
  door->sweep(now);
  EXPECT_EQ(silent->why, GiveWay::kFirstByte);
  now += seconds(8);
  door->sweep(now);
  EXPECT_EQ(slow->why, GiveWay::kHandshake);
  now += seconds(10'000);
  door->sweep(now);
  EXPECT_FALSE(done->why);
  EXPECT_EQ(outcome(tunnels, Outcome::kFirstByte), 1u);
  EXPECT_EQ(outcome(tunnels, Outcome::kHandshake), 1u);
}

TEST_F(AdmissionTest, HandshakesOfOneSourceHaveARate) {
  const auto begin = [&](std::string_view source) {
    auto c = come(tunnels, source);
    return c && c->lease.handshaking(now);
  };
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(begin("10.0.0.1")) << i;
  EXPECT_FALSE(begin("10.0.0.1"));
  EXPECT_TRUE(begin("10.0.0.2"));
  EXPECT_EQ(outcome(tunnels, Outcome::kHandshakeRate), 1u);
  now += milliseconds(50);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(begin("10.0.0.1"));
  EXPECT_FALSE(begin("10.0.0.1"));
}

TEST_F(AdmissionTest, ASourceIsForgottenOnceItsRateIsFullAgain) {
  auto options = small();
  options.remembered_sources = 100;
  make(options);
  for (int i = 0; i < 5000; ++i) {
    auto c = come(tunnels, fmt::format("10.1.{}.{}", i / 250, i % 250));
    ASSERT_TRUE(c && c->lease.handshaking(now));
  }
  now += seconds(3);
  door->sweep(now);
  EXPECT_EQ(door->held(), 0u);
}

TEST_F(AdmissionTest, TheNodesOwnProbesAlwaysGetIn) {
  door->set_own_addresses({ip("192.168.0.1")});
  std::vector<ConnectionPtr> all;
  for (int i = 0; all.empty() || all.back(); ++i) {
    all.push_back(come(captured, fmt::format("10.0.2.{}", i)));
  }
  EXPECT_FALSE(come(captured, "10.0.3.1"));  // all are active, and there is no room
  auto probe = come(pages, "192.168.0.1");
  EXPECT_TRUE(probe);
  EXPECT_TRUE(come(pages, "127.0.0.1"));
  EXPECT_TRUE(come(pages, "::1"));
  // Its own flood of silent ones does not help an attacker on the node either.
  std::vector<ConnectionPtr> silent;
  for (int i = 0; i < 100; ++i) {
    silent.push_back(come(pages, "127.0.0.1"));
    ASSERT_TRUE(silent.back());
    for (auto& c : silent) c->close_if_told();
  }
  // Whoever names itself loopback inside of a pod is no probe of the node.
  EXPECT_FALSE(come(captured, "127.0.0.1"));
}

TEST_F(AdmissionTest, IdlePagesGiveWayToTheNextReader) {
  std::vector<ConnectionPtr> idle;
  for (int i = 0; i < 20; ++i) {
    idle.push_back(come(pages, fmt::format("10.0.4.{}", i)));
    ASSERT_TRUE(idle.back());
    idle.back()->lease.idle(now);
  }
  EXPECT_EQ(door->rows()[static_cast<size_t>(pages)].open, 8u);
  EXPECT_EQ(outcome(pages, Outcome::kGaveWay), 12u);
}

TEST_F(AdmissionTest, ALeaseGivesEverythingBack) {
  {
    std::vector<ConnectionPtr> all;
    flood(captured, "10.0.0.1", "shop/web", all, true);
    flood(tunnels, "10.0.0.2", "shop/web", all, false);
    EXPECT_GT(door->held(), 0u);
    Lease moved = std::move(all[0]->lease);
    EXPECT_FALSE(all[0]->lease);
    moved = Lease();
  }
  EXPECT_EQ(door->held(), 0u);
  EXPECT_EQ(door->pending(), 0u);
  std::vector<ConnectionPtr> again;
  EXPECT_EQ(flood(captured, "", "shop/web", again, true), 35u);
}

// Who was told to go and does not go must not let others in for ever: descriptors are real.
TEST_F(AdmissionTest, ThoseWhoAreLeavingAreCountedUntilTheyAreGone) {
  std::vector<ConnectionPtr> silent;
  size_t in = 0;
  for (int i = 0; i < 1000; ++i) {
    auto c = come(tunnels, fmt::format("10.0.{}.{}", i / 250, i % 250));
    if (c) ++in, silent.push_back(std::move(c));
  }
  EXPECT_LE(in, 160u);
  EXPECT_LE(door->held(), 160u);
  for (auto& c : silent) c->close_if_told();
  EXPECT_TRUE(come(tunnels, "10.9.0.1"));
}

// Between acceptance and its owner's thread a connection may have to go already.
TEST_F(AdmissionTest, WhoHasToGoBeforeItsOwnerKnowsIsToldThen) {
  auto lease = door->admit(tunnels, {.source = ip("10.0.0.1")}, now);
  now += seconds(3);
  door->sweep(now);
  std::optional<GiveWay> why;
  lease->on_give_way(here(), [&](GiveWay w) { why = w; });
  EXPECT_EQ(why, GiveWay::kFirstByte);
}

TEST_F(AdmissionTest, NobodyIsToldAfterItsLeaseIsGone) {
  std::vector<std::move_only_function<void()>> posted;
  const Post later = [&](auto fn) { posted.push_back(std::move(fn)); };
  bool told = false;
  {
    auto lease = door->admit(tunnels, {.source = ip("10.0.0.1")}, now);
    lease->on_give_way(later, [&](GiveWay) { told = true; });
    door->sweep(now + seconds(3));
    ASSERT_EQ(posted.size(), 1u);
  }
  for (auto& fn : posted) fn();
  EXPECT_FALSE(told);
}

TEST_F(AdmissionTest, ThreadsMayComeAndGoAtTheSameTime) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      std::vector<Lease> mine;
      for (int i = 0; i < 3000; ++i) {
        const auto id = i % 3 == 0 ? captured : tunnels;
        auto lease = door->admit(id, {.source = ip(fmt::format("10.0.{}.{}", t % 2, i % 5)),
                                      .pod = t % 2 ? "a/b" : "c/d"}, now);
        if (lease) {
          lease->on_give_way(here(), [](GiveWay) {});
          if (i % 2) lease->idle(now);
          mine.push_back(std::move(*lease));
        }
        if (mine.size() > 20) mine.erase(mine.begin());
        if (i % 100 == 0) door->sweep(now + seconds(3));
      }
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(door->held(), 0u);
  EXPECT_EQ(door->pending(), 0u);
}

TEST(AdmissionOptions, TheTotalFitsTheDescriptorLimit) {
  for (const uint64_t limit : {64u, 256u, 1024u, 20'000u, 1'048'576u}) {
    const auto o = AdmissionOptions::for_limit(limit);
    EXPECT_LE(o.descriptors, std::max<uint64_t>(limit, 64)) << limit;
    EXPECT_LT(o.reserved + o.descriptors / 16, o.descriptors) << limit;
    if (limit >= 1024) EXPECT_GE(o.descriptors, limit * 9 / 10) << limit;
  }
}

TEST(AdmissionSettings, MaxConnectionsCutsButNeverExceedsTheDescriptorLimit) {
  AdmissionSettings settings;
  settings.max_connections = 100;
  Admission door(settings.options(20'000, 2));
  const auto id = door.add_class({.name = "captured", .descriptors = 2, .starts_silent = false});
  std::vector<Lease> leases;
  for (uint32_t i = 0; i < 200; ++i) {
    if (auto lease = door.admit(id, {.source = IpAddress::v4(0x0a000000 + i)}, MonoTime{})) {
      leases.push_back(std::move(*lease));
    }
  }
  EXPECT_EQ(leases.size(), 100u);
  settings.max_connections = 1'000'000;
  EXPECT_LT(settings.options(20'000, 2).descriptors, 20'000u);
}

}  // namespace
}  // namespace meltemi::rt
