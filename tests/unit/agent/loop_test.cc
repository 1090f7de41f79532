// The agent's loop: timers in order, posts from other threads, descriptors that vanish in a
// callback.
#include "userspace/agent/loop.h"

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <thread>

namespace meltemi::agent {
namespace {

using std::chrono::milliseconds;

TEST(Loop, RunsTimersInOrderAndOnce) {
  auto loop = *Loop::create();
  std::string order;
  loop->after(milliseconds(20), [&] {
    order += 'b';
    loop->stop();
  });
  loop->after(milliseconds(1), [&] { order += 'a'; });
  const auto cancelled = loop->after(milliseconds(2), [&] { order += 'x'; });
  loop->cancel(cancelled);
  loop->cancel(cancelled);
  loop->run();
  EXPECT_EQ(order, "ab");
}

TEST(Loop, ATimerMaySetTheNext) {
  auto loop = *Loop::create();
  int n = 0;
  std::function<void()> again = [&] {
    if (++n == 3) return loop->stop();
    loop->after(Duration(0), again);
  };
  loop->after(Duration(0), again);
  loop->run();
  EXPECT_EQ(n, 3);
}

TEST(Loop, TakesWorkFromOtherThreads) {
  auto loop = *Loop::create();
  int done = 0;
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) loop->post([&] { ++done; });
    loop->post([&] { loop->stop(); });
  });
  loop->run();
  other.join();
  EXPECT_EQ(done, 1000);
}

TEST(Loop, ADescriptorMayBeUnwatchedByAnothersCallback) {
  auto loop = *Loop::create();
  const UniqueFd a(::eventfd(1, EFD_CLOEXEC)), b(::eventfd(1, EFD_CLOEXEC));
  int calls = 0;
  const auto callback = [&](uint32_t) {
    ++calls;
    loop->unwatch(a.get());
    loop->unwatch(b.get());
    loop->after(milliseconds(10), [&] { loop->stop(); });
  };
  ASSERT_TRUE(loop->watch(a.get(), EPOLLIN, callback));
  ASSERT_TRUE(loop->watch(b.get(), EPOLLIN, callback));
  loop->run();
  EXPECT_EQ(calls, 1);
}

TEST(Loop, RefusesADescriptorThatCannotBeWatched) {
  auto loop = *Loop::create();
  EXPECT_FALSE(loop->watch(9999, EPOLLIN, [](uint32_t) {}));
}

}  // namespace
}  // namespace meltemi::agent
