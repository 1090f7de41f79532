#include "userspace/cli/pods.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "userspace/cli/targets.h"
#include "userspace/codec/local_frame.h"
#include "userspace/sandbox/controllers.h"
#include "userspace/sandbox/services.h"
#include "userspace/sys/cgroup.h"
#include "userspace/sys/packet.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

constexpr Duration kAgentTimeout = std::chrono::seconds(3);

Result<local::v1::Response> ask_agent(const std::string& socket_path) {
  const UniqueFd socket = MELTEMI_TRY(sys::connect_packets(socket_path));
  local::v1::Request request;
  request.mutable_list();
  for (const std::string& packet : MELTEMI_TRY(codec::local::encode(request)))
    MELTEMI_TRY(sys::send_packet(socket.get(), as_bytes(packet), {}, kAgentTimeout));
  codec::local::Assembler assembler;
  std::optional<std::string> message;
  while (!message) {
    const sys::Packet packet = MELTEMI_TRY(sys::receive_packet(socket.get(), kAgentTimeout));
    message = MELTEMI_TRY(assembler.add(as_bytes(packet.bytes)));
  }
  local::v1::Response response = MELTEMI_TRY(codec::local::decode_response(*message));
  if (!response.error().empty()) return fail(Reason::kInternal, Fault::kUpstream, response.error());
  return response;
}

const kube::PodStatus& status_of(const Object& pod) {
  return pod.as<kube::Pod>().status();
}

// The reason that kubectl shows instead of the phase.
std::string container_reason(const kube::ContainerStatus& c) {
  if (c.state().has_waiting() && !c.state().waiting().reason().empty())
    return c.state().waiting().reason();
  if (c.state().has_terminated()) {
    const auto& t = c.state().terminated();
    if (!t.reason().empty()) return t.reason();
    return t.signal() != 0 ? fmt::format("Signal:{}", t.signal())
                           : fmt::format("ExitCode:{}", t.exit_code());
  }
  return {};
}

ObjectPtr first_ready(const std::vector<ObjectPtr>& pods) {
  const auto ready = std::find_if(pods.begin(), pods.end(),
                                  [](const ObjectPtr& p) { return sandbox::is_ready(*p); });
  if (ready != pods.end()) return *ready;
  return pods.empty() ? nullptr : pods.front();
}

}  // namespace

std::map<std::string, local::v1::Response> agents_say(const Context& context,
                                                      std::vector<std::string>* complaints) {
  std::map<std::string, local::v1::Response> out;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(context.layout().run_dir() + "/nodes", error)) {
    const std::string node = entry.path().filename();
    auto answer = ask_agent(context.layout().agent_socket(node));
    if (answer)
      out[node] = std::move(*answer);
    else
      complaints->push_back(
          fmt::format("the agent of {} does not answer: {}", node, answer.error().detail));
  }
  return out;
}

std::map<std::string, local::v1::Pod> kernel_truth(const Context& context,
                                                   std::vector<std::string>* complaints) {
  std::map<std::string, local::v1::Pod> out;
  for (auto& [node, answer] : agents_say(context, complaints))
    for (const local::v1::Pod& pod : answer.pods()) out[pod.uid()] = pod;
  return out;
}

std::string PodView::status() const {
  const auto& status = status_of(*pod);
  if (sandbox::is_terminating(*pod)) return "Terminating";
  if (status.phase() == "Succeeded") return "Completed";
  for (const auto& c : status.init_container_statuses())
    if (!c.ready())
      if (const std::string reason = container_reason(c); !reason.empty()) return "Init:" + reason;
  for (const auto& c : status.container_statuses())
    if (const std::string reason = container_reason(c); !reason.empty() && reason != "Completed")
      return reason;
  return status.phase().empty() ? "Pending" : status.phase();
}

std::string PodView::ready() const {
  const auto& statuses = status_of(*pod).container_statuses();
  const auto ready =
      std::count_if(statuses.begin(), statuses.end(), [](const auto& c) { return c.ready(); });
  return fmt::format("{}/{}", ready, pod->as<kube::Pod>().spec().containers_size());
}

int PodView::restarts() const {
  int out = 0;
  for (const auto& c : status_of(*pod).container_statuses()) out += c.restart_count();
  return out;
}

std::string PodView::enrolled() const {
  if (!truth) return sandbox::is_finished(*pod) || uid.empty() ? "no" : "unknown";
  if (truth->enrolled()) return "yes";
  return truth->enrol() ? "pending" : "no";
}

std::string PodView::reason() const {
  if (!truth) return {};
  std::string out = truth->reason();
  for (const std::string& missing : truth->missing()) out += fmt::format(" !{}", missing);
  return out;
}

std::string PodView::guard() const {
  if (!truth || !truth->enrolled()) return {};
  if (truth->guard_dropped() == 0) return truth->guard();
  return fmt::format("{}, {} dropped", truth->guard(), truth->guard_dropped());
}

PodView view_pod(const Context& context, const ObjectPtr& pod,
                 const std::map<std::string, local::v1::Pod>& truth) {
  PodView view;
  view.pod = pod;
  view.uid = pod->meta().uid();
  const auto& spec = pod->as<kube::Pod>().spec();
  view.node = spec.node_name();
  if (view.node.empty() || status_of(*pod).phase().empty()) return view;
  view.netns = spec.host_network() ? context.layout().node_netns(view.node)
                                   : context.layout().pod_netns(view.uid);
  if (sandbox::is_finished(*pod)) view.netns.clear();
  if (const auto cgroup = sys::Cgroup::open(context.layout().pod_cgroup(view.node, view.uid)))
    if (const auto pids = cgroup->processes_below()) view.pids = *pids;
  std::sort(view.pids.begin(), view.pids.end());
  if (const auto found = truth.find(view.uid); found != truth.end()) view.truth = found->second;
  return view;
}

std::string waypoint_of(const ObjectStore& store, const Object& object) {
  std::string_view name = object.label("istio.io/use-waypoint");
  if (name.empty())
    if (const ObjectPtr ns = store.find(Kind::kNamespace, "", object.ns()))
      name = ns->label("istio.io/use-waypoint");
  return std::string(name);
}

Result<ObjectPtr> find_pod(const Context& context, const ObjectStore& store,
                           const std::string& word) {
  const bool bare = word.find('/') == std::string::npos;
  const Target target = MELTEMI_TRY(parse_target(bare ? "pod/" + word : word));
  const std::string& name = target.names.at(0);
  const std::string& ns = context.ns();
  if (target.kind->kind == Kind::kPod) {
    if (ObjectPtr pod = store.find(Kind::kPod, ns, name)) return pod;
    return no_such_object(*target.kind, name);
  }
  const ObjectPtr owner = store.find(target.kind->kind, ns, name);
  if (!owner) return no_such_object(*target.kind, name);
  std::vector<ObjectPtr> pods;
  if (owner->kind() == Kind::kService) {
    pods = sandbox::endpoints_of(store, *owner);
  } else {
    const std::string mark = fmt::format("{}/{}", owner->info().name, name);
    for (const ObjectPtr& pod : store.list(Kind::kPod, ns))
      if (pod->annotation(sandbox::kControllerAnnotation) == mark) pods.push_back(pod);
  }
  if (ObjectPtr pod = first_ready(pods)) return pod;
  return fail(Reason::kNotFound, Fault::kConfig,
              fmt::format("{} has no running pod. See: meltemi get pods -n {}",
                          owner->key().to_string(), ns));
}

Result<std::string> choose_container(const Object& pod, const std::string& wanted) {
  const auto& spec = pod.as<kube::Pod>().spec();
  std::string names;
  for (const auto* list : {&spec.containers(), &spec.init_containers()})
    for (const auto& c : *list) {
      if (c.name() == wanted || (wanted.empty() && list == &spec.containers())) return c.name();
      names += (names.empty() ? "" : ", ") + c.name();
    }
  return fail(Reason::kNotFound, Fault::kConfig,
              fmt::format("container {} is not in pod {}. It has: {}", wanted, pod.name(), names));
}

Result<pid_t> container_pid(const Object& pod, const std::string& container) {
  for (const auto& c : status_of(pod).container_statuses()) {
    constexpr std::string_view kScheme = "pid://";
    if (c.name() != container || !c.container_id().starts_with(kScheme)) continue;
    pid_t pid = 0;
    const std::string& id = c.container_id();
    std::from_chars(id.data() + kScheme.size(), id.data() + id.size(), pid);
    if (pid > 0) return pid;
  }
  return fail(
      Reason::kNotFound, Fault::kConfig,
      fmt::format(
          "container {} of pod {} is not running (pod phase {}). See: meltemi logs -n {} {}",
          container, pod.name(), status_of(pod).phase(), pod.ns(), pod.name()));
}

}  // namespace meltemi::cli
