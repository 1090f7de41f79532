// Files and mounts: /proc/self/mounts, a bpffs of one's own, atomic replacement. Must never unmount
// what it did not mount.
#pragma once

#include <string>
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
// Writes a temporary file ".name.tmp" beside `path`, syncs it, renames it over `path`.
Status write_file_atomically(const std::string& path, std::string_view content, uint32_t mode);
Result<std::string> read_file(const std::string& path, size_t max_bytes = 64 << 20);

}  // namespace meltemi::sys
