// A sandbox's config directory as objects: the one place where CLI, supervisor and kubelet read
// YAML from. Re-reads only files that changed. Must never write: writers are in objects_file.h
// (user's manifests), the supervisor and the kubelets (state/node) and meltemid (state/control).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "userspace/config/store.h"
#include "userspace/config/tree.h"

namespace meltemi::sandbox {

// Which files count. As in the control plane, a higher layer wins where several hold one object.
enum class View : uint8_t {
  kUser,     // what users have applied
  kWanted,   // what users and the mesh's controllers ask for
  kRuntime,  // what nodes report: pods with status, services with their assigned addresses
  kMerged,   // everything, runtime over wanted
};

class Directory {
 public:
  Directory(std::string root, View view);

  // Reads what changed since the last call. True if any object did. What cannot be read at the moment stays as
  // it was known, and is read by a later call.
  bool refresh();
  // Why something was not read by the last call; "" if all was.
  const std::string& trouble() const { return trouble_; }

  const config::ObjectStore& store() const { return *store_; }
  config::Problems problems() const { return tree_.problems(); }
  // Absolute path of the file that provides an object, "" if none.
  std::string file_of(const config::ObjectKey& key) const;

 private:
  struct Stamp {
    ino_t inode = 0;
    int64_t modified_ns = 0;
    off_t size = 0;
    bool operator==(const Stamp&) const = default;
  };
  // Files below `directory`, except those below `state` of the user's layer.
  bool scan(const std::string& directory, int layer, std::map<std::string, Stamp>* seen);
  void note_trouble(std::string trouble);
  bool look_at(const std::string& path, int layer, std::map<std::string, Stamp>* seen);

  std::string root_;
  View view_;
  std::unique_ptr<config::ObjectStore>
      store_;  // stays where it is when this moves: the tree points to it
  config::ManifestTree tree_;
  std::map<std::string, Stamp> files_;
  std::string trouble_;
};

// Pod fields that the sandbox refuses were refused when the object was applied; a manifest of the
// runtime is read as it is.
config::ReadOptions runtime_read_options();

}  // namespace meltemi::sandbox
