#include "userspace/cli/processes.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

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
  Table processes({"Processes", "PID", "Restarts", "Log"});
  if (const auto all = mesh_processes(context.layout()))
    for (const MeshProcess& p : *all)
      if (p.node == node)
        processes.add({p.name, p.pid != 0 ? std::to_string(p.pid) : "down: " + p.last_end,
                       std::to_string(p.restarts), p.log});
  print("{}", processes.text());
  Table pods({"Pods", "Namespace", "IP", "Phase"});
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
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
  const auto processes = mesh_processes(context.layout());
  if (!processes) return report(processes.error());
  if (output == "json" || output == "yaml") {
    Value items = Value::list();
    for (const MeshProcess& p : *processes) {
      Value item = Value::map();
      item.set("name", Value::of_string(p.name));
      item.set("node", Value::of_string(p.node));
      item.set("pid", Value::of_number(std::to_string(p.pid)));
      item.set("running", Value::of_bool(p.pid != 0));
      item.set("restarts", Value::of_number(std::to_string(p.restarts)));
      item.set("started", Value::of_string(p.started));
      item.set("netns", Value::of_string(p.netns));
      item.set("log", Value::of_string(p.log));
      items.items.push_back(std::move(item));
    }
    print_data(std::move(items), output);
    return kExitOk;
  }
  std::vector<std::string> header{"NAME", "NODE", "PID", "STATUS", "RESTARTS", "AGE"};
  if (output == "wide") header.insert(header.end(), {"NETNS", "LOG"});
  Table table(header);
  for (const MeshProcess& p : *processes) {
    std::vector<std::string> row{p.name,
                                 p.node.empty() ? "<none>" : p.node,
                                 std::to_string(p.pid),
                                 p.pid != 0 ? "Running" : fmt::format("Down ({})", p.last_end),
                                 std::to_string(p.restarts),
                                 age_of(p.started)};
    if (output == "wide") row.insert(row.end(), {p.netns, p.log});
    table.add(std::move(row));
  }
  print("{}", table.text(no_headers));
  return kExitOk;
}

int get_nodes(const Context& context, const std::string& output, bool no_headers) {
  const std::vector<std::string> nodes = node_names(context);
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  Table table({"NAME", "STATUS", "INTERNAL-IP", "PODS", "POD-CIDR", "NETNS"});
  Value items = Value::list();
  for (const std::string& node : nodes) {
    const int index = sandbox::node_index(node);
    const auto pods = directory.store().list(config::Kind::kPod);
    const auto count = std::count_if(pods.begin(), pods.end(), [&](const config::ObjectPtr& p) {
      return p->as<config::kube::Pod>().spec().node_name() == node;
    });
    const std::string ip = sandbox::node_address(index).v4.to_string();
    table.add({node, "Ready", ip, std::to_string(count), sandbox::pod_cidr_v4(index).to_string(),
               context.layout().node_netns(node)});
    Value item = Value::map();
    item.set("name", Value::of_string(node));
    item.set("ip", Value::of_string(ip));
    item.set("pods", Value::of_number(std::to_string(count)));
    item.set("netns", Value::of_string(context.layout().node_netns(node)));
    items.items.push_back(std::move(item));
  }
  if (output == "json" || output == "yaml")
    print_data(std::move(items), output);
  else
    print("{}", table.text(no_headers));
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
