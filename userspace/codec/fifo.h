// Internal to codec: a queue that has no memory while it is empty and new.
#pragma once

#include <cstddef>
#include <vector>

namespace meltemi::codec {

template <typename T>
class Fifo {
 public:
  bool empty() const { return head_ == items_.size(); }
  size_t size() const { return items_.size() - head_; }
  const T& operator[](size_t i) const { return items_[head_ + i]; }
  void push(const T& item) {
    if (head_ >= 64 && head_ * 2 >= items_.size()) {  // a queue that never runs dry
      items_.erase(items_.begin(), items_.begin() + static_cast<ptrdiff_t>(head_));
      head_ = 0;
    }
    items_.push_back(item);
  }
  T pop() {
    T item = items_[head_++];
    if (empty()) clear();
    return item;
  }
  void clear() {
    items_.clear();
    head_ = 0;
  }

 private:
  std::vector<T> items_;
  size_t head_ = 0;
};

}  // namespace meltemi::codec
