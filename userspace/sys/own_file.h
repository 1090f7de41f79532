// Reading back a file that this process wrote in an earlier life: believed only where nobody else could
// have written it.
#pragma once

#include <string>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::sys {

struct OwnFile {
  std::string content;
  WallTime changed;  // modification time
};
// Follows no symbolic link. Errors: kNotFound; kBadConfig: no regular file, of another user, writable
// by group or others, above `max_bytes`; kSystem.
Result<OwnFile> read_own_file(const std::string& path, size_t max_bytes);

// Whether `directory` lies in memory (tmpfs, ramfs), so that what is written there is on no disk (but
// maybe in swap).
Result<bool> is_in_memory(const std::string& directory);

}  // namespace meltemi::sys
