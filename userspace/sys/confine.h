// Least privilege, taken by a process itself before its first thread: capabilities that it does not need
// leave every set, system calls that it does not need are refused by the kernel (seccomp), no new
// privileges can be gained by exec, and its memory is no business of a core file or of ptrace by others.
//
// io_uring passes seccomp by: a ring's operations are system calls that no filter sees. So rt restricts
// each ring to the operations that it submits itself (rt/uring_loop.cc), a daemon makes no ring once its
// own are there, and one that has none cannot make any.
//
// Must never be called after a thread was started: capabilities belong to threads.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "userspace/base/error.h"

namespace meltemi::sys {

// System calls beyond what every daemon of the mesh needs (files, sockets, memory, threads, time).
enum SyscallGroup : uint32_t {
  kOnlyDaemon = 0,
  kEnterNetns = 1u << 0,  // setns, into network namespaces
  kLoadBpf = 1u << 1,     // bpf, perf_event_open
  kMount = 1u << 2,       // mount, umount2: a BPF file system for pins
  kRings = 1u << 3,       // io_uring, until no_more_rings()
};

struct Confinement {
  std::span<const int> capabilities;  // CAP_* of <linux/capability.h> that stay, if the process has them
  uint32_t syscalls = kOnlyDaemon;    // SyscallGroup, or-ed
};

// A system call that is not allowed fails with EPERM; clone3 with ENOSYS, so that libc falls back to
// clone, whose flags can be looked at: threads only, never a process, never a namespace.
// Error: kSystem, naming the step (a kernel without seccomp filters, say); nothing is undone.
Status confine(const Confinement& confinement);

// After the last ring of a process with kRings is made: io_uring_setup is refused too, to all of its
// threads. Error: kSystem.
Status no_more_rings();

// The numbers that `groups` allow, ascending. For the filter's test and SECURITY.md.
std::vector<int> allowed_syscalls(uint32_t groups);

}  // namespace meltemi::sys
