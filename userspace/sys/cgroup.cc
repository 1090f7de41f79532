// cgroup v2 by its files; see cgroup.h.
#include "userspace/sys/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <memory>

#include "userspace/sys/files.h"

namespace meltemi::sys {
namespace {

// How long kill_all() looks for processes that had not frozen when they were listed: 0.2 s in all.
constexpr int kKillRounds = 100;
constexpr useconds_t kKillPauseMicroseconds = 2000;

// None of a cgroup that is gone. What cannot be listed is an error: processes below would be missed.
Result<std::vector<std::string>> subdirectories(const std::string& path) {
  std::vector<std::string> out;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir && errno == ENOENT) return out;
  if (!dir) return fail_errno(errno, "list cgroup " + path);
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr && errno != 0 && errno != ENOENT) return fail_errno(errno, "list cgroup " + path);
    if (entry == nullptr) return out;
    const std::string name = entry->d_name;
    if (entry->d_type == DT_DIR && name != "." && name != "..") out.push_back(path + "/" + name);
  }
}

Result<std::string> absolute(const std::string& path) {
  if (path.starts_with('/')) return path;
  return fmt::format("{}/{}", MELTEMI_TRY(cgroup2_mount()), path);
}

Status write_file(const std::string& path, std::string_view text) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "open " + path);
  if (::write(fd.get(), text.data(), text.size()) < 0) return fail_errno(errno, "write " + path);
  return {};
}

Status collect(const std::string& path, bool recurse, std::vector<pid_t>& out) {
  const std::string text = MELTEMI_TRY(read_file(path + "/cgroup.procs"));
  for (const char *p = text.data(), *end = p + text.size(); p < end;) {
    pid_t pid = 0;
    const auto [next, ec] = std::from_chars(p, end, pid);
    if (ec == std::errc()) out.push_back(pid);
    p = next + 1;
  }
  if (!recurse) return {};
  for (const std::string& child : MELTEMI_TRY(subdirectories(path))) {
    // A child may vanish between listing and reading.
    const Status status = collect(child, true, out);
    if (!status && status.error().reason != Reason::kNotFound) return status;
  }
  return {};
}

Status remove_tree(const std::string& path) {
  for (const std::string& child : MELTEMI_TRY(subdirectories(path))) MELTEMI_TRY(remove_tree(child));
  if (::rmdir(path.c_str()) < 0 && errno != ENOENT)
    return fail_errno(errno, "remove cgroup " + path);
  return {};
}

}  // namespace

Result<std::string> cgroup2_mount() {
  for (const Mount& mount : MELTEMI_TRY(mounts()))
    if (mount.type == "cgroup2") return mount.directory;
  return fail(
      Reason::kNotFound, Fault::kConfig,
      "no cgroup2 file system is mounted; mount one with: mkdir -p /sys/fs/cgroup/unified && "
      "mount -t cgroup2 none /sys/fs/cgroup/unified");
}

Result<Cgroup> Cgroup::open(const std::string& path) {
  const std::string full = MELTEMI_TRY(absolute(path));
  UniqueFd fd(::open(full.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd && (errno == ENOENT || errno == ENOTDIR))
    return fail(Reason::kNotFound, Fault::kConfig, fmt::format("cgroup {} does not exist", full));
  if (!fd) return fail_errno(errno, "open cgroup " + full);
  return Cgroup(full, std::move(fd));
}

Result<Cgroup> Cgroup::open_configured(const std::string& path) {
  const std::string mount = MELTEMI_TRY(cgroup2_mount());
  if (path == mount || path.starts_with(mount + "/")) return open(path);
  const std::string relative = path.starts_with('/') ? path.substr(1) : path;
  return open(relative.empty() ? mount : mount + "/" + relative);
}

Result<Cgroup> Cgroup::create(const std::string& path) {
  const std::string full = MELTEMI_TRY(absolute(path));
  MELTEMI_TRY(make_directories(full, 0755));
  return open(full);
}

Result<Cgroup> Cgroup::of_process(pid_t pid) {
  const std::string path = MELTEMI_TRY(cgroup2_path_of(pid));
  return open(MELTEMI_TRY(cgroup2_mount()) + path);
}

Result<uint64_t> Cgroup::id() const {
  struct stat st{};
  if (::fstat(fd_.get(), &st) < 0) return fail_errno(errno, "stat cgroup " + path_);
  return static_cast<uint64_t>(st.st_ino);
}

Result<Cgroup> Cgroup::child(const std::string& name) const {
  return create(path_ + "/" + name);
}

Status Cgroup::add_process(pid_t pid) const {
  return write_file(path_ + "/cgroup.procs", std::to_string(pid));
}

Result<std::vector<pid_t>> Cgroup::processes() const {
  std::vector<pid_t> out;
  MELTEMI_TRY(collect(path_, false, out));
  return out;
}

Result<std::vector<pid_t>> Cgroup::processes_below() const {
  std::vector<pid_t> out;
  MELTEMI_TRY(collect(path_, true, out));
  return out;
}

// Not by cgroup.kill: newer kernels (measured: 6.18) remember it, and kill at birth every process
// that is later cloned into the cgroup (CLONE_INTO_CGROUP compares the kill count with that of the
// parent's cgroup), so that no container could ever be started again. Frozen processes cannot fork
// away from the list, and SIGKILL reaches them.
Status Cgroup::kill_all() const {
  const bool frozen = write_file(path_ + "/cgroup.freeze", "1").has_value();
  Status status;
  for (int round = 0; round < kKillRounds; ++round) {
    const auto pids = processes_below();
    if (!pids) {
      status = fail(pids.error());
      break;
    }
    if (pids->empty()) break;
    for (const pid_t pid : *pids)
      if (::kill(pid, SIGKILL) < 0 && errno != ESRCH)
        status = fail_errno(errno, fmt::format("kill {}", pid));
    if (!status) break;
    ::usleep(kKillPauseMicroseconds);
  }
  if (frozen) (void)write_file(path_ + "/cgroup.freeze", "0");
  return status;
}

Status Cgroup::remove() const {
  return remove_tree(path_);
}

Result<std::string> cgroup2_path_of(pid_t pid) {
  const std::string file =
      pid == 0 ? std::string("/proc/self/cgroup") : fmt::format("/proc/{}/cgroup", pid);
  const std::string text = MELTEMI_TRY(read_file(file));
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, end - at);
    if (line.starts_with("0::")) return std::string(line.substr(3));
    at = end + 1;
  }
  return fail(Reason::kUnsupported, Fault::kConfig, file + " names no cgroup2 (line 0::)");
}

}  // namespace meltemi::sys
