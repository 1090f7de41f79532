// Processes by /proc, clone3 and pidfd; see process.h.
#include "userspace/sys/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>

#include "userspace/sys/files.h"

extern char** environ;

namespace meltemi::sys {
namespace {

// nullopt if the process went away while it was looked at, or may not be looked at (it has capabilities that
// this one lacks, as a node's init has beside a container: asking again would say the same). Whatever else
// keeps it from being read is an error: a list that lacks it would say that it is not there.
Result<std::optional<ProcessInfo>> inspect(pid_t pid) {
  const std::string net = fmt::format("/proc/{}/ns/net", pid);
  struct stat st{};
  if (::stat(net.c_str(), &st) < 0) {
    if (errno == ENOENT || errno == ESRCH || errno == EACCES || errno == EPERM) return std::nullopt;
    return fail_errno(errno, "look at " + net);
  }
  ProcessInfo info;
  info.pid = pid;
  info.netns_inode = st.st_ino;
  Result<std::string> command = read_file(fmt::format("/proc/{}/comm", pid));
  Result<std::string> cgroup = cgroup2_path_of(pid);
  for (const auto* part : {&command, &cgroup}) {
    if (*part || part->error().reason == Reason::kUnsupported) continue;
    if (part->error().reason == Reason::kNotFound) return std::nullopt;
    return fail(part->error());
  }
  while (!command->empty() && command->back() == '\n') command->pop_back();
  info.command = std::move(*command);
  if (cgroup) info.cgroup = std::move(*cgroup);
  return info;
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

int place_fd(int fd, int target) {
  if (fd == target) return ::fcntl(fd, F_SETFD, 0) < 0 ? errno : 0;
  return ::dup2(fd, target) < 0 ? errno : 0;
}

struct ChildPlan {
  const SpawnOptions* options;
  char* const* argv;
  char* const* environment;
  int null_fd;
  sigset_t signal_mask;
};

// Between clone and exec: async-signal-safe calls only. Returns an errno, or does not return.
int become(const ChildPlan& plan) {
  const SpawnOptions& o = *plan.options;
  if (o.parent_death_signal != 0 && ::prctl(PR_SET_PDEATHSIG, o.parent_death_signal) < 0)
    return errno;
  if (o.new_session && ::setsid() < 0) return errno;
  if (o.netns != nullptr && ::setns(o.netns->fd(), CLONE_NEWNET) < 0) return errno;
  if (o.new_mount_namespace &&
      (::unshare(CLONE_NEWNS) < 0 || ::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) < 0))
    return errno;
  if (const int e = place_fd(o.stdin_fd >= 0 ? o.stdin_fd : plan.null_fd, 0); e != 0) return e;
  if (o.stdout_fd >= 0)
    if (const int e = place_fd(o.stdout_fd, 1); e != 0) return e;
  if (o.stderr_fd >= 0)
    if (const int e = place_fd(o.stderr_fd, 2); e != 0) return e;
  if (!o.directory.empty() && ::chdir(o.directory.c_str()) < 0) return errno;
  if (o.prepare)
    if (const int e = o.prepare(); e != 0) return e;
  for (const int s : {SIGPIPE, SIGTERM, SIGINT, SIGHUP, SIGCHLD}) ::signal(s, SIG_DFL);
  ::sigprocmask(SIG_SETMASK, &plan.signal_mask, nullptr);
  ::execvpe(plan.argv[0], plan.argv, plan.environment);
  return errno;
}

// A full copy of this process, not vfork: `prepare` may be anything.
pid_t clone_child(const Cgroup* cgroup, bool new_pid_namespace, int* pidfd) {
  clone_args args{};
  args.flags = CLONE_PIDFD | (new_pid_namespace ? CLONE_NEWPID : 0);
  args.pidfd = reinterpret_cast<uint64_t>(pidfd);
  args.exit_signal = SIGCHLD;
  if (cgroup != nullptr) {
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = static_cast<uint64_t>(cgroup->fd());
  }
  return static_cast<pid_t>(::syscall(SYS_clone3, &args, sizeof args));
}

// While it lives, children of the calling thread begin in another PID namespace. The thread itself never
// moves: that is how setns(2) treats PID namespaces.
class ChildrenIn {
 public:
  explicit ChildrenIn(int pid_namespace) {
    if (pid_namespace < 0) return;
    home_.reset(::open("/proc/thread-self/ns/pid", O_RDONLY | O_CLOEXEC));
    if (!home_.valid() || ::setns(pid_namespace, CLONE_NEWPID) < 0) error_ = errno;
  }
  ~ChildrenIn() {
    if (home_.valid() && error_ == 0) ::setns(home_.get(), CLONE_NEWPID);
  }
  ChildrenIn(const ChildrenIn&) = delete;
  ChildrenIn& operator=(const ChildrenIn&) = delete;
  int error() const { return error_; }

 private:
  UniqueFd home_;
  int error_ = 0;
};

}  // namespace

Result<std::vector<ProcessInfo>> list_processes() {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir("/proc"), ::closedir);
  if (!dir) return fail_errno(errno, "open /proc");
  std::vector<ProcessInfo> out;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr && errno != 0) return fail_errno(errno, "read /proc");
    if (entry == nullptr) return out;
    const std::string_view name = entry->d_name;
    pid_t pid = 0;
    const auto [end, ec] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (ec != std::errc() || end != name.data() + name.size()) continue;
    if (auto info = MELTEMI_TRY(inspect(pid))) out.push_back(std::move(*info));
  }
}

Result<std::vector<ProcessInfo>> processes_in(const NetnsId& netns) {
  std::vector<ProcessInfo> all = MELTEMI_TRY(list_processes());
  std::erase_if(all, [&](const ProcessInfo& p) { return p.netns_inode != netns.inode; });
  return all;
}

Result<Process> Process::spawn(const SpawnOptions& options) {
  if (options.argv.empty())
    return fail(Reason::kBadConfig, Fault::kConfig, "a command needs at least a program");
  const std::vector<char*> argv = pointers(options.argv);
  const std::vector<char*> environment = pointers(options.environment);
  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  int pipe_fds[2];
  if (::pipe2(pipe_fds, O_CLOEXEC) < 0) return fail_errno(errno, "pipe");
  UniqueFd read_end(pipe_fds[0]);
  UniqueFd write_end(pipe_fds[1]);

  ChildPlan plan{&options,
                 argv.data(),
                 options.replace_environment ? environment.data() : environ,
                 null.get(),
                 {}};
  ::sigprocmask(SIG_SETMASK, nullptr, &plan.signal_mask);
  ::sigdelset(&plan.signal_mask, SIGTERM);
  ::sigdelset(&plan.signal_mask, SIGINT);
  ::sigdelset(&plan.signal_mask, SIGCHLD);
  int pidfd = -1;
  const ChildrenIn there(options.pid_namespace);
  if (there.error() != 0) return fail_errno(there.error(), "enter a PID namespace");
  const pid_t pid = clone_child(options.cgroup, options.new_pid_namespace, &pidfd);
  if (pid < 0) return fail_errno(errno, "start " + options.argv[0]);
  if (pid == 0) {
    const int error = become(plan);
    [[maybe_unused]] const ssize_t n = ::write(write_end.get(), &error, sizeof error);
    ::_exit(127);
  }
  Process process;
  process.pid_ = pid;
  process.pidfd_.reset(pidfd);
  write_end.reset();
  int error = 0;
  ssize_t n;
  while ((n = ::read(read_end.get(), &error, sizeof error)) < 0 && errno == EINTR) {
  }
  if (n == 0) return process;  // exec closed the pipe
  [[maybe_unused]] const auto reaped = process.wait(std::chrono::seconds(10));
  return fail_errno(error, "start " + options.argv[0]);
}

Status Process::signal(int number) const {
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), number, nullptr, 0) < 0 && errno != ESRCH)
    return fail_errno(errno, fmt::format("signal {} to pid {}", number, pid_));
  return {};
}

Result<int> Process::wait(Duration timeout) {
  const MonoTime deadline = MonoClock::now() + timeout;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - MonoClock::now());
    pollfd p{pidfd_.get(), POLLIN, 0};
    const int n = ::poll(&p, 1, static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3600'000)));
    if (n > 0) break;
    if (n < 0 && errno != EINTR) return fail_errno(errno, "poll a pidfd");
    if (n == 0)
      return fail(Reason::kRequestTimeout, Fault::kUpstream,
                  fmt::format("pid {} still runs", pid_));
  }
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0)
    if (errno != EINTR) return fail_errno(errno, fmt::format("wait for pid {}", pid_));
  pidfd_.reset();
  pid_ = 0;
  return status;
}

Status Process::stop(Duration grace) {
  if (!valid()) return {};
  MELTEMI_TRY(signal(SIGTERM));
  if (wait(grace)) return {};
  MELTEMI_TRY(signal(SIGKILL));
  MELTEMI_TRY(wait(std::chrono::seconds(10)));
  return {};
}

}  // namespace meltemi::sys
