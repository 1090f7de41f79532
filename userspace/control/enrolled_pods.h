// Which pods peers reach by HBONE, by node. It begins with the agents' report of the kernel's truth and
// ends with a decision, never with a report alone: a pod that was reported enrolled stays until its
// agent says that it is not *and* the control plane has decided that it shall not be, or until the pod
// is gone. An agent that lost its state, speaks of a pod no longer, or is mending one makes nobody
// talk plaintext. Kept on disk, so that a control plane that restarts does not either; and where the
// file is there and cannot be read, what was decided counts as done until the agents have spoken.
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
  // Reads `file` if it is there. Damaged: it is kept aside under another name. One that cannot be read now is
  // read before it is written the next time. Both are logged, and make lost() true.
  explicit EnrolledPods(std::string file);
  const std::string& problem() const { return problem_; }  // for people; "" if there is none

  // Whether it is unknown who was enrolled before this start, on this node: pods that are decided to be
  // have to be presumed, as HBONE to one that is not captured fails, and plaintext to one that is leaks.
  bool lost(const std::string& node) const;
  // The uids of the decided pods of a node for which lost() holds; they count until its agent's next
  // report, and beyond it unless that calls them plain.
  void presume(const std::string& node, std::set<std::string> uids);

  // True if the node's pods may count differently now.
  bool set(const std::string& node, ReportedPods report);

  // The uids that count as enrolled on `node`. `wanted`: the control plane's decision about a uid, which
  // is asked only for pods that the agent calls plain; those that are not wanted are forgotten here.
  std::set<std::string> count(const std::string& node,
                              const std::function<bool(const std::string& uid)>& wanted);
  // Nodes with pods that once were enrolled and that their agent calls plain: a change of a decision may
  // end their enrolment without another report.
  std::set<std::string> disputed() const;
  bool knows(const std::string& node) const { return nodes_.contains(node); }
  std::map<std::string, std::set<std::string>> by_node() const;  // without asking for decisions

  // Writes the file if something changed since the last call, or save_again(). Uids that are neither in
  // `alive` nor in the newest report are forgotten. An error is logged here, once until it is over.
  Status save(const std::set<std::string>& alive);
  void save_again() { dirty_ = true; }  // other pods are alive
  bool dirty() const { return dirty_; }

 private:
  struct Node {
    std::set<std::string> enrolled;  // ever, and not left since
    ReportedPods reported;           // the newest report; empty after a restart
    std::set<std::string> presumed;  // only before the first report, and only if the file was lost
    bool spoken = false;             // its agent has reported
  };
  Status load();
  Status write(const std::set<std::string>& alive);
  std::string file_;
  std::map<std::string, Node> nodes_;
  bool dirty_ = false, lost_ = false;
  bool unread_ = false;  // what lies in the file is not known
  std::string problem_;  // with reading
  std::string trouble_;  // why the file was not written, as logged
};

}  // namespace meltemi::control
