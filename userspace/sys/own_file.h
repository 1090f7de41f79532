// Reading back a file that this process wrote in an earlier life: believed only where nobody else could
// have written it. Whoever reads one tells three cases apart by the error: there is none (kNotFound); it is
// damaged (kBadConfig), then it is kept aside for people; it cannot be read now (kSystem), then it
// must be tried again, and never be overwritten by what is known without it.
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

// Gives a file that cannot be believed the name PATH.refused, in place of an earlier one, and returns that.
// set_aside() takes its old name; keep_aside() leaves it there until a new one is written over it, so that
// whoever starts before that finds a damaged file, not none (where the file system has no hard links, it
// is set aside).
Result<std::string> set_aside(const std::string& path);
Result<std::string> keep_aside(const std::string& path);

// Whether `directory` lies in memory (tmpfs, ramfs), so that what is written there is on no disk (but
// maybe in swap).
Result<bool> is_in_memory(const std::string& directory);

}  // namespace meltemi::sys
