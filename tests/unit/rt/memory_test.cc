// ByteQueue against a plain string, and the budgets.
#include <gtest/gtest.h>

#include <random>
#include <string>

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

}  // namespace
}  // namespace meltemi::rt
