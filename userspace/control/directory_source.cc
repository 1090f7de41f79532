// inotify tells that something happened; the file system tells what. Events are only hints about which
// files to look at, so lost, doubled or reordered ones do no harm.
#include "userspace/control/directory_source.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <vector>

namespace meltemi::control {
namespace {

constexpr uint32_t kMask = IN_CREATE | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE |
                           IN_DELETE_SELF | IN_MOVE_SELF | IN_ATTRIB | IN_ONLYDIR;

bool is_manifest(std::string_view name) {
  if (name.empty() || name.front() == '.') return false;
  return name.ends_with(".yaml") || name.ends_with(".yml") || name.ends_with(".json");
}

std::string join(const std::string& folder, std::string_view name) {
  return folder.empty() ? std::string(name) : folder + "/" + std::string(name);
}

uint64_t hash_of(std::string_view bytes) {
  uint64_t h = 1469598103934665603ull;
  for (const unsigned char c : bytes) h = (h ^ c) * 1099511628211ull;
  return h;
}

Result<std::string> read_file(const std::string& path, size_t size) {
  if (size > kMaxManifestBytes)
    return fail(Reason::kLimitExceeded, Fault::kConfig,
                fmt::format("file is {} bytes, the limit is {}; split it", size, kMaxManifestBytes));
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return fail_errno(errno, "open");
  std::string bytes;
  bytes.reserve(size);
  char buffer[65536];
  for (;;) {
    const ssize_t n = read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "read");
    if (n == 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(n));
    if (bytes.size() > kMaxManifestBytes)
      return fail(Reason::kLimitExceeded, Fault::kConfig,
                  fmt::format("file grew above {} bytes; split it", kMaxManifestBytes));
  }
}

}  // namespace

int layer_of(std::string_view relative) {
  if (relative.starts_with("state/node/")) return 2;
  if (relative.starts_with("state/control/")) return 1;
  return 0;
}

DirectorySource::DirectorySource(std::string root) : root_(std::move(root)) {}
DirectorySource::~DirectorySource() = default;

Result<std::unique_ptr<DirectorySource>> DirectorySource::open(std::string root) {
  while (root.size() > 1 && root.back() == '/') root.pop_back();
  struct stat info {};
  if (stat(root.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
    return fail(Reason::kNotFound, Fault::kConfig,
                fmt::format("config directory \"{}\" does not exist; create it or set --config-dir",
                            root));
  std::unique_ptr<DirectorySource> source(new DirectorySource(std::move(root)));
  source->inotify_.reset(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!source->inotify_)
    return fail_errno(errno, "inotify (fs.inotify.max_user_instances may be too low)");
  return source;
}

int DirectorySource::fd() const { return inotify_.get(); }

void DirectorySource::watch(const std::string& relative) {
  const std::string path = relative.empty() ? root_ : root_ + "/" + relative;
  const int id = inotify_add_watch(inotify_.get(), path.c_str(), kMask);
  if (id < 0) return;  // gone again, or out of watches: the next scan tries again
  watches_[id] = relative;
  watched_[relative] = id;
}

// Takes all queued events. Returns false if the whole tree has to be looked at.
bool DirectorySource::drain_events(std::map<std::string, bool>* touched) {
  alignas(inotify_event) char buffer[65536];
  bool precise = true;
  for (;;) {
    const ssize_t n = read(inotify_.get(), buffer, sizeof buffer);
    if (n <= 0) return precise;
    for (ssize_t at = 0; at < n;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer + at);
      at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
      if (event->mask & IN_Q_OVERFLOW) precise = false;
      const auto folder = watches_.find(event->wd);
      if (folder == watches_.end()) continue;
      if (event->mask & (IN_IGNORED | IN_DELETE_SELF | IN_MOVE_SELF)) {
        watched_.erase(folder->second);
        watches_.erase(folder);
        precise = false;
        continue;
      }
      if (event->mask & IN_ISDIR) {
        precise = false;
        continue;
      }
      const std::string_view name(event->name, strnlen(event->name, event->len));
      if (is_manifest(name)) (*touched)[join(folder->second, name)] = true;
    }
  }
}

void DirectorySource::look_at(const std::string& relative,
                              const std::function<void(const FileEvent&)>& tell) {
  const std::string path = root_ + "/" + relative;
  FileEvent event{relative, layer_of(relative), false, {}, {}};
  struct stat info {};
  const auto known = files_.find(relative);
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
    if (known == files_.end()) return;
    files_.erase(known);
    event.removed = true;
    tell(event);
    return;
  }
  const int64_t modified = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  if (known != files_.end()) {
    Known& before = known->second;
    before.seen = true;
    if (before.modified_ns == modified && before.size == info.st_size && before.inode == info.st_ino)
      return;
  }
  auto bytes = read_file(path, static_cast<size_t>(info.st_size));
  const uint64_t hash = bytes ? hash_of(*bytes) : 0;
  Known& entry = files_[relative];
  const bool same = known != files_.end() && bytes && entry.size >= 0 && entry.content_hash == hash;
  entry = {hash, modified, bytes ? static_cast<int64_t>(info.st_size) : -1, info.st_ino, true};
  if (same) return;
  if (bytes)
    event.bytes = std::move(*bytes);
  else
    event.problem = bytes.error().detail;
  tell(event);
}

Status DirectorySource::scan(const std::string& relative, int depth,
                             const std::function<void(const FileEvent&)>& tell) {
  if (depth > kMaxManifestDepth)
    return fail(Reason::kLimitExceeded, Fault::kConfig,
                fmt::format("\"{}/{}\": folders are nested deeper than {}", root_, relative,
                            kMaxManifestDepth));
  // Watched before it is read, so that nothing slips in between.
  watch(relative);
  const std::string path = relative.empty() ? root_ : root_ + "/" + relative;
  dirent** entries = nullptr;
  const int count = scandir(path.c_str(), &entries, nullptr, alphasort);
  if (count < 0) {
    if (errno == ENOENT && !relative.empty()) return {};
    return fail_errno(errno, path);
  }
  Status status;
  for (int i = 0; i < count; ++i) {
    const std::string name = entries[i]->d_name;
    free(entries[i]);
    if (!status || name.front() == '.') continue;
    const std::string child = join(relative, name);
    struct stat info {};
    if (stat((root_ + "/" + child).c_str(), &info) != 0) continue;
    if (S_ISDIR(info.st_mode))
      status = scan(child, depth + 1, tell);
    else if (is_manifest(name) && (files_.contains(child) || files_.size() < kMaxManifestFiles))
      look_at(child, tell);
  }
  free(entries);
  return status;
}

Status DirectorySource::poll(const std::function<void(const FileEvent&)>& tell) {
  std::map<std::string, bool> touched;
  if (!drain_events(&touched)) rescan_ = true;
  if (!rescan_) {
    for (const auto& [path, unused] : touched) look_at(path, tell);
    return {};
  }
  for (auto& [path, known] : files_) known.seen = false;
  Status status = scan("", 0, tell);
  if (!status) return status;
  rescan_ = false;
  std::vector<std::string> gone;
  for (const auto& [path, known] : files_)
    if (!known.seen) gone.push_back(path);
  for (const std::string& path : gone) look_at(path, tell);
  return {};
}

}  // namespace meltemi::control
