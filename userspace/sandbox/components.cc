#include "userspace/sandbox/components.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>

#include "userspace/base/log.h"
#include "userspace/sys/cgroup.h"

namespace meltemi::sandbox {
namespace {

const log::Scope scope("components");

std::string xds_address() {
  return fmt::format("https://{}:{}", fabric_address().v4.to_string(), kXdsPort);
}

std::string token_path(const Layout& layout, std::string_view node, std::string_view account) {
  return fmt::format("{}/{}.{}", layout.token_dir(), node, account);
}

std::vector<std::string> ztunnel_environment(const Layout& layout, int index) {
  const std::string node = node_name(index);
  return {"XDS_ADDRESS=" + xds_address(),
          "XDS_ROOT_CA=" + layout.root_cert(),
          "CA_ADDRESS=" + xds_address(),
          "CA_ROOT_CA=" + layout.root_cert(),
          "AUTH_TOKEN=" + token_path(layout, node, "ztunnel"),
          "NODE_NAME=" + node,
          "POD_NAME=ztunnel-" + node,
          fmt::format("POD_NAMESPACE={}", kSystemNamespace),
          "SERVICE_ACCOUNT=ztunnel",
          "INSTANCE_IP=" + node_address(index).v4.to_string(),
          "INPOD_UDS=" + layout.agent_run_dir(node) + "/ztunnel.sock",
          "CLUSTER_ID=Kubernetes",
          "NETWORK=",
          fmt::format("TRUST_DOMAIN={}", kClusterDomain)};
}

std::vector<std::string> agent_environment(const Layout& layout, int index) {
  const std::string node = node_name(index);
  return {"NODE_NAME=" + node,
          "AGENT_RUN_DIR=" + layout.agent_run_dir(node),
          "AGENT_CGROUP=" + layout.node_cgroup(node),
          "AGENT_PROBER_CGROUP=" + layout.component_cgroup(node, "kubelet"),
          "AGENT_BPF_DIR=" + layout.node_bpf_dir(node),
          "XDS_ADDRESS=" + xds_address(),
          "XDS_ROOT_CA=" + layout.root_cert(),
          "AUTH_TOKEN=" + token_path(layout, node, "meltemi-agent")};
}

std::string log_path(const Layout& layout, std::string_view name, std::string_view node) {
  return node.empty() ? fmt::format("{}/{}.log", layout.log_dir(), name)
                      : fmt::format("{}/{}.{}.log", layout.log_dir(), name, node);
}

}  // namespace

ComponentSpec control_plane(const Layout& layout, const std::string& bin_dir) {
  return {.name = "meltemid",
          .node = "",
          .argv = {bin_dir + "/meltemid"},
          .environment = {"CONFIG_DIR=" + layout.config_dir(),
                          "STATE_DIR=" + layout.control_state_dir(), "CA_DIR=" + layout.ca_dir(),
                          "TOKEN_PUBLIC_KEY=" + layout.token_public_key()},
          .netns = layout.fabric_netns(),
          .cgroup = layout.control_cgroup(),
          .log = log_path(layout, "meltemid", "")};
}

std::vector<ComponentSpec> node_components(const Layout& layout, int index,
                                           const std::string& bin_dir, const std::string& self) {
  const std::string node = node_name(index);
  const auto spec = [&](std::string name, std::vector<std::string> argv,
                        std::vector<std::string> environment) {
    return ComponentSpec{.name = name,
                         .node = node,
                         .argv = std::move(argv),
                         .environment = std::move(environment),
                         .netns = layout.node_netns(node),
                         .cgroup = layout.component_cgroup(node, name),
                         .log = log_path(layout, name, node)};
  };
  return {spec("meltemi-agent", {bin_dir + "/meltemi-agent"}, agent_environment(layout, index)),
          spec("ztunnel", {bin_dir + "/ztunnel"}, ztunnel_environment(layout, index)),
          spec("kubelet",
               {self, "internal", "kubelet", layout.name(), std::to_string(index), bin_dir}, {})};
}

std::vector<ComponentToken> component_tokens(const Layout& layout, std::string_view node) {
  return {{"ztunnel", token_path(layout, node, "ztunnel")},
          {"meltemi-agent", token_path(layout, node, "meltemi-agent")}};
}

Status Component::start() {
  const UniqueFd log(
      ::open(spec_.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!log.valid()) return fail_errno(errno, "open " + spec_.log);
  const sys::Netns netns = MELTEMI_TRY(sys::Netns::open(sys::Netns::named_path(spec_.netns)));
  const sys::Cgroup cgroup = MELTEMI_TRY(sys::Cgroup::create(spec_.cgroup));
  sys::SpawnOptions spawn;
  spawn.argv = spec_.argv;
  spawn.environment = spec_.environment;
  const char* path = std::getenv("PATH");
  spawn.environment.push_back(
      fmt::format("PATH={}", path == nullptr ? "/usr/sbin:/usr/bin:/sbin:/bin" : path));
  spawn.replace_environment = true;
  spawn.netns = &netns;
  spawn.cgroup = &cgroup;
  spawn.stdout_fd = spawn.stderr_fd = log.get();
  spawn.new_session = true;
  process_ = MELTEMI_TRY(sys::Process::spawn(spawn));
  since_ = MonoClock::now();
  started_ = std::chrono::system_clock::now();
  return {};
}

bool Component::reap() {
  if (!running()) return false;
  const Result<int> status = process_.wait(Duration::zero());
  if (!status) return false;
  process_ = {};
  last_end_ = WIFSIGNALED(*status) ? fmt::format("signal {}", WTERMSIG(*status))
                                   : fmt::format("exit code {}", WEXITSTATUS(*status));
  scope.warn("{} ended with {}", spec_.title(), last_end_);
  if (MonoClock::now() - since_ > kStableAfter) delay_ = kFirstComponentDelay;
  next_ = MonoClock::now() + delay_;
  delay_ = std::min(delay_ * 2, kMaxComponentDelay);
  return true;
}

MonoTime Component::poll() {
  if (running()) return MonoTime::max();
  if (MonoClock::now() < next_) return next_;
  ++restarts_;
  const Status started = start();
  if (started) return MonoTime::max();
  scope.error("{}: {}", spec_.title(), started.error().to_string());
  next_ = MonoClock::now() + delay_;
  delay_ = std::min(delay_ * 2, kMaxComponentDelay);
  return next_;
}

}  // namespace meltemi::sandbox
