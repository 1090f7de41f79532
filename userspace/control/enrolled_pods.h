// Which pods peers reach by HBONE, by node. It begins with the agents' report of the kernel's truth and
// ends with a decision, never with a report alone: a pod that was reported enrolled stays until its
// agent says that it is not *and* the control plane has decided that it shall not be, or until the pod
// is gone. An agent that lost its state, speaks of a pod no longer, or is mending one makes nobody
// talk plaintext. Kept on disk, so that a control plane that restarts does not either.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "userspace/base/error.h"

namespace meltemi::control {

// What one report of a node's agent says. Pods in neither set are not spoken of.
struct ReportedPods {
  std::set<std::string> enrolled;
  std::set<std::string> plain;
};

class EnrolledPods {
 public:
  // Reads `file` if it is there; what cannot be read counts as nothing (and is logged).
  explicit EnrolledPods(std::string file);

  // True if the node's pods may count differently now.
  bool set(const std::string& node, ReportedPods report);

  // The uids that count as enrolled on `node`. `wanted`: the control plane's decision about a uid, which
  // is asked only for pods that the agent calls plain; those that are not wanted are forgotten here.
  std::set<std::string> count(const std::string& node,
                              const std::function<bool(const std::string& uid)>& wanted);
  // Nodes with pods that once were enrolled and that their agent calls plain: a change of a decision may
  // end their enrolment without another report.
  std::set<std::string> disputed() const;
  std::set<std::string> nodes() const;
  std::map<std::string, std::set<std::string>> by_node() const;  // without asking for decisions

  // Writes the file if something changed since the last call, or save_again(). Uids that are neither in
  // `alive` nor in the newest report are forgotten.
  Status save(const std::set<std::string>& alive);
  void save_again() { dirty_ = true; }  // other pods are alive
  bool dirty() const { return dirty_; }

 private:
  struct Node {
    std::set<std::string> enrolled;  // ever, and not left since
    ReportedPods reported;           // the newest report; empty after a restart
  };
  std::string file_;
  std::map<std::string, Node> nodes_;
  bool dirty_ = false;
};

}  // namespace meltemi::control
