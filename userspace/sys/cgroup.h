// cgroup v2 (cgroups(7)), also where v1 and v2 are mounted side by side. Must never write outside
// of the subtree it was asked for, nor remove one that it did not find empty.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::sys {

// Mount point of the cgroup2 file system, from /proc/self/mounts ("/sys/fs/cgroup" or, hybrid,
// "/sys/fs/cgroup/unified"). kNotFound, with the mount command, if there is none.
Result<std::string> cgroup2_mount();

class Cgroup {
 public:
  Cgroup() = default;
  // `path` is a directory: absolute, or relative to the cgroup2 mount. kNotFound: there is none;
  // kSystem: it cannot be opened now.
  static Result<Cgroup> open(const std::string& path);
  // As people write it: absolute, or relative to the mount with or without a slash in front ("/" is the
  // mount).
  static Result<Cgroup> open_configured(const std::string& path);
  static Result<Cgroup> create(const std::string& path);  // with its parents; existing is fine
  static Result<Cgroup> of_process(pid_t pid);            // 0: this one

  bool valid() const { return fd_.valid(); }
  const std::string& path() const { return path_; }  // absolute directory
  int fd() const { return fd_.get(); }               // O_DIRECTORY|O_RDONLY; for BPF, clone3
  // The id that bpf_get_current_cgroup_id() and link info show. Equals the directory's inode.
  Result<uint64_t> id() const;
  Result<Cgroup> child(const std::string& name) const;  // created if absent

  Status add_process(pid_t pid) const;                 // 0: this one; all of its threads move
  Result<std::vector<pid_t>> processes() const;        // of this cgroup alone
  Result<std::vector<pid_t>> processes_below() const;  // with all descendants
  // SIGKILLs everything below, and what forks meanwhile; waits until it is gone, 0.2 s at most.
  // Processes may be started in the cgroup again. REQUIRES: the caller is not in it.
  Status kill_all() const;
  // Removes this cgroup and its descendants; EBUSY, as an error, while processes are in it.
  Status remove() const;

 private:
  Cgroup(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  UniqueFd fd_;
};

// Path of a process within the cgroup2 hierarchy ("/", "/system.slice/x"), from /proc/PID/cgroup.
// kNotFound: no such process (any more); kUnsupported: there is no such hierarchy.
Result<std::string> cgroup2_path_of(pid_t pid);

}  // namespace meltemi::sys
