// The pods of this node: what the control plane wants of them (PodEnrolment), what CNI told (a
// netns), and what the kernel says. Brings the three together, one pod at a time, and never lets
// one pod's trouble reach another. Lives on the loop's thread.
//
// A pod's decision that vanishes from xDS changes nothing while its namespace lives: a control
// plane that forgets must not un-mesh a node. CNI DEL, a decision "do not enrol", or the end of the
// namespace does. What cannot be read at a moment (no descriptors, no memory) is not taken for what is not
// there: nothing is concluded from it, it is said once, and looked at again.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "meltemi/local/v1/agent.pb.h"
#include "meltemi/node/v1/node.pb.h"
#include "userspace/agent/capture.h"
#include "userspace/agent/local_server.h"
#include "userspace/agent/loop.h"
#include "userspace/agent/pod_record.h"
#include "userspace/agent/zds_server.h"
#include "userspace/base/error.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/process.h"

namespace meltemi::agent {

struct NodeOptions {
  std::string name;
  std::string state_file;  // run-dir/enrolments.json
  std::string prober_cgroup;  // the kubelet's; empty: looked for
  Duration reconcile_interval = std::chrono::seconds(5);
  Duration drain_timeout = std::chrono::seconds(60);  // un-enrolment waits this long for its flows
  Duration add_timeout = std::chrono::seconds(20);    // CNI ADD without a deadline of its own
};

class Node {
 public:
  // Called whenever the report differs from the last one.
  using ReportSink = std::function<void(const meltemi::node::v1::NodeReport&)>;

  Node(Loop& loop, Capture& capture, BpfStore& bpf, sys::Cgroup cgroup, uint64_t node_netns_inode,
       NodeOptions options, ReportSink report);
  ~Node();

  // Before anything is served: takes over what the last agent left, from its file and the kernel.
  // False: the kernel captures pods that are not known here (the file was lost, or their namespaces
  // cannot be opened now). A ztunnel told of the others only would drop them, so tell it nothing before
  // the control plane has spoken. Error kSystem: the file or the node's processes cannot be read now;
  // nothing was done, and what is known without them must not be put in their place: try again.
  Result<bool> restore();
  // Opens ZDS and starts the reconciler.
  Status serve_ztunnel(const std::string& zds_path);
  void start_reconciling();

  // From xDS. `saved`: from the disk of this node, so what restore() knows of a pod is not older.
  void apply(std::vector<meltemi::node::v1::PodEnrolment> changed,
             const std::vector<std::string>& removed, bool saved);
  // From the agent's socket.
  void handle(meltemi::local::v1::Request request, LocalServer::Reply reply);

  struct Numbers {
    size_t pods = 0, wanted = 0, enrolled = 0, draining = 0, guarded = 0;
    bool ztunnel_connected = false, ztunnel_synced = false, prober_known = false;
    uint64_t ztunnels_refused = 0;  // ever
  };
  Numbers numbers() const;

 private:
  struct Waiter {
    LocalServer::Reply reply;
    MonoTime deadline;
  };
  // kEnrolled: it was seen whole in the kernel once, and nobody has decided since that it shall leave.
  // What breaks meanwhile is mended; peers keep to HBONE.
  enum class Phase { kPlain, kEnrolled, kDraining };
  struct Pod {
    PodRecord record;
    Phase phase = Phase::kPlain;
    std::optional<CapturedPod> captured;  // its namespace, once known
    std::optional<CaptureSpec> applied;   // what it was last enrolled as
    std::vector<std::string> missing;
    std::string message;        // why enrolment failed, with the fix
    std::string ztunnel_error;  // why ztunnel does not serve it; it tries again
    bool hopeless = false;      // trying again will not help until something changes
    PodUse use;                 // as last read, to tell what is new
    MonoTime drain_deadline;
    std::vector<Waiter> waiters;
  };
  using PodMap = std::map<std::string, Pod>;  // by uid, or "namespace/name" until the uid is known

  Pod* find(const std::string& uid, const std::string& ns, const std::string& name);
  Pod& find_or_add(const std::string& uid, const std::string& ns, const std::string& name);

  void converge(Pod& pod);
  Status ensure_namespace(Pod& pod);
  Result<CapturedPod> open_namespace(PodRecord& record);
  void enrol(Pod& pod);
  void unenrol(Pod& pod);
  void finish_drain(Pod& pod);
  // Kernel truth now. For the reader alone: what is known and reported of the pod stays as it is.
  Result<std::vector<std::string>> look(const Pod& pod) const;
  bool read_back(Pod& pod);  // false: the kernel cannot be asked now, and what was known of it stays
  void namespace_gone(Pod& pod);
  bool namespace_ended(const Pod& pod);  // for certain
  static Result<bool> names_namespace(const Pod& pod, const std::string& path);
  void fail_pod(Pod& pod, const Error& error);
  void answer_waiters(Pod& pod);
  void retry_waiting(const std::string& key);

  void reconcile();
  // Of the current pass, read when first asked for; nullptr: they cannot be read now.
  const std::vector<sys::ProcessInfo>* processes();
  void cannot_tell(std::string_view what, const Error& why);
  size_t collect_garbage();  // how many living pins no pod owns
  void find_prober();
  void set_prober(uint64_t cgroup_id);  // 0: nobody
  void ztunnel_connected(pid_t pid);
  void forget_ended_ztunnels();
  void say_use(Pod& pod);  // logs what the guard dropped and the probe exemption let through
  void say_refusals();
  std::vector<std::string> problems() const;
  static std::string guard_text(const Pod& pod);
  void schedule_drain_check();
  void changed();  // saves and reports, soon
  void save();
  void report();

  void on_add(const meltemi::local::v1::AddPod& add, LocalServer::Reply reply);
  void on_del(const meltemi::local::v1::DelPod& del, const LocalServer::Reply& reply);
  void on_check(const meltemi::local::v1::CheckPod& check, const LocalServer::Reply& reply);
  void on_list(const LocalServer::Reply& reply);
  std::string message_of(const Pod& pod) const;
  meltemi::local::v1::Pod describe(const Pod& pod, const std::vector<std::string>& missing) const;

  std::vector<std::string> zds_pods() const;
  std::optional<ZdsPod> zds_describe(const std::string& uid);
  void listeners_returned(const std::string& uid, Listeners listeners);
  void ztunnel_answered(const std::string& uid, const Status& status);

  Loop& loop_;
  Capture& capture_;
  BpfStore& bpf_;
  sys::Cgroup cgroup_;
  std::string cgroup_path_;  // within cgroup2
  uint64_t node_netns_inode_;
  NodeOptions options_;
  ReportSink report_sink_;
  ZdsServer zds_;
  PodMap pods_;
  std::optional<Result<std::vector<sys::ProcessInfo>>> processes_;  // of the current pass
  std::string last_report_, last_saved_;
  bool hooks_attached_ = true;  // start-up fails otherwise; looked at again on every pass
  std::string prober_problem_ = "the kubelet has not been looked for yet";
  std::string ztunnel_problem_;
  pid_t ztunnel_pid_ = 0;      // the newest one whose cgroup could not be read, while it is connected
  std::string state_problem_;  // what was wrong with the state file at the start
  std::string unclear_;        // what could not be read of late, and why
  bool clear_pass_ = true;     // everything could be read in this pass
  std::array<uint64_t, MELTEMI_COUNTERS> counted_{};  // as last logged
  bool counted_before_ = false;
  bool save_pending_ = false;
  bool drain_check_pending_ = false;
};

}  // namespace meltemi::agent
