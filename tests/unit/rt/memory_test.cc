// ByteQueue against a plain string, and the budgets.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "userspace/rt/allocator.h"
#include "userspace/rt/memory.h"

namespace meltemi::rt {
namespace {

TEST(ByteQueue, BehavesLikeAString) {
  std::mt19937 rng(3);
  Budget budget("held", 1 << 20);
  ByteQueue queue;
  queue.set_budget(&budget);
  std::string model;
  for (int step = 0; step < 20'000; ++step) {
    if (rng() % 2) {
      std::string s(rng() % (step % 50 == 0 ? 200'000 : 3000), '\0');
      for (auto& c : s) c = static_cast<char>(rng());
      queue.append(as_bytes(s));
      model += s;
    } else if (!model.empty()) {
      iovec pieces[4];
      const size_t n = queue.peek(pieces, 4);
      std::string front;
      for (size_t i = 0; i < n; ++i)
        front.append(static_cast<char*>(pieces[i].iov_base), pieces[i].iov_len);
      ASSERT_GT(front.size(), 0u);
      ASSERT_EQ(front, model.substr(0, front.size()));
      const size_t drop = rng() % (std::min<size_t>(front.size(), 60'000) + 1);
      queue.drop(drop);
      model.erase(0, drop);
    }
    ASSERT_EQ(queue.size(), model.size());
    ASSERT_EQ(queue.empty(), model.empty());
    ASSERT_EQ(budget.used(), model.size());
  }
  ByteQueue moved = std::move(queue);
  EXPECT_TRUE(queue.empty());
  moved.clear();
  EXPECT_EQ(budget.used(), 0u);
}

TEST(Budget, RefusesAboveItsLimit) {
  Budget b("x", 100);
  EXPECT_TRUE(b.try_take(60));
  EXPECT_FALSE(b.try_take(41));
  EXPECT_TRUE(b.try_take(40));
  EXPECT_EQ(b.refused(), 1u);
  b.give(100);
  b.take(150);
  EXPECT_FALSE(b.try_take(1));
}

TEST(BufferPool, GivesTheHotBufferFirst) {
  BufferPool pool;
  pool.reserve(2, 3);
  const size_t mapped = pool.mapped_bytes();
  uint8_t* a = pool.take_large();
  pool.give_large(a);
  EXPECT_EQ(pool.take_large(), a);
  a[0] = a[BufferPool::kLarge - 1] = 1;
  pool.give_large(a);
  EXPECT_EQ(pool.mapped_bytes(), mapped);
}

long resident_pages() {
  long total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident;
}

TEST(BufferPool, WhatABurstHasMappedGoesBackOnceNobodyNeedsIt) {
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "a sanitizer's own memory moves by more";
#endif
  constexpr size_t kBurst = 40;
  constexpr long kPages = BufferPool::kLarge / 4096;
  BufferPool pool;
  std::vector<uint8_t*> taken;
  const auto burst = [&] {
    for (size_t i = 0; i < kBurst; ++i) taken.push_back(pool.take_large());
    for (uint8_t* p : taken) std::memset(p, 1, BufferPool::kLarge);
    for (uint8_t* p : taken) pool.give_large(p);
    taken.clear();
  };
  EXPECT_FALSE(pool.swollen());
  burst();
  const long swollen = resident_pages();
  EXPECT_TRUE(pool.swollen());
  ASSERT_TRUE(pool.rest());
  EXPECT_GT(resident_pages(), swollen - kPages) << "they were needed a moment ago";
  for (int i = 0; i < 10 && !pool.rest(); ++i) {
  }
  EXPECT_LT(resident_pages(), swollen - 30 * kPages);
  EXPECT_FALSE(pool.swollen()) << "the warm ones stay";

  // What was given back is as good as new, and goes again.
  burst();
  EXPECT_GT(resident_pages(), swollen - kPages);
  ASSERT_TRUE(pool.rest());
  uint8_t* const used = pool.take_large();
  for (int i = 0; i < 10 && !pool.rest(); ++i) {
  }
  EXPECT_EQ(used[0], 1) << "what is in use is left alone";
  EXPECT_LT(resident_pages(), swollen - 30 * kPages);
  pool.give_large(used);
}

// 1,200 connections whose readers never read, each with all that it may hold, on two threads; among
// them, small things that stay.
TEST(Memory, WhatSlowReadersHeldIsGivenBack) {
  start_giving_memory_back();
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
  GTEST_SKIP() << "a sanitizer keeps what was freed";
#endif
  const long before = resident_pages();
  const auto stall = [] {
    std::vector<ByteQueue> held(600);
    std::vector<std::string> stay;
    const std::vector<uint8_t> bytes(16 * 1024, 7);
    for (int round = 0; round < 13; ++round) {
      for (ByteQueue& queue : held) queue.append(bytes);
      stay.emplace_back(200, 'x');
    }
  };
  std::thread a(stall), b(stall);
  a.join();
  b.join();
  const long allowed = before + before / 10 + (4 << 20) / 4096;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (resident_pages() > allowed && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_LE(resident_pages(), allowed) << "before: " << before;
}

}  // namespace
}  // namespace meltemi::rt
