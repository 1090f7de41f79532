// Sealed memory files: what is in them is on no disk, has no name, and cannot be changed any more by
// whoever holds a descriptor. For handing secrets from one process to the next.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::sys {

// `name` shows in /proc/PID/fd only. Errors: memory, descriptors.
Result<UniqueFd> seal(const char* name, std::string_view content);
// Errors (kBadRequest): no memory file, or one that is not sealed against writing, growing, shrinking
// and further seals; empty or larger than `max_bytes`.
Status check_sealed(int fd, size_t max_bytes);
// check_sealed(), then the content; the descriptor's position does not matter.
Result<std::string> read_sealed(int fd, size_t max_bytes);

}  // namespace meltemi::sys
