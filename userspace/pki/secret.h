// Text that is a secret, a private key above all: its pages are locked (as far as RLIMIT_MEMLOCK goes) and
// left out of core dumps, and the bytes are overwritten when it ends. Must never be copied into a string,
// formatted or logged; there is no operator that would.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace meltemi::pki {

class Secret {
 public:
  Secret() = default;
  // A copy; the source stays the caller's to overwrite (see wipe()).
  explicit Secret(std::string_view text);
  Secret(Secret&& other) noexcept { swap(other); }
  Secret& operator=(Secret&& other) noexcept {
    swap(other);
    return *this;
  }
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  ~Secret();

  // Valid as long as this. Whoever copies it answers for the copy.
  std::string_view view() const { return {data_, size_}; }
  bool empty() const { return size_ == 0; }

 private:
  void swap(Secret& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
  }
  char* data_ = nullptr;  // whole pages
  size_t size_ = 0, mapped_ = 0;
};

// Overwrites what a secret was read through, such that no compiler leaves it out.
void wipe(std::string& text);

// Gives OpenSSL locked memory for the numbers of private keys, once and before the first of them. Without
// the right to lock pages it works all the same; the keys are overwritten in any case.
void use_locked_memory_for_keys();

}  // namespace meltemi::pki
