#include "userspace/sys/confine.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "userspace/sys/seccomp.h"

namespace meltemi::sys {
namespace {

// What all daemons of the mesh, libc, libstdc++, OpenSSL and gRPC call while they serve.
constexpr int kDaemon[] = {
    // files below directories that are there
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev,
    SYS_preadv2, SYS_pwritev2, SYS_openat, SYS_openat2, SYS_close, SYS_close_range, SYS_stat,
    SYS_fstat, SYS_lstat, SYS_newfstatat, SYS_statx, SYS_statfs, SYS_fstatfs, SYS_access, SYS_faccessat,
    SYS_faccessat2, SYS_lseek, SYS_ftruncate, SYS_fallocate, SYS_rename, SYS_renameat, SYS_renameat2,
    SYS_unlink, SYS_unlinkat, SYS_mkdir, SYS_mkdirat, SYS_rmdir, SYS_readlink, SYS_readlinkat,
    SYS_utimensat, SYS_fchmod, SYS_fchmodat, SYS_chmod, SYS_fsync, SYS_fdatasync, SYS_flock, SYS_getdents64,
    SYS_getcwd, SYS_umask, SYS_dup, SYS_dup2, SYS_dup3, SYS_fcntl, SYS_ioctl, SYS_pipe, SYS_pipe2,
    SYS_memfd_create, SYS_inotify_init1,
    SYS_inotify_add_watch, SYS_inotify_rm_watch,
    // readiness
    SYS_poll, SYS_ppoll, SYS_select, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_wait,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_timerfd_gettime, SYS_signalfd4,
    // sockets
    SYS_socket, SYS_socketpair, SYS_bind, SYS_listen, SYS_accept, SYS_accept4, SYS_connect,
    SYS_getsockname, SYS_getpeername, SYS_setsockopt, SYS_getsockopt, SYS_sendto, SYS_recvfrom,
    SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_shutdown,
    // memory
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_mincore, SYS_msync,
    SYS_mlock, SYS_mlock2, SYS_munlock, SYS_membarrier, SYS_get_mempolicy,
    // threads and time
    SYS_set_robust_list, SYS_get_robust_list, SYS_set_tid_address, SYS_rseq, SYS_futex,
    SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_sched_getparam,
    SYS_sched_getscheduler, SYS_getcpu, SYS_exit, SYS_exit_group, SYS_gettid, SYS_getpid, SYS_getppid,
    SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups,
    SYS_prctl, SYS_arch_prctl, SYS_capget, SYS_uname, SYS_sysinfo, SYS_getrlimit, SYS_prlimit64,
    SYS_getrusage, SYS_times, SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep,
    SYS_gettimeofday, SYS_time, SYS_nanosleep, SYS_getrandom,
    // signals to itself
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigtimedwait,
    SYS_rt_sigsuspend, SYS_sigaltstack, SYS_tgkill, SYS_restart_syscall,
};
constexpr int kNetnsCalls[] = {SYS_setns};
constexpr int kBpfCalls[] = {SYS_bpf, SYS_perf_event_open};
constexpr int kMountCalls[] = {SYS_mount, SYS_umount2};
// And the call that takes the first of them away again.
constexpr int kRingCalls[] = {SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_seccomp};

// A sanitizer's leak check stops its own threads by ptrace from a clone of itself, at the end.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(leak_sanitizer)
#define MELTEMI_SANITIZED 1
#endif
#endif
#ifdef MELTEMI_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
constexpr int kSanitizerCalls[] = {SYS_ptrace, SYS_wait4, SYS_kill, SYS_process_vm_readv, SYS_personality};

void add(std::span<const int> calls, std::vector<int>* out) {
  out->insert(out->end(), calls.begin(), calls.end());
}

Result<size_t> count_threads() {
  std::error_code error;
  const std::filesystem::directory_iterator threads("/proc/self/task", error);
  if (error) return fail_errno(error.value(), "list /proc/self/task");
  return static_cast<size_t>(std::distance(begin(threads), end(threads)));
}

Status prctl_or_fail(int option, unsigned long a, unsigned long b, const char* what) {
  if (::prctl(option, a, b, 0, 0) == 0) return {};
  return fail_errno(errno, what);
}

// The bounding set first: leaving it needs CAP_SETPCAP.
Status keep_capabilities(std::span<const int> kept) {
  uint64_t mask = 0;
  for (const int capability : kept) mask |= uint64_t{1} << capability;
  for (int capability = 0; capability < 64; ++capability) {
    if (mask >> capability & 1) continue;
    const int in_set = ::prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
    if (in_set < 0) break;  // beyond the last one that the kernel knows
    // Without CAP_SETPCAP there is nothing to lose: what is not permitted stays so.
    if (in_set == 1 && ::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 && errno != EPERM)
      return fail_errno(errno, "prctl(PR_CAPBSET_DROP)");
  }
  if (::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
    return fail_errno(errno, "prctl(PR_CAP_AMBIENT)");
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct now[2] = {};
  if (::syscall(SYS_capget, &header, now) < 0) return fail_errno(errno, "capget");
  __user_cap_data_struct next[2] = {};
  for (int i = 0; i < 2; ++i) {
    const auto part = static_cast<uint32_t>(mask >> (32 * i));
    next[i].permitted = now[i].permitted & part;
    next[i].effective = next[i].permitted;
  }
  if (::syscall(SYS_capset, &header, next) < 0) return fail_errno(errno, "capset");
  return {};
}

}  // namespace

std::vector<int> allowed_syscalls(uint32_t groups) {
  std::vector<int> out;
  add(kDaemon, &out);
  if (groups & kEnterNetns) add(kNetnsCalls, &out);
  if (groups & kLoadBpf) add(kBpfCalls, &out);
  if (groups & kMount) add(kMountCalls, &out);
  if (groups & kRings) add(kRingCalls, &out);
  if (kSanitized) {
    add(kSanitizerCalls, &out);
    out.push_back(SYS_clone);
  }
  std::sort(out.begin(), out.end());
  return out;
}

Status confine(const Confinement& confinement) {
  // A library that starts threads by itself (an allocator, say) would keep all that is given up here.
  if (!kSanitized && MELTEMI_TRY(count_threads()) != 1)
    return fail(Reason::kSystem, Fault::kInternal, "confine() was called after a thread was started");
  MELTEMI_TRY(prctl_or_fail(PR_SET_NO_NEW_PRIVS, 1, 0, "prctl(PR_SET_NO_NEW_PRIVS)"));
  MELTEMI_TRY(keep_capabilities(confinement.capabilities));
  if (!kSanitized) MELTEMI_TRY(prctl_or_fail(PR_SET_DUMPABLE, 0, 0, "prctl(PR_SET_DUMPABLE)"));
  const std::vector<int> calls = allowed_syscalls(confinement.syscalls);
  if (const int e = SeccompFilter::only(calls).install(true); e != 0) return fail_errno(e, "seccomp");
  return {};
}

Status no_more_rings() {
  static constexpr int kSetup[] = {SYS_io_uring_setup};
  if (const int e = SeccompFilter::without(kSetup).install(true); e != 0)
    return fail_errno(e, "seccomp, to make no more rings");
  return {};
}

}  // namespace meltemi::sys
