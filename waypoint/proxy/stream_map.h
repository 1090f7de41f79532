// The streams of one HTTP/2 connection by id: linear probing, one block of memory, nothing allocated
// per stream. Stream ids are odd and ascend. Must never be iterated while it changes.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

namespace meltemi::waypoint {

template <typename T>
class StreamMap {
 public:
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

  T* find(uint32_t id) const {
    if (size_ == 0) return nullptr;
    for (size_t i = home(id);; i = (i + 1) & mask()) {
      if (slots_[i].id == id) return slots_[i].value.get();
      if (slots_[i].id == 0) return nullptr;
    }
  }

  // REQUIRES: id != 0 and not in the map.
  void insert(uint32_t id, std::unique_ptr<T> value) {
    if ((size_ + 1) * 2 > slots_.size()) grow();
    place(id, std::move(value));
    ++size_;
  }

  // Null if there is none.
  std::unique_ptr<T> take(uint32_t id) {
    if (size_ == 0) return nullptr;
    size_t hole = home(id);
    while (slots_[hole].id != id) {
      if (slots_[hole].id == 0) return nullptr;
      hole = (hole + 1) & mask();
    }
    std::unique_ptr<T> value = std::move(slots_[hole].value);
    // Backward shift: entries that probed past the hole move into it.
    for (size_t i = (hole + 1) & mask(); slots_[i].id != 0; i = (i + 1) & mask()) {
      const size_t wanted = home(slots_[i].id);
      if (((i - wanted) & mask()) < ((i - hole) & mask())) continue;
      slots_[hole] = std::move(slots_[i]);
      hole = i;
    }
    slots_[hole].id = 0;
    --size_;
    return value;
  }

  // Everything, for the end of the connection.
  std::vector<std::unique_ptr<T>> take_all() {
    std::vector<std::unique_ptr<T>> all;
    for (Slot& slot : slots_) {
      if (slot.id != 0) all.push_back(std::move(slot.value));
      slot.id = 0;
    }
    size_ = 0;
    return all;
  }

 private:
  struct Slot {
    uint32_t id = 0;
    std::unique_ptr<T> value;
  };
  size_t mask() const { return slots_.size() - 1; }
  // Fibonacci hashing: ids in sequence side by side would be one long run, which take() walks.
  size_t home(uint32_t id) const {
    return uint32_t{(id >> 1) * 0x9e3779b1u} >> std::countl_zero(static_cast<uint32_t>(mask()));
  }
  void place(uint32_t id, std::unique_ptr<T> value) {
    size_t i = home(id);
    while (slots_[i].id != 0) i = (i + 1) & mask();
    slots_[i] = {id, std::move(value)};
  }
  void grow() {
    std::vector<Slot> before = std::move(slots_);
    slots_ = std::vector<Slot>(before.empty() ? 16 : before.size() * 2);
    for (Slot& slot : before) {
      if (slot.id != 0) place(slot.id, std::move(slot.value));
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most half full
  size_t size_ = 0;
};

}  // namespace meltemi::waypoint
