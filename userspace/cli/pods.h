// Pods as the command line sees them: their manifest and status, and what the node's agent has read
// back from the kernel about them.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "meltemi/local/v1/agent.pb.h"
#include "userspace/cli/context.h"

namespace meltemi::cli {

// What the agent of each node says. A node whose agent does not answer is left out; why goes to
// `complaints`.
std::map<std::string, local::v1::Response> agents_say(const Context& context,
                                                      std::vector<std::string>* complaints);
// What all agents of the sandbox say, by pod uid. A node whose agent does not answer is left out;
// why goes to `complaints`.
std::map<std::string, local::v1::Pod> kernel_truth(const Context& context,
                                                   std::vector<std::string>* complaints);

struct PodView {
  config::ObjectPtr pod;
  std::string node, uid, netns;
  std::vector<pid_t> pids;
  std::optional<local::v1::Pod> truth;  // nullopt: no agent knows it

  std::string status() const;  // "Running", "CrashLoopBackOff", "Terminating", ...
  std::string ready() const;   // "1/1"
  int restarts() const;
  std::string enrolled() const;  // "yes", "no", "pending", "unknown"
  std::string reason() const;    // of the decision, and what is missing
  std::string guard() const;     // "on", "on, 3 dropped", "off", why it cannot be; "" if not enrolled
};
PodView view_pod(const Context& context, const config::ObjectPtr& pod,
                 const std::map<std::string, local::v1::Pod>& truth);

// The waypoint that serves an object by label, its own or its namespace's; "" if none is named.
std::string waypoint_of(const config::ObjectStore& store, const config::Object& object);

// A running pod by "NAME", "pod/NAME", "deploy/NAME", "svc/NAME" or "job/NAME". Error names what is
// missing.
Result<config::ObjectPtr> find_pod(const Context& context, const config::ObjectStore& store,
                                   const std::string& word);
// The container to act on: the named one, else the first. Error names those that there are.
Result<std::string> choose_container(const config::Object& pod, const std::string& wanted);
// Its main process; error if it does not run.
Result<pid_t> container_pid(const config::Object& pod, const std::string& container);

}  // namespace meltemi::cli
