// Memory of the data path: budgets with names, per-thread buffers that are mapped and touched once,
// and the queue that holds bytes which could not be passed on. An idle connection owns none of it.
// What a burst has mapped goes back to the kernel when nobody has needed it for a while; until then it
// stays, since page faults are dear.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "userspace/base/bytes.h"

namespace meltemi::rt {

// A named limit on bytes, shared by all workers.
class Budget {
 public:
  // `name` appears in errors and metrics ("held_bytes").
  Budget(std::string name, uint64_t limit) : name_(std::move(name)), limit_(limit) {}
  // Takes `bytes` if they fit; else counts a refusal.
  bool try_take(uint64_t bytes);
  // Takes them whatever the limit: for bytes that are here already. The limit then refuses growth.
  void take(uint64_t bytes) { used_.fetch_add(bytes, std::memory_order_relaxed); }
  void give(uint64_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  uint64_t limit() const { return limit_; }
  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  uint64_t limit_;
  std::atomic<uint64_t> used_{0};
  std::atomic<uint64_t> refused_{0};
};

// Large buffers of one thread, last in first out so that the hot one is used again, and so that those at
// the bottom of the list have not been needed for longest.
class BufferPool {
 public:
  // Room for 16 full TLS records (16 * 16406 bytes), rounded up to pages.
  static constexpr size_t kLarge = 264 * 1024;
  // Room for the plaintext of one record and its frame headers.
  static constexpr size_t kSmall = 20 * 1024;

  BufferPool() = default;
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;
  // Maps and touches buffers ahead of need.
  void reserve(size_t large, size_t small);
  uint8_t* take_large() { return take(large_); }
  uint8_t* take_small() { return take(small_); }
  void give_large(uint8_t* p) { large_.free.push_back(p); }
  void give_small(uint8_t* p) { small_.free.push_back(p); }
  size_t mapped_bytes() const { return mapped_; }

  // Whether there is more memory than kWarm buffers of each kind, so that rest() has something to do.
  bool swollen() const { return swollen_; }
  // Gives the kernel the pages of those that were free ever since the last call, but for the warm ones;
  // their addresses stay. At most some MiB a call: false if there is more, which should not wait long.
  bool rest();

 private:
  static constexpr size_t kWarm = 4;  // of each kind
  struct List {
    explicit List(size_t bytes) : size(bytes) {}
    const size_t size;  // bytes of a buffer
    std::vector<uint8_t*> free;
    size_t count = 0;  // with those in use
    size_t least = 0;  // fewest that were free since the last rest()
    size_t cold = 0;   // the first so many of `free` have no pages
  };
  uint8_t* take(List& list);
  void grow(List& list);
  List large_{kLarge}, small_{kSmall};
  std::vector<std::pair<uint8_t*, size_t>> slabs_;
  size_t mapped_ = 0;
  bool swollen_ = false;
};

// First in, first out bytes that wait for a slow reader. Empty: one pointer. Counts into a budget
// if it has one.
class ByteQueue {
 public:
  ByteQueue() = default;
  ~ByteQueue() { clear(); }
  ByteQueue(ByteQueue&& o) noexcept;
  ByteQueue& operator=(ByteQueue&& o) noexcept;

  void set_budget(Budget* budget);  // REQUIRES: empty()
  // Gives back what is counted, and counts no more: the bytes live on only for who is using them.
  void leave_budget();
  bool empty() const { return !state_; }
  size_t size() const;
  void append(ByteView bytes);
  // Fills at most `max` pieces from the front; returns how many. Valid until the queue changes.
  size_t peek(iovec* out, size_t max) const;
  void drop(size_t bytes);  // REQUIRES: bytes <= size()
  void clear();

 private:
  struct Chunk;
  struct State;
  State* state_ = nullptr;
  Budget* budget_ = nullptr;
};

// Tells the allocator to keep what it has: no trimming, no mmap per allocation. Call once in main().
void keep_memory_mapped();

}  // namespace meltemi::rt
