#include "userspace/sandbox/directory.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>

#include "userspace/sys/files.h"

namespace meltemi::sandbox {
namespace {

constexpr int kUserLayer = 0;
constexpr int kControllerLayer = 1;
constexpr int kRuntimeLayer = 2;

bool is_manifest(const std::string& name) {
  return !name.starts_with('.') &&
         (name.ends_with(".yaml") || name.ends_with(".yml") || name.ends_with(".json"));
}

}  // namespace

config::ReadOptions runtime_read_options() {
  config::ReadOptions options;
  options.warn_ignored = false;
  return options;
}

Directory::Directory(std::string root, View view)
    : root_(std::move(root)),
      view_(view),
      store_(std::make_unique<config::ObjectStore>()),
      tree_(store_.get(), runtime_read_options()) {}

bool Directory::refresh() {
  std::map<std::string, Stamp> seen;
  bool changed = false;
  trouble_.clear();
  if (view_ != View::kRuntime) changed |= scan(root_, kUserLayer, &seen);
  if (view_ == View::kWanted || view_ == View::kMerged)
    changed |= scan(root_ + "/state/control", kControllerLayer, &seen);
  if (view_ == View::kRuntime || view_ == View::kMerged)
    changed |= scan(root_ + "/state/node", kRuntimeLayer, &seen);
  for (const auto& [path, stamp] : files_) {
    if (seen.contains(path)) continue;
    // Not seen is not gone, where not everything could be looked at.
    struct stat st{};
    if (!trouble_.empty() && (::stat(path.c_str(), &st) == 0 || errno != ENOENT))
      seen.emplace(path, stamp);
    else
      changed |= !tree_.remove(path).changes.empty();
  }
  files_ = std::move(seen);
  return changed;
}

bool Directory::scan(const std::string& directory, int layer, std::map<std::string, Stamp>* seen) {
  bool changed = false;
  std::error_code error, unknown;
  std::filesystem::recursive_directory_iterator it(directory, error), end;
  if (error == std::errc::no_such_file_or_directory) return false;
  for (; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    const bool skipped =
        name.starts_with('.') || (layer == kUserLayer && it.depth() == 0 && name == "state");
    if (skipped && it->is_directory(unknown)) it.disable_recursion_pending();
    if (!skipped && is_manifest(name)) changed |= look_at(it->path(), layer, seen);
  }
  // Also a folder that went while it was come to: the list ends there.
  if (error) note_trouble(fmt::format("list {}: {}", directory, error.message()));
  return changed;
}

void Directory::note_trouble(std::string trouble) {
  if (trouble_.empty()) trouble_ = std::move(trouble);
}

bool Directory::look_at(const std::string& path, int layer, std::map<std::string, Stamp>* seen) {
  struct stat st{};
  if (::stat(path.c_str(), &st) < 0) {
    if (errno != ENOENT) note_trouble(fail_errno(errno, "stat " + path).error().detail);
    return false;
  }
  if (!S_ISREG(st.st_mode)) return false;
  const Stamp stamp{st.st_ino, st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec, st.st_size};
  const auto known = files_.find(path);
  if (known != files_.end() && known->second == stamp) {
    seen->emplace(path, stamp);
    return false;
  }
  const Result<std::string> bytes = sys::read_file(path);
  if (!bytes) {
    // Without its stamp it is read the next time.
    if (bytes.error().reason != Reason::kNotFound) note_trouble(bytes.error().detail);
    return false;
  }
  seen->emplace(path, stamp);
  return !tree_.put(path, *bytes, layer).changes.empty();
}

std::string Directory::file_of(const config::ObjectKey& key) const {
  return std::string(tree_.file_of(key));
}

}  // namespace meltemi::sandbox
