// The directory of manifests as a stream of file contents: reads the tree once, then tells what
// changed, by inotify. It must never interpret what it reads, nor write; files that begin with a dot
// and names that are not .yaml, .yml or .json do not exist for it. What could not be read, listed or
// watched (descriptors, rights, a failing disk) is neither gone nor done with: it stays owed, and each
// poll() tries it again.
//
// Layout (layers as in config/tree.h): user's manifests anywhere below the root are layer 0,
// `state/control` is layer 1, `state/node` is layer 2.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
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
  std::string problem;  // not empty: the file cannot be read, and why; told once per reason
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
  // Error: a folder could not be read; what is in the others has been told all the same.
  Status poll(const std::function<void(const FileEvent&)>& tell);
  const std::string& root() const { return root_; }
  // Whether poll() has something to try again without an event; and then what, for people.
  bool owes() const { return rescan_ || !unread_.empty(); }
  // Whether a file or folder may hold something that has not been told.
  bool unread() const { return folder_trouble_.has_value() || !unread_.empty(); }
  std::string trouble() const;

 private:
  struct Known {
    uint64_t content_hash = 0;
    int64_t modified_ns = 0;
    int64_t size = -1;
    uint64_t inode = 0;
    bool seen = false;
    std::string problem;  // as told
  };
  explicit DirectorySource(std::string root);
  using Tell = std::function<void(const FileEvent&)>;
  void scan(const std::string& relative, int depth, const Tell& tell);
  void scan_entry(const std::string& child, const char* name, int depth, const Tell& tell);
  void rescan(const Tell& tell);
  void cannot_list(const std::string& relative, Error why);
  void look_at(const std::string& relative, const Tell& tell);
  void cannot_read(const std::string& relative, const Error& why, const Tell& tell);
  void watch(const std::string& relative);
  bool drain_events(std::map<std::string, bool>* touched);

  std::string root_;
  UniqueFd inotify_;
  std::map<int, std::string> watches_;         // descriptor -> folder, relative
  std::map<std::string, int> watched_;         // folder -> descriptor
  std::map<std::string, Known> files_;         // by relative path
  std::set<std::string> unread_;               // files whose content is owed
  std::optional<Error> folder_trouble_;        // the first of the last scan
  std::string watch_trouble_;                  // likewise; what is not watched is scanned each time
  bool too_many_ = false;
  bool rescan_ = true;
};

// 0, 1 or 2 for a path relative to the root.
int layer_of(std::string_view relative);

}  // namespace meltemi::control
