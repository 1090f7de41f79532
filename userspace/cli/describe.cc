#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "userspace/cli/applies.h"
#include "userspace/cli/get.h"
#include "userspace/cli/manifests.h"
#include "userspace/cli/pods.h"
#include "userspace/cli/processes.h"
#include "userspace/cli/table.h"
#include "userspace/cli/targets.h"
#include "userspace/config/analyze.h"
#include "userspace/config/value.h"
#include "userspace/sandbox/controllers.h"
#include "userspace/sandbox/services.h"
#include "userspace/sandbox/workload_status.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

constexpr size_t kCommandWidth = 120;

using Truth = std::map<std::string, local::v1::Pod>;

// "Name:             web", kubectl's way.
void field(std::string_view name, std::string_view value) {
  print("{:<18}{}\n", fmt::format("{}:", name), value.empty() ? "<none>" : value);
}

template <typename Map>
void field_of_map(std::string_view name, const Map& entries) {
  const std::map<std::string, std::string> sorted(entries.begin(), entries.end());
  std::string title(name);
  for (const auto& [key, value] : sorted) {
    if (key == kLastApplied) continue;
    print("{:<18}{}={}\n", title.empty() ? "" : title + ":", key, value);
    title.clear();
  }
  if (!title.empty()) field(title, "");
}

void print_indented(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    print("{}{}\n", end > at ? "  " : "", std::string_view(text).substr(at, end - at));
    at = end + 1;
  }
}

template <typename Conditions>
void print_conditions(const Conditions& conditions) {
  if (conditions.empty()) return;
  Table table({"Type", "Status", "Reason", "Message"});
  for (const kube::Condition& c : conditions)
    table.add({c.type(), c.status(), c.reason(), c.message()});
  print("Conditions:\n");
  print_indented(table.text());
}

void print_part(const config::Value& object, std::string_view key, std::string_view title) {
  const config::Value* part = object.find(key);
  if (part == nullptr || part->items.empty()) return;
  print("{}:\n", title);
  print_indented(config::to_yaml(*part));
}

std::string state_text(const kube::ContainerState& state) {
  if (state.has_running()) return "Running since " + state.running().started_at();
  if (state.has_waiting())
    return state.waiting().message().empty()
               ? "Waiting: " + state.waiting().reason()
               : fmt::format("Waiting: {} ({})", state.waiting().reason(), state.waiting().message());
  if (!state.has_terminated()) return {};
  const auto& t = state.terminated();
  return fmt::format("Terminated: {}, exit code {}, {} to {}", t.reason(), t.exit_code(),
                     t.started_at(), t.finished_at());
}

// What a container runs, in one line: a script is told by its beginning.
std::string command_text(const kube::Container& container) {
  std::string out = fmt::format("{}", fmt::join(container.command(), " "));
  for (const std::string& arg : container.args()) out += " " + arg;
  const size_t end = std::min(out.find('\n'), kCommandWidth);
  if (end >= out.size()) return out;
  out.resize(end);
  return out + " ...";
}

void describe_containers(const kube::PodSpec& spec, const kube::PodStatus& status) {
  print("Containers:\n");
  for (const kube::Container& c : spec.containers()) {
    print("  {}:\n", c.name());
    print("    Image:         {} (not pulled)\n", c.image().empty() ? "<none>" : c.image());
    print("    Command:       {}\n", command_text(c));
    for (const kube::ContainerStatus& s : status.container_statuses()) {
      if (s.name() != c.name()) continue;
      print("    State:         {}\n", state_text(s.state()));
      if (const std::string last = state_text(s.last_state()); !last.empty())
        print("    Last State:    {}\n", last);
      print("    Ready:         {}\n", s.ready() ? "True" : "False");
      print("    Restart Count: {}\n", s.restart_count());
    }
  }
}

void describe_mesh(const PodView& view) {
  print("Mesh:\n");
  print("  Enrolled:        {}\n", view.enrolled());
  if (!view.truth) return;
  print("  Reason:          {}\n", view.truth->reason());
  if (!view.truth->message().empty()) print("  Message:         {}\n", view.truth->message());
  if (view.truth->missing_size() > 0)
    cli::print("  Missing:         {}\n", fmt::join(view.truth->missing(), ", "));
  if (!view.guard().empty()) {
    print("  Egress guard:    {}\n", view.guard());
    print("  Probes passed:   {}\n", view.truth->probes_passed());
  }
  if (view.truth->uncaptured_processes_size() > 0)
    cli::print("  Not captured:    {}\n", fmt::join(view.truth->uncaptured_processes(), ", "));
}

// Policies and routes that concern the object, and who acts on them.
void print_applied(const std::vector<Applied>& applied) {
  if (applied.empty()) {
    field("Applies", "no policy, no routing rule");
    return;
  }
  Table table({"Applies", "What", "Acted on by"});
  for (const Applied& each : applied)
    table.add({each.object->key().to_string(), each.what, each.where});
  print("{}", table.text());
}

class Describer {
 public:
  Describer(const Context& context, const DescribeOptions& options)
      : context_(context),
        options_(options),
        directory_(context.open(sandbox::View::kMerged)) {}

  // What was named and is not there; the rest was described.
  const std::vector<Error>& missing() const { return missing_; }

  Status run() {
    const Selector selector = MELTEMI_TRY(parse_selector(options_.selector));
    std::vector<ObjectPtr> found;
    for (const Target& target : MELTEMI_TRY(parse_targets(options_.words))) {
      for (ObjectPtr& object : find_objects(store(), target, context_.ns(), selector, &missing_))
        found.push_back(std::move(object));
    }
    if (found.empty() && missing_.empty()) complain("No resources found in {} namespace.\n", context_.ns());
    for (const ObjectPtr& object : found) {
      if (object != found.front()) print("\n\n");
      describe(sandbox::with_status(store(), *object));
    }
    return {};
  }

 private:
  const ObjectStore& store() const { return directory_.store(); }

  void describe(const Object& object) {
    field("Name", object.name());
    if (object.info().namespaced) field("Namespace", object.ns());
    field_of_map("Labels", object.meta().labels());
    field_of_map("Annotations", object.meta().annotations());
    field("Created", object.meta().creation_timestamp());
    switch (object.kind()) {
      case Kind::kPod:
        describe_pod(object);
        break;
      case Kind::kService:
        describe_service(object);
        break;
      case Kind::kDeployment:
        describe_deployment(object);
        break;
      case Kind::kSecret:
        describe_secret(object);
        break;
      default:
        describe_any(object);
    }
    config::Problems problems = config::analyze_object(store(), object.key());
    for (config::Problem& problem : problems) problem.file.clear();
    report(problems);
  }

  void describe_pod(const Object& object) {
    const auto& pod = object.as<kube::Pod>();
    const ObjectPtr shared = store().find(Kind::kPod, object.ns(), object.name());
    const PodView view = view_pod(context_, shared, truth());
    field("Service Account", pod.spec().service_account_name());
    field("Node", pod.spec().node_name());
    field("Status", view.status());
    std::vector<std::string> ips;
    for (const auto& ip : pod.status().pod_ips()) ips.push_back(ip.ip());
    field("IPs", fmt::format("{}", fmt::join(ips, ", ")));
    for (const auto& owner : object.meta().owner_references())
      field("Controlled By", fmt::format("{}/{}", owner.kind(), owner.name()));
    field("Network", view.netns);
    field("Processes", fmt::format("{}", fmt::join(view.pids, ", ")));
    describe_containers(pod.spec(), pod.status());
    describe_mesh(view);
    print_applied(what_applies(store(), object));
    print_conditions(pod.status().conditions());
    if (!pod.status().message().empty()) field("Message", pod.status().message());
  }

  void describe_service(const Object& object) {
    const auto& spec = object.as<kube::Service>().spec();
    field_of_map("Selector", spec.selector());
    field("Type", spec.type().empty() ? "ClusterIP" : spec.type());
    field("IPs", spec.cluster_ips().empty() ? spec.cluster_ip()
                                            : fmt::format("{}", fmt::join(spec.cluster_ips(), ", ")));
    const std::vector<ObjectPtr> pods = sandbox::endpoints_of(store(), object);
    for (const kube::ServicePort& port : spec.ports()) {
      field("Port", fmt::format("{} {}/{}", port.name().empty() ? "<unset>" : port.name(),
                                port.port(), port.protocol().empty() ? "TCP" : port.protocol()));
      std::vector<std::string> endpoints;
      for (const ObjectPtr& pod : pods)
        endpoints.push_back(fmt::format("{}:{} ({})", pod->as<kube::Pod>().status().pod_ip(),
                                        sandbox::resolve_target_port(port, *pod), pod->name()));
      field("Endpoints", fmt::format("{}", fmt::join(endpoints, ", ")));
    }
    field("Waypoint", waypoint_of(store(), object));
    print_applied(what_applies(store(), object));
  }

  void describe_deployment(const Object& object) {
    const auto& deployment = object.as<kube::Deployment>();
    const auto& s = deployment.status();
    field_of_map("Selector", deployment.spec().selector().match_labels());
    field("Replicas",
          fmt::format("{} desired | {} updated | {} total | {} available | {} unavailable",
                      deployment.spec().has_replicas() ? deployment.spec().replicas() : 1,
                      s.updated_replicas(), s.replicas(), s.available_replicas(),
                      s.unavailable_replicas()));
    field("ReplicaSet", sandbox::replica_set_name(object));
    std::vector<std::string> pods;
    const std::string mark = fmt::format("Deployment/{}", object.name());
    for (const ObjectPtr& pod : store().list(Kind::kPod, object.ns()))
      if (pod->annotation(sandbox::kControllerAnnotation) == mark) pods.push_back(pod->name());
    field("Pods", fmt::format("{}", fmt::join(pods, ", ")));
    describe_containers(deployment.spec().template_().spec(), {});
    print_conditions(s.conditions());
  }

  // Sizes only, as kubectl: a description is read over shoulders.
  static void describe_secret(const Object& object) {
    const auto& secret = object.as<kube::Secret>();
    const std::map<std::string, std::string> sorted(secret.data().begin(), secret.data().end());
    print("Data:\n");
    for (const auto& [key, value] : sorted) print("  {}: {} bytes\n", key, value.size());
  }

  static void describe_any(const Object& object) {
    const config::Value value = object.to_value();
    for (const auto& [key, title] : {std::pair{"data", "Data"}, {"spec", "Spec"}, {"status", "Status"}})
      print_part(value, key, title);
  }

  const Truth& truth() {
    if (!truth_) {
      std::vector<std::string> complaints;
      truth_ = kernel_truth(context_, &complaints);
      for (const std::string& complaint : complaints) complain("warning: {}\n", complaint);
    }
    return *truth_;
  }

  const Context& context_;
  const DescribeOptions& options_;
  sandbox::Directory directory_;
  std::vector<Error> missing_;
  std::optional<Truth> truth_;
};

}  // namespace

int describe_command(const Context& context, const DescribeOptions& options) {
  const std::string kind = options.words.empty() ? "" : options.words[0];
  if (is_node_word(kind.substr(0, kind.find('/')))) return describe_nodes(context, options.words);
  Describer describer(context, options);
  int code = finish(describer.run());
  for (const Error& error : describer.missing()) code = report(error);
  return code;
}

}  // namespace meltemi::cli
