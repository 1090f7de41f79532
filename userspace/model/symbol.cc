#include "userspace/model/symbol.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <unordered_map>

namespace meltemi::model {

struct Symbol::Shard {
  std::mutex mutex;
  std::unordered_map<std::string_view, Rep*> entries;  // keys view into the Rep
};

Symbol::Shard& Symbol::shard_of(size_t hash) {
  // Never destroyed: symbols in static objects outlive any order of destruction we could choose.
  static auto* shards = new std::array<Shard, 64>();
  return (*shards)[(hash >> 7) & 63];
}

Symbol::Symbol(std::string_view text) {
  if (text.empty()) return;
  const size_t hash = hash_text(text);
  Shard& shard = shard_of(hash);
  std::lock_guard lock(shard.mutex);
  if (auto it = shard.entries.find(text); it != shard.entries.end()) {
    rep_ = it->second;
    acquire();
    return;
  }
  void* memory = ::operator new(sizeof(Rep) + text.size());
  rep_ = new (memory) Rep{1, static_cast<uint32_t>(text.size()), hash};
  std::memcpy(rep_->text(), text.data(), text.size());
  shard.entries.emplace(std::string_view(rep_->text(), text.size()), rep_);
}

// The step from 1 to 0 happens only under the shard's lock, so that an entry that the constructor
// finds there is never on its way out.
void Symbol::release(Rep* rep) noexcept {
  uint32_t refs = rep->refs.load(std::memory_order_relaxed);
  while (refs > 1) {
    if (rep->refs.compare_exchange_weak(refs, refs - 1, std::memory_order_release,
                                        std::memory_order_relaxed)) {
      return;
    }
  }
  Shard& shard = shard_of(rep->hash);
  std::lock_guard lock(shard.mutex);
  if (rep->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  shard.entries.erase(std::string_view(rep->text(), rep->length));
  rep->~Rep();
  ::operator delete(rep);
}

size_t Symbol::live() {
  size_t n = 0;
  for (size_t i = 0; i < 64; ++i) {
    Shard& shard = shard_of(i << 7);
    std::lock_guard lock(shard.mutex);
    n += shard.entries.size();
  }
  return n;
}

}  // namespace meltemi::model
