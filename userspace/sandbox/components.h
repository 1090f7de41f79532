// The mesh's own processes in a sandbox: which ones there are, what they are told, where they run;
// and keeping them running. Nothing in them knows that it is in a sandbox: what is here is what a
// manifest would say.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/sandbox/layout.h"
#include "userspace/sys/process.h"

namespace meltemi::sandbox {

struct ComponentSpec {
  std::string name;  // "meltemid", "meltemi-agent", "ztunnel", "kubelet"
  std::string node;  // "" for the control plane
  std::vector<std::string> argv;
  std::vector<std::string> environment;  // "K=V", besides PATH
  std::string netns;                     // name
  std::string cgroup;
  std::string log;

  std::string title() const { return node.empty() ? name : name + " of " + node; }
};

// `bin_dir` holds the binaries; `self` is the program that also is the kubelet.
ComponentSpec control_plane(const Layout& layout, const std::string& bin_dir);
std::vector<ComponentSpec> node_components(const Layout& layout, int index,
                                           const std::string& bin_dir, const std::string& self);
// The tokens' files of a node's components: name of the service account, path.
struct ComponentToken {
  std::string service_account;
  std::string path;
};
std::vector<ComponentToken> component_tokens(const Layout& layout, std::string_view node);

inline constexpr Duration kFirstComponentDelay = std::chrono::milliseconds(200);
inline constexpr Duration kMaxComponentDelay = std::chrono::seconds(10);
inline constexpr Duration kStableAfter = std::chrono::seconds(30);

// One process that is started again when it ends.
class Component {
 public:
  explicit Component(ComponentSpec spec) : spec_(std::move(spec)) {}

  const ComponentSpec& spec() const { return spec_; }
  Status start();
  // Reaps; true if the process had ended. It is started again by poll() when its delay is over.
  bool reap();
  // Starts it if it is due. Time of the next start, MonoTime::max() while it runs.
  MonoTime poll();

  bool running() const { return process_.valid(); }
  int pidfd() const { return process_.pidfd(); }
  pid_t pid() const { return process_.pid(); }
  int restarts() const { return restarts_; }
  WallTime started() const { return started_; }
  const std::string& last_end() const { return last_end_; }  // "exit code 1", "signal 9", ""

 private:
  ComponentSpec spec_;
  sys::Process process_;
  int restarts_ = 0;
  Duration delay_ = kFirstComponentDelay;
  MonoTime next_ = MonoTime::min();
  MonoTime since_;
  WallTime started_;
  std::string last_end_;
};

}  // namespace meltemi::sandbox
