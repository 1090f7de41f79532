// See generated_files.h.
#include "userspace/control/generated_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <filesystem>

#include "userspace/base/fd.h"
#include "userspace/base/log.h"
#include "userspace/sys/files.h"

namespace meltemi::control {
namespace {

log::Scope scope("generated");

constexpr uint32_t kDirectoryMode = 0755, kFileMode = 0644;

// Atomic for readers, but not synced to the disk: after a crash everything is made again from what it
// was made from, and hundreds of statuses must not hold up the loop for a disk.
Status replace_file(const std::string& path, const std::string& content) {
  return sys::write_file_atomically(path, content, kFileMode, sys::Durability::kCached);
}

}  // namespace

std::string file_name_of(const config::ObjectKey& key) {
  std::string kind(config::kind_info(key.kind).name);
  std::ranges::transform(kind, kind.begin(), [](unsigned char c) { return std::tolower(c); });
  return fmt::format("{}.{}.{}.yaml", kind, key.ns, key.name);
}

Result<GeneratedFiles> GeneratedFiles::open(std::string directory) {
  MELTEMI_TRY(sys::make_directories(directory, kDirectoryMode));
  GeneratedFiles out(std::move(directory));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(out.directory_, error)) {
    const std::string name = entry.path().filename();
    if (name.starts_with('.') || !name.ends_with(".yaml")) continue;
    auto content = sys::read_file(entry.path());
    out.left_over_[name] = content ? std::move(*content) : std::string();
  }
  if (error) return fail_errno(error.value(), out.directory_);
  return out;
}

void GeneratedFiles::write(const std::string& file, const std::string& content) {
  const Status written = replace_file(directory_ + "/" + file, content);
  if (written) {
    failed_.erase(file);
  } else if (failed_.insert(file).second) {
    scope.error("{}/{}: {}", directory_, file, written.error().to_string());
  }
}

void GeneratedFiles::unlink(const std::string& file) {
  const std::string path = directory_ + "/" + file;
  if (::unlink(path.c_str()) == 0 || errno == ENOENT) {
    undeleted_.erase(file);
  } else if (const int why = errno; undeleted_.insert(file).second) {
    scope.error("{}", fail_errno(why, "remove " + path).error().to_string());
  }
}

bool GeneratedFiles::put(const std::string& file, std::string content) {
  const auto known = wanted_.find(file);
  if (known != wanted_.end() && known->second == content) return false;
  const auto old = left_over_.find(file);
  const bool same = old != left_over_.end() && old->second == content;
  if (old != left_over_.end()) left_over_.erase(old);
  undeleted_.erase(file);
  if (!same) write(file, content);
  wanted_[file] = std::move(content);
  return true;
}

bool GeneratedFiles::erase(const std::string& file) {
  if (wanted_.erase(file) == 0) return false;
  failed_.erase(file);
  unlink(file);
  return true;
}

void GeneratedFiles::sweep() {
  for (const auto& [file, content] : left_over_) {
    scope.info("{}/{} is not wanted any more", directory_, file);
    unlink(file);
  }
  left_over_.clear();
}

bool GeneratedFiles::retry() {
  for (const std::string& file : std::set<std::string>(failed_)) write(file, wanted_.at(file));
  for (const std::string& file : std::set<std::string>(undeleted_)) unlink(file);
  return !owes();
}

const std::string* GeneratedFiles::find(const std::string& file) const {
  const auto it = wanted_.find(file);
  return it == wanted_.end() ? nullptr : &it->second;
}

std::string GeneratedFiles::left_over(const std::string& file) const {
  const auto it = left_over_.find(file);
  return it == left_over_.end() ? std::string() : it->second;
}

}  // namespace meltemi::control
