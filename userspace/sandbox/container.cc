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

// What Docker and containerd leave to a container, without NET_RAW: it would allow setting the mark
// that exempts a socket from capture.
constexpr int kKeptCapabilities[] = {
    CAP_CHOWN,      CAP_DAC_OVERRIDE, CAP_FSETID,     CAP_FOWNER,  CAP_MKNOD,
    CAP_SETGID,     CAP_SETUID,       CAP_SETFCAP,    CAP_SETPCAP, CAP_NET_BIND_SERVICE,
    CAP_SYS_CHROOT, CAP_KILL,         CAP_AUDIT_WRITE};

// File systems without files of the machine; /proc, /sys and /dev are shared, the rest is not
// needed.
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
  for (const char* path : {"/proc", "/sys", "/dev"}) root.shared_.push_back(path);
  root.options_ = std::move(options);
  return root;
}

int ContainerRoot::mount_layers() const {
  for (size_t i = 0; i < overlays_.size(); ++i) {
    const Overlay& o = overlays_[i];
    if (::mount("overlay", o.target.c_str(), "overlay", 0, o.options.c_str()) < 0 && i == 0)
      return errno;  // another file system that cannot be overlaid (FUSE, NFS) is left out
  }
  for (const std::string& path : shared_) {
    const int tree = clone_tree(path.c_str());
    if (tree < 0) return errno;
    char target[4096];
    if (root_.size() + path.size() >= sizeof target) return ENAMETOOLONG;
    ::memcpy(target, root_.data(), root_.size());
    ::memcpy(target + root_.size(), path.c_str(), path.size() + 1);
    if (::move_mount(tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) < 0) return errno;
    ::close(tree);
  }
  return 0;
}

int ContainerRoot::attach_volumes(const int* trees) const {
  for (size_t i = 0; i < options_.mounts.size(); ++i) {
    const Mount& m = options_.mounts[i];
    const int made = is_directory(trees[i]) ? make_path(m.target.c_str())
                                            : make_parent_and_file(m.target.c_str());
    if (made != 0) return made;
    if (m.read_only) {
      mount_attr attributes{};
      attributes.attr_set = MOUNT_ATTR_RDONLY;
      if (::mount_setattr(trees[i], "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0)
        return errno;
    }
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
  int fifo = -1;
  if (!options_.stdin_fifo.empty() &&
      (fifo = ::open(options_.stdin_fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) < 0)
    return errno;

  if (const int e = mount_layers(); e != 0) return e;
  if (::chdir(root_.c_str()) < 0) return errno;
  if (::syscall(SYS_pivot_root, ".", ".") < 0) return errno;
  if (::umount2(".", MNT_DETACH) < 0) return errno;
  if (::chdir("/") < 0) return errno;
  if (const int e = attach_volumes(trees); e != 0) return e;
  if (const int e = write_file("/etc/resolv.conf", options_.resolv_conf); e != 0) return e;
  if (const int e = write_file("/etc/hosts", options_.hosts); e != 0) return e;

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
  return drop_capabilities();
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
  for (const auto& [name, fd] : {std::pair("mnt", &out.mount), std::pair("uts", &out.uts)}) {
    const std::string path = fmt::format("/proc/{}/ns/{}", pid, name);
    fd->reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd->valid()) return fail_errno(errno, "open " + path);
  }
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
  if (::setns(mount.get(), CLONE_NEWNS) < 0) return errno;
  if (::chdir("/") < 0) return errno;
  return drop_capabilities();
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
  spawn.stdin_fd = options.stdin_fd;
  spawn.stdout_fd = options.stdout_fd;
  spawn.stderr_fd = options.stderr_fd;
  spawn.prepare = [&namespaces] { return namespaces.enter(); };
  return sys::Process::spawn(spawn);
}

}  // namespace meltemi::sandbox
