// The directory of manifests as a stream of file contents: reads the tree once, then tells what
// changed, by inotify. It must never interpret what it reads, nor write; files that begin with a dot
// and names that are not .yaml, .yml or .json do not exist for it.
//
// Layout (layers as in config/tree.h): user's manifests anywhere below the root are layer 0,
// `state/control` is layer 1, `state/node` is layer 2.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::control {

inline constexpr size_t kMaxManifestBytes = 8u << 20;   // of one file; a larger one is reported
inline constexpr size_t kMaxManifestFiles = 200'000;    // below the root
inline constexpr int kMaxManifestDepth = 16;            // folders below folders

struct FileEvent {
  std::string path;     // relative to the root
  int layer = 0;
  bool removed = false;
  std::string bytes;    // content; empty if removed or unreadable
  std::string problem;  // not empty: the file is there and cannot be read, and why
};

class DirectorySource {
 public:
  // The root must exist. Error: kNotFound or kSystem, naming it.
  static Result<std::unique_ptr<DirectorySource>> open(std::string root);
  ~DirectorySource();
  DirectorySource(const DirectorySource&) = delete;
  DirectorySource& operator=(const DirectorySource&) = delete;

  // Becomes readable when something happened; for poll(2).
  int fd() const;
  // Reads what is new since the last call (the first: everything) and hands each changed file over,
  // in path order. A file whose content is as before is not told. An overflow of the kernel's queue
  // or a new folder makes it look at the whole tree again, so nothing is ever missed for good.
  Status poll(const std::function<void(const FileEvent&)>& tell);
  const std::string& root() const { return root_; }

 private:
  struct Known {
    uint64_t content_hash = 0;
    int64_t modified_ns = 0;
    int64_t size = -1;
    uint64_t inode = 0;
    bool seen = false;
  };
  explicit DirectorySource(std::string root);
  Status scan(const std::string& relative, int depth,
              const std::function<void(const FileEvent&)>& tell);
  void look_at(const std::string& relative, const std::function<void(const FileEvent&)>& tell);
  void watch(const std::string& relative);
  bool drain_events(std::map<std::string, bool>* touched);

  std::string root_;
  UniqueFd inotify_;
  std::map<int, std::string> watches_;         // descriptor -> folder, relative
  std::map<std::string, int> watched_;         // folder -> descriptor
  std::map<std::string, Known> files_;         // by relative path
  bool rescan_ = true;
};

// 0, 1 or 2 for a path relative to the root.
int layer_of(std::string_view relative);

}  // namespace meltemi::control
