// Coroutines: deadlines, stops, joins; a frame outlives its kernel operation.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "tests/unit/rt/backends.h"
#include "userspace/rt/socket_options.h"
#include "userspace/rt/task.h"

namespace meltemi::rt {
namespace {

using std::chrono::milliseconds;

class TaskTest : public BackendTest {
 protected:
  void run(Task<void> task) {
    TaskGroup group;
    group.spawn(std::move(task));
    EXPECT_TRUE(run_until([&] { return group.running() == 0; }));
  }
};
MELTEMI_ALL_BACKENDS(TaskTest);

Task<int> number(int n) { co_return n; }

Task<void> add_up(int& sum) {
  for (int i = 0; i < 100'000; ++i) {
    const int n = co_await number(i);
    sum += n & 1;
  }
}

TEST_P(TaskTest, NestedTasksDoNotGrowTheStack) {
  int sum = 0;
  run(add_up(sum));
  EXPECT_EQ(sum, 50'000);
}

TEST_P(TaskTest, UnstartedTaskIsDropped) {
  int sum = 0;
  { auto task = add_up(sum); }
  EXPECT_EQ(sum, 0);
}

Task<void> sleep_and_note(Loop& loop, Duration d, StopToken stop, std::vector<Reason>& out) {
  const Status s = co_await sleep_until(loop, MonoClock::now() + d, stop);
  out.push_back(s ? Reason::kOk : s.error().reason);
}

TEST_P(TaskTest, StopEndsSleepersAndJoinWaitsForAll) {
  std::vector<Reason> out;
  TaskGroup group;
  group.spawn(sleep_and_note(loop(), milliseconds(1), group.token(), out));
  for (int i = 0; i < 5; ++i)
    group.spawn(sleep_and_note(loop(), std::chrono::hours(1), group.token(), out));
  EXPECT_TRUE(run_until([&] { return out.size() == 1; }));
  EXPECT_EQ(out[0], Reason::kOk);
  EXPECT_EQ(group.running(), 5u);
  group.request_stop();
  EXPECT_TRUE(run_until([&] { return group.running() == 0; }));
  EXPECT_EQ(out.size(), 6u);
  for (size_t i = 1; i < out.size(); ++i) EXPECT_EQ(out[i], Reason::kCancelled);
}

Task<void> connect_to(Loop& loop, SocketAddress to, MonoTime deadline, StopToken stop,
                      std::optional<Result<UniqueFd>>& out) {
  auto fd = make_tcp_socket(to);
  auto r = co_await connect(loop, std::move(*fd), to, deadline, stop);
  out.emplace(std::move(r));
}

TEST_P(TaskTest, ConnectWorksAndFails) {
  auto listener = make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto address = *local_address(listener->get());
  std::optional<Result<UniqueFd>> got;
  run(connect_to(loop(), address, MonoTime::max(), {}, got));
  ASSERT_TRUE(got && got->has_value());
  loop().close(std::move(**got));
  listener->reset();
  run(connect_to(loop(), address, MonoTime::max(), {}, got));
  ASSERT_TRUE(got && !got->has_value());
  EXPECT_EQ(got->error().reason, Reason::kConnectRefused);
  EXPECT_EQ(got->error().retry, Retry::kSafe);
}

TEST_P(TaskTest, ConnectKeepsItsDeadline) {
  // A full accept queue of size 0: further SYNs get no answer.
  auto listener = make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {.backlog = 0});
  const auto address = *local_address(listener->get());
  std::vector<UniqueFd> filling;
  for (int i = 0; i < 4; ++i) {
    auto fd = make_tcp_socket(address);
    sockaddr_storage storage;
    const socklen_t length = address.to_sockaddr(storage);
    fcntl(fd->get(), F_SETFL, O_NONBLOCK);
    ::connect(fd->get(), reinterpret_cast<sockaddr*>(&storage), length);
    filling.push_back(std::move(*fd));
  }
  std::optional<Result<UniqueFd>> got;
  run(connect_to(loop(), address, MonoClock::now() + milliseconds(60), {}, got));
  ASSERT_TRUE(got && !got->has_value());
  EXPECT_EQ(got->error().reason, Reason::kConnectTimeout);
  StopSource stop;
  TaskGroup group;
  got.reset();
  group.spawn(connect_to(loop(), address, MonoTime::max(), stop.token(), got));
  loop().run_once(MonoTime{});
  stop.request_stop();
  EXPECT_TRUE(run_until([&] { return group.running() == 0; }));
  EXPECT_EQ(got->error().reason, Reason::kCancelled);
}

Task<void> wait_value(OneShot<int>& shot, MonoTime deadline, std::vector<int>& out) {
  auto v = co_await shot.wait(deadline, {});
  out.push_back(v ? *v : -static_cast<int>(v.error().reason));
}

TEST_P(TaskTest, OneShotGivesOrTimesOut) {
  OneShot<int> shot(loop());
  std::vector<int> out;
  TaskGroup group;
  group.spawn(wait_value(shot, MonoClock::now() + milliseconds(5), out));
  EXPECT_TRUE(run_until([&] { return group.running() == 0; }));
  group.spawn(wait_value(shot, MonoTime::max(), out));
  shot.give(17);
  shot.give(18);
  EXPECT_TRUE(run_until([&] { return group.running() == 0; }));
  group.spawn(wait_value(shot, MonoTime::max(), out));
  EXPECT_EQ(group.running(), 0u);
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(out[0], -static_cast<int>(Reason::kIdleTimeout));
  EXPECT_EQ(out[1], 17);
}

Task<void> wait_read(Loop& loop, int fd, MonoTime deadline, std::vector<int>& out) {
  auto events = co_await wait_ready(loop, fd, POLLIN, deadline, {});
  out.push_back(events ? static_cast<int>(*events) : -1);
}

TEST_P(TaskTest, WaitReady) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  UniqueFd a(pair[0]), b(pair[1]);
  std::vector<int> out;
  run(wait_read(loop(), a.get(), MonoClock::now() + milliseconds(5), out));
  ASSERT_EQ(write(b.get(), "x", 1), 1);
  run(wait_read(loop(), a.get(), MonoTime::max(), out));
  EXPECT_EQ(out[0], -1);
  EXPECT_TRUE(out[1] & POLLIN);
  loop().close(std::move(a));
}

Task<void> join_and_note(TaskGroup& group, bool& joined) {
  co_await group.join();
  joined = true;
}

TEST_P(TaskTest, JoinFromACoroutine) {
  std::vector<Reason> out;
  TaskGroup inner, outer;
  bool joined = false;
  inner.spawn(sleep_and_note(loop(), milliseconds(3), {}, out));
  outer.spawn(join_and_note(inner, joined));
  EXPECT_FALSE(joined);
  EXPECT_TRUE(run_until([&] { return joined; }));
  EXPECT_EQ(out.size(), 1u);
}

}  // namespace
}  // namespace meltemi::rt
