// Internal to codec: the streams of one HTTP/2 connection by id. O(1), one block of memory, nothing
// per stream beyond its entry. Pointers are valid until the next insert() or erase().
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace meltemi::codec {

// Stream: default-constructible, with a member `uint32_t id`, 0 by default.
template <typename Stream>
class StreamTable {
 public:
  size_t size() const { return size_; }

  Stream* find(uint32_t id) {
    if (size_ == 0) return nullptr;
    for (size_t i = home(id);; i = (i + 1) & mask_) {
      if (slots_[i].id == id) return &slots_[i];
      if (slots_[i].id == 0) return nullptr;
    }
  }

  // REQUIRES: id != 0 and not in the table.
  Stream& insert(uint32_t id) {
    if ((size_ + 1) * 2 > slots_.size()) resize(slots_.empty() ? 8 : slots_.size() * 2);
    ++size_;
    Stream& s = slots_[free_slot(id)];
    s = Stream{};
    s.id = id;
    return s;
  }

  void erase(uint32_t id) {
    Stream* s = find(id);
    if (s == nullptr) return;
    size_t hole = static_cast<size_t>(s - slots_.data());
    // Backward shift: entries that probed past the hole move into it, so no tombstones are needed.
    for (size_t i = (hole + 1) & mask_; slots_[i].id != 0; i = (i + 1) & mask_) {
      const size_t wanted = home(slots_[i].id);
      if (((i - wanted) & mask_) < ((i - hole) & mask_)) continue;
      slots_[hole] = slots_[i];
      hole = i;
    }
    slots_[hole].id = 0;
    --size_;
    if (slots_.size() > 64 && size_ * 8 < slots_.size()) resize(slots_.size() / 2);
  }

  void clear() {
    std::vector<Stream>().swap(slots_);
    size_ = mask_ = 0;
  }

  template <typename F>
  void for_each(F&& f) {
    for (Stream& s : slots_)
      if (s.id != 0) f(s);
  }

 private:
  // Ids are odd numbers in sequence. Fibonacci hashing spreads what is open evenly: side by side
  // they would be one long run, which erase() would have to walk.
  size_t home(uint32_t id) const { return uint32_t{(id >> 1) * 0x9e3779b1u} >> shift_; }
  size_t free_slot(uint32_t id) const {
    size_t i = home(id);
    while (slots_[i].id != 0) i = (i + 1) & mask_;
    return i;
  }
  void resize(size_t n) {
    std::vector<Stream> old(n);
    old.swap(slots_);
    mask_ = n - 1;
    shift_ = static_cast<uint8_t>(std::countl_zero(static_cast<uint32_t>(mask_)));
    for (const Stream& s : old)
      if (s.id != 0) slots_[free_slot(s.id)] = s;
  }

  std::vector<Stream> slots_;  // size is 0 or a power of 2; id 0: free
  size_t size_ = 0;
  size_t mask_ = 0;
  uint8_t shift_ = 0;  // 32 - log2 of the size
};

}  // namespace meltemi::codec
