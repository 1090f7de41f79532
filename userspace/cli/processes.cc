#include "userspace/cli/processes.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>

#include "userspace/cli/mesh_state.h"
#include "userspace/cli/pods.h"
#include "userspace/cli/table.h"
#include "userspace/config/value.h"
#include "userspace/sys/files.h"

namespace meltemi::cli {
namespace {

using config::Value;

std::string text_of(const Value& map, std::string_view key) {
  const Value* value = map.find(key);
  return value == nullptr ? std::string() : value->text;
}

int64_t number_of(const Value& map, std::string_view key) {
  const std::string text = text_of(map, key);
  int64_t out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

void print_data(Value items, const std::string& output) {
  Value root = Value::map();
  root.set("apiVersion", Value::of_string("v1"));
  root.set("kind", Value::of_string("List"));
  root.set("items", std::move(items));
  write_data(output == "json" ? config::to_json(root) : config::to_yaml(root));
}

// In their order: node1 before node10.
std::vector<std::string> node_names(const Context& context) {
  std::vector<std::string> nodes;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(context.layout().run_dir() + "/nodes", error))
    nodes.push_back(entry.path().filename());
  std::sort(nodes.begin(), nodes.end(), [](const std::string& a, const std::string& b) {
    return sandbox::node_index(a) < sandbox::node_index(b);
  });
  return nodes;
}

constexpr uint16_t kControlPlanePort = 15014, kProxyPort = 15000, kAgentPort = 15022;
constexpr std::string_view kGatewayLabel = "gateway.networking.k8s.io/gateway-name";

// A process of the mesh, or a waypoint's pod.
struct Member {
  MeshProcess process;
  std::string pod;  // "ns/name"; "" for processes
  std::optional<MeshState> state;  // nullopt: it has no page (the sandbox's kubelets), or does not run

  std::string name() const { return pod.empty() ? process.name : "waypoint/" + pod; }
  std::string title() const {
    return process.node.empty() || !pod.empty() ? name() : process.name + " of " + process.node;
  }
};

void ask(const Context& context, Member* member) {
  if (member->process.pid == 0) return;
  const std::string& name = member->process.name;
  if (name == "meltemid")
    member->state = state_in(member->process.netns, kControlPlanePort);
  else if (name == "ztunnel" || !member->pod.empty())
    member->state = state_in(member->process.netns, kProxyPort);
  else if (name == "meltemi-agent")
    member->state = state_in(context.layout().node_netns(member->process.node), kAgentPort);
}

std::vector<Member> waypoint_members(const Context& context) {
  std::vector<Member> out;
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  for (const config::ObjectPtr& pod : directory.store().list(config::Kind::kPod)) {
    const auto& body = pod->as<config::kube::Pod>();
    if (pod->label(kGatewayLabel).empty() || body.status().phase() != "Running") continue;
    const PodView view = view_pod(context, pod, {});
    Member member;
    member.pod = fmt::format("{}/{}", pod->ns(), pod->name());
    member.process = {.name = "waypoint",
                      .node = view.node,
                      .netns = view.netns,
                      .log = {},
                      .started = body.status().start_time(),
                      .last_end = {},
                      .pid = view.pids.empty() ? 0 : view.pids.front(),
                      .restarts = view.restarts()};
    out.push_back(std::move(member));
  }
  return out;
}

Result<std::vector<Member>> members(const Context& context) {
  std::vector<Member> out;
  for (MeshProcess& process : MELTEMI_TRY(mesh_processes(context.layout())))
    out.push_back({std::move(process), {}, {}});
  for (Member& member : waypoint_members(context)) out.push_back(std::move(member));
  for (Member& member : out) ask(context, &member);
  return out;
}

std::string running_text(const Member& member) {
  if (member.process.pid == 0)
    return member.pod.empty() ? fmt::format("Down ({})", member.process.last_end) : "Down";
  if (!member.state) return "Running";
  return !member.state->told ? "NoAnswer" : member.state->ready ? "Running" : "NotReady";
}

std::string or_none(const std::string& text) { return text.empty() ? "<none>" : text; }

// What somebody should look at, on stderr as every warning.
void warn_about(const Member& member) {
  if (member.process.pid == 0)
    complain("warning: {} does not run\n", member.title());
  if (!member.state) return;
  if (!member.state->told)
    complain("warning: {} does not say how it is: {}\n", member.title(), member.state->why_not);
  for (const std::string& finding : member.state->findings)
    complain("warning: {} {}\n", member.title(), finding);
}

Value data_of(const Member& member) {
  const MeshProcess& p = member.process;
  Value item = Value::map();
  item.set("name", Value::of_string(p.name));
  item.set("node", Value::of_string(p.node));
  if (!member.pod.empty()) item.set("pod", Value::of_string(member.pod));
  item.set("pid", Value::of_number(std::to_string(p.pid)));
  item.set("running", Value::of_bool(p.pid != 0));
  item.set("restarts", Value::of_number(std::to_string(p.restarts)));
  item.set("started", Value::of_string(p.started));
  item.set("netns", Value::of_string(p.netns));
  item.set("log", Value::of_string(p.log));
  if (!member.state) return item;
  item.set("sync", Value::of_string(member.state->sync));
  if (member.state->told)
    item.set("state", member.state->page);
  else
    item.set("noState", Value::of_string(member.state->why_not));
  return item;
}

// "nodes", "node a b" or "node/a node/b": the names; empty means all.
std::vector<std::string> names_in(const std::vector<std::string>& words) {
  std::vector<std::string> out;
  for (const std::string& word : words) {
    const size_t slash = word.find('/');
    if (slash != std::string::npos)
      out.push_back(word.substr(slash + 1));
    else if (&word != &words.front())
      out.push_back(word);
  }
  return out;
}

// What the agent has read back from the kernel, of all pods of the node together.
void describe_capture(const Context& context, const std::string& node) {
  std::vector<std::string> complaints;
  const auto answers = agents_say(context, &complaints);
  const auto found = answers.find(node);
  if (found == answers.end()) {
    for (const std::string& complaint : complaints)
      if (complaint.find(node + " ") != std::string::npos) complain("warning: {}\n", complaint);
    return;
  }
  size_t enrolled = 0, wanted = 0, guarded = 0;
  uint64_t dropped = 0, probes = 0;
  for (const local::v1::Pod& pod : found->second.pods()) {
    wanted += pod.enrol();
    enrolled += pod.enrolled();
    guarded += pod.enrolled() && pod.guard() == "on";
    dropped += pod.guard_dropped();
    probes += pod.probes_passed();
  }
  print("Capture:          {} of {} pods that are to be enrolled; {} guarded, {} connections dropped; "
        "{} probes passed\n",
        enrolled, wanted, guarded, dropped, probes);
  for (const std::string& problem : found->second.problems()) complain("warning: {}: {}\n", node, problem);
}

void describe_node(const Context& context, const std::string& node) {
  const auto line = [](std::string_view name, std::string_view value) {
    print("{:<18}{}\n", fmt::format("{}:", name), value.empty() ? "<none>" : value);
  };
  const int index = sandbox::node_index(node);
  const sandbox::AddressPair address = sandbox::node_address(index);
  line("Name", node);
  line("Addresses", fmt::format("{}, {}", address.v4.to_string(), address.v6.to_string()));
  line("PodCIDRs", fmt::format("{}, {}", sandbox::pod_cidr_v4(index).to_string(),
                               sandbox::pod_cidr_v6(index).to_string()));
  line("Network", context.layout().node_netns(node));
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  if (const config::ObjectPtr object = directory.store().find(config::Kind::kNode, "", node)) {
    const std::map<std::string, std::string> labels(object->meta().labels().begin(),
                                                    object->meta().labels().end());
    std::string text;
    for (const auto& [key, value] : labels)
      text += fmt::format("{}{}={}", text.empty() ? "" : ", ", key, value);
    line("Labels", text);
  }
  Table processes({"Processes", "PID", "Restarts", "Sync", "Certificates", "Version", "Log"});
  if (const auto all = members(context))
    for (const Member& member : *all) {
      const MeshProcess& p = member.process;
      if (p.node != node) continue;
      const MeshState state = member.state.value_or(MeshState());
      processes.add({member.name(), p.pid != 0 ? std::to_string(p.pid) : "down: " + p.last_end,
                     std::to_string(p.restarts), or_none(state.sync), or_none(state.certificates),
                     or_none(state.version), or_none(p.log)});
    }
  print("{}", processes.text());
  describe_capture(context, node);
  Table pods({"Pods", "Namespace", "IP", "Phase"});
  for (const config::ObjectPtr& pod : directory.store().list(config::Kind::kPod)) {
    const auto& body = pod->as<config::kube::Pod>();
    if (body.spec().node_name() == node)
      pods.add({pod->name(), pod->ns(), body.status().pod_ip(), body.status().phase()});
  }
  print("{}", pods.text());
}

}  // namespace

Result<std::vector<MeshProcess>> mesh_processes(const sandbox::Layout& layout) {
  const std::string text = MELTEMI_TRY(sys::read_file(layout.processes_file()));
  const auto parsed = config::parse_documents(text, layout.processes_file());
  std::vector<MeshProcess> out;
  if (parsed.documents.empty()) return out;
  const Value* items = parsed.documents.front().find("items");
  if (items == nullptr) return out;
  for (const Value& item : items->items)
    out.push_back({.name = text_of(item, "name"),
                   .node = text_of(item, "node"),
                   .netns = text_of(item, "netns"),
                   .log = text_of(item, "log"),
                   .started = text_of(item, "started"),
                   .last_end = text_of(item, "lastEnd"),
                   .pid = number_of(item, "pid"),
                   .restarts = number_of(item, "restarts")});
  return out;
}

int get_mesh(const Context& context, const std::string& output, bool no_headers) {
  const auto all = members(context);
  if (!all) return report(all.error());
  if (output == "json" || output == "yaml") {
    Value items = Value::list();
    for (const Member& member : *all) items.items.push_back(data_of(member));
    print_data(std::move(items), output);
    return kExitOk;
  }
  std::vector<std::string> header{"NAME",         "NODE",    "PID",      "STATUS", "SYNC",
                                  "CERTIFICATES", "VERSION", "RESTARTS", "AGE"};
  if (output == "wide") header.insert(header.end(), {"CONFIG", "COUNTS", "NETNS", "LOG"});
  Table table(header);
  for (const Member& member : *all) {
    const MeshProcess& p = member.process;
    const MeshState state = member.state.value_or(MeshState());
    std::vector<std::string> row{member.name(),
                                 or_none(p.node),
                                 std::to_string(p.pid),
                                 running_text(member),
                                 or_none(state.sync),
                                 or_none(state.certificates),
                                 or_none(state.version),
                                 std::to_string(p.restarts),
                                 age_of(p.started)};
    if (output == "wide")
      row.insert(row.end(),
                 {or_none(state.configuration), or_none(state.counts), p.netns, or_none(p.log)});
    table.add(std::move(row));
  }
  print("{}", table.text(no_headers));
  for (const Member& member : *all) warn_about(member);
  return kExitOk;
}

int get_nodes(const Context& context, const std::string& output, bool no_headers) {
  const std::vector<std::string> nodes = node_names(context);
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  std::vector<std::string> complaints;
  const auto agents = agents_say(context, &complaints);
  Table table({"NAME", "STATUS", "INTERNAL-IP", "PODS", "ENROLLED", "POD-CIDR", "NETNS"});
  Value items = Value::list();
  for (const std::string& node : nodes) {
    const int index = sandbox::node_index(node);
    const auto pods = directory.store().list(config::Kind::kPod);
    const auto count = std::count_if(pods.begin(), pods.end(), [&](const config::ObjectPtr& p) {
      return p->as<config::kube::Pod>().spec().node_name() == node;
    });
    const std::string ip = sandbox::node_address(index).v4.to_string();
    const auto agent = agents.find(node);
    const auto enrolled =
        agent == agents.end()
            ? 0
            : std::count_if(agent->second.pods().begin(), agent->second.pods().end(),
                            [](const local::v1::Pod& p) { return p.enrolled(); });
    table.add({node, agent == agents.end() ? "NotReady" : "Ready", ip, std::to_string(count),
               agent == agents.end() ? "<unknown>" : std::to_string(enrolled),
               sandbox::pod_cidr_v4(index).to_string(), context.layout().node_netns(node)});
    Value item = Value::map();
    item.set("name", Value::of_string(node));
    item.set("ip", Value::of_string(ip));
    item.set("pods", Value::of_number(std::to_string(count)));
    item.set("netns", Value::of_string(context.layout().node_netns(node)));
    item.set("ready", Value::of_bool(agent != agents.end()));
    Value problems = Value::list(), labels = Value::map();
    if (agent != agents.end()) {
      item.set("enrolled", Value::of_number(std::to_string(enrolled)));
      for (const std::string& problem : agent->second.problems()) {
        complaints.push_back(fmt::format("{}: {}", node, problem));
        problems.items.push_back(Value::of_string(problem));
      }
    }
    if (const config::ObjectPtr object = directory.store().find(config::Kind::kNode, "", node))
      for (const auto& [key, value] : object->meta().labels()) labels.set(key, Value::of_string(value));
    item.set("problems", std::move(problems));
    item.set("labels", std::move(labels));
    items.items.push_back(std::move(item));
  }
  if (output == "json" || output == "yaml")
    print_data(std::move(items), output);
  else
    print("{}", table.text(no_headers));
  for (const std::string& complaint : complaints) complain("warning: {}\n", complaint);
  return kExitOk;
}

bool is_node_word(std::string_view word) {
  return word == "nodes" || word == "node" || word == "no";
}

int describe_nodes(const Context& context, const std::vector<std::string>& words) {
  const std::vector<std::string> known = node_names(context), named = names_in(words);
  int code = kExitOk;
  bool first = true;
  for (const std::string& node : named.empty() ? known : named) {
    if (std::find(known.begin(), known.end(), node) == known.end()) {
      complain("error: nodes \"{}\" not found\n", node);
      code = kExitFailure;
      continue;
    }
    if (!first) print("\n\n");
    first = false;
    describe_node(context, node);
  }
  return code;
}

}  // namespace meltemi::cli
