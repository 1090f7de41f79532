#include "userspace/sandbox/pod_worker.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "userspace/base/log.h"
#include "userspace/sandbox/probes.h"
#include "userspace/sandbox/services.h"
#include "userspace/sys/files.h"

namespace meltemi::sandbox {
namespace {

using config::Object;
namespace kube = config::kube;
using std::chrono::milliseconds;

const log::Scope scope("pod");

std::string now_text() {
  const std::string t = format_rfc3339(std::chrono::system_clock::now());
  return t.substr(0, 19) + "Z";  // Kubernetes' times have no fraction
}

// One container and what happened to it.
struct Container {
  const kube::Container* spec = nullptr;
  bool init = false;
  sys::Process process;
  bool running = false;
  bool asked_to_end = false;  // this start of it
  bool ended = false;         // for good
  int restarts = 0;
  Duration delay = kFirstRestartDelay;
  MonoTime start_at = MonoTime::min();
  MonoTime started_mono;
  kube::ContainerState state, last_state;
  ProbeState readiness{nullptr, false}, liveness{nullptr, true}, startup{nullptr, false};
  UniqueFd stdin_holder;  // keeps the FIFO open until somebody has attached

  bool started() const { return running && startup.result(); }
  bool ready() const { return init ? ended : started() && readiness.result(); }
  int exit_code() const { return state.terminated().exit_code(); }
};

void set_waiting(Container* c, std::string reason, std::string message = {}) {
  c->state.Clear();
  c->state.mutable_waiting()->set_reason(std::move(reason));
  c->state.mutable_waiting()->set_message(std::move(message));
}

void set_terminated(Container* c, int wait_status) {
  const std::string began = c->state.running().started_at();
  c->state.Clear();
  kube::ContainerState::Terminated* t = c->state.mutable_terminated();
  t->set_started_at(began);
  t->set_finished_at(now_text());
  if (WIFSIGNALED(wait_status)) {
    t->set_signal(WTERMSIG(wait_status));
    t->set_exit_code(128 + WTERMSIG(wait_status));
  } else {
    t->set_exit_code(WEXITSTATUS(wait_status));
  }
  t->set_reason(t->exit_code() == 0 ? "Completed" : "Error");
}

// securityContext.seccompProfile.type of the container or, where it has none, of the pod.
bool is_unconfined(const kube::PodSpec& pod, const kube::Container& container) {
  for (const google::protobuf::Value* context : {&container.security_context(), &pod.security_context()}) {
    const auto& fields = context->struct_value().fields();
    const auto profile = fields.find("seccompProfile");
    if (profile == fields.end()) continue;
    const auto type = profile->second.struct_value().fields().find("type");
    return type != profile->second.struct_value().fields().end() &&
           type->second.string_value() == "Unconfined";
  }
  return false;
}

// Whether the process neither handles nor ignores a signal. False if it cannot be told.
bool has_default_action(pid_t pid, int number) {
  const auto status = sys::read_file(fmt::format("/proc/{}/status", pid));
  if (!status) return false;
  for (const std::string_view set : {"\nSigCgt:\t", "\nSigIgn:\t"}) {
    const size_t at = status->find(set);
    if (at == std::string::npos) return false;
    if (std::strtoull(status->c_str() + at + set.size(), nullptr, 16) >> (number - 1) & 1) return false;
  }
  return true;
}

uint16_t port_number(const kube::IntOrString& port, const kube::Container& container) {
  if (port.value_case() == kube::IntOrString::kNumber) return static_cast<uint16_t>(port.number());
  for (const auto& candidate : container.ports())
    if (candidate.name() == port.text()) return static_cast<uint16_t>(candidate.container_port());
  return 0;
}

}  // namespace

NodeContext::NodeContext(Layout l, int i, std::string bin, TokenIssuer t)
    : layout(std::move(l)),
      index(i),
      node(node_name(i)),
      bin_dir(std::move(bin)),
      tokens(std::move(t)),
      cni(bin_dir + "/meltemi-cni", layout.agent_socket(node),
          layout.node_log_dir(node) + "/cni.log"),
      objects_(layout.config_dir(), View::kWanted) {}

void clear_cgroup(const std::string& path) {
  const auto cgroup = sys::Cgroup::open(path);
  if (!cgroup) return;
  (void)cgroup->kill_all();
  // What was killed leaves its cgroup a moment later.
  for (int i = 0; i < 250 && !cgroup->remove(); ++i) std::this_thread::sleep_for(milliseconds(20));
}

int NodeContext::take_host() {
  const std::lock_guard lock(mutex_);
  for (int host = kFirstPodHost; host <= kLastPodHost; ++host)
    if (hosts_.insert(host).second) return host;
  return 0;
}

void NodeContext::release_host(int host) {
  const std::lock_guard lock(mutex_);
  hosts_.erase(host);
}

std::string container_log(const Layout& layout, std::string_view node, std::string_view uid,
                          std::string_view container, int restart) {
  return fmt::format("{}/{}/{}.{}.log", layout.node_log_dir(node), uid, container, restart);
}

std::string container_stdin(const Layout& layout, std::string_view node, std::string_view uid,
                            std::string_view container) {
  return fmt::format("{}/{}/{}.stdin", layout.node_log_dir(node), uid, container);
}

std::string container_cgroup(const Layout& layout, std::string_view node, std::string_view uid,
                             std::string_view container) {
  return layout.pod_cgroup(node, uid) + "/" + std::string(container);
}

std::string pod_state_file(const Layout& layout, std::string_view ns, std::string_view name) {
  return fmt::format("{}/{}.{}.yaml", layout.node_state_dir(), ns, name);
}

class PodWorker::Life {
 public:
  Life(NodeContext* node, Object pod)
      : node_(*node), pod_(std::move(pod)), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    start_time_ = now_text();
    for (const auto& spec : this->spec().init_containers()) add_container(spec, true);
    for (const auto& spec : this->spec().containers()) add_container(spec, false);
  }

  void run() {
    if (set_up() && run_init_containers()) run_containers();
    terminate();
    remove_files();
  }

  void update(Object pod) {
    {
      const std::lock_guard lock(mutex_);
      next_ = std::move(pod);
    }
    const uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) < 0) scope.debug("wake-up is pending already");
  }

 private:
  const kube::PodSpec& spec() const { return pod_.as<kube::Pod>().spec(); }
  const std::string& uid() const { return pod_.meta().uid(); }
  bool host_network() const { return spec().host_network(); }
  std::string who() const { return pod_.ns() + "/" + pod_.name(); }
  std::string netns_path() const {
    return sys::Netns::named_path(host_network() ? node_.layout.node_netns(node_.node)
                                                 : node_.layout.pod_netns(uid()));
  }
  std::string cgroup_of(const Container& c) const {
    return container_cgroup(node_.layout, node_.node, uid(), c.spec->name());
  }

  void add_container(const kube::Container& container, bool init) {
    auto c = std::make_unique<Container>();
    // A copy: labels may be replaced later, the spec of a living pod never is.
    specs_.push_back(std::make_unique<kube::Container>(container));
    c->spec = specs_.back().get();
    c->init = init;
    const auto probe = [](bool has, const kube::Probe& p) { return has ? &p : nullptr; };
    c->readiness =
        ProbeState(probe(c->spec->has_readiness_probe(), c->spec->readiness_probe()), false);
    c->liveness = ProbeState(probe(c->spec->has_liveness_probe(), c->spec->liveness_probe()), true);
    c->startup = ProbeState(probe(c->spec->has_startup_probe(), c->spec->startup_probe()), false);
    set_waiting(c.get(), init ? "PodInitializing" : "ContainerCreating");
    containers_.push_back(std::move(c));
  }

  // --- waiting --------------------------------------------------------------------------------

  // Takes over what update() left; true if the pod is to go.
  bool take_update() {
    const std::lock_guard lock(mutex_);
    if (next_) {
      pod_ = std::move(*next_);
      next_.reset();
    }
    return is_terminating(pod_);
  }

  // Until `deadline`, an update, or the end of one of the processes.
  void wait(MonoTime deadline) {
    std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}};
    for (const auto& c : containers_)
      if (c->running) polled.push_back({c->process.pidfd(), POLLIN, 0});
    const auto left = std::chrono::ceil<milliseconds>(deadline - MonoClock::now());
    ::poll(polled.data(), polled.size(),
           static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000)));
    uint64_t drained;
    while (::read(wake_.get(), &drained, sizeof drained) > 0) {
    }
  }

  // --- network ----------------------------------------------------------------------------------

  bool set_up() {
    Duration delay = kFirstRestartDelay;
    while (!take_update()) {
      const Status done = try_set_up();
      if (done) return true;
      scope.warn("{}: {}", who(), done.error().to_string());
      message_ = done.error().detail;
      tear_down_network();
      report();
      const MonoTime until = MonoClock::now() + delay;
      while (MonoClock::now() < until && !take_update()) wait(until);
      delay = std::min(delay * 2, Duration(std::chrono::seconds(10)));
    }
    return false;
  }

  Status try_set_up() {
    MELTEMI_TRY(sys::make_directories(
        fmt::format("{}/{}", node_.layout.node_log_dir(node_.node), uid()), 0755));
    if (host_network()) {
      network_.addresses = node_address(node_.index);
      have_ips_ = true;
    } else {
      host_ = node_.take_host();
      if (host_ == 0)
        return fail(
            Reason::kLimitExceeded, Fault::kConfig,
            fmt::format("{} has no free pod address left. Delete pods, or bring up more nodes",
                        node_.node));
      network_ = MELTEMI_TRY(create_pod_network(node_.layout, node_.index, uid(), host_));
      have_ips_ = true;
    }
    // The address is told before the plugin is asked: the control plane decides by it, and the
    // plugin waits for that decision.
    report();
    if (!host_network()) MELTEMI_TRY(node_.cni.add(cni_pod(), kCniDeadline));
    const PodContext context = this->context();
    MELTEMI_TRY(node_.with_objects([&](const config::ObjectStore& store) {
      PodContext c = context;
      c.store = &store;
      return write_volumes(c);
    }));
    volumes_written_ = MonoClock::now();
    message_.clear();
    report();
    return {};
  }

  CniPod cni_pod() const { return {pod_.ns(), pod_.name(), uid(), netns_path(), network_}; }

  void tear_down_network() {
    if (host_network() || host_ == 0) return;
    // Nothing that the plugin says may keep the pod: the namespace goes, and with it all it held.
    const Status unplugged = node_.cni.del(cni_pod(), kCniDeadline);
    if (!unplugged) scope.warn("{}: {}", who(), unplugged.error().to_string());
    const Status removed = remove_pod_network(node_.layout, node_.index, uid());
    if (!removed) scope.error("{}: {}", who(), removed.error().to_string());
    node_.release_host(host_);
    host_ = 0;
  }

  // --- containers -------------------------------------------------------------------------------

  PodContext context() const {
    PodContext c;
    c.pod = &pod_;
    c.layout = &node_.layout;
    c.tokens = &node_.tokens;
    c.bin_dir = node_.bin_dir;
    if (have_ips_) c.pod_ips = {network_.addresses.v4, network_.addresses.v6};
    const AddressPair host = node_address(node_.index);
    c.host_ips = {host.v4, host.v6};
    c.volume_dir = fmt::format("{}/{}/volumes", node_.layout.pods_dir(), uid());
    return c;
  }

  Status start(Container& c) {
    sys::SpawnOptions spawn;
    ContainerRoot::Options root;
    const PodContext shared = context();
    MELTEMI_TRY(node_.with_objects([&](const config::ObjectStore& store) -> Status {
      PodContext context = shared;
      context.store = &store;
      spawn.environment = MELTEMI_TRY(container_environment(context, *c.spec));
      root.mounts = MELTEMI_TRY(container_mounts(context, *c.spec));
      return {};
    }));
    std::map<std::string, std::string> values;
    for (const std::string& entry : spawn.environment)
      values[entry.substr(0, entry.find('='))] = entry.substr(entry.find('=') + 1);
    for (const std::string& word : c.spec->command()) spawn.argv.push_back(expand(word, values));
    for (const std::string& word : c.spec->args()) spawn.argv.push_back(expand(word, values));
    if (spawn.argv.empty())
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("container {} has no command. Add one: images are not pulled",
                              c.spec->name()));
    root.directory = fmt::format("{}/{}/{}", node_.layout.pods_dir(), uid(), c.spec->name());
    root.hostname = spec().hostname().empty() ? pod_.name() : spec().hostname();
    root.resolv_conf = resolv_conf(pod_.ns());
    root.hosts = hosts_file(pod_, shared.pod_ips);
    root.working_directory = c.spec->working_dir();
    root.any_syscall = is_unconfined(spec(), *c.spec);
    if (c.spec->stdin()) MELTEMI_TRY(make_stdin(c, &root));
    return launch(c, &spawn, std::move(root));
  }

  Status launch(Container& c, sys::SpawnOptions* spawn, ContainerRoot::Options root) {
    const std::string log =
        container_log(node_.layout, node_.node, uid(), c.spec->name(), c.restarts);
    const UniqueFd output(
        ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (!output.valid()) return fail_errno(errno, "open " + log);
    const sys::Netns netns = MELTEMI_TRY(sys::Netns::open(netns_path()));
    const sys::Cgroup cgroup = MELTEMI_TRY(sys::Cgroup::create(cgroup_of(c)));
    const ContainerRoot entered = MELTEMI_TRY(ContainerRoot::prepare(std::move(root)));
    spawn->replace_environment = true;
    spawn->netns = &netns;
    spawn->cgroup = &cgroup;
    spawn->stdout_fd = spawn->stderr_fd = output.get();
    spawn->new_session = true;
    spawn->new_mount_namespace = true;
    spawn->new_pid_namespace = true;
    spawn->prepare = [&entered] { return entered.enter(); };
    c.process = MELTEMI_TRY(sys::Process::spawn(*spawn));
    c.running = true;
    c.asked_to_end = false;
    c.started_mono = MonoClock::now();
    c.state.Clear();
    c.state.mutable_running()->set_started_at(now_text());
    c.readiness.restart(c.started_mono);
    c.liveness.restart(c.started_mono);
    c.startup.restart(c.started_mono);
    return {};
  }

  Status make_stdin(Container& c, ContainerRoot::Options* root) {
    root->stdin_fifo = container_stdin(node_.layout, node_.node, uid(), c.spec->name());
    if (::mkfifo(root->stdin_fifo.c_str(), 0600) < 0 && errno != EEXIST)
      return fail_errno(errno, "mkfifo " + root->stdin_fifo);
    c.stdin_holder.reset(::open(root->stdin_fifo.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
    return {};
  }

  // Once somebody writes, the container is to see the end of file when that one closes.
  void release_stdin() {
    for (const auto& c : containers_) {
      if (!c->stdin_holder.valid()) continue;
      const std::string fifo = container_stdin(node_.layout, node_.node, uid(), c->spec->name());
      if (::access((fifo + ".attached").c_str(), F_OK) == 0) c->stdin_holder.reset();
    }
  }

  // Kills what the container's main process has left, reaps, and tells whether a process had ended.
  bool reap(Container& c) {
    if (!c.running) return false;
    const Result<int> status = c.process.wait(Duration::zero());
    if (!status) return false;
    c.running = false;
    c.stdin_holder.reset();
    if (const auto cgroup = sys::Cgroup::open(cgroup_of(c))) (void)cgroup->kill_all();
    set_terminated(&c, *status);
    return true;
  }

  void schedule_restart(Container& c) {
    if (MonoClock::now() - c.started_mono > kRestartDelayReset) c.delay = kFirstRestartDelay;
    c.last_state = c.state;
    c.start_at = MonoClock::now() + c.delay;
    const int code = c.exit_code();
    set_waiting(&c, "CrashLoopBackOff",
                fmt::format("back-off {} restarting the container, which ended with exit code {}",
                            c.delay / std::chrono::seconds(1), code));
    c.delay = std::min(c.delay * 2, kMaxRestartDelay);
    ++c.restarts;
  }

  void try_start(Container& c) {
    const Status started = start(c);
    if (started) return;
    scope.warn("{}: container {}: {}", who(), c.spec->name(), started.error().to_string());
    set_waiting(&c, "CreateContainerError", started.error().detail);
    c.start_at = MonoClock::now() + c.delay;
    c.delay = std::min(c.delay * 2, kMaxRestartDelay);
  }

  bool run_init_containers() {
    for (const auto& c : containers_) {
      if (!c->init) continue;
      while (!c->ended) {
        if (take_update()) return false;
        if (!c->running && MonoClock::now() >= c->start_at) try_start(*c);
        report();
        wait(c->running ? MonoTime::max() : c->start_at);
        if (!reap(*c)) continue;
        if (c->exit_code() == 0) {
          c->ended = true;
        } else if (spec().restart_policy() == "Never") {
          c->ended = true;
          failed_ = true;
          finish();
          return false;
        } else {
          schedule_restart(*c);
        }
      }
    }
    return true;
  }

  void run_containers() {
    while (!take_update()) {
      const MonoTime now = MonoClock::now();
      for (const auto& c : containers_) {
        if (c->init) continue;
        if (reap(*c)) after_end(*c);
        if (!c->running && !c->ended && now >= c->start_at) try_start(*c);
        if (c->running) probe(*c);
      }
      release_stdin();
      renew_volumes();
      if (all_ended()) {
        finish();
        return;
      }
      report();
      wait(next_event());
    }
  }

  void after_end(Container& c) {
    const std::string& policy = spec().restart_policy();
    const bool again = policy == "Always" || (policy == "OnFailure" && c.exit_code() != 0);
    if (again)
      schedule_restart(c);
    else
      c.ended = true;
  }

  bool all_ended() const {
    return std::all_of(containers_.begin(), containers_.end(),
                       [](const auto& c) { return c->ended; });
  }

  MonoTime next_event() const {
    MonoTime next = MonoClock::now() + std::chrono::seconds(30);
    for (const auto& c : containers_) {
      if (c->init) continue;
      if (!c->running && !c->ended) next = std::min(next, c->start_at);
      if (!c->running) continue;
      if (c->stdin_holder.valid()) next = std::min(next, MonoClock::now() + milliseconds(50));
      next = std::min(next, c->startup.result() ? std::min(c->readiness.next(), c->liveness.next())
                                                : c->startup.next());
    }
    return next;
  }

  void renew_volumes() {
    if (MonoClock::now() - volumes_written_ < kTokenRefresh) return;
    volumes_written_ = MonoClock::now();
    PodContext context = this->context();
    const Status written = node_.with_objects([&](const config::ObjectStore& store) {
      context.store = &store;
      return write_volumes(context);
    });
    if (!written) scope.warn("{}: {}", who(), written.error().to_string());
  }

  // The pod has come to its end by itself: its address is free again, its status and logs stay
  // until it is deleted.
  void finish() {
    for (const auto& c : containers_) {
      if (c->init && !c->ended) continue;
      failed_ = failed_ || (c->state.has_terminated() && c->exit_code() != 0);
    }
    finished_ = true;
    tear_down_network();
    report();
    while (!take_update()) wait(MonoTime::max());
  }

  // --- probes -----------------------------------------------------------------------------------

  void probe(Container& c) {
    if (c.startup.exists() && !c.startup.result()) {
      ask(c, c.startup);
      if (!c.startup.result() && c.startup.failures_exceeded()) restart_container(c, "startup");
      return;
    }
    if (c.readiness.exists()) ask(c, c.readiness);
    if (!c.liveness.exists()) return;
    ask(c, c.liveness);
    if (!c.liveness.result()) restart_container(c, "liveness");
  }

  void ask(Container& c, ProbeState& state) {
    if (MonoClock::now() < state.next()) return;
    const Status answer = run_probe(c, state.probe(), state.timeout());
    if (!answer) scope.debug("{}: probe of {}: {}", who(), c.spec->name(), answer.error().detail);
    state.take(answer.has_value(), MonoClock::now());
  }

  Status run_probe(Container& c, const kube::Probe& probe, Duration timeout) {
    if (probe.has_exec()) return exec_probe(c, probe.exec(), timeout);
    const kube::IntOrString& port =
        probe.has_http_get() ? probe.http_get().port() : probe.tcp_socket().port();
    const std::string& host =
        probe.has_http_get() ? probe.http_get().host() : probe.tcp_socket().host();
    const SocketAddress to{IpAddress::parse(host).value_or(network_.addresses.v4),
                           port_number(port, *c.spec)};
    if (probe.has_tcp_socket()) return tcp_probe(to, timeout);
    if (probe.http_get().scheme() == "HTTPS") return https_probe(to, probe.http_get(), timeout);
    return http_probe(to, probe.http_get(), timeout);
  }

  static Status ended_well(sys::Process& process, Duration timeout, std::string_view what) {
    const Result<int> status = process.wait(timeout);
    if (!status) {
      (void)process.stop(Duration::zero());
      return fail(Reason::kRequestTimeout, Fault::kUpstream, fmt::format("{} took too long", what));
    }
    if (WIFEXITED(*status) && WEXITSTATUS(*status) == 0) return {};
    return fail(Reason::kConnectRefused, Fault::kUpstream, fmt::format("{} failed", what));
  }

  Status exec_probe(Container& c, const kube::ExecAction& action, Duration timeout) {
    const UniqueFd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    ExecOptions options;
    options.argv.assign(action.command().begin(), action.command().end());
    options.netns_path = netns_path();
    options.cgroup = cgroup_of(c);
    options.stdout_fd = options.stderr_fd = null.get();
    sys::Process process = MELTEMI_TRY(exec_in_container(c.process.pid(), options));
    return ended_well(process, timeout, "the command");
  }

  // Kubelet does not verify the certificate either.
  static Status https_probe(const SocketAddress& to, const kube::HttpGetAction& action,
                            Duration timeout) {
    const UniqueFd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    sys::SpawnOptions spawn;
    spawn.argv = {"curl",
                  "-ksf",
                  "-o",
                  "/dev/null",
                  "--max-time",
                  fmt::format("{}", timeout / std::chrono::seconds(1)),
                  fmt::format("https://{}{}", to.to_string(), action.path())};
    spawn.stdout_fd = spawn.stderr_fd = null.get();
    sys::Process process = MELTEMI_TRY(sys::Process::spawn(spawn));
    return ended_well(process, timeout + std::chrono::seconds(1), "GET over HTTPS");
  }

  void restart_container(Container& c, std::string_view which) {
    scope.warn("{}: container {} failed its {} probe and is restarted", who(), c.spec->name(),
               which);
    stop_container(c, MonoClock::now() + grace());
    if (reap(c)) after_end(c);
  }

  // --- the end ----------------------------------------------------------------------------------

  Duration grace() const {
    const auto& meta = pod_.meta();
    if (is_terminating(pod_))
      return std::chrono::seconds(std::max<int64_t>(0, meta.deletion_grace_period_seconds()));
    return std::chrono::seconds(spec().termination_grace_period_seconds());
  }

  // SIGTERM; a program that has nothing to say to it ends at once. The kernel ignores it for process 1 of
  // a PID namespace, which containers' programs are, unless they handle it; to wait out the grace for
  // those would help nobody.
  // Once: a program may take a second signal for impatience.
  static void ask_to_end(Container& c) {
    if (std::exchange(c.asked_to_end, true)) return;
    (void)c.process.signal(SIGTERM);
    if (has_default_action(c.process.pid(), SIGTERM)) (void)c.process.signal(SIGKILL);
  }

  void stop_container(Container& c, MonoTime deadline) {
    if (!c.running) return;
    ask_to_end(c);
    pollfd p{c.process.pidfd(), POLLIN, 0};
    while (true) {
      const auto left = std::chrono::ceil<milliseconds>(deadline - MonoClock::now());
      const int n = ::poll(&p, 1, static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1000)));
      if (n > 0) return;
      if (left <= milliseconds(0)) break;
      if (take_update() && MonoClock::now() + grace() < deadline)
        deadline = MonoClock::now() + grace();
    }
    (void)c.process.signal(SIGKILL);
    ::poll(&p, 1, 5000);
  }

  void terminate() {
    // All at once, then wait for each.
    report();
    for (const auto& c : containers_)
      if (c->running) ask_to_end(*c);
    const MonoTime deadline = MonoClock::now() + grace();
    for (const auto& c : containers_) stop_container(*c, deadline);
    for (const auto& c : containers_) reap(*c);
    clear_cgroup(node_.layout.pod_cgroup(node_.node, uid()));
    tear_down_network();
  }

  void remove_files() {
    std::error_code error;
    std::filesystem::remove_all(fmt::format("{}/{}", node_.layout.pods_dir(), uid()), error);
    std::filesystem::remove_all(fmt::format("{}/{}", node_.layout.node_log_dir(node_.node), uid()),
                                error);
    std::filesystem::remove(pod_state_file(node_.layout, pod_.ns(), pod_.name()), error);
    // Last: its absence is what tells the supervisor that the pod is gone.
    std::filesystem::remove(
        fmt::format("{}/{}.yaml", node_.layout.node_pods_dir(node_.node), uid()), error);
  }

  // --- status -----------------------------------------------------------------------------------

  bool pod_ready() const {
    return !finished_ && std::all_of(containers_.begin(), containers_.end(),
                                     [](const auto& c) { return c->ready(); });
  }

  std::string phase() const {
    if (finished_) return failed_ ? "Failed" : "Succeeded";
    const bool began = std::any_of(containers_.begin(), containers_.end(), [](const auto& c) {
      return !c->init && (c->running || c->restarts > 0 || c->ended);
    });
    return began ? "Running" : "Pending";
  }

  void add_condition(kube::PodStatus* status, std::string type, bool value, std::string reason) {
    const std::string text = value ? "True" : "False";
    auto& [last, since] = transitions_[type];
    if (last != text) {
      last = text;
      since = now_text();
    }
    kube::Condition* condition = status->add_conditions();
    condition->set_type(std::move(type));
    condition->set_status(text);
    condition->set_last_transition_time(since);
    if (!value) condition->set_reason(std::move(reason));
  }

  static void fill(const Container& c, kube::ContainerStatus* out) {
    out->set_name(c.spec->name());
    out->set_image(c.spec->image());
    *out->mutable_state() = c.state;
    if (c.restarts > 0) *out->mutable_last_state() = c.last_state;
    out->set_ready(c.ready());
    out->set_started(c.init ? c.running : c.started());
    out->set_restart_count(c.restarts);
    if (c.running) out->set_container_id(fmt::format("pid://{}", c.process.pid()));
  }

  kube::PodStatus status() {
    kube::PodStatus out;
    out.set_phase(phase());
    out.set_start_time(start_time_);
    out.set_message(message_);
    const AddressPair host = node_address(node_.index);
    out.set_host_ip(host.v4.to_string());
    for (const IpAddress& ip : {host.v4, host.v6}) out.add_host_ips()->set_ip(ip.to_string());
    if (have_ips_) {
      out.set_pod_ip(network_.addresses.v4.to_string());
      for (const IpAddress& ip : {network_.addresses.v4, network_.addresses.v6})
        out.add_pod_ips()->set_ip(ip.to_string());
    }
    const bool ready = pod_ready();
    add_condition(&out, "PodScheduled", true, "");
    add_condition(&out, "Initialized", phase() != "Pending", "ContainersNotInitialized");
    add_condition(&out, "ContainersReady", ready,
                  finished_ ? "PodCompleted" : "ContainersNotReady");
    add_condition(&out, "Ready", ready && !is_terminating(pod_),
                  finished_ ? "PodCompleted" : "ContainersNotReady");
    for (const auto& c : containers_)
      fill(*c, c->init ? out.add_init_container_statuses() : out.add_container_statuses());
    return out;
  }

  // Writes the status file if it says something new.
  void report() {
    Object copy = pod_;
    const kube::PodStatus status = this->status();
    copy.edit<kube::Pod>([&](kube::Pod& body) { *body.mutable_status() = status; });
    std::string text = config::objects_to_yaml({copy});
    if (text == reported_) return;
    const Status written = sys::write_file_atomically(
        pod_state_file(node_.layout, pod_.ns(), pod_.name()), text, 0644);
    if (!written) {
      scope.error("{}: {}", who(), written.error().to_string());
      return;
    }
    reported_ = std::move(text);
  }

  NodeContext& node_;
  Object pod_;
  UniqueFd wake_;
  std::mutex mutex_;
  std::optional<Object> next_;

  PodNetwork network_;
  int host_ = 0;
  bool have_ips_ = false;
  std::vector<std::unique_ptr<kube::Container>> specs_;
  std::vector<std::unique_ptr<Container>> containers_;
  bool finished_ = false, failed_ = false;
  std::string message_, start_time_, reported_;
  MonoTime volumes_written_;
  std::map<std::string, std::pair<std::string, std::string>> transitions_;
};

PodWorker::PodWorker(NodeContext* node, config::Object pod)
    : life_(std::make_unique<Life>(node, std::move(pod))), thread_([this] {
        life_->run();
        gone_ = true;
      }) {}

PodWorker::~PodWorker() {
  thread_.join();
}

void PodWorker::update(config::Object pod) {
  life_->update(std::move(pod));
}

}  // namespace meltemi::sandbox
