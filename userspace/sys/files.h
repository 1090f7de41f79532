// Files and mounts: /proc/self/mounts, a bpffs of one's own, atomic replacement. Must never unmount
// what it did not mount.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"

namespace meltemi::sys {

struct Mount {
  std::string directory;
  std::string type;  // "cgroup2", "bpf", ...
};
Result<std::vector<Mount>> mounts();
// Whether `directory` lies on a file system of magic `BPF_FS_MAGIC`.
Result<bool> is_bpffs(const std::string& directory);
// Creates the directory (0700) and mounts a bpffs on it; nothing to do if it is one already.
Status mount_bpffs(const std::string& directory);
Status unmount(const std::string& directory);  // not mounted is success

// mkdir -p.
Status make_directories(const std::string& path, uint32_t mode);
// Whether what is written must survive a crash of the machine.
enum class Durability : uint8_t { kSynced, kCached };
// Writes a new hidden file ".NAME.PID-N.tmp" beside `path` and renames it over `path`: readers see the
// old or the new content, and neither a link nor a file that somebody put there is written through.
// `mode` is the new file's, whatever the old one had.
Status write_file_atomically(const std::string& path, std::string_view content, uint32_t mode,
                             Durability durability = Durability::kSynced);
// Errors: kNotFound: there is none, or (in /proc and cgroups) no longer; kLimitExceeded; kSystem: it is
// there, or may be, and cannot be read now.
Result<std::string> read_file(const std::string& path, size_t max_bytes = 64 << 20);

}  // namespace meltemi::sys
