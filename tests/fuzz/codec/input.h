// Reads decisions and bytes off a fuzzer's input. Never reads past it: an exhausted input yields 0.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "userspace/base/bytes.h"

namespace meltemi::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : rest_(data, size) {}
  uint8_t byte() {
    if (rest_.empty()) return 0;
    const uint8_t b = rest_[0];
    rest_ = rest_.subspan(1);
    return b;
  }
  ByteView bytes(size_t n) {
    n = std::min(n, rest_.size());
    const ByteView out = rest_.first(n);
    rest_ = rest_.subspan(n);
    return out;
  }
  ByteView rest() { return bytes(rest_.size()); }
  bool empty() const { return rest_.empty(); }

 private:
  ByteView rest_;
};

// A promise of the codec that must hold for any input.
inline void require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace meltemi::fuzz
