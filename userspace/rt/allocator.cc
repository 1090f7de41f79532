#include "userspace/rt/allocator.h"

#include <cstddef>

extern "C" {
// Read by jemalloc when the program starts. Not by whatever else allocates.
extern const char* malloc_conf;
const char* malloc_conf = "background_thread:false,dirty_decay_ms:5000,muzzy_decay_ms:5000";

[[gnu::weak]] int mallctl(const char* name, void* old, size_t* old_size, void* value, size_t size);
}

namespace meltemi::rt {

void start_giving_memory_back() {
  if (mallctl == nullptr) return;
  bool on = true;
  mallctl("background_thread", nullptr, nullptr, &on, sizeof on);
}

}  // namespace meltemi::rt
