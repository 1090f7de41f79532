// Files and mounts; see files.h.
#include "userspace/sys/files.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <mntent.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <atomic>
#include <memory>

#include "userspace/base/fd.h"

namespace meltemi::sys {
namespace {

// Of temporary files that one process may have beside one path at a time. They come again, so that
// what a crash left is found and removed.
constexpr uint32_t kTemporaryNames = 64;
// Of the target's name that goes into theirs, so that NAME_MAX (255) is kept.
constexpr size_t kNameBytes = 200;

std::string parent_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

Status write_all(int fd, std::string_view content, const std::string& path) {
  while (!content.empty()) {
    const ssize_t n = ::write(fd, content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "write " + path);
    content.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

}  // namespace

Result<std::vector<Mount>> mounts() {
  std::unique_ptr<FILE, int (*)(FILE*)> table(::setmntent("/proc/self/mounts", "re"), ::endmntent);
  if (!table) return fail_errno(errno, "open /proc/self/mounts");
  std::vector<Mount> out;
  mntent entry{};
  char buffer[8192];
  errno = 0;
  while (::getmntent_r(table.get(), &entry, buffer, sizeof buffer) != nullptr)
    out.push_back({entry.mnt_dir, entry.mnt_type});
  if (::ferror(table.get()) != 0) return fail_errno(errno != 0 ? errno : EIO, "read /proc/self/mounts");
  return out;
}

Result<bool> is_bpffs(const std::string& directory) {
  struct statfs fs{};
  if (::statfs(directory.c_str(), &fs) < 0) {
    if (errno == ENOENT) return false;
    return fail_errno(errno, "statfs " + directory);
  }
  return static_cast<unsigned long>(fs.f_type) == BPF_FS_MAGIC;
}

Status mount_bpffs(const std::string& directory) {
  MELTEMI_TRY(make_directories(directory, 0700));
  if (MELTEMI_TRY(is_bpffs(directory))) return {};
  if (::mount("bpf", directory.c_str(), "bpf", 0, "mode=0700") < 0)
    return fail_errno(errno, "mount a bpffs on " + directory);
  return {};
}

Status unmount(const std::string& directory) {
  if (::umount2(directory.c_str(), MNT_DETACH) < 0 && errno != EINVAL && errno != ENOENT)
    return fail_errno(errno, "unmount " + directory);
  return {};
}

Status make_directories(const std::string& path, uint32_t mode) {
  if (::mkdir(path.c_str(), mode) == 0) return {};
  if (errno == ENOENT) {
    const std::string parent = parent_of(path);
    if (parent == path) return fail_errno(ENOENT, "mkdir " + path);
    MELTEMI_TRY(make_directories(parent, mode));
    if (::mkdir(path.c_str(), mode) == 0) return {};
  }
  struct stat st{};
  if (errno == EEXIST && ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return {};
  return fail_errno(errno, "mkdir " + path);
}

namespace {

// Never through a link, never into a file that somebody else made: what a crash of ours left behind
// is removed, anything that comes back in its place is an error.
Result<UniqueFd> create_new(const std::string& path, uint32_t mode) {
  for (const bool again : {false, true}) {
    UniqueFd fd(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
    if (fd) return fd;
    if (errno != EEXIST || again || ::unlink(path.c_str()) < 0) break;
  }
  return fail_errno(errno, "create " + path);
}

}  // namespace

Status write_file_atomically(const std::string& path, std::string_view content, uint32_t mode,
                             Durability durability) {
  static std::atomic<uint32_t> writes{0};  // two threads that write one path must not share a file
  const size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  const std::string temporary =
      fmt::format("{}/.{}.{}-{}.tmp", parent_of(path), name.substr(0, kNameBytes), ::getpid(),
                  writes.fetch_add(1) % kTemporaryNames);
  const auto replace = [&]() -> Status {
    const UniqueFd fd = MELTEMI_TRY(create_new(temporary, mode));
    MELTEMI_TRY(write_all(fd.get(), content, temporary));
    if (durability == Durability::kSynced && ::fsync(fd.get()) < 0)
      return fail_errno(errno, "fsync " + temporary);
    if (::rename(temporary.c_str(), path.c_str()) < 0)
      return fail_errno(errno, fmt::format("rename {} to {}", temporary, path));
    return {};
  };
  Status done = replace();
  if (!done) ::unlink(temporary.c_str());
  return done;
}

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) return fail(Reason::kNotFound, Fault::kConfig, path + " does not exist");
    return fail_errno(errno, "open " + path);
  }
  std::string out;
  char buffer[16384];
  while (true) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == ESRCH)  // a file of /proc/PID or of a cgroup, and that has ended
      return fail(Reason::kNotFound, Fault::kConfig, path + " does not exist any more");
    if (n < 0) return fail_errno(errno, "read " + path);
    if (n == 0) return out;
    out.append(buffer, static_cast<size_t>(n));
    if (out.size() > max_bytes)
      return fail(Reason::kLimitExceeded, Fault::kConfig,
                  fmt::format("{} is larger than {} bytes", path, max_bytes));
  }
}

}  // namespace meltemi::sys
