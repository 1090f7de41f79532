// The loop: posted work, timers, hooks, retiring, workers.
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/unit/rt/backends.h"
#include "userspace/rt/listener.h"
#include "userspace/rt/socket_options.h"
#include "userspace/rt/worker.h"

// What the kernel says when it has no memory: while set, every call below says so and does nothing.
static std::atomic<int> injected{0};

// These take the place of liburing's and libc's, which they call.
extern "C" {
using Submit = int (*)(void*);
using SubmitAndWait = int (*)(void*, unsigned);
using SubmitAndWaitTimeout = int (*)(void*, void*, unsigned, void*, void*);
int io_uring_submit_and_get_events(void* ring) {
  static const auto real = reinterpret_cast<Submit>(dlsym(RTLD_NEXT, "io_uring_submit_and_get_events"));
  return injected ? -injected : real(ring);
}
int io_uring_submit_and_wait(void* ring, unsigned count) {
  static const auto real = reinterpret_cast<SubmitAndWait>(dlsym(RTLD_NEXT, "io_uring_submit_and_wait"));
  return injected ? -injected : real(ring, count);
}
int io_uring_submit_and_wait_timeout(void* ring, void* cqe, unsigned count, void* time, void* mask) {
  static const auto real =
      reinterpret_cast<SubmitAndWaitTimeout>(dlsym(RTLD_NEXT, "io_uring_submit_and_wait_timeout"));
  return injected ? -injected : real(ring, cqe, count, time, mask);
}
int epoll_ctl(int epoll, int operation, int fd, epoll_event* event) noexcept {
  if (injected && operation == EPOLL_CTL_ADD) {
    errno = injected;
    return -1;
  }
  return static_cast<int>(syscall(SYS_epoll_ctl, epoll, operation, fd, event));
}
}

namespace meltemi::rt {
namespace {

using std::chrono::milliseconds;

class LoopTest : public BackendTest {};
MELTEMI_ALL_BACKENDS(LoopTest);

TEST_P(LoopTest, RunsPostedWorkOfOtherThreadsInOrder) {
  std::vector<int> seen;
  std::thread other([&] {
    for (int i = 0; i < 1000; ++i) loop().post([&seen, i] { seen.push_back(i); });
  });
  EXPECT_TRUE(run_until([&] { return seen.size() == 1000; }));
  other.join();
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(seen[i], i);
}

TEST_P(LoopTest, StopEndsRun) {
  std::thread other([&] {
    std::this_thread::sleep_for(milliseconds(20));
    loop().stop();
  });
  loop().run();
  other.join();
}

TEST_P(LoopTest, TimersFireInOrderAndCanBeStopped) {
  std::vector<int> fired;
  std::vector<std::unique_ptr<FnTimer>> timers;
  const MonoTime start = MonoClock::now();
  for (int i = 0; i < 50; ++i)
    timers.push_back(std::make_unique<FnTimer>([&fired, i] { fired.push_back(i); }));
  for (int i = 49; i >= 0; --i) loop().start(*timers[i], start + milliseconds(i));
  loop().stop(*timers[7]);
  timers[9].reset();
  loop().start(*timers[3], start + milliseconds(70));
  EXPECT_TRUE(run_until([&] { return fired.size() == 48; }));
  EXPECT_EQ(fired.back(), 3);
  fired.pop_back();
  EXPECT_TRUE(std::is_sorted(fired.begin(), fired.end()));
  EXPECT_GE(MonoClock::now() - start, milliseconds(49));
}

TEST_P(LoopTest, TimerRestartedForNowDoesNotStarveTheLoop) {
  int fired = 0;
  FnTimer timer([&] {
    ++fired;
    loop().start(timer, MonoTime{});
  });
  loop().start(timer, MonoTime{});
  bool posted = false;
  loop().post([&] { posted = true; });
  EXPECT_TRUE(run_until([&] { return posted && fired > 3; }));
}

struct CountingHook final : TurnHook {
  explicit CountingHook(std::function<void()> fn) : fn(std::move(fn)) {}
  void on_turn_end() override { fn(); }
  std::function<void()> fn;
};

TEST_P(LoopTest, HookRunsOncePerTurnAndMayDie) {
  int ran = 0;
  CountingHook a([&] { ++ran; });
  auto b = std::make_unique<CountingHook>([&] { FAIL() << "was destroyed"; });
  CountingHook killer([&] { b.reset(); });
  loop().post([&] {
    loop().at_turn_end(killer);
    loop().at_turn_end(a);
    loop().at_turn_end(a);
    loop().at_turn_end(*b);
  });
  EXPECT_TRUE(run_until([&] { return ran > 0; }));
  EXPECT_EQ(ran, 1);
  EXPECT_EQ(b, nullptr);
}

struct Mark final : Retirable {
  explicit Mark(bool& gone) : gone(gone) {}
  ~Mark() override { gone = true; }
  bool& gone;
};

TEST_P(LoopTest, RetiresAtTheEndOfTheTurn) {
  bool gone = false, was_gone_inside = true;
  loop().post([&] {
    loop().retire(std::make_unique<Mark>(gone));
    was_gone_inside = gone;
  });
  EXPECT_TRUE(run_until([&] { return gone; }));
  EXPECT_FALSE(was_gone_inside);
}

struct Result1 final : Completion {
  void on_complete(int32_t r, bool m) override {
    res = r;
    ++calls;
  }
  int32_t res = 1;
  int calls = 0;
};

TEST_P(LoopTest, ConnectSaysWhyItFailed) {
  // A port that was just closed: nobody listens there.
  auto listener = make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  ASSERT_TRUE(listener);
  const auto address = local_address(listener->get());
  listener->reset();
  auto fd = make_tcp_socket(*address);
  Result1 result;
  loop().connect(fd->get(), *address, result);
  EXPECT_EQ(result.calls, 0);
  EXPECT_TRUE(run_until([&] { return result.calls > 0; }));
  EXPECT_EQ(result.res, -ECONNREFUSED);
  loop().close(std::move(*fd));
}

TEST_P(LoopTest, ForgottenOperationStaysSilent) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  UniqueFd a(pair[0]), b(pair[1]);
  auto result = std::make_unique<Result1>();
  const OpId op = loop().poll(a.get(), POLLIN, *result);
  loop().run_once(MonoTime{});
  loop().forget(op);
  result.reset();
  ASSERT_EQ(write(b.get(), "x", 1), 1);
  loop().run_once(MonoClock::now() + milliseconds(20));
  Result1 again;
  loop().poll(a.get(), POLLIN, again);
  EXPECT_TRUE(run_until([&] { return again.calls == 1; }));
  EXPECT_TRUE(again.res & POLLIN);
  loop().close(std::move(a));
}

TEST_P(LoopTest, CancelledOperationCompletesOnce) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  UniqueFd a(pair[0]), b(pair[1]);
  Result1 result;
  const OpId op = loop().poll(a.get(), POLLIN, result);
  loop().cancel(op);
  EXPECT_TRUE(run_until([&] { return result.calls == 1; }));
  EXPECT_EQ(result.res, -ECANCELED);
  loop().run_once(MonoTime{});
  EXPECT_EQ(result.calls, 1);
  loop().close(std::move(a));
}

TEST_P(LoopTest, ListenerAcceptsManyAndStops) {
  auto fd = make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {});
  const auto address = *local_address(fd->get());
  std::vector<UniqueFd> accepted;
  auto listener = std::make_unique<Listener>(loop(), std::move(*fd),
                                             [&](UniqueFd c) { accepted.push_back(std::move(c)); });
  std::vector<UniqueFd> clients;
  std::vector<std::unique_ptr<Result1>> results;
  for (int i = 0; i < 300; ++i) {
    clients.push_back(std::move(*make_tcp_socket(address)));
    results.push_back(std::make_unique<Result1>());
    loop().connect(clients.back().get(), address, *results.back());
  }
  EXPECT_TRUE(run_until([&] {
    return accepted.size() == 300 &&
           std::all_of(results.begin(), results.end(), [](auto& r) { return r->calls == 1; });
  }));
  for (auto& r : results) EXPECT_EQ(r->res, 0);
  for (auto& c : clients) loop().close(std::move(c));
  listener.reset();
}

TEST_P(LoopTest, WorkersRunAndHandDescriptorsOver) {
  auto pool = WorkerPool::start(3, "test", GetParam().options);
  ASSERT_TRUE(pool);
  std::atomic<int> ran{0};
  (*pool)->run_on_all([&](Worker& w) {
    EXPECT_EQ(WorkerPool::current(), &w);
    EXPECT_EQ(Loop::current(), &w.loop());
    ++ran;
  });
  EXPECT_EQ(ran, 3);
  // Posts from worker to worker, round and round.
  std::atomic<int> hops{0};
  std::function<void(size_t)> hop = [&](size_t i) {
    if (++hops >= 300) return;
    const size_t next = (i + 1) % 3;
    (*pool)->worker(next).post([&hop, next] { hop(next); });
  };
  (*pool)->worker(0).post([&] { hop(0); });
  const MonoTime limit = MonoClock::now() + std::chrono::seconds(60);
  while (hops < 300 && MonoClock::now() < limit) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_GE(hops, 300);
  (*pool)->worker(1).add_load(1);
  (*pool)->worker(0).add_load(2);
  EXPECT_EQ((*pool)->least_loaded().index(), 2u);
  (*pool)->stop();
}

// The descriptor of the ring that this process has; -1: none.
int own_ring() {
  for (int fd = 3; fd < 256; ++fd) {
    char target[64] = {};
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    if (::readlink(link.c_str(), target, sizeof target - 1) > 0 &&
        std::string_view(target).find("[io_uring]") != std::string_view::npos)
      return fd;
  }
  return -1;
}

struct Count final : Completion {
  void on_complete(int32_t res, bool) override { (res >= 0 ? good : bad) += 1; }
  int good = 0, bad = 0;
};

// More operations than the queue has room for, and connects, whose addresses the kernel has not read.
TEST_P(LoopTest, OperationsOutliveAKernelThatHasNoMemory) {
  loop_.reset();
  LoopOptions options = GetParam().options;
  options.ring_entries = 8;
  loop_ = std::move(*Loop::create(options));
  auto listening = std::move(*make_tcp_listener(*SocketAddress::parse("127.0.0.1:0"), {}));
  const SocketAddress to = *local_address(listening.get());
  Count connects, polls;
  std::vector<UniqueFd> fds;
  injected = EAGAIN;
  for (int i = 0; i < 40; ++i) {
    fds.push_back(std::move(*make_tcp_socket(to)));
    loop().connect(fds.back().get(), to, connects);
    int pipe_ends[2];
    ASSERT_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
    fds.emplace_back(pipe_ends[0]);
    fds.emplace_back(pipe_ends[1]);
    loop().poll(pipe_ends[0], POLLIN, polls);
    ASSERT_EQ(write(pipe_ends[1], "x", 1), 1);
    loop().run_once(MonoClock::now() + milliseconds(1));
  }
  injected = 0;
  EXPECT_TRUE(run_until([&] { return connects.good == 40 && polls.good == 40; }, 5));
  EXPECT_EQ(connects.bad + polls.bad, 0);
  for (auto& fd : fds) loop().close(std::move(fd));
}

// A ring that cannot be told by another one (no memory for the message) is told by its eventfd.
TEST_P(LoopTest, AWakeUpThatARingRefusesIsNotLost) {
  if (loop().backend() != Backend::kUring) GTEST_SKIP() << "no ring";
  loop_.reset();
  auto pool = WorkerPool::start(1, "test", GetParam().options);
  ASSERT_TRUE(pool);
  const int ring = own_ring();
  ASSERT_GE(ring, 0);
  auto sender = std::move(*Loop::create(GetParam().options));
  // The number by which others name the worker's ring is something else now; the worker does not use it.
  const int kept = dup(ring);
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  ASSERT_EQ(dup2(null.get(), ring), ring);
  std::atomic<bool> ran{false};
  sender->post([&] {
    (*pool)->worker(0).post([&] {
      ran = true;
      sender->post([] {});
    });
  });
  EXPECT_TRUE(sender->run_until([&] { return ran.load(); }, MonoClock::now() + std::chrono::seconds(5)));
  ASSERT_EQ(dup2(kept, ring), ring);
  ::close(kept);
  (*pool)->stop();
}

// The number of a descriptor that is closed belongs to the next one at once.
TEST_P(LoopTest, WhatIsForgottenBeforeItBeganTakesNoBytesOfTheNextOwnerOfItsNumber) {
  struct Nobody final : RecvCompletion {
    void on_received(int32_t, ByteSpan, bool) override { ADD_FAILURE() << "it was forgotten"; }
  } nobody;
  loop().run_once(MonoTime{});
  int first[2], second[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, first), 0);
  const OpId op = loop().receive(first[0], nobody);
  loop().forget(op);
  loop().close(UniqueFd(first[0]));
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, second), 0);
  ASSERT_EQ(second[0], first[0]) << "the lowest free number";
  ASSERT_EQ(send(second[1], "hi", 2, 0), 2);
  for (int i = 0; i < 3; ++i) loop().run_once(MonoClock::now() + milliseconds(1));
  char b[2];
  EXPECT_EQ(recv(second[0], b, 2, MSG_DONTWAIT), 2) << "somebody else has read it";
  for (const int fd : {first[1], second[0], second[1]}) ::close(fd);
}

// Objects that were retired in the last turn, or wait in a posted function, end their operations.
TEST_P(LoopTest, WhatEndsWithTheLoopMayForgetItsOperations) {
  struct Dialler final : Retirable {
    explicit Dialler(Loop& loop) : loop(loop), fd(std::move(*make_tcp_socket({IpAddress::v4(0x7f000001), 1}))) {
      op = loop.poll(fd.get(), POLLIN, nobody);
    }
    ~Dialler() override {
      loop.forget(op);
      loop.close(std::move(fd));
    }
    Loop& loop;
    UniqueFd fd;
    OpId op;
    Count nobody;
  };
  loop().run_once(MonoTime{});
  loop().retire(std::make_unique<Dialler>(loop()));
  loop().post([held = std::make_unique<Dialler>(loop())] {});
  loop_.reset();
}

TEST_P(LoopTest, ARingIsRestrictedOnceItRuns) {
  if (loop().backend() != Backend::kUring) GTEST_SKIP() << "no ring";
  const int ring = own_ring();
  ASSERT_GE(ring, 0);
  // What would let a ring reach other files.
  constexpr unsigned kRegisterFiles = 2;
  int file = 0;
  EXPECT_EQ(::syscall(SYS_io_uring_register, ring, kRegisterFiles, &file, 1), -1);
  EXPECT_EQ(errno, EACCES);
}

}  // namespace
}  // namespace meltemi::rt
