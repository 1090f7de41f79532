// The event loop of one thread: kernel operations, timers, posted work and end-of-turn hooks over
// io_uring, or over epoll where the kernel or a seccomp profile refuses io_uring.
//
// One loop belongs to the thread that created it; only post() and stop() may be called from others.
// An operation is a slot in a table of the loop, so a caller that goes away early just cancels: a
// late completion finds an empty slot, never a dead object. The loop must never block anywhere but
// in its one wait, and no completion is ever delivered from inside the call that started it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::rt {

enum class Backend : uint8_t { kAuto, kUring, kEpoll };

// Room in front of every piece of received bytes that the receiver may overwrite: a TLS record that
// was cut by the end of the previous piece is put together there (16384 + 256 + 5, rounded up).
inline constexpr size_t kRecvHeadroom = 17 * 1024;
// The largest piece that a socket hands up.
inline constexpr size_t kRecvMax = 256 * 1024;

struct LoopOptions {
  Backend backend = Backend::kAuto;  // kAuto: io_uring, else epoll with one warning in the log
  uint32_t ring_entries = 1024;      // submission queue; the completion queue is 8 times as long
  uint32_t recv_buffers = 8;         // provided buffers of multishot receives; a power of two
  uint32_t recv_buffer_size = 128 * 1024;  // bytes of each, without headroom
  // Plain (not incremental) buffers are cut to this size, 8 times as many: kernels before 6.12.
  uint32_t recv_plain_size = 16 * 1024;
  bool allow_incremental = true;  // tests turn it off
  bool allow_defer_taskrun = true;  // tests turn it off: COOP_TASKRUN instead
};

// What a kernel operation reports to. `res` is what the system call would return, or -errno.
class Completion {
 public:
  // `more`: the operation goes on (multishot) and will complete again.
  virtual void on_complete(int32_t res, bool more) = 0;

 protected:
  ~Completion() = default;
};

// What a multishot receive reports to.
class RecvCompletion {
 public:
  // `res` > 0: `data` has that many bytes, the loop's memory: valid until the call returns; may be
  // changed, together with kRecvHeadroom bytes in front of it. 0: end of stream. < 0: -errno;
  // -ENOBUFS: the worker's buffers are used up, start again; -ECANCELED after cancel().
  virtual void on_received(int32_t res, ByteSpan data, bool more) = 0;

 protected:
  ~RecvCompletion() = default;
};

// Names an operation in flight. Default: none.
struct OpId {
  uint64_t value = 0;
  explicit operator bool() const { return value != 0; }
};

// A timer that lives in its owner. Destroying it stops it.
class Timer {
 public:
  Timer() = default;
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer();
  bool armed() const { return index_ != kIdle; }
  MonoTime deadline() const { return deadline_; }
  // Called once when the deadline passed; the timer is idle then and may be started again.
  virtual void on_timer() = 0;

 private:
  friend class Loop;
  static constexpr uint32_t kIdle = ~0u;
  class Loop* loop_ = nullptr;
  MonoTime deadline_{};
  uint32_t index_ = kIdle;
};

// A Timer with a function, for owners with several.
class FnTimer final : public Timer {
 public:
  explicit FnTimer(std::function<void()> fn) : fn_(std::move(fn)) {}
  void on_timer() override { fn_(); }

 private:
  std::function<void()> fn_;
};

// Work that is done once per loop turn however often it was asked for: a tunnel flushes all its
// streams here. Destroying it takes it off the list.
class TurnHook {
 public:
  TurnHook() = default;
  TurnHook(const TurnHook&) = delete;
  TurnHook& operator=(const TurnHook&) = delete;
  ~TurnHook() { unlink(); }
  virtual void on_turn_end() = 0;

 protected:
  // Not this turn after all.
  void unlink() {
    if (!prev_) return;
    prev_->next_ = next_;
    next_->prev_ = prev_;
    prev_ = next_ = nullptr;
  }

 private:
  friend class Loop;
  TurnHook* prev_ = nullptr;
  TurnHook* next_ = nullptr;
};

// Something that may be on the stack of callers when it wants to die: see Loop::retire().
class Retirable {
 public:
  virtual ~Retirable() = default;
};

struct LoopStats {
  uint64_t turns = 0;
  uint64_t completions = 0;
  uint64_t no_buffers = 0;    // multishot receives that ran out of provided buffers
  uint64_t not_taken = 0;     // turns in which the kernel took no operation, for want of memory
  uint64_t posted = 0;
  uint64_t operations = 0;    // in flight now
};

class BufferPool;

class Loop {
 public:
  // Makes a loop for the calling thread. Errors: kUnsupported when the asked-for backend is refused,
  // kSystem.
  static Result<std::unique_ptr<Loop>> create(const LoopOptions& options);
  virtual ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // The loop of this thread; nullptr if it has none.
  static Loop* current();
  virtual Backend backend() const = 0;

  // Runs turns until stop(). Returns at once if stop() was called before.
  void run();
  // One turn: waits at most until `until` for something to do, and does it. For tests and tools.
  void run_once(MonoTime until);
  // Runs turns until `done()` or `until`; returns done().
  bool run_until(const std::function<bool()>& done, MonoTime until);
  void stop();  // any thread

  // Runs `fn` on the loop's thread in a later turn; any thread. Functions of one caller run in
  // order. What is posted after the loop has ended is destroyed without being run.
  void post(std::move_only_function<void()> fn);

  // Time of this turn, fresh enough for timers and flow control.
  MonoTime now() const { return now_; }

  // --- timers ---
  void start(Timer& timer, MonoTime deadline);  // restarts if armed; not before the next turn
  void stop(Timer& timer);

  // --- turns ---
  // Runs `hook` once at the end of this turn (again if asked for while hooks run).
  void at_turn_end(TurnHook& hook);
  // Deletes `object` when the current turn is over and nothing of it is on the stack.
  void retire(std::unique_ptr<Retirable> object);

  // --- kernel operations ---
  // Descriptors may be blocking or not: the loop sets O_NONBLOCK as its backend needs it, so callers
  // read and write with MSG_DONTWAIT. Before a descriptor is closed its operations are cancelled or
  // forgotten, and it is closed by close().
  virtual OpId poll(int fd, uint32_t events, Completion& done) = 0;  // once; res = revents
  virtual OpId accept(int fd, Completion& done) = 0;  // multishot; res = new descriptor, CLOEXEC
  virtual OpId connect(int fd, const SocketAddress& to, Completion& done) = 0;
  virtual OpId receive(int fd, RecvCompletion& done) = 0;  // multishot
  // Ends the operation. Completions that are under way still come, the last with more = false.
  virtual void cancel(OpId id) = 0;
  // Ends the operation and forgets its receiver: no completion comes any more. A connection that an
  // accept yields later is closed.
  virtual void forget(OpId id) = 0;
  virtual void close(UniqueFd fd) = 0;

  // Memory for send buffers, prefaulted, of this thread.
  BufferPool& buffers() { return *buffers_; }
  // A receive buffer of kRecvMax bytes with headroom for reads that are done on the spot. Valid
  // until the next call of scratch(); never held over a return to the loop.
  ByteSpan scratch() { return {scratch_ + kRecvHeadroom, kRecvMax}; }
  const LoopStats& stats() const { return stats_; }

 protected:
  Loop();
  // Waits until `until` (now or before: only looks), then delivers what is there.
  virtual void wait_and_dispatch(MonoTime until) = 0;
  // Makes a waiting loop return; any thread.
  virtual void wake() = 0;
  void refresh_now() { now_ = MonoClock::now(); }
  // Drops what was posted or retired: such objects forget operations when they end, for which the
  // backend must still be whole. The first thing in its destructor.
  void drop_pending();
  // A turn is running on this thread, so what it prepares is handed to the kernel soon.
  bool in_turn() const { return in_turn_; }

  LoopStats stats_;
  std::unique_ptr<BufferPool> buffers_;

 private:
  friend class Timer;
  void turn(MonoTime until);
  bool run_posted();
  void run_timers();
  void run_hooks();
  void run_retired();
  void rest_buffers();
  void sift_up(uint32_t i);
  void sift_down(uint32_t i);
  void place(uint32_t i, Timer* t);

  struct Inbox;
  std::unique_ptr<Inbox> inbox_;
  MonoTime now_{};
  bool in_turn_ = false;
  std::vector<Timer*> heap_;
  struct HookList final : TurnHook {
    void on_turn_end() override {}
  } hooks_;
  std::vector<std::unique_ptr<Retirable>> retired_;
  uint8_t* scratch_ = nullptr;
  FnTimer rest_;  // while the buffers are swollen
};

}  // namespace meltemi::rt
