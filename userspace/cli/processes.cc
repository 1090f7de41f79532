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
  print("{}", output == "json" ? config::to_json(root) : config::to_yaml(root));
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
  std::vector<std::string> nodes;
  std::error_code error;
  for (const auto& entry :
       std::filesystem::directory_iterator(context.layout().run_dir() + "/nodes", error))
    nodes.push_back(entry.path().filename());
  std::sort(nodes.begin(), nodes.end(), [](const std::string& a, const std::string& b) {
    return sandbox::node_index(a) < sandbox::node_index(b);
  });
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

}  // namespace meltemi::cli
