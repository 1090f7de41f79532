// Interned, immutable strings. Mesh state repeats the same few names (namespaces, nodes, service
// accounts) thousands of times: a Symbol is one pointer, equal symbols are the same pointer, and
// reading one takes no lock. Must never be mutated, nor made from unbounded input that nothing
// limits: an entry lives as long as its last Symbol.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace meltemi::model {

// The hash that Symbol and every map keyed by text share.
inline size_t hash_text(std::string_view text) noexcept {
  return std::hash<std::string_view>()(text);
}

class Symbol {
 public:
  Symbol() = default;  // the empty string; allocates nothing
  // Thread safe; takes a lock of one of 64 shards. Not for the data path.
  explicit Symbol(std::string_view text);
  Symbol(const Symbol& other) noexcept : rep_(other.rep_) { acquire(); }
  Symbol(Symbol&& other) noexcept : rep_(std::exchange(other.rep_, nullptr)) {}
  Symbol& operator=(const Symbol& other) noexcept {
    Symbol copy(other);
    std::swap(rep_, copy.rep_);
    return *this;
  }
  Symbol& operator=(Symbol&& other) noexcept {
    std::swap(rep_, other.rep_);
    return *this;
  }
  ~Symbol() {
    if (rep_) release(rep_);
  }

  std::string_view view() const noexcept {
    return rep_ ? std::string_view(rep_->text(), rep_->length) : std::string_view();
  }
  operator std::string_view() const noexcept { return view(); }
  std::string str() const { return std::string(view()); }
  bool empty() const noexcept { return rep_ == nullptr; }
  size_t hash() const noexcept { return rep_ ? rep_->hash : hash_text({}); }

  friend bool operator==(const Symbol& a, const Symbol& b) noexcept { return a.rep_ == b.rep_; }
  friend bool operator==(const Symbol& a, std::string_view b) noexcept { return a.view() == b; }
  friend auto operator<=>(const Symbol& a, const Symbol& b) noexcept {
    return a.rep_ == b.rep_ ? std::strong_ordering::equal : a.view() <=> b.view();
  }

  // Distinct non-empty symbols alive; for tests and the memory gauge.
  static size_t live();

 private:
  struct Rep {
    std::atomic<uint32_t> refs;
    uint32_t length;
    size_t hash;
    char* text() { return reinterpret_cast<char*>(this + 1); }
  };
  struct Shard;
  static Shard& shard_of(size_t hash);
  static void release(Rep* rep) noexcept;
  void acquire() const noexcept {
    if (rep_) rep_->refs.fetch_add(1, std::memory_order_relaxed);
  }
  Rep* rep_ = nullptr;
};

}  // namespace meltemi::model

template <>
struct std::hash<meltemi::model::Symbol> {
  size_t operator()(const meltemi::model::Symbol& s) const noexcept { return s.hash(); }
};
