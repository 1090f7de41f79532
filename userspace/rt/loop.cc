// What both backends share: posted work, timers, hooks, the order of a turn. Must never know how
// the kernel is asked.
#include "userspace/rt/loop.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>

#include "userspace/base/log.h"
#include "userspace/rt/memory.h"
#include "userspace/rt/ops.h"

namespace meltemi::rt {
namespace {

log::Scope scope("rt");
thread_local Loop* this_loop = nullptr;

constexpr size_t kScratchBytes = kRecvHeadroom + kRecvMax;
// Hooks that ask for themselves again run at most this often in one turn.
constexpr int kHookPasses = 4;
// How long a buffer is not needed before its pages go back, and between two portions of them.
constexpr Duration kRest = std::chrono::seconds(10);
constexpr Duration kRestPause = std::chrono::milliseconds(50);

}  // namespace

// Posted functions: a lock-free stack, taken whole and reversed by the loop.
struct Loop::Inbox {
  struct Node {
    std::move_only_function<void()> fn;
    Node* next;
  };
  std::atomic<Node*> head{nullptr};
  std::atomic<bool> stopped{false};

  ~Inbox() { drop(head.exchange(nullptr)); }
  static void drop(Node* n) {
    while (n) delete std::exchange(n, n->next);
  }
  // True if it was empty before.
  bool push(std::move_only_function<void()> fn) {
    Node* node = new Node{std::move(fn), head.load(std::memory_order_relaxed)};
    // The node may be gone as soon as it is published: keep `old` on the side.
    Node* old = node->next;
    while (!head.compare_exchange_weak(old, node, std::memory_order_release,
                                       std::memory_order_relaxed)) {
      node->next = old;
    }
    return old == nullptr;
  }
  Node* take() {
    Node* list = head.exchange(nullptr, std::memory_order_acquire);
    Node* in_order = nullptr;
    while (list) {
      Node* next = list->next;
      list->next = in_order;
      in_order = list;
      list = next;
    }
    return in_order;
  }
};

Timer::~Timer() {
  if (armed()) loop_->stop(*this);
}

Loop::Loop()
    : buffers_(std::make_unique<BufferPool>()),
      inbox_(std::make_unique<Inbox>()),
      rest_([this] { rest_buffers(); }) {
  hooks_.prev_ = hooks_.next_ = &hooks_;
  void* p = mmap(nullptr, kScratchBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (p == MAP_FAILED) std::abort();  // out of memory before anything runs
  scratch_ = static_cast<uint8_t*>(p);
  refresh_now();
  this_loop = this;
}

void Loop::drop_pending() {
  Inbox::drop(inbox_->take());
  run_retired();
}

Loop::~Loop() {
  for (Timer* t : heap_) {
    t->index_ = Timer::kIdle;
    t->loop_ = nullptr;
  }
  while (hooks_.next_ != &hooks_) hooks_.next_->unlink();
  hooks_.prev_ = hooks_.next_ = nullptr;
  munmap(scratch_, kScratchBytes);
  if (this_loop == this) this_loop = nullptr;
}

Loop* Loop::current() { return this_loop; }

Result<std::unique_ptr<Loop>> Loop::create(const LoopOptions& options) {
  if (options.backend == Backend::kEpoll) return make_epoll_loop(options);
  auto loop = make_uring_loop(options);
  if (loop || options.backend == Backend::kUring) return loop;
  static std::atomic<bool> warned{false};
  if (!warned.exchange(true)) {
    scope.warn("io_uring is not available ({}): using epoll. Allow the io_uring system calls "
               "(seccomp, kernel.io_uring_disabled=0) for less CPU per request",
               loop.error().detail);
  }
  return make_epoll_loop(options);
}

void Loop::run() {
  while (!inbox_->stopped.load(std::memory_order_acquire)) turn(MonoTime::max());
}

void Loop::run_once(MonoTime until) { turn(until); }

bool Loop::run_until(const std::function<bool()>& done, MonoTime until) {
  while (!done()) {
    if (MonoClock::now() >= until) return false;
    turn(until);
  }
  return true;
}

void Loop::stop() {
  inbox_->stopped.store(true, std::memory_order_release);
  wake();
}

void Loop::post(std::move_only_function<void()> fn) {
  if (inbox_->push(std::move(fn))) wake();
}

void Loop::turn(MonoTime until) {
  const bool busy = inbox_->head.load(std::memory_order_relaxed) != nullptr ||
                    hooks_.next_ != &hooks_ || !retired_.empty() ||
                    inbox_->stopped.load(std::memory_order_relaxed);
  if (busy) until = MonoTime{};
  else if (!heap_.empty()) until = std::min(until, heap_[0]->deadline_);
  in_turn_ = true;
  wait_and_dispatch(until);
  ++stats_.turns;
  run_posted();
  run_timers();
  run_hooks();
  run_retired();
  if (buffers_->swollen() && !rest_.armed()) start(rest_, now_ + kRest);
  in_turn_ = false;
}

void Loop::rest_buffers() {
  if (!buffers_->rest()) start(rest_, now_ + kRestPause);
}

bool Loop::run_posted() {
  if (inbox_->head.load(std::memory_order_relaxed) == nullptr) return false;
  Inbox::Node* node = inbox_->take();
  while (node) {
    std::unique_ptr<Inbox::Node> current(node);
    node = node->next;
    ++stats_.posted;
    current->fn();
  }
  return true;
}

void Loop::at_turn_end(TurnHook& hook) {
  if (hook.prev_) return;
  hook.prev_ = hooks_.prev_;
  hook.next_ = &hooks_;
  hooks_.prev_->next_ = &hook;
  hooks_.prev_ = &hook;
}

void Loop::run_hooks() {
  for (int pass = 0; pass < kHookPasses && hooks_.next_ != &hooks_; ++pass) {
    // Take this pass's hooks onto a list of their own; a hook that dies unlinks itself from it.
    HookList list;
    list.next_ = hooks_.next_;
    list.prev_ = hooks_.prev_;
    list.next_->prev_ = &list;
    list.prev_->next_ = &list;
    hooks_.next_ = hooks_.prev_ = &hooks_;
    while (list.next_ != &list) {
      TurnHook* hook = list.next_;
      hook->unlink();
      hook->on_turn_end();
    }
    list.prev_ = list.next_ = nullptr;
  }
}

void Loop::retire(std::unique_ptr<Retirable> object) { retired_.push_back(std::move(object)); }

void Loop::run_retired() {
  // Destructors may retire more.
  while (!retired_.empty()) {
    std::vector<std::unique_ptr<Retirable>> batch;
    batch.swap(retired_);
    batch.clear();
    if (retired_.empty()) {
      retired_.swap(batch);  // keep the capacity
      break;
    }
  }
}

// --- timers: a binary heap by deadline ---------------------------------------------------------

void Loop::place(uint32_t i, Timer* t) {
  heap_[i] = t;
  t->index_ = i;
}

void Loop::sift_up(uint32_t i) {
  Timer* t = heap_[i];
  while (i > 0) {
    const uint32_t parent = (i - 1) / 2;
    if (heap_[parent]->deadline_ <= t->deadline_) break;
    place(i, heap_[parent]);
    i = parent;
  }
  place(i, t);
}

void Loop::sift_down(uint32_t i) {
  Timer* t = heap_[i];
  const uint32_t n = static_cast<uint32_t>(heap_.size());
  for (;;) {
    uint32_t child = 2 * i + 1;
    if (child >= n) break;
    if (child + 1 < n && heap_[child + 1]->deadline_ < heap_[child]->deadline_) ++child;
    if (t->deadline_ <= heap_[child]->deadline_) break;
    place(i, heap_[child]);
    i = child;
  }
  place(i, t);
}

void Loop::start(Timer& timer, MonoTime deadline) {
  // Never due while the timers of this turn run: a callback may start its timer for "now".
  deadline = std::max(deadline, now_ + Duration(1));
  if (timer.armed()) {
    const bool later = deadline > timer.deadline_;
    timer.deadline_ = deadline;
    later ? sift_down(timer.index_) : sift_up(timer.index_);
    return;
  }
  timer.loop_ = this;
  timer.deadline_ = deadline;
  heap_.push_back(&timer);
  timer.index_ = static_cast<uint32_t>(heap_.size() - 1);
  sift_up(timer.index_);
}

void Loop::stop(Timer& timer) {
  if (!timer.armed()) return;
  const uint32_t i = timer.index_;
  timer.index_ = Timer::kIdle;
  Timer* last = heap_.back();
  heap_.pop_back();
  if (last == &timer) return;
  place(i, last);
  sift_up(i);
  sift_down(last->index_);
}

void Loop::run_timers() {
  while (!heap_.empty() && heap_[0]->deadline_ <= now_) {
    Timer* t = heap_[0];
    stop(*t);
    t->on_timer();
  }
}

void set_nonblocking(int fd, bool on) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || ((flags & O_NONBLOCK) != 0) == on) return;
  fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
}

}  // namespace meltemi::rt
