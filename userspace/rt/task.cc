// See task.h.
#include "userspace/rt/task.h"

#include <cstdlib>
#include <cstring>

namespace meltemi::rt {
namespace {

// One kernel operation that a coroutine waits for. On deadline or stop it cancels, and goes on only
// when the kernel has let go of the operation.
struct OpWait final : Completion, Timer, StopSource::Link {
  OpWait(Loop& loop, MonoTime limit, StopToken stop) : loop(loop), limit(limit), stop(stop) {}
  Loop& loop;
  MonoTime limit;
  StopToken stop;
  OpId op;
  int32_t res = -ECANCELED;
  bool timed_out = false, stopped = false;
  std::coroutine_handle<> handle;

  void on_complete(int32_t r, bool more) override {
    res = r;
    loop.Loop::stop(static_cast<Timer&>(*this));
    StopSource::Link::unlink();
    handle.resume();
  }
  void on_timer() override {
    timed_out = true;
    loop.cancel(op);
  }
  void on_stop() override {
    stopped = true;
    loop.cancel(op);
  }
  bool await_ready() noexcept { return false; }
  [[gnu::noinline]] void await_suspend(std::coroutine_handle<> h) noexcept {
    handle = h;
    if (limit != MonoTime::max()) loop.start(*this, limit);
    stop.subscribe(*this);
  }
  void await_resume() noexcept {}
};

struct SleepWait final : Timer, StopSource::Link, TurnHook {
  SleepWait(Loop& loop, MonoTime until, StopToken stop) : loop(loop), until(until), stop(stop) {}
  Loop& loop;
  MonoTime until;
  StopToken stop;
  bool stopped = false;
  std::coroutine_handle<> handle;
  void on_timer() override { handle.resume(); }
  void on_stop() override {
    stopped = true;
    loop.Loop::stop(static_cast<Timer&>(*this));
    loop.at_turn_end(*this);  // not on the stack of whoever stops us
  }
  void on_turn_end() override { handle.resume(); }
  bool await_ready() noexcept { return false; }
  [[gnu::noinline]] void await_suspend(std::coroutine_handle<> h) noexcept {
    handle = h;
    loop.start(*this, until);
    stop.subscribe(*this);
  }
  void await_resume() noexcept {}
};

std::unexpected<Error> cancelled() {
  return fail(Reason::kCancelled, Fault::kInternal, "stopped");
}

}  // namespace

Task<Status> sleep_until(Loop& loop, MonoTime until, StopToken stop) {
  if (stop.stopped()) co_return cancelled();
  SleepWait wait(loop, until, stop);
  co_await wait;
  if (wait.stopped) co_return cancelled();
  co_return Status{};
}

Task<Result<UniqueFd>> connect(Loop& loop, UniqueFd fd, SocketAddress to, MonoTime deadline,
                               StopToken stop) {
  if (stop.stopped()) co_return cancelled();
  OpWait wait(loop, deadline, stop);
  wait.op = loop.connect(fd.get(), to, wait);
  co_await wait;
  if (wait.res == 0) co_return std::move(fd);
  loop.close(std::move(fd));
  if (wait.stopped) co_return cancelled();
  const Reason reason =
      wait.timed_out ? Reason::kConnectTimeout : reason_of_connect_errno(-wait.res);
  co_return fail(reason, Fault::kUpstream,
                 to.to_string() + ": " + (wait.timed_out ? "no answer" : strerror(-wait.res)),
                 Retry::kSafe);
}

Task<Result<uint32_t>> wait_ready(Loop& loop, int fd, uint32_t events, MonoTime deadline,
                                  StopToken stop) {
  if (stop.stopped()) co_return cancelled();
  OpWait wait(loop, deadline, stop);
  wait.op = loop.poll(fd, events, wait);
  co_await wait;
  if (wait.res >= 0) co_return static_cast<uint32_t>(wait.res);
  if (wait.stopped) co_return cancelled();
  if (wait.timed_out) co_return fail(Reason::kIdleTimeout, Fault::kUpstream, "nothing happened");
  co_return fail_errno(-wait.res, "poll");
}

// The frame that keeps a spawned task alive and tells the group of its end. It destroys itself.
struct TaskGroup::Root {
  struct promise_type {
    Root get_return_object() {
      return {std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
  };
  std::coroutine_handle<promise_type> handle;
};

TaskGroup::Root TaskGroup::run(TaskGroup& group, Task<void> task) {
  co_await std::move(task);
  // The task's frame dies before the group hears of it: a joiner may destroy what it refers to.
  { Task<void> gone = std::move(task); }
  group.ended();
}

void TaskGroup::spawn(Task<void> task) {
  ++running_;
  run(*this, std::move(task)).handle.resume();
}

void TaskGroup::ended() {
  if (--running_ == 0 && joiner_) std::exchange(joiner_, nullptr).resume();
}

TaskGroup::~TaskGroup() {
  if (running_ != 0) std::abort();  // a task would outlive what it was given
}

}  // namespace meltemi::rt
