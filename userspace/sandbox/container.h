// A container as the sandbox has it: a process with a root of its own (an overlay over the
// machine's files, so that what it writes stays its own), in its pod's network namespace and cgroup
// and in PID, IPC, UTS, mount and cgroup namespaces of its own, with the capabilities, the system calls
// and the /proc, /sys and /dev that containerd leaves to a container. No user namespace: root is root,
// but can neither see nor signal a process of the machine, nor read /run, /tmp and the homes. Must never
// change a file of the machine.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/sys/process.h"
#include "userspace/sys/seccomp.h"

namespace meltemi::sandbox {

// What a container's root consists of. Made before the process, entered by it between clone and
// exec.
class ContainerRoot {
 public:
  struct Mount {
    std::string source;  // of the machine: a directory or a file
    std::string target;  // absolute, in the container; made if absent
    bool read_only = false;
  };
  struct Options {
    std::string directory;  // scratch space on a tmpfs, emptied first
    std::string hostname;
    std::string resolv_conf, hosts;  // contents
    std::string working_directory;   // "" is /
    std::string stdin_fifo;          // opened for reading before exec: waits for whoever attaches
    std::vector<Mount> mounts;
    bool any_syscall = false;        // seccompProfile Unconfined
  };
  static Result<ContainerRoot> prepare(Options options);

  // In the child, in its own mount namespace; async-signal-safe. 0 or an errno.
  int enter() const;

 private:
  struct Overlay {
    std::string target;   // below the new root
    std::string options;  // lowerdir=...,upperdir=...,workdir=...
  };
  int mount_layers() const;
  int mount_kernel_files() const;
  int make_devices(const int* trees) const;
  int protect_proc() const;
  int attach_volumes(const int* trees) const;
  int write_file(const char* path, const std::string& content) const;

  Options options_;
  std::string root_;                 // the new root's mount point
  std::vector<Overlay> overlays_;  // of the machine's real file systems, / first
  sys::SeccompFilter filter_ = sys::SeccompFilter::container();
};

inline constexpr size_t kMaxContainerMounts = 64;

// Takes away what would let a process change the machine (CAP_SYS_ADMIN, CAP_NET_ADMIN,
// CAP_SYS_PTRACE, ...). Async-signal-safe. 0 or an errno.
int drop_capabilities();

// A process of a running container, whose namespaces another one (exec, a probe) can join.
struct ContainerNamespaces {
  UniqueFd pid, mount, ipc, uts, cgroup;
  std::vector<std::string> environment;  // of that process
  bool any_syscall = false;  // no filter is on it
  static Result<ContainerNamespaces> of(pid_t pid);
  // In the child, which was started in `pid`. 0 or an errno.
  int enter() const;

 private:
  sys::SeccompFilter filter_ = sys::SeccompFilter::container();
};

// Runs `argv` in the container of which `pid` is a process: same namespaces, environment, cgroup,
// and capabilities. stdin, stdout and stderr as in SpawnOptions.
struct ExecOptions {
  std::vector<std::string> argv;
  std::string netns_path, cgroup;
  int stdin_fd = -1, stdout_fd = -1, stderr_fd = -1;
};
Result<sys::Process> exec_in_container(pid_t pid, const ExecOptions& options);

}  // namespace meltemi::sandbox
