// inotify tells that something happened; the file system tells what. Events are only hints about which
// files to look at, so lost, doubled or reordered ones do no harm.
#include "userspace/control/directory_source.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
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
  if (id < 0) {
    // Gone again is no trouble; out of watches or memory is.
    if (errno != ENOENT && errno != ENOTDIR && watch_trouble_.empty()) {
      watch_trouble_ = fail_errno(errno, "watch " + path).error().detail +
                       "; fs.inotify.max_user_watches may be too low; it is read again and again";
    }
    return;
  }
  watches_[id] = relative;
  watched_[relative] = id;
}

// Takes all queued events. Returns false if the whole tree has to be looked at.
bool DirectorySource::drain_events(std::map<std::string, bool>* touched) {
  alignas(inotify_event) char buffer[65536];
  bool precise = true;
  for (;;) {
    const ssize_t n = read(inotify_.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) return false;
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

// The file is there, as far as anybody can tell, and its content is owed.
void DirectorySource::cannot_read(const std::string& relative, const Error& why, const Tell& tell) {
  Known& entry = files_[relative];
  entry.size = -1;  // whatever it looks like next time, it is read
  entry.seen = true;
  // What is too large stays so until it changes; everything else may pass.
  if (why.reason != Reason::kLimitExceeded) unread_.insert(relative);
  if (std::exchange(entry.problem, why.detail) == why.detail) return;
  tell({relative, layer_of(relative), false, {}, why.detail});
}

void DirectorySource::look_at(const std::string& relative, const Tell& tell) {
  const std::string path = root_ + "/" + relative;
  FileEvent event{relative, layer_of(relative), false, {}, {}};
  struct stat info {};
  const auto known = files_.find(relative);
  const bool found = stat(path.c_str(), &info) == 0;
  if (!found && errno != ENOENT && errno != ENOTDIR) {
    return cannot_read(relative, fail_errno(errno, "stat").error(), tell);
  }
  unread_.erase(relative);
  if (!found || !S_ISREG(info.st_mode)) {
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
  if (!bytes) return cannot_read(relative, bytes.error(), tell);
  const uint64_t hash = hash_of(*bytes);
  Known& entry = files_[relative];
  const bool same = known != files_.end() && entry.problem.empty() && entry.content_hash == hash;
  entry = {hash, modified, info.st_size, info.st_ino, true, {}};
  if (same) return;
  event.bytes = std::move(*bytes);
  tell(event);
}

// What was known in the folder stays: a folder that cannot be read is not an empty one.
void DirectorySource::cannot_list(const std::string& relative, Error why) {
  const std::string prefix = relative.empty() ? "" : relative + "/";
  for (auto it = files_.lower_bound(prefix); it != files_.end() && it->first.starts_with(prefix); ++it) {
    it->second.seen = true;
  }
  if (!folder_trouble_) folder_trouble_ = std::move(why);
}

void DirectorySource::scan(const std::string& relative, int depth, const Tell& tell) {
  const std::string path = relative.empty() ? root_ : root_ + "/" + relative;
  if (depth > kMaxManifestDepth) {
    return cannot_list(relative, Error{Reason::kLimitExceeded, Fault::kConfig, Retry::kNo,
                                       fmt::format("\"{}\": folders are nested deeper than {}", path,
                                                   kMaxManifestDepth)});
  }
  // Watched before it is read, so that nothing slips in between.
  watch(relative);
  dirent** entries = nullptr;
  const int count = scandir(path.c_str(), &entries, nullptr, alphasort);
  if (count < 0) {
    if (errno == ENOENT && !relative.empty()) return;
    return cannot_list(relative, fail_errno(errno, path).error());
  }
  for (int i = 0; i < count; ++i) {
    const char* const name = entries[i]->d_name;
    if (name[0] != '.') scan_entry(join(relative, name), name, depth, tell);
    free(entries[i]);
  }
  free(entries);
}

void DirectorySource::scan_entry(const std::string& child, const char* name, int depth,
                                 const Tell& tell) {
  struct stat info {};
  const bool found = stat((root_ + "/" + child).c_str(), &info) == 0;
  if (!found && errno != ENOENT && errno != ENOTDIR && !is_manifest(name)) {
    return cannot_list(child, fail_errno(errno, root_ + "/" + child).error());  // a folder, perhaps
  }
  if (found && S_ISDIR(info.st_mode)) return scan(child, depth + 1, tell);
  if (!is_manifest(name)) return;
  if (!files_.contains(child) && files_.size() >= kMaxManifestFiles) {
    too_many_ = true;
    return;
  }
  look_at(child, tell);
}

void DirectorySource::rescan(const Tell& tell) {
  for (auto& [path, known] : files_) known.seen = false;
  folder_trouble_.reset();
  watch_trouble_.clear();
  too_many_ = false;
  scan("", 0, tell);
  rescan_ = folder_trouble_.has_value() || !watch_trouble_.empty();
  std::vector<std::string> gone;
  for (const auto& [path, known] : files_)
    if (!known.seen) gone.push_back(path);
  for (const std::string& path : gone) look_at(path, tell);
}

Status DirectorySource::poll(const Tell& tell) {
  std::map<std::string, bool> touched;
  if (!drain_events(&touched)) rescan_ = true;
  for (const std::string& path : unread_) touched[path] = true;
  if (rescan_) {
    rescan(tell);
  } else {
    for (const auto& [path, unused] : touched) look_at(path, tell);
  }
  if (folder_trouble_) return fail(*folder_trouble_);
  return {};
}

std::string DirectorySource::trouble() const {
  std::vector<std::string> out;
  if (folder_trouble_) out.push_back(folder_trouble_->detail);
  if (!unread_.empty()) {
    const std::string& first = *unread_.begin();
    out.push_back(fmt::format("{} cannot be read ({})", first, files_.at(first).problem));
    if (unread_.size() > 1) out.back() += fmt::format(" and {} more files", unread_.size() - 1);
  }
  if (!watch_trouble_.empty()) out.push_back(watch_trouble_);
  if (too_many_) {
    out.push_back(fmt::format("more than {} manifests; the rest is not read", kMaxManifestFiles));
  }
  return fmt::format("{}", fmt::join(out, "; "));
}

}  // namespace meltemi::control
