// Coroutines for set-up flows: accept loops, connects, retries; never for the bytes of a flow. A
// Task is lazy, owned and joined: dropping one that has not started drops its work, and a started
// one belongs to a TaskGroup until it ends. Every wait takes a deadline and a stop token; a frame
// outlives its kernel operation (cancel, then wait for the last completion). All of one loop's
// thread; no exceptions.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "userspace/rt/loop.h"

namespace meltemi::rt {

// --- stopping ---------------------------------------------------------------------------------
class StopToken;

// Asks for an end, once. Destroying it is not a request.
class StopSource {
 public:
  class Link {  // someone who wants to know
   public:
    Link() = default;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;
    ~Link() { unlink(); }
    virtual void on_stop() = 0;
    void unlink() {
      if (prev_) *prev_ = next_;
      if (next_) next_->prev_ = prev_;
      prev_ = nullptr;
      next_ = nullptr;
    }

   private:
    friend class StopSource;
    friend class StopToken;
    Link** prev_ = nullptr;
    Link* next_ = nullptr;
  };
  StopSource() = default;
  StopSource(const StopSource&) = delete;
  StopSource& operator=(const StopSource&) = delete;
  ~StopSource() {
    while (links_) links_->unlink();
  }
  bool stopped() const { return stopped_; }
  void request_stop() {
    stopped_ = true;
    while (Link* link = links_) {
      link->unlink();
      link->on_stop();
    }
  }
  StopToken token();

 private:
  friend class StopToken;
  Link* links_ = nullptr;
  bool stopped_ = false;
};

// A reference to a StopSource, which must outlive it; default: never stops.
class StopToken {
 public:
  StopToken() = default;
  bool stopped() const { return source_ && source_->stopped(); }
  void subscribe(StopSource::Link& link) const {
    if (!source_) return;
    link.next_ = source_->links_;
    link.prev_ = &source_->links_;
    if (link.next_) link.next_->prev_ = &link.next_;
    source_->links_ = &link;
  }

 private:
  friend class StopSource;
  explicit StopToken(StopSource* source) : source_(source) {}
  StopSource* source_ = nullptr;
};
inline StopToken StopSource::token() { return StopToken(this); }

// --- Task -------------------------------------------------------------------------------------
template <typename T>
class Task;

namespace detail {

struct PromiseBase {
  std::coroutine_handle<> continuation;
  struct Final {
    bool await_ready() noexcept { return false; }
    template <typename P>
    [[gnu::noinline]] std::coroutine_handle<> await_suspend(std::coroutine_handle<P> h) noexcept {
      std::coroutine_handle<> c = h.promise().continuation;
      return c ? c : std::coroutine_handle<>(std::noop_coroutine());
    }
    void await_resume() noexcept {}
  };
  std::suspend_always initial_suspend() noexcept { return {}; }
  Final final_suspend() noexcept { return {}; }
  [[noreturn]] void unhandled_exception() noexcept { std::terminate(); }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& v) {
    value.emplace(std::forward<U>(v));
  }
  T take() { return std::move(*value); }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() noexcept {}
  void take() {}
};

}  // namespace detail

template <typename T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;
  Task(Task&& o) noexcept : h_(std::exchange(o.h_, nullptr)) {}
  Task& operator=(Task&& o) noexcept {
    if (this != &o) {
      if (h_) h_.destroy();
      h_ = std::exchange(o.h_, nullptr);
    }
    return *this;
  }
  ~Task() {
    if (h_) h_.destroy();
  }

  auto operator co_await() && noexcept {
    struct Awaiter {
      std::coroutine_handle<promise_type> h;
      bool await_ready() noexcept { return false; }
      [[gnu::noinline]] std::coroutine_handle<> await_suspend(std::coroutine_handle<> c) noexcept {
        h.promise().continuation = c;
        return h;
      }
      T await_resume() { return h.promise().take(); }
    };
    return Awaiter{h_};
  }

 private:
  template <typename>
  friend struct detail::Promise;
  explicit Task(std::coroutine_handle<promise_type> h) : h_(h) {}
  std::coroutine_handle<promise_type> h_;
};

namespace detail {
template <typename T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}
}  // namespace detail

// Runs tasks side by side and outlives them. REQUIRES at destruction: all have ended (join).
class TaskGroup {
 public:
  TaskGroup() = default;
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;
  ~TaskGroup();
  // Starts the task now, on this stack, up to its first wait.
  void spawn(Task<void> task);
  size_t running() const { return running_; }
  StopToken token() { return stop_.token(); }
  void request_stop() { stop_.request_stop(); }
  // Waits until no task runs. One joiner at a time.
  auto join() {
    struct Awaiter {
      TaskGroup& group;
      bool await_ready() noexcept { return group.running_ == 0; }
      [[gnu::noinline]] void await_suspend(std::coroutine_handle<> c) noexcept {
        group.joiner_ = c;
      }
      void await_resume() noexcept {}
    };
    return Awaiter{*this};
  }

 private:
  struct Root;
  static Root run(TaskGroup& group, Task<void> task);
  void ended();
  StopSource stop_;
  size_t running_ = 0;
  std::coroutine_handle<> joiner_;
};

// --- waits ------------------------------------------------------------------------------------
// Errors of all: kCancelled (stop), kConnectTimeout / kIdleTimeout (deadline), and the operation's.

// kOk after `until`, kCancelled if stopped before.
Task<Status> sleep_until(Loop& loop, MonoTime until, StopToken stop);
// Connects a non-blocking socket. The error's reason tells why (connect_refused, ...); retry safe.
Task<Result<UniqueFd>> connect(Loop& loop, UniqueFd fd, SocketAddress to, MonoTime deadline,
                               StopToken stop);
// Waits for poll(2) events; yields revents. kIdleTimeout at the deadline.
Task<Result<uint32_t>> wait_ready(Loop& loop, int fd, uint32_t events, MonoTime deadline,
                                  StopToken stop);

// A value that comes once, from a callback of the same thread, to one waiter.
template <typename T>
class OneShot {
 public:
  explicit OneShot(Loop& loop) : loop_(loop) {}
  bool set() const { return value_.has_value(); }
  // Gives the value; the waiter goes on at the end of this turn. Later values are ignored.
  void give(T value) {
    if (value_) return;
    value_.emplace(std::move(value));
    if (waiter_) waiter_->wake();
  }
  // kCancelled or kIdleTimeout if stopped or late; the value may still come later.
  Task<Result<T>> wait(MonoTime deadline, StopToken stop);

 private:
  struct Waiter;
  Loop& loop_;
  std::optional<T> value_;
  Waiter* waiter_ = nullptr;
};

template <typename T>
struct OneShot<T>::Waiter final : Timer, StopSource::Link, TurnHook {
  Waiter(OneShot& shot, MonoTime deadline, StopToken stop)
      : shot(shot), limit(deadline), stop(stop) {}
  ~Waiter() { shot.waiter_ = nullptr; }
  OneShot& shot;
  MonoTime limit;
  StopToken stop;
  std::coroutine_handle<> handle;
  bool stopped = false;
  void wake() { shot.loop_.at_turn_end(*this); }
  void on_timer() override { wake(); }
  void on_stop() override {
    stopped = true;
    wake();
  }
  void on_turn_end() override {
    if (handle) std::exchange(handle, nullptr).resume();
  }
  bool await_ready() noexcept { return shot.set() || stop.stopped(); }
  [[gnu::noinline]] void await_suspend(std::coroutine_handle<> h) noexcept {
    handle = h;
    shot.waiter_ = this;
    if (limit != MonoTime::max()) shot.loop_.start(*this, limit);
    stop.subscribe(*this);
  }
  void await_resume() noexcept {}
};

template <typename T>
Task<Result<T>> OneShot<T>::wait(MonoTime deadline, StopToken stop) {
  Waiter waiter(*this, deadline, stop);
  co_await waiter;
  if (value_) co_return std::move(*value_);
  if (waiter.stopped || stop.stopped())
    co_return fail(Reason::kCancelled, Fault::kInternal, "stopped");
  co_return fail(Reason::kIdleTimeout, Fault::kUpstream, "no answer in time");
}

}  // namespace meltemi::rt
