// Processes: which ones are where, and starting one in its namespace and cgroup before its first
// instruction. Must never signal a process that it was not given.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/netns.h"

namespace meltemi::sys {

struct ProcessInfo {
  pid_t pid = 0;
  std::string command;       // /proc/PID/comm
  uint64_t netns_inode = 0;  // of the main thread
  std::string cgroup;        // cgroup2 path; "" where there is no such hierarchy
};

// All processes that this one may look at, in no order; those that vanish meanwhile are left out. Error if
// one of them, or /proc, cannot be read now: an incomplete list would be taken for the word that
// somebody has ended.
Result<std::vector<ProcessInfo>> list_processes();
Result<std::vector<ProcessInfo>> processes_in(const NetnsId& netns);

struct SpawnOptions {
  std::vector<std::string> argv;         // argv[0] is looked up in PATH
  std::vector<std::string> environment;  // "K=V"; used only if `replace_environment`
  bool replace_environment = false;
  std::string directory;                              // empty: inherited
  const Netns* netns = nullptr;                       // null: inherited
  const Cgroup* cgroup = nullptr;                     // null: inherited; else by CLONE_INTO_CGROUP
  int stdin_fd = -1, stdout_fd = -1, stderr_fd = -1;  // -1: /dev/null for stdin, else inherited
  bool new_session = false;                           // setsid
  bool new_mount_namespace = false;                   // private mounts, for `prepare`
  bool new_pid_namespace = false;                     // the child is its process 1
  int pid_namespace = -1;                             // /proc/PID/ns/pid to start it in; -1: the caller's
  int parent_death_signal = 0;                        // 0: none
  // Runs in the child just before exec, async-signal-safe calls only (mount, open, write). Returns
  // an errno or 0.
  std::function<int()> prepare;
};

// A child process. Destroying it neither kills nor reaps: call wait().
class Process {
 public:
  Process() = default;
  // Error if the program cannot be executed (the child's errno comes back over a pipe).
  static Result<Process> spawn(const SpawnOptions& options);

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }  // readable when it has ended
  bool valid() const { return pid_ > 0; }
  Status signal(int number) const;  // by pidfd: never hits a reused pid
  // Waits up to `timeout` and reaps. Wait status as in waitpid(2); kRequestTimeout if it still
  // runs.
  Result<int> wait(Duration timeout);
  // SIGTERM, then SIGKILL after `grace`; reaps. Success if it had ended already.
  Status stop(Duration grace);

 private:
  pid_t pid_ = 0;
  UniqueFd pidfd_;
};

}  // namespace meltemi::sys
