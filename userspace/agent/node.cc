// Bringing wish, namespace and kernel together; see node.h.
#include "userspace/agent/node.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>
#include <utility>

#include "userspace/agent/locate.h"
#include "userspace/agent/prober.h"
#include "userspace/base/log.h"
#include "userspace/sys/files.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("agent");

namespace local = meltemi::local::v1;
namespace wire = meltemi::node::v1;

constexpr std::string_view kGuardAnnotation = "meltemi.io/egress-guard";
constexpr Duration kDrainCheck = std::chrono::milliseconds(250);
constexpr Duration kSaveDelay = std::chrono::milliseconds(20);
constexpr Duration kRetry = std::chrono::milliseconds(500);  // while somebody waits for a pod
constexpr Duration kMaxAddTimeout = std::chrono::minutes(5);

std::string key_of(const std::string& uid, const std::string& ns, const std::string& name) {
  return uid.empty() ? ns + "/" + name : uid;
}

local::Response error_response(std::string text) {
  local::Response r;
  r.set_error(std::move(text));
  return r;
}

std::string join(const std::vector<std::string>& words) {
  return fmt::format("{}", fmt::join(words, ", "));
}

}  // namespace

Node::Node(Loop& loop, Capture& capture, BpfStore& bpf, sys::Cgroup cgroup,
           uint64_t node_netns_inode, NodeOptions options, ReportSink report)
    : loop_(loop),
      capture_(capture),
      bpf_(bpf),
      cgroup_(std::move(cgroup)),
      node_netns_inode_(node_netns_inode),
      options_(std::move(options)),
      report_sink_(std::move(report)),
      zds_(loop, {.pods = [this] { return zds_pods(); },
                  .describe = [this](const std::string& uid) { return zds_describe(uid); },
                  .returned = [this](const std::string& uid,
                                     Listeners l) { listeners_returned(uid, std::move(l)); },
                  .added = [this](const std::string& uid,
                                  const Status& status) { ztunnel_answered(uid, status); },
                  .connection_changed = [this](bool) { changed(); },
                  .peer_connected = [this](pid_t pid) { ztunnel_connected(pid); }}) {
  const Result<std::string> mount = sys::cgroup2_mount();
  cgroup_path_ =
      mount && cgroup_.path().size() > mount->size() ? cgroup_.path().substr(mount->size()) : "/";
}

Node::~Node() = default;

// --- finding pods --------------------------------------------------------------------------------

Node::Pod* Node::find(const std::string& uid, const std::string& ns, const std::string& name) {
  if (!uid.empty())
    if (const auto found = pods_.find(uid); found != pods_.end()) return &found->second;
  if (name.empty()) return nullptr;
  Pod* match = nullptr;
  for (auto& [key, pod] : pods_) {
    if (pod.record.namespace_name != ns || pod.record.name != name) continue;
    // Two pods of one name: the older is on its way out, and has a namespace already.
    if (!uid.empty() && !pod.record.uid.empty()) continue;
    if (match == nullptr || match->captured) match = &pod;
  }
  return match;
}

Node::Pod& Node::find_or_add(const std::string& uid, const std::string& ns,
                             const std::string& name) {
  if (Pod* pod = find(uid, ns, name)) {
    if (!uid.empty() && pod->record.uid.empty()) {
      // CNI came first and did not know the uid.
      auto node = pods_.extract(key_of("", pod->record.namespace_name, pod->record.name));
      node.key() = uid;
      node.mapped().record.uid = uid;
      return pods_.insert(std::move(node)).position->second;
    }
    return *pod;
  }
  Pod& pod = pods_[key_of(uid, ns, name)];
  pod.record.uid = uid;
  pod.record.namespace_name = ns;
  pod.record.name = name;
  return pod;
}

// --- one pod -------------------------------------------------------------------------------------

void Node::fail_pod(Pod& pod, const Error& error) {
  if (pod.message != error.detail) {
    if (error.reason == Reason::kNotFound)
      scope.info("pod {}: {}", pod.record.label(), error.detail);
    else
      scope.warn("pod {}: {}", pod.record.label(), error.to_string());
  }
  pod.message = error.detail;
  pod.hopeless = error.reason == Reason::kPermission || error.reason == Reason::kBadConfig;
}

// Opens the pod's namespace. On an error the message is set; kSystem: it may be there, and cannot be opened
// now.
Status Node::ensure_namespace(Pod& pod) {
  if (pod.captured) return {};
  PodRecord& r = pod.record;
  Result<CapturedPod> opened = open_namespace(r);
  // The process by which it was found may have ended before others of the pod.
  if (!opened && opened.error().reason == Reason::kNotFound && r.netns_path.starts_with("/proc/")) {
    r.netns_path.clear();
    opened = open_namespace(r);
  }
  if (!opened) {
    if (opened.error().reason == Reason::kNotFound && pod.phase != Phase::kPlain) namespace_gone(pod);
    fail_pod(pod, opened.error());
    return fail(opened.error());
  }
  if (r.cookie != 0 && r.cookie != opened->cookie) {
    // The path names another namespace than last time: the old one is gone.
    (void)capture_.forget(r.cookie, r.probed_addresses, r.probed_ports);
    pod.phase = Phase::kPlain;
    pod.applied.reset();
    r.saved_sysctls.clear();
    r.probed_addresses.clear();
    r.probed_ports.clear();
  }
  r.cookie = opened->cookie;
  opened->saved_sysctls = r.saved_sysctls;
  opened->probed_addresses = r.probed_addresses;
  opened->probed_ports = r.probed_ports;
  pod.captured = std::move(*opened);
  return {};
}

Result<CapturedPod> Node::open_namespace(PodRecord& r) {
  if (r.netns_path.empty()) {
    const auto* all = processes();
    if (all == nullptr) return fail(processes_->error());
    const auto found = MELTEMI_TRY(locate_netns(*all, r.uid, node_netns_inode_));
    if (!found)
      return fail(Reason::kNotFound, Fault::kConfig,
                  "its network namespace is not known yet: no CNI ADD, and none of its processes runs");
    r.netns_path = *found;
  }
  return capture_.open(r.netns_path, MELTEMI_TRY(spec_of(r)).addresses);
}

void Node::converge(Pod& pod) {
  if (pod.record.wanted()) {
    if (ensure_namespace(pod)) enrol(pod);
  } else if (pod.phase == Phase::kEnrolled) {
    if (ensure_namespace(pod)) unenrol(pod);
  } else if (pod.phase == Phase::kDraining) {
    finish_drain(pod);
  } else {
    pod.message.clear();
    pod.missing.clear();
  }
  if (pod.captured) {
    pod.record.saved_sysctls = pod.captured->saved_sysctls;
    pod.record.probed_addresses = pod.captured->probed_addresses;
    pod.record.probed_ports = pod.captured->probed_ports;
  }
  answer_waiters(pod);
}

void Node::enrol(Pod& pod) {
  const Result<CaptureSpec> spec = spec_of(pod.record);
  if (!spec) return fail_pod(pod, spec.error());
  if (pod.phase == Phase::kEnrolled && pod.applied == *spec &&
      capture_.addresses_current(*pod.captured, *spec)) {
    if (!read_back(pod)) return;
    if (pod.missing.empty() && !pod.captured->guard_retry) return;
    if (!pod.missing.empty())
      scope.warn("pod {} lost {}; mending it", pod.record.label(), join(pod.missing));
  }
  // A pod that is plain yet stays so: captured, its connections would wait for a ztunnel that takes
  // them. One that is captured stays captured: it is never downgraded.
  if (const std::string refusal = zds_.refusal();
      !refusal.empty() && pod.phase == Phase::kPlain &&
      !capture_.any_trace(*pod.captured).value_or(true))
    return fail_pod(pod, {Reason::kUnsupported, Fault::kConfig, Retry::kSafe, refusal});
  const Status status = capture_.enrol(*pod.captured, *spec);
  if (!status) {
    fail_pod(pod, status.error());
    read_back(pod);
    return;
  }
  pod.hopeless = false;
  pod.applied = *spec;
  if (!read_back(pod) || !pod.missing.empty()) return;
  if (pod.phase != Phase::kEnrolled)
    scope.info("pod {} is enrolled ({})", pod.record.label(), pod.record.decision->reason());
  pod.phase = Phase::kEnrolled;
  // Also after mending: listeners may be new ones.
  zds_.add(pod.record.uid);
}

Result<std::vector<std::string>> Node::look(const Pod& pod) const {
  Result<std::vector<std::string>> missing = capture_.missing(*pod.captured);
  if (!missing) return missing;
  // Without the node's hooks nothing marks this pod's connections, whatever its own state is.
  if (!hooks_attached_ && std::find(missing->begin(), missing->end(), "link") == missing->end())
    missing->emplace_back("link");
  return missing;
}

bool Node::read_back(Pod& pod) {
  Result<std::vector<std::string>> missing = look(pod);
  if (!missing) {
    cannot_tell("what the kernel has of pod " + pod.record.label(), missing.error());
    return false;
  }
  pod.missing = std::move(*missing);
  if (pod.missing.empty()) pod.message.clear();
  return true;
}

void Node::unenrol(Pod& pod) {
  const Status status = capture_.begin_drain(*pod.captured);
  if (!status) return fail_pod(pod, status.error());
  pod.phase = Phase::kDraining;
  pod.drain_deadline = MonoClock::now() + options_.drain_timeout;
  pod.message = "leaving the mesh; waits for its captured connections to end";
  scope.info("pod {} leaves the mesh ({})", pod.record.label(),
             pod.record.decision ? pod.record.decision->reason() : "no decision");
  finish_drain(pod);
}

void Node::finish_drain(Pod& pod) {
  const Result<bool> drained = capture_.drained(*pod.captured);
  if (!drained) return fail_pod(pod, drained.error());
  if (!*drained && MonoClock::now() < pod.drain_deadline) return schedule_drain_check();
  if (!pod.record.uid.empty()) zds_.remove(pod.record.uid);
  const Status status = capture_.finish(*pod.captured);
  if (!status) return fail_pod(pod, status.error());
  pod.phase = Phase::kPlain;
  pod.message.clear();
  pod.missing.clear();
  scope.info("pod {} is out of the mesh", pod.record.label());
}

// REQUIRES: pod.captured.
Result<bool> Node::names_namespace(const Pod& pod, const std::string& path) {
  struct stat st{};
  if (::stat(path.c_str(), &st) == 0)
    return st.st_dev == pod.captured->id.device && st.st_ino == pod.captured->id.inode;
  switch (errno) {
    case ENOENT:
    case ENOTDIR:
    case ESRCH:
    case EACCES:  // /proc/PID of a pod is never closed to the agent: the number is another process's
    case EPERM:
      return false;
    default:
      return fail_errno(errno, "look at " + path);
  }
}

// Nothing may use the namespace any more: neither its name leads there, nor is a process in it.
bool Node::namespace_ended(const Pod& pod) {
  const Result<bool> named = names_namespace(pod, pod.record.netns_path);
  if (!named) cannot_tell("whether the namespace of pod " + pod.record.label() + " lives", named.error());
  if (!named || *named) return false;
  const auto* all = processes();
  return all != nullptr && std::ranges::none_of(*all, [&](const sys::ProcessInfo& p) {
    return p.netns_inode == pod.captured->id.inode;
  });
}

const std::vector<sys::ProcessInfo>* Node::processes() {
  if (!processes_) {
    processes_ = sys::list_processes();
    if (!*processes_) cannot_tell("which processes run", processes_->error());
  }
  return *processes_ ? &**processes_ : nullptr;
}

// Once for a time of trouble: where one thing cannot be read, others cannot either.
void Node::cannot_tell(std::string_view what, const Error& why) {
  clear_pass_ = false;
  if (!unclear_.empty()) return;
  unclear_ = fmt::format("{} cannot be told now ({}); what was known stays in force", what, why.detail);
  scope.error("{}", unclear_);
}

void Node::namespace_gone(Pod& pod) {
  scope.info("the namespace of pod {} is gone", pod.record.label());
  if (!pod.record.uid.empty() && pod.phase != Phase::kPlain) zds_.remove(pod.record.uid);
  const Status status =
      capture_.forget(pod.record.cookie, pod.record.probed_addresses, pod.record.probed_ports);
  if (!status) scope.warn("pod {}: {}", pod.record.label(), status.error().to_string());
  pod.captured.reset();
  pod.applied.reset();
  pod.phase = Phase::kPlain;
  pod.missing.clear();
  pod.record.netns_path.clear();
  pod.record.cni_addresses.clear();
  pod.record.cookie = 0;
  pod.record.saved_sysctls.clear();
  pod.record.probed_addresses.clear();
  pod.record.probed_ports.clear();
}

// CNI ADD is answered when the decision is there and, if it is yes, the kernel has everything.
void Node::answer_waiters(Pod& pod) {
  if (pod.waiters.empty()) return;
  const bool decided = pod.record.decision.has_value();
  const bool done = decided && (!pod.record.wanted() || pod.phase == Phase::kEnrolled);
  const MonoTime now = MonoClock::now();
  // What is told as done must survive a kill -9 of this process at the next instant.
  if (done) save();
  std::vector<Waiter> keep;
  for (Waiter& w : pod.waiters) {
    if (done && pod.missing.empty()) {
      local::Response response;
      *response.add_pods() = describe(pod, pod.missing);
      w.reply(std::move(response));
    } else if (pod.hopeless || now >= w.deadline) {
      w.reply(error_response(
          decided ? fmt::format("pod {} cannot be enrolled: {}", pod.record.label(),
                                pod.message.empty() ? "missing " + join(pod.missing) : pod.message)
                  : fmt::format("pod {}: the control plane has not decided about it in time; is "
                                "meltemid reachable, and does the pod carry spec.nodeName {}?",
                                pod.record.label(), options_.name)));
    } else {
      keep.push_back(std::move(w));
    }
  }
  pod.waiters = std::move(keep);
}

// --- life of the agent ---------------------------------------------------------------------------

Result<bool> Node::restore() {
  processes_.reset();
  if (processes() == nullptr) return fail(processes_->error());
  KeptRecords kept = MELTEMI_TRY(read_records(options_.state_file));
  state_problem_ = std::move(kept.problem);
  if (!state_problem_.empty()) scope.error("{}", state_problem_);
  find_prober();
  size_t unknown = 0;
  for (PodRecord& record : kept.records) {
    Pod& pod = pods_[key_of(record.uid, record.namespace_name, record.name)];
    pod.record = std::move(record);
    if (pod.record.netns_path.empty()) continue;
    // What the kernel captures was enrolled, and stays so while it is mended, or cannot be asked; an
    // un-enrolment that was cut short goes on.
    const auto enrolled = bpf_.enrolled(pod.record.cookie);
    const bool captured = pod.record.cookie != 0 && (!enrolled || enrolled->has_value());
    if (const Status opened = ensure_namespace(pod); !opened) {
      if (captured && opened.error().reason == Reason::kSystem) {
        pod.phase = Phase::kEnrolled;
        ++unknown;
      }
      continue;
    }
    if (pod.record.wanted() ? captured : capture_.any_trace(*pod.captured).value_or(true))
      pod.phase = Phase::kEnrolled;
    converge(pod);
  }
  processes_.reset();
  unknown += collect_garbage();
  if (unknown > 0)
    scope.warn("{} captured pods are not in {}, or cannot be opened", unknown, options_.state_file);
  changed();
  return unknown == 0;
}

Status Node::serve_ztunnel(const std::string& path) {
  return zds_.listen(path);
}

void Node::start_reconciling() {
  loop_.after(options_.reconcile_interval, [this] {
    reconcile();
    start_reconciling();
  });
}

void Node::reconcile() {
  // By its path: the cgroup may have been removed and made again.
  if (Result<sys::Cgroup> now = sys::Cgroup::open(cgroup_.path())) cgroup_ = std::move(*now);
  clear_pass_ = true;
  const Result<bool> attached = bpf_.attached(cgroup_);
  if (attached)
    hooks_attached_ = *attached;
  else
    cannot_tell("whether the node's hooks are attached", attached.error());
  if (attached && !hooks_attached_) {
    scope.warn("the node's cgroup hooks are not attached; attaching them");
    const Status status = bpf_.attach(cgroup_);
    hooks_attached_ = status.has_value();
    if (!status) scope.error("{}", status.error().to_string());
  }
  processes_.reset();
  find_prober();
  if (ztunnel_pid_ != 0) ztunnel_connected(ztunnel_pid_);
  forget_ended_ztunnels();
  std::vector<std::string> gone;
  for (auto& [key, pod] : pods_) {
    if (pod.captured && namespace_ended(pod)) {
      namespace_gone(pod);
      if (!pod.record.decision) gone.push_back(key);
      continue;
    }
    converge(pod);
    if (pod.captured && pod.phase == Phase::kEnrolled) say_use(pod);
  }
  say_refusals();
  for (const std::string& key : gone) pods_.erase(key);
  processes_.reset();
  collect_garbage();
  if (clear_pass_ && !unclear_.empty()) {
    scope.info("everything can be read again");
    unclear_.clear();
  }
  changed();
}

// --- who is who ----------------------------------------------------------------------------------

// The kubelet's cgroup is made anew whenever it restarts, and gets another id.
void Node::find_prober() {
  std::string path = options_.prober_cgroup;
  if (path.empty()) {
    const auto* all = processes();
    if (all == nullptr) return;  // who was exempt stays so
    Result<std::string> found = kubelet_cgroup(*all, node_netns_inode_);
    if (!found) {
      if (prober_problem_ != found.error().detail) scope.warn("{}", found.error().detail);
      prober_problem_ = found.error().detail;
      return set_prober(0);
    }
    const Result<std::string> mount = sys::cgroup2_mount();
    if (!mount) return cannot_tell("the kubelet's cgroup", mount.error());
    path = *mount + *found;
  }
  const Result<sys::Cgroup> cgroup = sys::Cgroup::open_configured(path);
  const Result<uint64_t> id = cgroup ? cgroup->id() : fail(cgroup.error());
  if (!id && id.error().reason != Reason::kNotFound)
    return cannot_tell("the kubelet's cgroup", id.error());
  if (!id) {
    const std::string problem =
        fmt::format("the kubelet's cgroup {}: {}; until it is there no probe is exempt from policy",
                    path, id.error().detail);
    if (prober_problem_ != problem) scope.warn("{}", problem);
    prober_problem_ = problem;
    return set_prober(0);
  }
  if (!prober_problem_.empty()) scope.info("probes are exempt for cgroup {}", cgroup->path());
  prober_problem_.clear();
  set_prober(*id);
}

void Node::set_prober(uint64_t cgroup_id) {
  const auto roles = bpf_.cgroup_roles();
  if (!roles) return scope.error("{}", roles.error().to_string());
  uint32_t mine = 0;
  for (const auto& [id, bits] : *roles) {
    if (id == cgroup_id) mine = bits;
    if (id == cgroup_id || (bits & MELTEMI_CGROUP_PROBER) == 0) continue;
    (void)bpf_.set_cgroup_roles(id, bits & ~uint32_t{MELTEMI_CGROUP_PROBER});
  }
  if (cgroup_id == 0 || (mine & MELTEMI_CGROUP_PROBER) != 0) return;
  if (const Status set = bpf_.set_cgroup_roles(cgroup_id, mine | MELTEMI_CGROUP_PROBER); !set)
    scope.error("{}", set.error().to_string());
}

// Only what holds this connection may dial out of pods past capture.
void Node::ztunnel_connected(pid_t pid) {
  const Result<sys::Cgroup> cgroup =
      pid > 0 ? sys::Cgroup::of_process(pid)
              : fail(Reason::kNotFound, Fault::kConfig,
                     "its process is not visible here (hostPID)");
  const Result<uint64_t> id = cgroup ? cgroup->id() : fail(cgroup.error());
  const auto roles = bpf_.cgroup_roles();
  Status set = id ? Status() : fail(id.error());
  if (id && roles) {
    const auto known = roles->find(*id);
    const uint32_t bits = known == roles->end() ? 0 : known->second;
    if ((bits & MELTEMI_CGROUP_TUNNEL) == 0)
      set = bpf_.set_cgroup_roles(*id, bits | MELTEMI_CGROUP_TUNNEL);
  }
  if (!roles) set = fail(roles.error());
  // A process that ends while it is asked for is not asked again; its connection ends as well.
  const bool again = !set && set.error().reason == Reason::kSystem && zds_.connected();
  ztunnel_pid_ = again ? pid : 0;
  const std::string problem =
      set ? std::string()
          : fmt::format("ztunnel pid {} is not known by its cgroup, so its connections are refused: {}{}",
                        pid, set.error().detail, again ? "; tried again" : "");
  if (!problem.empty() && problem != ztunnel_problem_) scope.error("{}", problem);
  ztunnel_problem_ = problem;
}

// One that drains keeps its right until the last process of its cgroup has ended.
void Node::forget_ended_ztunnels() {
  const auto roles = bpf_.cgroup_roles();
  const auto* all = processes();
  const Result<std::string> mount = sys::cgroup2_mount();
  if (!mount) cannot_tell("which ztunnels have ended", mount.error());
  if (!roles || all == nullptr || !mount) return;
  std::set<std::string> paths;
  for (const sys::ProcessInfo& p : *all) paths.insert(p.cgroup);
  std::set<uint64_t> living;
  for (const std::string& path : paths) {
    struct stat st{};
    if (::stat((*mount + path).c_str(), &st) == 0)
      living.insert(st.st_ino);
    else if (errno != ENOENT && errno != ENOTDIR)
      return cannot_tell("which ztunnels have ended", fail_errno(errno, "look at cgroup " + path).error());
  }
  for (const auto& [id, bits] : *roles)
    if ((bits & MELTEMI_CGROUP_TUNNEL) != 0 && !living.contains(id))
      (void)bpf_.set_cgroup_roles(id, bits & ~uint32_t{MELTEMI_CGROUP_TUNNEL});
}

std::vector<std::string> Node::problems() const {
  std::vector<std::string> out;
  for (const std::string& problem : {prober_problem_, ztunnel_problem_, state_problem_, unclear_})
    if (!problem.empty()) out.push_back(problem);
  return out;
}

std::string Node::guard_text(const Pod& pod) {
  if (!pod.captured || pod.phase != Phase::kEnrolled) return {};
  if (!pod.captured->guard_wanted) return "off";
  return pod.captured->guard_problem.empty() ? "on" : pod.captured->guard_problem;
}

void Node::say_use(Pod& pod) {
  const Result<PodUse> now = capture_.use(*pod.captured);
  if (!now) return;
  const PodUse before = std::exchange(pod.use, *now);
  if (now->guard_dropped > before.guard_dropped) {
    const IpAddress to = *IpAddress::from_bytes(
        {reinterpret_cast<const uint8_t*>(&now->last.last_to), sizeof now->last.last_to});
    scope.warn(
        "pod {} (uid {}) sent {} TCP connections past ztunnel; dropped at its veth, the last to {}. "
        "Somebody in it has NET_RAW or NET_ADMIN and uses it; namespace annotation "
        "{}=disabled permits it",
        pod.record.label(), pod.record.uid, now->guard_dropped - before.guard_dropped,
        now->last.last_port != 0 ? SocketAddress{to, static_cast<uint16_t>(now->last.last_port)}.to_string()
                                 : to.to_string() + " (unreadable)",
        kGuardAnnotation);
  }
  if (now->probes_passed > before.probes_passed)
    scope.info("pod {} (uid {}): {} connections of the kubelet to its probe ports, exempt from policy",
               pod.record.label(), pod.record.uid, now->probes_passed - before.probes_passed);
}

// What cannot be told per pod.
void Node::say_refusals() {
  const auto now = bpf_.counters();
  if (!now) return;
  const auto before = std::exchange(counted_, *now);
  if (!std::exchange(counted_before_, true)) return;
  const auto more = [&](meltemi_counter which) { return (*now)[which] - before[which]; };
  if (const uint64_t n = more(MELTEMI_COUNT_MARK_REFUSED); n > 0)
    scope.warn("{} connects from pods with ztunnel's mark by processes that are not ztunnel: refused", n);
  if (const uint64_t n = more(MELTEMI_COUNT_LINK_LOCAL_REFUSED); n > 0)
    scope.warn("{} connects from pods to IPv6 link-local addresses: refused; exclude fe80::/10 to permit "
               "them", n);
  if (const uint64_t n = more(MELTEMI_COUNT_PROBE_REFUSED); n > 0)
    scope.info("{} connects to probe ports from the node by others than the kubelet: policy applies", n);
}

// Pins whose namespace is dead and that no pod owns. Living ones are left to work, and counted: an
// agent without its state file must not break what it does not know.
size_t Node::collect_garbage() {
  std::set<uint64_t> owned;
  for (const auto& [key, pod] : pods_) owned.insert(pod.record.cookie);
  const Result<std::vector<uint64_t>> pinned = bpf_.pods();
  size_t strangers = 0;
  if (!pinned) {
    cannot_tell("which pods the kernel captures", pinned.error());
    return 1;  // there may be some
  }
  for (const uint64_t cookie : *pinned) {
    if (owned.contains(cookie)) continue;
    if (bpf_.pod_netns_inode(cookie).value_or(1) != 0) {
      ++strangers;
      continue;
    }
    scope.info("removing the pins of namespace {}, which is gone", cookie);
    (void)capture_.forget(cookie, {}, {});
  }
  return strangers;
}

void Node::schedule_drain_check() {
  if (drain_check_pending_) return;
  drain_check_pending_ = true;
  loop_.after(kDrainCheck, [this] {
    drain_check_pending_ = false;
    bool ended = false;
    for (auto& [key, pod] : pods_) {
      if (pod.phase != Phase::kDraining) continue;
      converge(pod);
      ended |= pod.phase == Phase::kPlain;
    }
    if (ended) changed();
  });
}

void Node::changed() {
  if (save_pending_) return;
  save_pending_ = true;
  loop_.after(kSaveDelay, [this] {
    save_pending_ = false;
    save();
    report();
  });
}

void Node::save() {
  std::vector<PodRecord> records;
  for (const auto& [key, pod] : pods_) records.push_back(pod.record);
  std::string text = records_to_json(records);
  if (text == last_saved_) return;
  const Status status = sys::write_file_atomically(options_.state_file, text, 0600);
  if (status)
    last_saved_ = std::move(text);
  else
    scope.error("state is not saved: {}", status.error().to_string());
}

void Node::report() {
  wire::NodeReport out;
  out.set_node(options_.name);
  out.set_ztunnel_connected(zds_.connected());
  for (std::string& problem : problems()) out.add_problems(std::move(problem));
  for (const auto& [key, pod] : pods_) {
    if (pod.record.uid.empty() || (!pod.record.decision && !pod.captured)) continue;
    wire::PodStatus& s = *out.add_pods();
    s.set_uid(pod.record.uid);
    s.set_enrolled(pod.phase == Phase::kEnrolled);
    for (const std::string& m : pod.missing) s.add_missing(m);
    s.set_message(message_of(pod));
    if (!pod.captured) continue;
    s.set_netns_cookie(pod.captured->cookie);
    s.set_netns_inode(pod.captured->id.inode);
    s.set_guard(guard_text(pod));
    s.set_guard_dropped(pod.use.guard_dropped);
  }
  std::string bytes = out.SerializeAsString();
  if (bytes == last_report_) return;
  last_report_ = std::move(bytes);
  report_sink_(out);
}

Node::Numbers Node::numbers() const {
  Numbers n;
  n.pods = pods_.size();
  for (const auto& [key, pod] : pods_) {
    n.wanted += pod.record.wanted();
    n.enrolled += pod.phase == Phase::kEnrolled && pod.missing.empty();
    n.draining += pod.phase == Phase::kDraining;
    n.guarded += guard_text(pod) == "on";
  }
  n.ztunnel_connected = zds_.connected();
  n.ztunnel_synced = zds_.synced();
  n.ztunnels_refused = zds_.refused_total();
  n.prober_known = prober_problem_.empty();
  return n;
}

// --- wishes --------------------------------------------------------------------------------------

void Node::apply(std::vector<wire::PodEnrolment> changed_pods,
                 const std::vector<std::string>& removed, bool saved) {
  for (wire::PodEnrolment& e : changed_pods) {
    Pod& pod = find_or_add(e.uid(), e.namespace_(), e.name());
    if (saved && pod.record.decision) continue;
    pod.record.decision = std::move(e);
    pod.hopeless = false;
    pod.applied.reset();  // also ztunnel is told again: the service account may be another
    converge(pod);
  }
  for (const std::string& uid : removed) {
    const auto found = pods_.find(uid);
    if (found == pods_.end()) continue;
    if (!found->second.captured)
      pods_.erase(found);  // never had a namespace here, or it is gone
    else
      scope.info(
          "the control plane knows pod {} no longer; it stays as it is until its namespace "
          "ends",
          found->second.record.label());
  }
  processes_.reset();
  changed();
}

// --- the agent's socket --------------------------------------------------------------------------

void Node::handle(local::Request request, LocalServer::Reply reply) {
  switch (request.call_case()) {
    case local::Request::kAdd:
      return on_add(request.add(), std::move(reply));
    case local::Request::kDel:
      return on_del(request.del(), reply);
    case local::Request::kCheck:
      return on_check(request.check(), reply);
    case local::Request::kList:
      return on_list(reply);
    default:
      reply(error_response("unknown call"));
  }
}

void Node::on_add(const local::AddPod& add, LocalServer::Reply reply) {
  if (add.name().empty() || add.namespace_().empty() || add.netns_path().empty())
    return reply(error_response("ADD needs the pod's name, namespace and netns path"));
  Pod& pod = find_or_add(add.uid(), add.namespace_(), add.name());
  if (pod.captured) {
    const Result<bool> same = names_namespace(pod, add.netns_path());
    if (!same) return reply(error_response(same.error().detail));
    if (!*same) namespace_gone(pod);
  }
  pod.record.netns_path = add.netns_path();
  pod.record.cni_addresses.clear();
  for (const std::string& bytes : add.addresses())
    if (const auto ip = IpAddress::from_bytes(as_bytes(bytes)))
      pod.record.cni_addresses.push_back(*ip);
  pod.hopeless = false;
  const Duration wanted = add.deadline_ms() == 0
                              ? options_.add_timeout
                              : Duration(std::chrono::milliseconds(add.deadline_ms()));
  const Duration timeout = std::min(wanted, kMaxAddTimeout);
  pod.waiters.push_back({std::move(reply), MonoClock::now() + timeout});
  const std::string key = key_of(pod.record.uid, pod.record.namespace_name, pod.record.name);
  converge(pod);
  changed();
  // Tries again while somebody waits, and gives up at the deadline.
  if (!pod.waiters.empty()) retry_waiting(key);
}

void Node::retry_waiting(const std::string& key) {
  loop_.after(kRetry, [this, key] {
    const auto found = pods_.find(key);
    // The pod may have got its uid meanwhile: then its decision came and answered.
    if (found == pods_.end() || found->second.waiters.empty()) return;
    converge(found->second);
    changed();
    if (!found->second.waiters.empty()) retry_waiting(key);
  });
}

// The pod's sandbox ends: whatever is left of it goes, and that there is nothing is no error.
void Node::on_del(const local::DelPod& del, const LocalServer::Reply& reply) {
  Pod* pod = find(del.uid(), del.namespace_(), del.name());
  // A DEL for an older sandbox of the same pod must not touch the newer one.
  Result<bool> same = pod != nullptr;
  if (pod != nullptr && pod->captured && !del.netns_path().empty() &&
      pod->record.netns_path != del.netns_path())
    same = names_namespace(*pod, del.netns_path());
  if (!same) return reply(error_response(same.error().detail));
  if (*same) {
    for (Waiter& w : pod->waiters) w.reply(error_response("the pod was deleted meanwhile"));
    pod->waiters.clear();
    if (pod->captured && pod->phase != Phase::kPlain) {
      if (!pod->record.uid.empty()) zds_.remove(pod->record.uid);
      if (const Status status = capture_.finish(*pod->captured); !status)
        scope.warn("pod {}: {}", pod->record.label(), status.error().to_string());
      pod->phase = Phase::kPlain;
    }
    if (pod->captured || pod->record.cookie != 0) namespace_gone(*pod);
    if (pod->record.decision) {
      pod->record.netns_path.clear();
    } else {
      pods_.erase(key_of(pod->record.uid, pod->record.namespace_name, pod->record.name));
    }
    changed();
  }
  reply(local::Response());
}

void Node::on_check(const local::CheckPod& check, const LocalServer::Reply& reply) {
  Pod* pod = find(check.uid(), check.namespace_(), check.name());
  if (pod == nullptr)
    return reply(error_response(fmt::format("pod {}/{} is not known to the agent of node {}",
                                            check.namespace_(), check.name(), options_.name)));
  std::vector<std::string> missing = pod->missing;
  if (pod->captured && pod->record.wanted()) {
    Result<std::vector<std::string>> now = look(*pod);
    if (!now)
      return reply(error_response(fmt::format("pod {}: what the kernel has of it cannot be told now: {}",
                                              pod->record.label(), now.error().detail)));
    missing = std::move(*now);
  }
  local::Response response;
  if (pod->record.wanted() && (!pod->captured || !missing.empty()))
    response.set_error(fmt::format("pod {} is to be in the mesh but the kernel lacks: {}",
                                   pod->record.label(), pod->captured ? join(missing) : pod->message));
  *response.add_pods() = describe(*pod, missing);
  reply(std::move(response));
}

void Node::on_list(const LocalServer::Reply& reply) {
  local::Response response;
  processes_.reset();
  const auto* all = processes();
  for (auto& [key, pod] : pods_) {
    const bool enrolled = pod.captured && pod.phase == Phase::kEnrolled;
    const Result<std::vector<std::string>> now = enrolled ? look(pod) : pod.missing;
    if (!now) cannot_tell("what the kernel has of pod " + pod.record.label(), now.error());
    local::Pod& described = *response.add_pods();
    described = describe(pod, now ? *now : pod.missing);
    if (!enrolled || all == nullptr) continue;
    for (const std::string& p : uncaptured_processes(*all, pod.captured->id.inode, cgroup_path_))
      described.add_uncaptured_processes(p);
  }
  processes_.reset();
  for (std::string& problem : problems()) response.add_problems(std::move(problem));
  reply(std::move(response));
}

// What keeps the pod from being served, the first cause of it.
std::string Node::message_of(const Pod& pod) const {
  if (!pod.message.empty()) return pod.message;
  if (!pod.ztunnel_error.empty()) return pod.ztunnel_error;
  return pod.record.wanted() ? zds_.refusal() : std::string();
}

local::Pod Node::describe(const Pod& pod, const std::vector<std::string>& missing) const {
  local::Pod out;
  out.set_uid(pod.record.uid);
  out.set_name(pod.record.name);
  out.set_namespace_(pod.record.namespace_name);
  out.set_enrol(pod.record.wanted());
  out.set_enrolled(pod.phase == Phase::kEnrolled && missing.empty());
  if (pod.record.decision) out.set_reason(pod.record.decision->reason());
  for (const std::string& m : missing) out.add_missing(m);
  out.set_message(message_of(pod));
  out.set_guard(guard_text(pod));
  if (!pod.captured) return out;
  if (const Result<PodUse> use = capture_.use(*pod.captured)) {
    out.set_guard_dropped(use->guard_dropped);
    out.set_probes_passed(use->probes_passed);
  }
  return out;
}

// --- ztunnel -------------------------------------------------------------------------------------

std::vector<std::string> Node::zds_pods() const {
  std::vector<std::string> out;
  for (const auto& [key, pod] : pods_)
    if (!pod.record.uid.empty() && pod.captured && pod.phase != Phase::kPlain)
      out.push_back(pod.record.uid);
  return out;
}

std::optional<ZdsPod> Node::zds_describe(const std::string& uid) {
  const auto found = pods_.find(uid);
  if (found == pods_.end() || !found->second.captured || found->second.phase == Phase::kPlain)
    return std::nullopt;
  const Pod& pod = found->second;
  const Listeners& l = pod.captured->listeners;
  ZdsPod out;
  out.info = {pod.record.name, pod.record.namespace_name,
              pod.record.decision ? pod.record.decision->service_account() : std::string()};
  out.netns = pod.captured->netns.fd();
  out.outbound = l.outbound.get();
  out.inbound = l.inbound.get();
  out.hbone = l.hbone.get();
  return out;
}

void Node::ztunnel_answered(const std::string& uid, const Status& status) {
  const auto found = pods_.find(uid);
  if (found == pods_.end()) return;
  std::string error = status ? "" : "ztunnel does not serve it: " + status.error().detail;
  if (error == found->second.ztunnel_error) return;
  found->second.ztunnel_error = std::move(error);
  changed();
}

// Believed only as far as the kernel confirms it: listening sockets of this pod's namespace.
void Node::listeners_returned(const std::string& uid, Listeners returned) {
  const auto found = pods_.find(uid);
  if (found == pods_.end() || !found->second.captured) return;
  Pod& pod = found->second;
  const auto take = [&](UniqueFd& mine, UniqueFd& theirs) {
    if (mine || !theirs) return;
    int listening = 0;
    socklen_t length = sizeof listening;
    const bool is_listener =
        ::getsockopt(theirs.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 &&
        listening == 1;
    const Result<uint64_t> cookie = sys::netns_cookie_of_socket(theirs.get());
    if (is_listener && cookie && *cookie == pod.captured->cookie)
      mine = std::move(theirs);
    else
      scope.warn("ztunnel gave back a descriptor for pod {} that is no listener of it",
                 pod.record.label());
  };
  take(pod.captured->listeners.outbound, returned.outbound);
  take(pod.captured->listeners.inbound, returned.inbound);
  take(pod.captured->listeners.hbone, returned.hbone);
  const bool complete = pod.captured->listeners.complete();
  converge(pod);
  // A younger ztunnel may be waiting for them.
  if (complete) zds_.add(uid);
}

}  // namespace meltemi::agent
