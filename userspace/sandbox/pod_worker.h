// One pod on its node: network, CNI, containers, probes, restarts, termination, and the status file
// that everybody else reads. One thread a pod: its life is a straight line, and a pod that hangs
// hangs alone. Must never report a pod ready that does not run, nor leave its network behind.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "userspace/sandbox/cni_call.h"
#include "userspace/sandbox/directory.h"
#include "userspace/sandbox/pod_environment.h"

namespace meltemi::sandbox {

// What the pods of one node share. Thread-safe.
class NodeContext {
 public:
  NodeContext(Layout layout, int index, std::string bin_dir, TokenIssuer tokens);

  const Layout layout;
  const int index;
  const std::string node;
  const std::string bin_dir;
  const TokenIssuer tokens;
  const CniPlugin cni;

  // 0 if all are taken.
  int take_host();
  void release_host(int host);
  // ConfigMaps, Secrets and ServiceAccounts as they are now, for the duration of `use`.
  template <typename F>
  auto with_objects(F&& use) {
    const std::lock_guard lock(mutex_);
    objects_.refresh();
    return use(objects_.store());
  }

 private:
  std::mutex mutex_;
  std::set<int> hosts_;
  Directory objects_;
};

// As kubelet's, shortened: a sandbox is for trying things out.
inline constexpr Duration kFirstRestartDelay = std::chrono::seconds(1);
inline constexpr Duration kMaxRestartDelay = std::chrono::seconds(30);
inline constexpr Duration kRestartDelayReset = std::chrono::minutes(2);
inline constexpr Duration kCniDeadline = std::chrono::seconds(30);

class PodWorker {
 public:
  PodWorker(NodeContext* node, config::Object pod);
  ~PodWorker();  // waits for the thread

  void update(config::Object pod);  // new labels, or a deletionTimestamp
  // The pod is gone, with its files: the worker can be destroyed.
  bool gone() const { return gone_; }

 private:
  class Life;
  std::unique_ptr<Life> life_;
  std::atomic<bool> gone_ = false;
  std::thread thread_;
};

// Kills what is in a cgroup and removes it with all below.
void clear_cgroup(const std::string& path);

// Where a container's output goes: one file for each start.
std::string container_log(const Layout& layout, std::string_view node, std::string_view uid,
                          std::string_view container, int restart);
// For `stdin: true`: whoever attaches writes to the FIFO, then creates "<fifo>.attached".
std::string container_stdin(const Layout& layout, std::string_view node, std::string_view uid,
                            std::string_view container);
std::string container_cgroup(const Layout& layout, std::string_view node, std::string_view uid,
                             std::string_view container);
std::string pod_state_file(const Layout& layout, std::string_view ns, std::string_view name);

}  // namespace meltemi::sandbox
