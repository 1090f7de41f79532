// `sandbox up` and `down` as the command line calls them; see supervisor.h.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <map>
#include <optional>

#include "userspace/sandbox/supervisor.h"
#include "userspace/sandbox/topology.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/files.h"
#include "userspace/sys/process.h"

namespace meltemi::sandbox {
namespace {

constexpr auto kUpDeadline = std::chrono::minutes(3);

struct Pipe {
  UniqueFd read, write;
};
Result<Pipe> make_pipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) < 0) return fail_errno(errno, "pipe");
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// nullopt at the end of the pipe, or when nothing came in time.
std::optional<std::string> next_line(int fd, std::string* buffer, MonoTime deadline) {
  while (true) {
    if (const size_t end = buffer->find('\n'); end != std::string::npos) {
      std::string line = buffer->substr(0, end);
      buffer->erase(0, end + 1);
      return line;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - MonoClock::now());
    pollfd p{fd, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&p, 1, static_cast<int>(left.count())) <= 0)
      return std::nullopt;
    char chunk[512];
    const ssize_t n = ::read(fd, chunk, sizeof chunk);
    if (n <= 0) return std::nullopt;
    buffer->append(chunk, static_cast<size_t>(n));
  }
}

// The supervisor lives in the sandbox's cgroup: whatever becomes of it, `down` finds it there.
Result<sys::Process> start_supervisor(const UpOptions& options, const Layout& layout,
                                      int ready_fd) {
  MELTEMI_TRY(sys::make_directories(layout.log_dir(), 0755));
  const std::string log = layout.log_dir() + "/supervisor.log";
  const UniqueFd output(
      ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!output.valid()) return fail_errno(errno, "open " + log);
  const sys::Cgroup cgroup = MELTEMI_TRY(sys::Cgroup::create(layout.control_cgroup()));
  sys::SpawnOptions spawn;
  std::error_code error;
  const std::string self = std::filesystem::read_symlink("/proc/self/exe", error);
  spawn.argv = {self,
                "internal",
                "supervisor",
                options.sandbox,
                std::to_string(options.nodes),
                options.bin_dir,
                std::to_string(ready_fd)};
  spawn.cgroup = &cgroup;
  spawn.directory = "/";
  spawn.stdout_fd = spawn.stderr_fd = output.get();
  spawn.new_session = true;
  spawn.prepare = [ready_fd] { return ::fcntl(ready_fd, F_SETFD, 0) < 0 ? errno : 0; };
  return sys::Process::spawn(spawn);
}

Status follow(int fd, const std::function<void(const std::string&)>& progress) {
  std::string buffer;
  const MonoTime deadline = MonoClock::now() + kUpDeadline;
  while (const auto line = next_line(fd, &buffer, deadline)) {
    if (*line == "ready") return {};
    if (line->starts_with("error: "))
      return fail(Reason::kSystem, Fault::kInternal, line->substr(7));
    progress(*line);
  }
  return fail(Reason::kSystem, Fault::kInternal,
              "the sandbox's supervisor ended before it was ready, or took too long");
}

std::string last_words(const Layout& layout) {
  constexpr size_t kTailBytes = 600;
  std::string out;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(layout.log_dir(), error)) {
    const auto log = sys::read_file(entry.path());
    if (!log || log->empty()) continue;
    std::string_view tail(*log);
    if (tail.size() > kTailBytes) {
      tail.remove_prefix(tail.size() - kTailBytes);
      tail.remove_prefix(std::min(tail.find('\n') + 1, tail.size()));
    }
    out += fmt::format("\n--- {}\n{}", entry.path().filename().string(), tail);
  }
  return out;
}

// What users have applied: the files of the config directory but for state/, by their paths below it.
using Manifests = std::map<std::string, std::string>;

Result<Manifests> keep_manifests(const Layout& layout) {
  Manifests out;
  std::error_code error;
  std::filesystem::recursive_directory_iterator it(layout.config_dir(), error), end;
  if (error == std::errc::no_such_file_or_directory) return out;
  for (; !error && it != end; it.increment(error)) {
    if (it.depth() == 0 && it->path().filename() == "state") it.disable_recursion_pending();
    std::error_code unknown;
    if (!it->is_regular_file(unknown)) continue;
    const std::string path = it->path().lexically_relative(layout.config_dir());
    out[path] = MELTEMI_TRY(sys::read_file(it->path()));
  }
  // What lies there is about to be written anew from this.
  if (error) return fail_errno(error.value(), "list " + layout.config_dir());
  return out;
}

Status restore_manifests(const Layout& layout, const Manifests& manifests) {
  for (const auto& [path, bytes] : manifests) {
    const std::string file = layout.config_dir() + "/" + path;
    MELTEMI_TRY(sys::make_directories(std::filesystem::path(file).parent_path(), 0755));
    MELTEMI_TRY(sys::write_file_atomically(file, bytes, 0644));
  }
  return {};
}

// Whoever has given a sandbox a name forgets it when typing.
std::string others_that_run() {
  std::string names;
  for (const std::string& name : list_sandboxes())
    if (is_running(Layout(name))) names += (names.empty() ? "" : ", ") + name;
  return names.empty() ? "" : fmt::format("\nRunning: {}. Choose with --sandbox NAME", names);
}

}  // namespace

bool is_running(const Layout& layout) {
  const UniqueFd lock(::open(layout.lock_file().c_str(), O_RDWR | O_CLOEXEC));
  // One that nobody can tell of now is not cleared away as if it had crashed.
  if (!lock) return errno != ENOENT && errno != ENOTDIR && errno != EACCES && errno != EPERM;
  return ::flock(lock.get(), LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

Status require_running(const Layout& layout) {
  if (is_running(layout)) return {};
  if (::geteuid() != 0)
    return fail(Reason::kPermission, Fault::kConfig, "a sandbox is its root's: run this with sudo");
  const std::string name = layout.name() == kDefaultName ? "" : " --name " + layout.name();
  if (::access(layout.config_dir().c_str(), F_OK) == 0)
    return fail(Reason::kNotFound, Fault::kConfig,
                fmt::format("sandbox \"{}\" has crashed. Bring it back, with all that was applied: "
                            "meltemi sandbox up{}",
                            layout.name(), name));
  return fail(Reason::kNotFound, Fault::kConfig,
              fmt::format("sandbox \"{}\" is not running. Start it with: meltemi sandbox up{}{}",
                          layout.name(), name, others_that_run()));
}

Status sandbox_up(const UpOptions& options,
                  const std::function<void(const std::string&)>& progress) {
  MELTEMI_TRY(check_sandbox_name(options.sandbox));
  const Layout layout(options.sandbox);
  if (is_running(layout))
    return fail(
        Reason::kBadConfig, Fault::kConfig,
        fmt::format("sandbox \"{0}\" is running already. Take it down first (meltemi sandbox "
                    "down --name {0}), or give another --name",
                    options.sandbox));
  Manifests kept;
  if (const auto remains = MELTEMI_TRY(find_remains(layout)); !remains.empty()) {
    kept = MELTEMI_TRY(keep_manifests(layout));
    progress(fmt::format("clearing what a crashed sandbox left ({} things), but for {} manifests",
                         remains.size(), kept.size()));
    MELTEMI_TRY(remove_everything(layout));
    MELTEMI_TRY(restore_manifests(layout, kept));
  }
  Pipe pipe = MELTEMI_TRY(make_pipe());
  const sys::Process supervisor = MELTEMI_TRY(start_supervisor(options, layout, pipe.write.get()));
  pipe.write.reset();
  const Status up = follow(pipe.read.get(), progress);
  if (up) return {};
  // The logs go with the rest: the error carries their last words.
  Error error = up.error();
  error.detail += last_words(layout);
  (void)remove_everything(layout);
  if (const Status kept_again = restore_manifests(layout, kept); !kept_again)
    error.detail += "\nwhat was applied is lost: " + kept_again.error().detail;
  return fail(std::move(error));
}

Status sandbox_down(const Layout& layout) {
  return remove_everything(layout);
}

}  // namespace meltemi::sandbox
