#include "userspace/sandbox/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <set>
#include <thread>

#include "userspace/base/log.h"
#include "userspace/sandbox/components.h"
#include "userspace/sandbox/controllers.h"
#include "userspace/sandbox/directory.h"
#include "userspace/sandbox/dns.h"
#include "userspace/sandbox/memory_file.h"
#include "userspace/sandbox/pod_worker.h"
#include "userspace/sandbox/probes.h"
#include "userspace/sandbox/services.h"
#include "userspace/sandbox/tokens.h"
#include "userspace/sandbox/topology.h"
#include "userspace/sandbox/watch.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/files.h"
#include "userspace/sys/netns.h"

namespace meltemi::sandbox {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
namespace kube = config::kube;
using std::chrono::milliseconds;

const log::Scope scope("supervisor");

constexpr Duration kReadyDeadline = std::chrono::seconds(60);
constexpr int kIdleMilliseconds = 2000;
constexpr auto kGather = milliseconds(10);  // changes that come together are planned together
constexpr uint16_t kMonitoringPort = 15014;

uint64_t random_u64() {
  uint64_t value = 0;
  while (::getrandom(&value, sizeof value, 0) != sizeof value) {
  }
  return value;
}

std::string random_suffix() {
  return encode_hash(random_u64(), 5);
}

std::string random_uid() {  // RFC 9562 version 4
  const uint64_t a = random_u64(), b = random_u64();
  return fmt::format("{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}", static_cast<uint32_t>(a >> 32),
                     (a >> 16) & 0xffff, a & 0xfff, 0x8000 | ((b >> 48) & 0x3fff),
                     b & 0xffffffffffff);
}

std::string now_text() {
  return format_rfc3339(std::chrono::system_clock::now()).substr(0, 19) + "Z";
}

std::string service_state_file(const Layout& layout, const Object& service) {
  // No namespace starts with a capital letter, so no pod's file has this name.
  return fmt::format("{}/Service.{}.{}.yaml", layout.node_state_dir(), service.ns(),
                     service.name());
}

class Supervisor {
 public:
  Supervisor(Layout layout, const SupervisorOptions& options)
      : layout_(std::move(layout)),
        options_(options),
        wanted_(layout_.config_dir(), View::kWanted),
        runtime_(layout_.config_dir(), View::kRuntime),
        merged_(layout_.config_dir(), View::kMerged) {}

  Status bring_up() {
    say("directories, tokens and file systems");
    MELTEMI_TRY(make_files());
    say("the fabric and its DNS");
    MELTEMI_TRY(create_fabric(layout_, options_.nodes));
    dns_ = MELTEMI_TRY(DnsServer::start(sys::Netns::named_path(layout_.fabric_netns())));
    for (int i = 1; i <= options_.nodes; ++i) {
      say("network of " + node_name(i));
      MELTEMI_TRY(create_node(layout_, i, options_.nodes));
      nodes_.push_back({node_name(i), node_labels(node_name(i))});
      MELTEMI_TRY(write_node(nodes_.back()));
    }
    MELTEMI_TRY(watch_directories());
    say("control plane");
    MELTEMI_TRY(start(control_plane(layout_, options_.bin_dir)));
    MELTEMI_TRY(wait_ready(layout_.fabric_netns(), fabric_address().v4, kMonitoringPort, "/ready"));
    MELTEMI_TRY(wait_file(layout_.root_cert()));
    for (int i = 1; i <= options_.nodes; ++i)
      for (ComponentSpec& spec : node_components(layout_, i, options_.bin_dir, options_.self))
        MELTEMI_TRY(start(std::move(spec)));
    for (const NodeInfo& node : nodes_) {
      say("agent and ztunnel of " + node.name);
      MELTEMI_TRY(wait_file(layout_.agent_socket(node.name)));
      MELTEMI_TRY(wait_ready(layout_.node_netns(node.name), *IpAddress::parse("127.0.0.1"),
                             kReadinessPort, "/healthz/ready"));
    }
    reconcile();
    return {};
  }

  Status run(const UniqueFd& stop) {
    while (true) {
      std::vector<pollfd> polled{{stop.get(), POLLIN, 0}, {watch_->fd(), POLLIN, 0}};
      for (const Component& c : components_)
        if (c.running()) polled.push_back({c.pidfd(), POLLIN, 0});
      ::poll(polled.data(), polled.size(), idle_milliseconds());
      if (polled[0].revents != 0) return {};
      if (polled[1].revents != 0) std::this_thread::sleep_for(kGather);
      watch_->drain();
      tend_components();
      renew_tokens();
      reconcile();
    }
  }

  void say(const std::string& line) const {
    scope.info("{}", line);
    if (options_.ready_fd < 0) return;
    const std::string text = line + "\n";
    if (::write(options_.ready_fd, text.data(), text.size()) < 0)
      scope.debug("nobody waits for the sandbox to come up any more");
  }

 private:
  // --- building -------------------------------------------------------------------------------

  Status make_files() {
    for (const std::string& directory :
         {layout_.config_dir(), layout_.node_state_dir(), layout_.control_state_dir(),
          layout_.log_dir(), layout_.ca_dir(), layout_.pods_dir(), layout_.deletions_dir()})
      MELTEMI_TRY(sys::make_directories(directory, 0755));
    MELTEMI_TRY(sys::mount_bpffs(layout_.bpf_dir()));
    if (::mount("meltemi", layout_.pods_dir().c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") < 0)
      return fail_errno(errno, "mount a tmpfs on " + layout_.pods_dir());
    tokens_.emplace(MELTEMI_TRY(TokenIssuer::create(layout_)));
    for (int i = 1; i <= options_.nodes; ++i) {
      const std::string node = node_name(i);
      for (const std::string& directory : {layout_.node_pods_dir(node), layout_.node_log_dir(node),
                                           layout_.agent_run_dir(node), layout_.node_bpf_dir(node)})
        MELTEMI_TRY(sys::make_directories(directory, 0755));
      MELTEMI_TRY(sys::Cgroup::create(layout_.component_cgroup(node, "kubelet")));
      MELTEMI_TRY(sys::Cgroup::create(layout_.node_cgroup(node) + "/pods"));
      MELTEMI_TRY(write_tokens(node));
    }
    for (const std::string_view name : kFirstNamespaces) MELTEMI_TRY(write_namespace(name));
    return write_settings();
  }

  Status write_namespace(std::string_view name) {
    const std::string path = fmt::format("{}/namespaces.{}.yaml", layout_.config_dir(), name);
    if (::access(path.c_str(), F_OK) == 0) return {};  // as a user had changed it before a crash
    Object ns = Object::make(Kind::kNamespace, "", name);
    ns.mutable_meta().set_uid(random_uid());
    ns.mutable_meta().set_creation_timestamp(now_text());
    (*ns.mutable_meta().mutable_labels())["kubernetes.io/metadata.name"] = std::string(name);
    return sys::write_file_atomically(path, config::objects_to_yaml({ns}), 0644);
  }

  // As a Node of Kubernetes: users put labels on it, and what reads them is told.
  Status write_node(const NodeInfo& node) {
    const std::string path = fmt::format("{}/nodes.{}.yaml", layout_.config_dir(), node.name);
    if (::access(path.c_str(), F_OK) == 0) return {};  // as a user had changed it before a crash
    Object object = Object::make(Kind::kNode, "", node.name);
    object.mutable_meta().set_uid(random_uid());
    object.mutable_meta().set_creation_timestamp(now_text());
    object.mutable_meta().mutable_labels()->insert(node.labels.begin(), node.labels.end());
    return sys::write_file_atomically(path, config::objects_to_yaml({object}), 0644);
  }

  // What a pod's nodeSelector finds: the users' labels and those that every node has.
  void take_node_labels() {
    for (NodeInfo& node : nodes_) {
      node.labels.clear();
      if (const config::ObjectPtr object = wanted_.store().find(Kind::kNode, "", node.name))
        node.labels.insert(object->meta().labels().begin(), object->meta().labels().end());
      node.labels.merge(node_labels(node.name));
    }
  }

  Status write_settings() {
    config::Value settings = config::Value::map();
    settings.set("nodes", config::Value::of_number(std::to_string(options_.nodes)));
    settings.set("binDir", config::Value::of_string(options_.bin_dir));
    settings.set("started", config::Value::of_string(now_text()));
    return sys::write_file_atomically(layout_.settings_file(), config::to_yaml(settings), 0644);
  }

  Status write_tokens(const std::string& node) {
    tokens_written_ = MonoClock::now();
    for (const ComponentToken& token : component_tokens(layout_, node))
      // Bound to the node alone: agent and ztunnel are processes here, no pod that could be looked up.
      MELTEMI_TRY(tokens_->write({std::string(kSystemNamespace), token.service_account, "", "", node},
                                 token.path));
    return {};
  }

  void renew_tokens() {
    if (MonoClock::now() - tokens_written_ < kTokenRefresh) return;
    for (const NodeInfo& node : nodes_) {
      const Status written = write_tokens(node.name);
      if (!written) scope.error("tokens of {}: {}", node.name, written.error().to_string());
    }
  }

  static std::map<std::string, std::string> node_labels(const std::string& name) {
    return {{"kubernetes.io/hostname", name},
            {"kubernetes.io/os", "linux"},
            {"kubernetes.io/arch", "amd64"}};
  }

  Status watch_directories() {
    watch_.emplace(MELTEMI_TRY(Watch::create()));
    std::vector<std::string> directories = {layout_.config_dir(), layout_.node_state_dir(),
                                            layout_.control_state_dir(), layout_.deletions_dir()};
    for (const NodeInfo& node : nodes_) directories.push_back(layout_.node_pods_dir(node.name));
    for (const std::string& directory : directories) MELTEMI_TRY(watch_->add(directory));
    return {};
  }

  // --- the mesh's processes ---------------------------------------------------------------------

  Status start(ComponentSpec spec) {
    Component component(std::move(spec));
    MELTEMI_TRY(component.start());
    components_.push_back(std::move(component));
    write_processes();
    return {};
  }

  // Polls while a process starts; gives up early if one keeps dying.
  Status wait_until(const std::string& what, const std::function<Status()>& ready) {
    const MonoTime deadline = MonoClock::now() + kReadyDeadline;
    while (true) {
      const Status done = ready();
      if (done) return {};
      tend_components();
      for (const Component& c : components_)
        if (c.restarts() > 3)
          return fail(Reason::kSystem, Fault::kInternal,
                      fmt::format("{} does not stay up ({})", c.spec().title(), c.last_end()));
      if (MonoClock::now() > deadline)
        return fail(Reason::kRequestTimeout, Fault::kInternal,
                    fmt::format("{} is not there after {} s ({})", what,
                                kReadyDeadline / std::chrono::seconds(1), done.error().detail));
      std::this_thread::sleep_for(milliseconds(50));
    }
  }

  Status wait_file(const std::string& path) {
    return wait_until(path, [&]() -> Status {
      if (::access(path.c_str(), F_OK) == 0) return {};
      return fail_errno(errno, path);
    });
  }

  Status wait_ready(const std::string& netns_name, const IpAddress& ip, uint16_t port,
                    const char* path) {
    const sys::Netns netns = MELTEMI_TRY(sys::Netns::open(sys::Netns::named_path(netns_name)));
    kube::HttpGetAction get;
    get.set_path(path);
    return wait_until(fmt::format("{}:{}{}", ip.to_string(), port, path), [&] {
      return netns.run([&] { return http_probe({ip, port}, get, std::chrono::seconds(1)); });
    });
  }

  void tend_components() {
    bool changed = false;
    for (Component& c : components_) {
      changed |= c.reap();
      if (!c.running()) {
        c.poll();
        changed |= c.running();
      }
    }
    if (changed) write_processes();
  }

  int idle_milliseconds() {
    MonoTime next = MonoClock::now() + milliseconds(kIdleMilliseconds);
    for (Component& c : components_)
      if (!c.running()) next = std::min(next, MonoClock::now() + kFirstComponentDelay);
    return static_cast<int>(std::chrono::ceil<milliseconds>(next - MonoClock::now()).count());
  }

  void write_processes() {
    config::Value list = config::Value::list();
    for (const Component& c : components_) {
      config::Value entry = config::Value::map();
      entry.set("name", config::Value::of_string(c.spec().name));
      entry.set("node", config::Value::of_string(c.spec().node));
      entry.set("pid", config::Value::of_number(std::to_string(c.running() ? c.pid() : 0)));
      entry.set("restarts", config::Value::of_number(std::to_string(c.restarts())));
      entry.set("started", config::Value::of_string(format_rfc3339(c.started())));
      entry.set("lastEnd", config::Value::of_string(c.last_end()));
      entry.set("netns", config::Value::of_string(c.spec().netns));
      entry.set("log", config::Value::of_string(c.spec().log));
      list.items.push_back(std::move(entry));
    }
    config::Value root = config::Value::map();
    root.set("items", std::move(list));
    const Status written =
        sys::write_file_atomically(layout_.processes_file(), config::to_yaml(root), 0644);
    if (!written) scope.error("{}", written.error().to_string());
  }

  // --- Kubernetes' controllers ------------------------------------------------------------------

  void reconcile() {
    wanted_.refresh();
    runtime_.refresh();
    note_trouble(wanted_.trouble().empty() ? runtime_.trouble() : wanted_.trouble());
    take_node_labels();
    sync_live();
    take_deletions();
    apply(plan_pods(wanted_.store(), live_, nodes_, random_suffix));
    assign_services();
    merged_.refresh();
    publish_services();
  }

  // Once, until it is over or another.
  void note_trouble(const std::string& trouble) {
    if (trouble != trouble_ && !trouble.empty())
      scope.error("{}; what was known of it stays, and it is read again", trouble);
    trouble_ = trouble;
  }

  // Forgets pods whose node has let them go, and takes up what nodes report of the others.
  void sync_live() {
    for (auto it = live_.begin(); it != live_.end();) {
      LivePod& pod = it->second;
      const std::string& node = pod.desired.as<kube::Pod>().spec().node_name();
      if (!node.empty() && ::access(manifest_file(pod.desired).c_str(), F_OK) < 0 && errno == ENOENT) {
        it = live_.erase(it);
        continue;
      }
      pod.reported = runtime_.store().find(Kind::kPod, pod.desired.ns(), pod.desired.name());
      if (pod.reported && pod.reported->meta().uid() != it->first) pod.reported = nullptr;
      ++it;
    }
  }

  std::string manifest_file(const Object& pod) const {
    return fmt::format("{}/{}.yaml", layout_.node_pods_dir(pod.as<kube::Pod>().spec().node_name()),
                       pod.meta().uid());
  }

  void apply(PodPlan plan) {
    for (PodPlan::Create& create : plan.create) create_pod(std::move(create));
    for (const auto& [uid, node] : plan.place) place_pod(uid, node);
    for (Object& pod : plan.update) {
      LivePod& live = live_.at(pod.meta().uid());
      live.desired = std::move(pod);
      hand_over(live.desired);
    }
    for (const std::string& uid : plan.remove) remove_pod(uid);
  }

  void create_pod(PodPlan::Create create) {
    kube::ObjectMeta& meta = create.pod.mutable_meta();
    meta.set_uid(random_uid());  // never the manifest's: a pod that replaces another is another pod
    meta.set_creation_timestamp(now_text());
    const std::string uid = meta.uid();
    LivePod& live = live_[uid] = LivePod{std::move(create.pod), nullptr};
    if (create.unplaced.empty())
      hand_over(live.desired);
    else
      report_unplaced(live.desired, create.unplaced);
  }

  void place_pod(const std::string& uid, const std::string& node) {
    LivePod& live = live_.at(uid);
    live.desired.edit<kube::Pod>([&](kube::Pod& pod) { pod.mutable_spec()->set_node_name(node); });
    hand_over(live.desired);
  }

  void remove_pod(const std::string& uid) {
    LivePod& live = live_.at(uid);
    const auto& spec = live.desired.as<kube::Pod>().spec();
    if (spec.node_name().empty() || !is_node(spec.node_name())) {
      std::error_code error;
      std::filesystem::remove(pod_state_file(layout_, live.desired.ns(), live.desired.name()),
                              error);
      live_.erase(uid);
      return;
    }
    kube::ObjectMeta& meta = live.desired.mutable_meta();
    meta.set_deletion_timestamp(now_text());
    meta.set_deletion_grace_period_seconds(grace_of(live.desired));
    hand_over(live.desired);
  }

  // Seconds that the one who deletes the pod grants it; else the pod's own.
  int64_t grace_of(const Object& pod) const {
    const auto asked = sys::read_file(layout_.deletions_dir() + "/" + pod.meta().uid());
    int64_t seconds = pod.as<kube::Pod>().spec().termination_grace_period_seconds();
    if (asked) std::from_chars(asked->data(), asked->data() + asked->size(), seconds);
    return seconds;
  }

  void take_deletions() {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(layout_.deletions_dir(), error)) {
      const std::string uid = entry.path().filename();
      if (uid.starts_with('.')) continue;
      const auto live = live_.find(uid);
      if (live == live_.end())
        std::filesystem::remove(entry.path(), error);
      else if (!live->second.terminating())
        remove_pod(uid);
    }
  }

  bool is_node(const std::string& name) const {
    return std::any_of(nodes_.begin(), nodes_.end(),
                       [&](const NodeInfo& n) { return n.name == name; });
  }

  void hand_over(const Object& pod) {
    const Status written =
        sys::write_file_atomically(manifest_file(pod), config::objects_to_yaml({pod}), 0644);
    if (!written) scope.error("{}", written.error().to_string());
  }

  void report_unplaced(const Object& pod, const std::string& why) {
    Object copy = pod;
    copy.edit<kube::Pod>([&](kube::Pod& body) {
      body.mutable_status()->set_phase("Pending");
      kube::Condition* condition = body.mutable_status()->add_conditions();
      condition->set_type("PodScheduled");
      condition->set_status("False");
      condition->set_reason("Unschedulable");
      condition->set_message(why);
    });
    const Status written = sys::write_file_atomically(pod_state_file(layout_, pod.ns(), pod.name()),
                                                      config::objects_to_yaml({copy}), 0644);
    if (!written) scope.error("{}", written.error().to_string());
  }

  // --- Services ---------------------------------------------------------------------------------

  void assign_services() {
    std::set<std::string> kept;
    for (const Object& service : assign_cluster_ips(wanted_.store(), runtime_.store())) {
      const std::string path = service_state_file(layout_, service);
      kept.insert(path);
      const std::string text = config::objects_to_yaml({service});
      std::string& known = service_files_[path];
      if (known == text) continue;
      const Status written = sys::write_file_atomically(path, text, 0644);
      if (written)
        known = text;
      else
        scope.error("{}", written.error().to_string());
    }
    std::erase_if(service_files_, [&](const auto& entry) {
      if (kept.contains(entry.first)) return false;
      std::error_code error;
      std::filesystem::remove(entry.first, error);
      return true;
    });
  }

  void publish_services() {
    const std::vector<IpAddress> control = {fabric_address().v4, fabric_address().v6};
    std::map<std::string, std::vector<IpAddress>> fixed;
    for (const char* name : {"meltemid", "istiod"})
      fixed[fmt::format("{}.{}.svc.{}", name, kSystemNamespace, kClusterDomain)] = control;
    dns_->publish(std::make_shared<DnsZone>(build_zone(merged_.store(), fixed)));
    const std::string rules = render_nft(service_targets(merged_.store()));
    if (rules == rules_) return;
    bool all = true;
    for (const NodeInfo& node : nodes_) {
      const Status loaded = load_rules(node.name, rules);
      if (loaded) continue;
      all = false;
      scope.error("service rules of {}: {}", node.name, loaded.error().to_string());
    }
    if (all) rules_ = rules;
  }

  Status load_rules(const std::string& node, const std::string& rules) {
    const sys::Netns netns =
        MELTEMI_TRY(sys::Netns::open(sys::Netns::named_path(layout_.node_netns(node))));
    const UniqueFd input = MELTEMI_TRY(memory_file(rules));
    sys::SpawnOptions spawn;
    spawn.argv = {"nft", "-f", "-"};
    spawn.netns = &netns;
    spawn.stdin_fd = input.get();
    sys::Process process = MELTEMI_TRY(sys::Process::spawn(spawn));
    const int status = MELTEMI_TRY(process.wait(std::chrono::seconds(20)));
    if (status == 0) return {};
    return fail(Reason::kSystem, Fault::kInternal, fmt::format("nft ended with status {}", status));
  }

  Layout layout_;
  SupervisorOptions options_;
  Directory wanted_, runtime_, merged_;
  std::string trouble_;  // with reading them, as logged
  std::vector<NodeInfo> nodes_;
  std::optional<TokenIssuer> tokens_;
  MonoTime tokens_written_;
  std::optional<Watch> watch_;
  std::unique_ptr<DnsServer> dns_;
  std::vector<Component> components_;
  LivePods live_;
  std::map<std::string, std::string> service_files_;
  std::string rules_;
};

}  // namespace

Status run_supervisor(const SupervisorOptions& options) {
  MELTEMI_TRY(check_sandbox_name(options.sandbox));
  const Layout layout(options.sandbox);
  const UniqueFd stop = MELTEMI_TRY(termination_fd());
  const UniqueFd lock(
      ::open(layout.lock_file().c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock.valid()) return fail_errno(errno, "open " + layout.lock_file());
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) < 0)
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("sandbox {} is running already", options.sandbox));
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock.get(), 0) < 0 || ::pwrite(lock.get(), pid.data(), pid.size(), 0) < 0)
    return fail_errno(errno, "write " + layout.lock_file());

  Supervisor supervisor(layout, options);
  const Status up = supervisor.bring_up();
  if (!up) {
    supervisor.say("error: " + up.error().detail);
    return up;
  }
  supervisor.say("ready");
  if (options.ready_fd >= 0) ::close(options.ready_fd);
  return supervisor.run(stop);
}

}  // namespace meltemi::sandbox
