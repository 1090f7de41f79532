// The daemons' allocator (jemalloc, userspace/layers.cmake) gives free memory back by a thread of its
// own. Must never start that thread before the process has given up its privileges: they belong to
// threads.
#pragma once

namespace meltemi::rt {

// From here on what is free goes back to the kernel within some seconds, also while nothing is
// allocated. Nothing where the program has another allocator (tests, sanitizers).
void start_giving_memory_back();

}  // namespace meltemi::rt
