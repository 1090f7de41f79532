#include "userspace/sandbox/container.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "userspace/sys/files.h"

namespace meltemi::sandbox {
namespace {

// What Docker and containerd leave to a container. CAP_MKNOD makes device nodes that nobody can open:
// every writable file system of a container is mounted without devices.
constexpr int kKeptCapabilities[] = {
    CAP_CHOWN,      CAP_DAC_OVERRIDE, CAP_FSETID,      CAP_FOWNER,  CAP_MKNOD,
    CAP_SETGID,     CAP_SETUID,       CAP_SETFCAP,     CAP_SETPCAP, CAP_NET_BIND_SERVICE,
    CAP_SYS_CHROOT, CAP_KILL,         CAP_AUDIT_WRITE, CAP_NET_RAW};

// Of the machine's directories these are empty in a container: run-time state and keys (the mesh's CA
// among them), what users left lying about, and their homes.
constexpr const char* kHidden[] = {"/run", "/tmp", "/root", "/home"};

constexpr const char* kDevices[] = {"/dev/null",   "/dev/zero",    "/dev/full",
                                    "/dev/random", "/dev/urandom", "/dev/tty"};
struct Link {
  const char *path, *target;
};
constexpr Link kDeviceLinks[] = {{"/dev/fd", "/proc/self/fd"},
                                 {"/dev/stdin", "/proc/self/fd/0"},
                                 {"/dev/stdout", "/proc/self/fd/1"},
                                 {"/dev/stderr", "/proc/self/fd/2"},
                                 {"/dev/ptmx", "pts/ptmx"}};
// As containerd masks and protects them: what the kernel does not keep apart by namespace.
constexpr const char* kMasked[] = {"/proc/acpi",        "/proc/kcore",        "/proc/keys",
                                   "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                                   "/proc/sched_debug", "/proc/scsi",         "/sys/firmware",
                                   "/sys/devices/virtual/powercap"};
constexpr const char* kProtected[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                                      "/proc/sysrq-trigger"};

// File systems without files of the machine: a container has its own /proc, /sys and /dev, the rest is
// not needed.
const std::set<std::string, std::less<>> kVirtualTypes = {
    "proc",        "sysfs",    "devtmpfs", "devpts",     "cgroup",   "cgroup2",    "bpf",
    "mqueue",      "debugfs",  "tracefs",  "securityfs", "pstore",   "hugetlbfs",  "autofs",
    "binfmt_misc", "configfs", "nsfs",     "fusectl",    "efivarfs", "rpc_pipefs", "overlay"};

bool below(std::string_view path, std::string_view directory) {
  return path == directory || (path.starts_with(directory) && path[directory.size()] == '/');
}

// The real file systems that a program may need beside /: a separate /usr, /home, /tmp, ...
Result<std::vector<std::string>> other_file_systems() {
  std::vector<std::string> out;
  for (const sys::Mount& mount : MELTEMI_TRY(sys::mounts())) {
    const std::string& d = mount.directory;
    if (d == "/" || kVirtualTypes.contains(mount.type)) continue;
    if (below(d, "/run") || below(d, "/var/run") || below(d, "/proc") || below(d, "/sys") ||
        below(d, "/dev"))
      continue;
    struct stat st{};
    if (::stat(d.c_str(), &st) < 0 || !S_ISDIR(st.st_mode)) continue;
    if (std::find(out.begin(), out.end(), d) == out.end()) out.push_back(d);
  }
  return out;
}

// mkdir -p for a path of up to PATH_MAX; async-signal-safe.
int make_path(const char* path) {
  char buffer[4096];
  const size_t length = ::strlen(path);
  if (length >= sizeof buffer) return ENAMETOOLONG;
  ::memcpy(buffer, path, length + 1);
  for (size_t i = 1; i <= length; ++i) {
    if (buffer[i] != '/' && buffer[i] != '\0') continue;
    const char kept = buffer[i];
    buffer[i] = '\0';
    if (::mkdir(buffer, 0755) < 0 && errno != EEXIST) return errno;
    buffer[i] = kept;
  }
  return 0;
}

int make_parent_and_file(const char* path) {
  char buffer[4096];
  const size_t length = ::strlen(path);
  if (length >= sizeof buffer) return ENAMETOOLONG;
  ::memcpy(buffer, path, length + 1);
  if (char* slash = ::strrchr(buffer, '/'); slash != nullptr && slash != buffer) {
    *slash = '\0';
    if (const int e = make_path(buffer); e != 0) return e;
  }
  const int fd = ::open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  ::close(fd);
  return 0;
}

bool is_directory(int fd) {
  struct stat st{};
  return ::fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
}

int clone_tree(const char* path) {
  return ::open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
}

}  // namespace

Result<ContainerRoot> ContainerRoot::prepare(Options options) {
  if (options.mounts.size() > kMaxContainerMounts)
    return fail(Reason::kLimitExceeded, Fault::kConfig,
                fmt::format("a container has {} mounts, at most {} are possible",
                            options.mounts.size(), kMaxContainerMounts));
  ContainerRoot root;
  std::error_code error;
  std::filesystem::remove_all(options.directory, error);
  root.root_ = options.directory + "/root";
  MELTEMI_TRY(sys::make_directories(root.root_, 0755));
  std::vector<std::string> lowers = {"/"};
  for (std::string& other : MELTEMI_TRY(other_file_systems())) lowers.push_back(std::move(other));
  for (size_t i = 0; i < lowers.size(); ++i) {
    const std::string layer = fmt::format("{}/layer{}", options.directory, i);
    MELTEMI_TRY(sys::make_directories(layer + "/upper", 0755));
    MELTEMI_TRY(sys::make_directories(layer + "/work", 0755));
    root.overlays_.push_back(
        {i == 0 ? root.root_ : root.root_ + lowers[i],
         fmt::format("lowerdir={0},upperdir={1}/upper,workdir={1}/work", lowers[i], layer)});
  }
  root.options_ = std::move(options);
  return root;
}

int ContainerRoot::mount_layers() const {
  for (size_t i = 0; i < overlays_.size(); ++i) {
    const Overlay& o = overlays_[i];
    if (::mount("overlay", o.target.c_str(), "overlay", MS_NODEV, o.options.c_str()) < 0 && i == 0)
      return errno;  // another file system that cannot be overlaid (FUSE, NFS) is left out
  }
  return 0;
}

// In the new root, while the process has all capabilities: /proc of its own PID namespace, /sys of its
// network namespace, the cgroup file system from its own cgroup down; all but /proc/PID read-only.
int ContainerRoot::mount_kernel_files() const {
  constexpr unsigned long kPlain = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  if (::mount("proc", "/proc", "proc", kPlain, nullptr) < 0) return errno;
  if (::mount("sysfs", "/sys", "sysfs", kPlain | MS_RDONLY, nullptr) < 0) return errno;
  if (::unshare(CLONE_NEWCGROUP | CLONE_NEWIPC) < 0) return errno;
  if (::mount("cgroup2", "/sys/fs/cgroup", "cgroup2", kPlain | MS_RDONLY, nullptr) < 0) return errno;
  for (const char* path : kHidden) {
    const char* mode = ::strcmp(path, "/tmp") == 0 ? "mode=1777" : "mode=0755";
    if (::mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, mode) < 0 && errno != ENOENT)
      return errno;
  }
  return 0;
}

int ContainerRoot::make_devices(const int* trees) const {
  constexpr unsigned long kPlain = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  if (::mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755,size=64m") < 0)
    return errno;
  for (size_t i = 0; i < std::size(kDevices); ++i) {
    if (const int e = make_parent_and_file(kDevices[i]); e != 0) return e;
    if (::move_mount(trees[i], "", AT_FDCWD, kDevices[i], MOVE_MOUNT_F_EMPTY_PATH) < 0) return errno;
    ::close(trees[i]);
  }
  for (const Link& link : kDeviceLinks)
    if (::symlink(link.target, link.path) < 0) return errno;
  if (::mkdir("/dev/pts", 0755) < 0 || ::mkdir("/dev/shm", 01777) < 0) return errno;
  if (::mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
              "newinstance,ptmxmode=0666,mode=0620,gid=5") < 0)
    return errno;
  if (::mount("shm", "/dev/shm", "tmpfs", kPlain, "mode=1777,size=64m") < 0) return errno;
  return 0;
}

int ContainerRoot::protect_proc() const {
  for (const char* path : kProtected) {
    const int tree = clone_tree(path);
    if (tree < 0 && errno == ENOENT) continue;
    mount_attr attributes{};
    attributes.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    if (tree < 0 ||
        ::mount_setattr(tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0 ||
        ::move_mount(tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
      return errno;
    ::close(tree);
  }
  for (const char* path : kMasked) {
    struct stat st{};
    if (::stat(path, &st) < 0) continue;
    const bool masked = S_ISDIR(st.st_mode)
                            ? ::mount("tmpfs", path, "tmpfs", MS_RDONLY, "size=0") == 0
                            : ::mount("/dev/null", path, nullptr, MS_BIND, nullptr) == 0;
    if (!masked) return errno;
  }
  return 0;
}

int ContainerRoot::attach_volumes(const int* trees) const {
  for (size_t i = 0; i < options_.mounts.size(); ++i) {
    const Mount& m = options_.mounts[i];
    const int made = is_directory(trees[i]) ? make_path(m.target.c_str())
                                            : make_parent_and_file(m.target.c_str());
    if (made != 0) return made;
    mount_attr attributes{};
    attributes.attr_set = MOUNT_ATTR_NODEV | (m.read_only ? MOUNT_ATTR_RDONLY : 0);
    if (::mount_setattr(trees[i], "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0)
      return errno;
    if (::move_mount(trees[i], "", AT_FDCWD, m.target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) < 0)
      return errno;
    ::close(trees[i]);
  }
  return 0;
}

int ContainerRoot::write_file(const char* path, const std::string& content) const {
  ::unlink(path);  // it may be a link to a file that is not there
  const int fd = ::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  const ssize_t n = ::write(fd, content.data(), content.size());
  ::close(fd);
  return n == static_cast<ssize_t>(content.size()) ? 0 : EIO;
}

int ContainerRoot::enter() const {
  // Sources are looked up while the machine's own root is still there.
  int trees[kMaxContainerMounts];
  for (size_t i = 0; i < options_.mounts.size(); ++i)
    if ((trees[i] = clone_tree(options_.mounts[i].source.c_str())) < 0) return errno;
  int devices[std::size(kDevices)];
  for (size_t i = 0; i < std::size(kDevices); ++i)
    if ((devices[i] = clone_tree(kDevices[i])) < 0) return errno;
  int fifo = -1;
  if (!options_.stdin_fifo.empty() &&
      (fifo = ::open(options_.stdin_fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) < 0)
    return errno;

  if (const int e = mount_layers(); e != 0) return e;
  if (::chdir(root_.c_str()) < 0) return errno;
  if (::syscall(SYS_pivot_root, ".", ".") < 0) return errno;
  if (::umount2(".", MNT_DETACH) < 0) return errno;
  if (::chdir("/") < 0) return errno;
  if (const int e = mount_kernel_files(); e != 0) return e;
  if (const int e = make_devices(devices); e != 0) return e;
  if (const int e = attach_volumes(trees); e != 0) return e;
  if (const int e = write_file("/etc/resolv.conf", options_.resolv_conf); e != 0) return e;
  if (const int e = write_file("/etc/hosts", options_.hosts); e != 0) return e;
  if (const int e = protect_proc(); e != 0) return e;

  if (::unshare(CLONE_NEWUTS) < 0) return errno;
  if (::sethostname(options_.hostname.data(), options_.hostname.size()) < 0) return errno;
  const char* directory =
      options_.working_directory.empty() ? "/" : options_.working_directory.c_str();
  if (::chdir(directory) < 0) return errno;
  if (fifo >= 0) {
    // Blocking from here on. The other end is held open by the kubelet until somebody attaches.
    ::fcntl(fifo, F_SETFL, ::fcntl(fifo, F_GETFL) & ~O_NONBLOCK);
    if (::dup2(fifo, 0) < 0) return errno;
  }
  if (const int e = drop_capabilities(); e != 0) return e;
  return options_.any_syscall ? 0 : filter_.install();
}

int drop_capabilities() {
  for (int cap = 0; cap <= 63; ++cap) {
    if (::prctl(PR_CAPBSET_READ, cap) < 0) break;  // beyond the last one that the kernel knows
    bool keep = false;
    for (const int kept : kKeptCapabilities) keep = keep || kept == cap;
    if (!keep && ::prctl(PR_CAPBSET_DROP, cap) < 0) return errno;
  }
  return 0;
}

Result<ContainerNamespaces> ContainerNamespaces::of(pid_t pid) {
  ContainerNamespaces out;
  for (const auto& [name, fd] :
       {std::pair("pid", &out.pid), std::pair("mnt", &out.mount), std::pair("ipc", &out.ipc),
        std::pair("uts", &out.uts), std::pair("cgroup", &out.cgroup)}) {
    const std::string path = fmt::format("/proc/{}/ns/{}", pid, name);
    fd->reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd->valid()) return fail_errno(errno, "open " + path);
  }
  const std::string status = MELTEMI_TRY(sys::read_file(fmt::format("/proc/{}/status", pid)));
  out.any_syscall = status.find("\nSeccomp:\t0") != std::string::npos;
  std::string environment = MELTEMI_TRY(sys::read_file(fmt::format("/proc/{}/environ", pid)));
  for (size_t at = 0; at < environment.size();) {
    const size_t end = std::min(environment.find('\0', at), environment.size());
    out.environment.push_back(environment.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

int ContainerNamespaces::enter() const {
  if (::setns(uts.get(), CLONE_NEWUTS) < 0) return errno;
  if (::setns(ipc.get(), CLONE_NEWIPC) < 0) return errno;
  if (::setns(cgroup.get(), CLONE_NEWCGROUP) < 0) return errno;
  if (::setns(mount.get(), CLONE_NEWNS) < 0) return errno;
  if (::chdir("/") < 0) return errno;
  if (const int e = drop_capabilities(); e != 0) return e;
  return any_syscall ? 0 : filter_.install();
}

Result<sys::Process> exec_in_container(pid_t pid, const ExecOptions& options) {
  const ContainerNamespaces namespaces = MELTEMI_TRY(ContainerNamespaces::of(pid));
  const sys::Netns netns = MELTEMI_TRY(sys::Netns::open(options.netns_path));
  const sys::Cgroup cgroup = MELTEMI_TRY(sys::Cgroup::open(options.cgroup));
  sys::SpawnOptions spawn;
  spawn.argv = options.argv;
  spawn.environment = namespaces.environment;
  spawn.replace_environment = true;
  spawn.netns = &netns;
  spawn.cgroup = &cgroup;
  spawn.pid_namespace = namespaces.pid.get();
  spawn.stdin_fd = options.stdin_fd;
  spawn.stdout_fd = options.stdout_fd;
  spawn.stderr_fd = options.stderr_fd;
  spawn.prepare = [&namespaces] { return namespaces.enter(); };
  return sys::Process::spawn(spawn);
}

}  // namespace meltemi::sandbox
