// The kernel's truth as the agents report it: which pods are enrolled, by node. Kept on disk, so that a
// control plane that restarts does not call enrolled pods plaintext until their agents have spoken again.
#pragma once

#include <map>
#include <set>
#include <string>

#include "userspace/base/error.h"

namespace meltemi::control {

class EnrolledPods {
 public:
  // Reads `file` if it is there; what cannot be read counts as nothing (and is logged).
  explicit EnrolledPods(std::string file);

  // True if it differs from what was known.
  bool set(const std::string& node, std::set<std::string> pod_uids);
  const std::map<std::string, std::set<std::string>>& by_node() const { return by_node_; }

  // Writes the file if something changed since the last call, or save_again(). Uids that are not in `alive` are left out.
  Status save(const std::set<std::string>& alive);
  void save_again() { dirty_ = true; }  // other pods are alive
  bool dirty() const { return dirty_; }

 private:
  std::string file_;
  std::map<std::string, std::set<std::string>> by_node_;
  bool dirty_ = false;
};

}  // namespace meltemi::control
