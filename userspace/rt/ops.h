// The table of a loop's operations in flight. An operation is named by slot and generation, so a
// completion that comes after its receiver is gone finds nothing. Internal to rt.
#pragma once

#include <cstdint>
#include <vector>

#include "userspace/rt/loop.h"

namespace meltemi::rt {

enum class OpKind : uint8_t { kFree, kPoll, kAccept, kConnect, kReceive };

struct OpSlot {
  Completion* done = nullptr;          // null: forgotten (kReceive uses `received`)
  RecvCompletion* received = nullptr;
  uint32_t generation = 1;
  uint32_t next_free = 0;
  int fd = -1;
  uint32_t events = 0;  // epoll: of kPoll; io_uring: where it stands in the submission queue
  OpKind kind = OpKind::kFree;
  bool cancelled = false;
  bool queued = false;  // epoll: waits in the ready list
};

class OpTable {
 public:
  // An id stays below 2^62: a backend may use the two highest bits for its own.
  static constexpr uint32_t kGenerations = 1u << 30;

  OpTable() : slots_(1) {}  // slot 0 is never used: user_data 0 means "nobody"

  uint32_t take(OpKind kind, int fd) {
    uint32_t i = free_;
    if (i) {
      free_ = slots_[i].next_free;
    } else {
      i = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
    }
    OpSlot& s = slots_[i];
    s.kind = kind;
    s.fd = fd;
    s.done = nullptr;
    s.received = nullptr;
    s.events = 0;
    s.cancelled = s.queued = false;
    ++used_;
    return i;
  }
  void release(uint32_t i) {
    OpSlot& s = slots_[i];
    s.kind = OpKind::kFree;
    s.done = nullptr;
    s.received = nullptr;
    if (++s.generation == kGenerations) s.generation = 1;
    s.next_free = free_;
    free_ = i;
    --used_;
  }
  OpSlot& at(uint32_t i) { return slots_[i]; }
  OpId id(uint32_t i) const { return {uint64_t{slots_[i].generation} << 32 | i}; }
  // Slot of a live operation, 0 if it has ended.
  uint32_t find(OpId id) const {
    const uint32_t i = static_cast<uint32_t>(id.value);
    if (i == 0 || i >= slots_.size() || slots_[i].kind == OpKind::kFree) return 0;
    return slots_[i].generation == id.value >> 32 ? i : 0;
  }
  size_t used() const { return used_; }

 private:
  std::vector<OpSlot> slots_;
  uint32_t free_ = 0;
  size_t used_ = 0;
};

// Makers of the two backends, for Loop::create().
Result<std::unique_ptr<Loop>> make_uring_loop(const LoopOptions& options);
Result<std::unique_ptr<Loop>> make_epoll_loop(const LoopOptions& options);

// Sets or clears O_NONBLOCK if it is not as wanted.
void set_nonblocking(int fd, bool on);

}  // namespace meltemi::rt
