// What a confined process can do no more, tried by a forked child that confines itself: a filter cannot
// be taken off again.
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <future>
#include <thread>

#include "userspace/sys/confine.h"

namespace meltemi::sys {
namespace {

// Exit code of a child that runs `tried` after confine(); 0 is what the tests want.
int in_confined_child(const Confinement& confinement, const std::function<int()>& tried) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (!confine(confinement)) ::_exit(100);
    ::_exit(tried());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int refused(long result) { return result < 0 && errno == EPERM ? 0 : 1; }

TEST(Confine, StartsNoProgramAndNoProcess) {
  EXPECT_EQ(in_confined_child({}, [] {
              char* const argv[] = {const_cast<char*>("/bin/true"), nullptr};
              return refused(::execv(argv[0], argv));
            }),
            0);
#if !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer)
  EXPECT_EQ(in_confined_child({}, [] { return refused(::fork()); }), 0);
  EXPECT_EQ(in_confined_child({}, [] {
              return refused(::syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
            }),
            0);
#endif
}

TEST(Confine, EntersNoNamespaceMountsNothingLoadsNoBpf) {
  EXPECT_EQ(in_confined_child({}, [] { return refused(::unshare(CLONE_NEWNS)); }), 0);
  EXPECT_EQ(in_confined_child({}, [] { return refused(::mount("x", "/mnt", "tmpfs", 0, "")); }), 0);
  EXPECT_EQ(in_confined_child({}, [] { return refused(::syscall(SYS_bpf, 0, nullptr, 0)); }), 0);
  EXPECT_EQ(in_confined_child({}, [] { return refused(::setns(0, CLONE_NEWNET)); }), 0);
  EXPECT_EQ(in_confined_child({}, [] { return refused(::syscall(SYS_keyctl, 0, 0, 0, 0, 0)); }), 0);
  EXPECT_EQ(in_confined_child({}, [] { return refused(::syscall(SYS_userfaultfd, 0)); }), 0);
}

TEST(Confine, AGroupAllowsItsOwnCallsOnly) {
  // EBADF: the kernel looked at the descriptor, the filter let it.
  EXPECT_EQ(in_confined_child({.syscalls = kEnterNetns},
                              [] { return ::setns(-1, CLONE_NEWNET) < 0 && errno == EBADF ? 0 : 1; }),
            0);
  // 0 is "whatever the descriptor is".
  for (const int kind : {CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET | CLONE_NEWNS, 0}) {
    EXPECT_EQ(in_confined_child({.syscalls = kEnterNetns}, [&] { return refused(::setns(-1, kind)); }), 0)
        << kind;
  }
  EXPECT_EQ(in_confined_child({.syscalls = kEnterNetns},
                              [] { return refused(::syscall(SYS_bpf, 0, nullptr, 0)); }),
            0);
}

// A ring passes every filter by.
TEST(Confine, NoRingIsMadeAfterTheLastOneByAnyThread) {
  const auto ring = [] {
    io_uring_params params{};
    return ::syscall(SYS_io_uring_setup, 8, &params);
  };
  EXPECT_EQ(in_confined_child({}, [&] { return refused(ring()); }), 0) << "who needs none";
  EXPECT_EQ(in_confined_child({.syscalls = kRings}, [&] {
              if (ring() < 0 && errno == EPERM) return 1;
              std::promise<void> sealed;
              long theirs = 0;
              int why = 0;
              std::thread other([&] {
                sealed.get_future().wait();
                theirs = ring();
                why = errno;
              });
              if (!no_more_rings()) return 2;
              sealed.set_value();
              other.join();
              if (theirs >= 0 || why != EPERM) return 3;
              return refused(ring());
            }),
            0);
}

TEST(Confine, KeepsOnlyTheNamedCapabilitiesAndGainsNone) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs capabilities to lose";
  static constexpr int kKept[] = {CAP_NET_ADMIN};
  EXPECT_EQ(in_confined_child({.capabilities = kKept}, [] {
              __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
              __user_cap_data_struct data[2] = {};
              if (::syscall(SYS_capget, &header, data) < 0) return 1;
              if (data[1].permitted != 0 || data[0].inheritable != 0) return 2;
              if ((data[0].permitted & ~(1u << CAP_NET_ADMIN)) != 0) return 3;
              if (::prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) != 0) return 4;
              return ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : 5;
            }),
            0);
}

TEST(Confine, ThreadsFilesAndSocketsGoOn) {
  EXPECT_EQ(in_confined_child({}, [] {
              int done = 0;
              std::thread([&] { done = 1; }).join();
              if (done != 1) return 1;
              const int fd = ::open("/proc/self/status", O_RDONLY | O_CLOEXEC);
              if (fd < 0) return 2;
              char byte;
              if (::read(fd, &byte, 1) != 1) return 3;
              const int s = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
              return s < 0 || ::listen(s, 1) < 0 ? 4 : 0;
            }),
            0);
}

TEST(Confine, AllowedCallsAreSortedAndHoldNoneThatCouldUndoTheRest) {
  const std::vector<int> calls = allowed_syscalls(kEnterNetns | kLoadBpf | kMount | kRings);
  EXPECT_TRUE(std::is_sorted(calls.begin(), calls.end()));
  for (const int never : {SYS_execve, SYS_execveat, SYS_init_module, SYS_finit_module, SYS_kexec_load,
                          SYS_process_vm_writev, SYS_open_by_handle_at, SYS_pidfd_getfd, SYS_setuid,
                          SYS_capset, SYS_reboot, SYS_userfaultfd})
    EXPECT_FALSE(std::binary_search(calls.begin(), calls.end(), never)) << never;
}

}  // namespace
}  // namespace meltemi::sys
