// See memory.h. Slabs are mapped with MAP_POPULATE: the page faults are paid here, not per byte.
#include "userspace/rt/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace meltemi::rt {

bool Budget::try_take(uint64_t bytes) {
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (used + bytes > limit_) {
      refused_.fetch_add(1, std::memory_order_relaxed);
      return false;
    }
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

BufferPool::~BufferPool() {
  for (auto& [p, size] : slabs_) munmap(p, size);
}

void BufferPool::reserve(size_t large, size_t small) {
  while (large_.free.size() < large) grow(large_);
  while (small_.free.size() < small) grow(small_);
}

void BufferPool::grow(List& list) {
  // At most a megabyte a step: populating more at once would stall the loop.
  const size_t count = std::max<size_t>(1, (size_t{1} << 20) / list.size / 2);
  const size_t bytes = count * list.size;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (p == MAP_FAILED) std::abort();  // as operator new would
  slabs_.emplace_back(static_cast<uint8_t*>(p), bytes);
  mapped_ += bytes;
  for (size_t i = count; i-- > 0;) list.free.push_back(static_cast<uint8_t*>(p) + i * list.size);
  list.count += count;
  swollen_ = swollen_ || list.count > kWarm;
}

uint8_t* BufferPool::take(List& list) {
  if (list.free.empty()) grow(list);
  uint8_t* p = list.free.back();
  list.free.pop_back();
  list.least = std::min(list.least, list.free.size());
  return p;
}

bool BufferPool::rest() {
  constexpr size_t kMost = 8 << 20;  // bytes: a millisecond of freeing pages
  size_t given = 0;
  swollen_ = false;
  for (List* list : {&large_, &small_}) {
    // Where the list was shorter meanwhile, what stands there now has been used.
    list->cold = std::min(list->cold, list->least);
    const size_t idle = std::min(list->least, list->free.size() - std::min(list->free.size(), kWarm));
    for (; list->cold < idle; ++list->cold) {
      if (given >= kMost) {
        swollen_ = true;
        return false;
      }
      (void)madvise(list->free[list->cold], list->size, MADV_DONTNEED);  // refused: it stays warm
      given += list->size;
    }
    list->least = list->free.size();
    swollen_ = swollen_ || list->count - list->cold > kWarm;
  }
  return true;
}

// --- ByteQueue -----------------------------------------------------------------------------------

struct ByteQueue::Chunk {
  Chunk* next;
  uint32_t capacity, begin, end;
  uint8_t* data() { return reinterpret_cast<uint8_t*>(this + 1); }
};

struct ByteQueue::State {
  Chunk* head;
  Chunk* tail;
  size_t size;
};

namespace {
constexpr size_t kMinChunk = 512;
constexpr size_t kMaxChunk = 64 * 1024;
}  // namespace

ByteQueue::ByteQueue(ByteQueue&& o) noexcept
    : state_(std::exchange(o.state_, nullptr)), budget_(o.budget_) {}

ByteQueue& ByteQueue::operator=(ByteQueue&& o) noexcept {
  if (this != &o) {
    clear();
    state_ = std::exchange(o.state_, nullptr);
    budget_ = o.budget_;
  }
  return *this;
}

void ByteQueue::set_budget(Budget* budget) { budget_ = budget; }

void ByteQueue::leave_budget() {
  if (budget_ && state_) budget_->give(state_->size);
  budget_ = nullptr;
}

size_t ByteQueue::size() const { return state_ ? state_->size : 0; }

void ByteQueue::append(ByteView bytes) {
  if (bytes.empty()) return;
  if (!state_) state_ = new State{nullptr, nullptr, 0};
  state_->size += bytes.size();
  if (budget_) budget_->take(bytes.size());
  while (!bytes.empty()) {
    Chunk* c = state_->tail;
    if (!c || c->end == c->capacity) {
      const size_t capacity = std::clamp(bytes.size(), kMinChunk, kMaxChunk);
      c = static_cast<Chunk*>(std::malloc(sizeof(Chunk) + capacity));
      if (!c) std::abort();
      *c = {nullptr, static_cast<uint32_t>(capacity), 0, 0};
      (state_->tail ? state_->tail->next : state_->head) = c;
      state_->tail = c;
    }
    const size_t n = std::min<size_t>(bytes.size(), c->capacity - c->end);
    std::memcpy(c->data() + c->end, bytes.data(), n);
    c->end += static_cast<uint32_t>(n);
    bytes = bytes.subspan(n);
  }
}

size_t ByteQueue::peek(iovec* out, size_t max) const {
  size_t n = 0;
  for (Chunk* c = state_ ? state_->head : nullptr; c && n < max; c = c->next) {
    out[n++] = {c->data() + c->begin, c->end - c->begin};
  }
  return n;
}

void ByteQueue::drop(size_t bytes) {
  if (bytes == 0) return;
  state_->size -= bytes;
  if (budget_) budget_->give(bytes);
  while (bytes > 0) {
    Chunk* c = state_->head;
    const size_t n = std::min<size_t>(bytes, c->end - c->begin);
    c->begin += static_cast<uint32_t>(n);
    bytes -= n;
    if (c->begin < c->end) return;
    state_->head = c->next;
    std::free(c);
  }
  if (!state_->head) {
    delete state_;
    state_ = nullptr;
  }
}

void ByteQueue::clear() {
  if (!state_) return;
  if (budget_) budget_->give(state_->size);
  for (Chunk* c = state_->head; c;) std::free(std::exchange(c, c->next));
  delete state_;
  state_ = nullptr;
}

void keep_memory_mapped() {
  mallopt(M_TRIM_THRESHOLD, 512 * 1024 * 1024);
  mallopt(M_MMAP_THRESHOLD, 64 * 1024 * 1024);
  mallopt(M_ARENA_MAX, 8);
}

}  // namespace meltemi::rt
