// Memory of one request: grows by bumping a pointer, is forgotten as a whole when the request ends,
// and keeps its first block for the next one, so that a steady connection allocates nothing.
// Must never hold objects that need a destructor.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

namespace meltemi::waypoint {

class Arena {
 public:
  static constexpr size_t kBlock = 2048;  // bytes; a request with an ordinary rewrite fits

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Uninitialised bytes, valid until reset().
  char* bytes(size_t n) {
    if (n <= static_cast<size_t>(end_ - next_)) [[likely]] {
      char* p = next_;
      next_ += n;
      return p;
    }
    return grow(n);
  }
  // Gives back the tail of the last bytes(): `used` of the block that starts at `p` were needed.
  void shrink_last(char* p, size_t used) { next_ = p + used; }

  std::string_view copy(std::string_view text) {
    char* p = bytes(text.size());
    if (!text.empty()) std::memcpy(p, text.data(), text.size());
    return {p, text.size()};
  }
  template <typename... Parts>
  std::string_view join(const Parts&... parts) {
    const size_t n = (std::string_view(parts).size() + ...);
    char* const start = bytes(n);
    char* p = start;
    const auto put = [&p](std::string_view part) {
      if (!part.empty()) std::memcpy(p, part.data(), part.size());
      p += part.size();
    };
    (put(parts), ...);
    return {start, n};
  }

  void reset() {
    if (blocks_.size() > 1) {
      blocks_.resize(1);
    }
    next_ = blocks_.empty() ? nullptr : blocks_[0].get();
    end_ = blocks_.empty() ? nullptr : next_ + kBlock;
  }

 private:
  char* grow(size_t n) {
    if (n > kBlock / 2 && !blocks_.empty()) {  // a large piece gets a block of its own
      blocks_.push_back(std::make_unique_for_overwrite<char[]>(n));
      return blocks_.back().get();
    }
    const size_t size = blocks_.empty() && n > kBlock ? kBlock : std::max(n, kBlock);
    blocks_.push_back(std::make_unique_for_overwrite<char[]>(size));
    next_ = blocks_.back().get();
    end_ = next_ + size;
    return bytes(n);
  }

  std::vector<std::unique_ptr<char[]>> blocks_;
  char* next_ = nullptr;
  char* end_ = nullptr;
};

}  // namespace meltemi::waypoint
