#include "userspace/sys/seccomp.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>

namespace meltemi::sys {
namespace {

constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
constexpr uint32_t kX32Bit = 0x40000000;
constexpr uint32_t kRefuse = SECCOMP_RET_ERRNO | EPERM;
constexpr uint32_t kUnknown = SECCOMP_RET_ERRNO | ENOSYS;
constexpr uint32_t kNamespaceFlags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                     CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

// What containerd refuses to a container without the capability that each of them asks for.
constexpr int kBeyondContainer[] = {
    // mounts, and files by handle
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_move_mount, SYS_open_tree, SYS_fsopen, SYS_fsconfig,
    SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_open_by_handle_at, SYS_quotactl, SYS_quotactl_fd,
    SYS_swapon, SYS_swapoff, SYS_fanotify_init,
    // namespaces and names of the machine
    SYS_setns, SYS_unshare, SYS_sethostname, SYS_setdomainname,
    // the kernel itself
    SYS_bpf, SYS_perf_event_open, SYS_init_module, SYS_finit_module, SYS_delete_module,
    SYS_create_module, SYS_query_module, SYS_get_kernel_syms, SYS_kexec_load, SYS_kexec_file_load,
    SYS_reboot, SYS_syslog, SYS_acct, SYS_iopl, SYS_ioperm, SYS_lookup_dcookie, SYS_nfsservctl,
    SYS_sysfs, SYS__sysctl, SYS_uselib, SYS_ustat, SYS_vhangup, SYS_userfaultfd,
    // keyrings are not namespaced
    SYS_add_key, SYS_request_key, SYS_keyctl,
    // the machine's clock and memory placement
    SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_mbind, SYS_set_mempolicy,
    SYS_get_mempolicy, SYS_migrate_pages, SYS_move_pages,
    // other processes
    SYS_kcmp, SYS_pidfd_getfd,
    // io_uring passes every filter by
    SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
};
// The newest call that the list above was made for (Linux 6.1).
constexpr uint32_t kNewestKnown = SYS_set_mempolicy_home_node;

// personality(2): the values that containerd lets pass: plain, 32 bit addresses, and asking.
constexpr uint32_t kPersonalities[] = {0x0, 0x8, 0x20000, 0x20008, 0xffffffff};
// Of setns(2) by a daemon: pods' networks. Those of files, users or processes never.
constexpr uint32_t kNamespacesEntered[] = {CLONE_NEWNET};
// Sockets that reach the hypervisor or the kernel's own crypto.
constexpr uint32_t kForeignFamilies[] = {AF_VSOCK, AF_ALG};

}  // namespace

void SeccompFilter::put(uint16_t code, uint32_t k, uint8_t when_true, uint8_t when_false) {
  code_.push_back({code, when_true, when_false, k});
}

void SeccompFilter::load(size_t offset) {
  put(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset));
}

void SeccompFilter::when(uint16_t test, uint32_t value, uint32_t verdict) {
  put(BPF_JMP | test | BPF_K, value, 0, 1);
  put(BPF_RET | BPF_K, verdict);
}

void SeccompFilter::unless(uint16_t test, uint32_t value, uint32_t verdict) {
  put(BPF_JMP | test | BPF_K, value, 1, 0);
  put(BPF_RET | BPF_K, verdict);
}

// Leaves the call's number loaded, as all parts below do.
void SeccompFilter::begin() {
  load(offsetof(seccomp_data, arch));
  unless(BPF_JEQ, kArchitecture, SECCOMP_RET_KILL_PROCESS);
  load(offsetof(seccomp_data, nr));
  when(BPF_JGE, kX32Bit, SECCOMP_RET_KILL_PROCESS);
  when(BPF_JEQ, SYS_clone3, kUnknown);
}

// A jump reaches 255 instructions: long lists are cut, each part with the verdict behind it.
void SeccompFilter::any_of(std::span<const int> calls, uint32_t verdict) {
  constexpr size_t kPart = 200;
  for (; !calls.empty(); calls = calls.subspan(std::min(kPart, calls.size()))) {
    const size_t size = std::min(kPart, calls.size());
    for (size_t i = 0; i < size; ++i)
      put(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(calls[i]),
          static_cast<uint8_t>(size - i), 0);
    put(BPF_JMP | BPF_JA, 1);
    put(BPF_RET | BPF_K, verdict);
  }
}

// clone with all `required` flags and no `forbidden` one is allowed, any other refused.
void SeccompFilter::clone_without(uint32_t forbidden, uint32_t required) {
  put(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 7);
  load(offsetof(seccomp_data, args[0]));  // the low half: clone has no flag above
  put(BPF_JMP | BPF_JSET | BPF_K, forbidden, 3, 0);
  put(BPF_ALU | BPF_AND | BPF_K, required);
  put(BPF_JMP | BPF_JEQ | BPF_K, required, 0, 1);
  put(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  put(BPF_RET | BPF_K, kRefuse);
  load(offsetof(seccomp_data, nr));
}

// Refused if the first argument is one of the values.
void SeccompFilter::argument_is_not(int call, std::span<const uint32_t> values) {
  const auto count = static_cast<uint8_t>(values.size());
  put(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, static_cast<uint8_t>(count + 4));
  load(offsetof(seccomp_data, args[0]));
  for (uint8_t i = 0; i < count; ++i)
    put(BPF_JMP | BPF_JEQ | BPF_K, values[i], static_cast<uint8_t>(count - i), 0);
  put(BPF_JMP | BPF_JA, 1);
  put(BPF_RET | BPF_K, kRefuse);
  load(offsetof(seccomp_data, nr));
}

// Refused unless that argument (from 0 on; an int) is one of the values.
void SeccompFilter::argument_is(int call, size_t argument, std::span<const uint32_t> values) {
  const auto count = static_cast<uint8_t>(values.size());
  put(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, static_cast<uint8_t>(count + 3));
  load(offsetof(seccomp_data, args) + argument * sizeof(uint64_t));
  for (uint8_t i = 0; i < count; ++i)
    put(BPF_JMP | BPF_JEQ | BPF_K, values[i], static_cast<uint8_t>(count - i), 0);
  put(BPF_RET | BPF_K, kRefuse);
  load(offsetof(seccomp_data, nr));
}

SeccompFilter SeccompFilter::only(std::span<const int> calls) {
  SeccompFilter filter;
  filter.begin();
  filter.when(BPF_JGT, kNewestKnown, kUnknown);
  if (std::find(calls.begin(), calls.end(), SYS_clone) == calls.end())
    filter.clone_without(kNamespaceFlags, CLONE_THREAD);
  filter.argument_is(SYS_setns, 1, kNamespacesEntered);
  filter.any_of(calls, SECCOMP_RET_ALLOW);
  filter.put(BPF_RET | BPF_K, kRefuse);
  return filter;
}

SeccompFilter SeccompFilter::without(std::span<const int> calls) {
  SeccompFilter filter;
  filter.begin();
  filter.any_of(calls, kRefuse);
  filter.put(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  return filter;
}

SeccompFilter SeccompFilter::container() {
  SeccompFilter filter;
  filter.begin();
  filter.when(BPF_JGT, kNewestKnown, kUnknown);
  filter.clone_without(kNamespaceFlags, 0);
  filter.argument_is(SYS_personality, 0, kPersonalities);
  filter.argument_is_not(SYS_socket, kForeignFamilies);
  filter.any_of(kBeyondContainer, kRefuse);
  filter.put(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  return filter;
}

int SeccompFilter::install(bool all_threads) const {
  sock_fprog program{static_cast<unsigned short>(code_.size()), const_cast<sock_filter*>(code_.data())};
  const unsigned flags = all_threads ? SECCOMP_FILTER_FLAG_TSYNC : 0;
  const long result = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
  if (result > 0) return EBUSY;  // the thread that has filters of its own
  return result == 0 ? 0 : errno;
}

}  // namespace meltemi::sys
