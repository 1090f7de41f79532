#include "userspace/cli/get.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <sstream>
#include <thread>

#include "userspace/cli/jsonpath.h"
#include "userspace/cli/pods.h"
#include "userspace/cli/processes.h"
#include "userspace/cli/table.h"
#include "userspace/cli/targets.h"
#include "userspace/config/analyze.h"
#include "userspace/config/value.h"
#include "userspace/sandbox/services.h"
#include "userspace/sandbox/workload_status.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::KindInfo;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
using config::Value;
namespace kube = config::kube;

constexpr auto kWatchInterval = std::chrono::milliseconds(200);

struct Column {
  std::string title;
  bool wide_only = false;
  std::function<std::string(const Object&)> cell;
};
using Columns = std::vector<Column>;

template <typename Range, typename F>
std::string join(const Range& range, F&& text) {
  std::string out;
  for (const auto& item : range) out += (out.empty() ? "" : ",") + std::string(text(item));
  return out;
}

std::string condition_text(const google::protobuf::RepeatedPtrField<kube::Condition>& conditions,
                           std::string_view type) {
  for (const kube::Condition& c : conditions)
    if (c.type() == type) return c.status();
  return "Unknown";
}

std::string dash(std::string text) {
  return text.empty() ? "<none>" : text;
}

std::string ports_text(const kube::Service::Spec& spec) {
  return join(spec.ports(), [](const kube::ServicePort& p) {
    return fmt::format("{}/{}", p.port(), p.protocol().empty() ? "TCP" : p.protocol());
  });
}

std::string selector_text(const google::protobuf::Map<std::string, std::string>& selector) {
  const std::map<std::string, std::string> sorted(selector.begin(), selector.end());
  return join(sorted, [](const auto& e) { return e.first + "=" + e.second; });
}

std::string completions_of(const Object& job) {
  const auto& body = job.as<kube::Job>();
  const int wanted = body.spec().has_completions() ? body.spec().completions() : 1;
  return fmt::format("{}/{}", body.status().succeeded(), wanted);
}

std::string job_state(const Object& job) {
  for (const kube::Condition& c : job.as<kube::Job>().status().conditions())
    if (c.status() == "True") return c.type();
  return "Running";
}

std::string containers_text(const kube::PodTemplateSpec& pod, bool images) {
  return join(pod.spec().containers(),
              [&](const kube::Container& c) { return images ? c.image() : c.name(); });
}

class Getter {
 public:
  Getter(const Context& context, const GetOptions& options)
      : context_(context), options_(options), directory_(context.open(sandbox::View::kMerged)) {}

  // What was named and is not there; the rest was shown.
  const std::vector<Error>& missing() const { return missing_; }

  Status run() {
    if (options_.words.empty())
      return fail(
          Reason::kBadConfig, Fault::kConfig,
          "name what to get: pods, services, deployments, virtualservices, mesh, nodes, ... "
          "(meltemi api-resources lists all)");
    if (options_.watch) return watch();
    MELTEMI_TRY(collect());
    if (!found_.empty() || missing_.empty()) MELTEMI_TRY(print_all());
    warn();
    return {};
  }

 private:
  const ObjectStore& store() const { return directory_.store(); }
  bool wide() const { return options_.output == "wide"; }
  std::string ns() const { return options_.all_namespaces ? "" : context_.ns(); }

  // All that the words name, statuses of workloads filled in.
  Status collect() {
    found_.clear();
    kinds_.clear();
    missing_.clear();
    const Selector selector = MELTEMI_TRY(parse_selector(options_.selector));
    bool named = true;
    for (const Target& target : MELTEMI_TRY(parse_targets(options_.words))) {
      kinds_.push_back(target.kind);
      named = named && !target.names.empty();
      if (!target.names.empty() && target.kind->namespaced && options_.all_namespaces)
        return fail(Reason::kBadConfig, Fault::kConfig,
                    "a resource cannot be retrieved by name across all namespaces");
      for (const ObjectPtr& object : find_objects(store(), target, ns(), selector, &missing_))
        take(*object);
    }
    single_ = named && found_.size() == 1 && missing_.empty();
    return {};
  }

  void take(const Object& object) {
    found_.push_back(std::make_shared<const Object>(sandbox::with_status(store(), object)));
  }

  // --- as data ----------------------------------------------------------------------------------

  Value value_of(const Object& object) {
    Value value = object.to_value();
    if (object.kind() == Kind::kService) add_conditions(object, &value);
    if (object.kind() != Kind::kPod) return value;
    Value* status = value.find("status");
    if (status == nullptr) return value;
    status->set("meltemi",
                mesh_value(view_pod(context_, store().find(Kind::kPod, object.ns(), object.name()),
                                    truth())));
    return value;
  }

  // Whether a waypoint serves the Service, as istiod writes it into the status.
  void add_conditions(const Object& service, Value* value) {
    const auto bound = config::waypoint_bound(store(), service);
    if (!bound) return;
    Value condition = Value::map();
    condition.set("type", Value::of_string(bound->type));
    condition.set("status", Value::of_string(bound->status ? "True" : "False"));
    condition.set("reason", Value::of_string(bound->reason));
    condition.set("message", Value::of_string(bound->message));
    Value conditions = Value::list();
    conditions.items.push_back(std::move(condition));
    Value* status = value->find("status");
    if (status == nullptr) {
      value->set("status", Value::map());
      status = value->find("status");
    }
    status->set("conditions", std::move(conditions));
  }

  static Value mesh_value(const PodView& view) {
    Value mesh = Value::map();
    mesh.set("enrolled", Value::of_bool(view.truth && view.truth->enrolled()));
    mesh.set("decided", Value::of_bool(view.truth && view.truth->enrol()));
    mesh.set("reason", Value::of_string(view.truth ? view.truth->reason() : ""));
    mesh.set("message", Value::of_string(view.truth ? view.truth->message() : ""));
    Value missing = Value::list(), uncaptured = Value::list(), pids = Value::list();
    if (view.truth) {
      for (const std::string& m : view.truth->missing())
        missing.items.push_back(Value::of_string(m));
      for (const std::string& u : view.truth->uncaptured_processes())
        uncaptured.items.push_back(Value::of_string(u));
    }
    for (const pid_t pid : view.pids) pids.items.push_back(Value::of_number(std::to_string(pid)));
    mesh.set("missing", std::move(missing));
    mesh.set("uncapturedProcesses", std::move(uncaptured));
    if (view.truth && view.truth->enrolled()) {
      mesh.set("guard", Value::of_string(view.truth->guard()));
      mesh.set("guardDropped", Value::of_number(std::to_string(view.truth->guard_dropped())));
      mesh.set("probesPassed", Value::of_number(std::to_string(view.truth->probes_passed())));
    }
    mesh.set("netns", Value::of_string(view.netns));
    mesh.set("pids", std::move(pids));
    return mesh;
  }

  Value data() {
    Value root;
    if (single_) {
      root = value_of(*found_.front());
    } else {
      root = Value::map();
      root.set("apiVersion", Value::of_string("v1"));
      root.set("kind", Value::of_string("List"));
      Value items = Value::list();
      for (const ObjectPtr& object : found_) items.items.push_back(value_of(*object));
      root.set("items", std::move(items));
    }
    return root;
  }

  // --- as tables --------------------------------------------------------------------------------

  Status print_all() {
    constexpr std::string_view kJsonPath = "jsonpath=";
    if (options_.output == "json") {
      write_data(config::to_json(data()));
    } else if (options_.output == "yaml") {
      write_data(config::to_yaml(data()));
    } else if (options_.output.starts_with(kJsonPath)) {
      const std::string path = options_.output.substr(kJsonPath.size());
      write_data(MELTEMI_TRY(evaluate_jsonpath(path, data())));
    } else if (options_.output == "name") {
      for (const ObjectPtr& object : found_) print("{}\n", kubectl_name(object->key()));
    } else if (options_.output.empty() || wide()) {
      print_tables();
    } else {
      return fail(
          Reason::kBadConfig, Fault::kConfig,
          fmt::format("unable to match a printer suitable for the output format \"{}\", allowed "
                      "formats are: json, yaml, wide, name, jsonpath=TEMPLATE",
                      options_.output));
    }
    return {};
  }

  void print_tables() {
    if (found_.empty()) {
      if (options_.all_namespaces || (kinds_.size() == 1 && !kinds_[0]->namespaced))
        complain("No resources found\n");
      else
        complain("No resources found in {} namespace.\n", context_.ns());
      return;
    }
    const bool several = std::any_of(found_.begin(), found_.end(), [&](const ObjectPtr& o) {
      return o->kind() != found_[0]->kind();
    });
    for (size_t i = 0; i < found_.size();) {
      size_t end = i;
      while (end < found_.size() && found_[end]->kind() == found_[i]->kind()) ++end;
      print_table({found_.begin() + static_cast<ptrdiff_t>(i),
                   found_.begin() + static_cast<ptrdiff_t>(end)},
                  several);
      if (end < found_.size()) print("\n");
      i = end;
    }
  }

  void print_table(const std::vector<ObjectPtr>& objects, bool several) {
    const Columns columns = columns_of(objects[0]->kind());
    Table table(header_of(objects[0]->info(), columns));
    for (const ObjectPtr& object : objects) table.add(row_of(*object, columns, several));
    print("{}", table.text(options_.no_headers));
  }

  std::vector<std::string> header_of(const KindInfo& kind, const Columns& columns) const {
    std::vector<std::string> header;
    if (options_.all_namespaces && kind.namespaced) header.push_back("NAMESPACE");
    header.push_back("NAME");
    for (const Column& c : columns)
      if (!c.wide_only || wide()) header.push_back(c.title);
    for (const std::string& label : options_.label_columns) header.push_back(column_title(label));
    if (options_.show_labels) header.push_back("LABELS");
    return header;
  }

  // As kubectl: the table, then a line whenever an object's line says something else than its last.
  // Until the user interrupts, or a named object is gone.
  Status watch() {
    if (!options_.output.empty() && !wide())
      return fail(Reason::kBadConfig, Fault::kConfig, "--watch shows tables only: leave -o out");
    std::map<config::ObjectKey, std::vector<std::string>> told;
    for (bool headed = options_.no_headers;; headed = true) {
      directory_.refresh();
      truth_.reset();
      MELTEMI_TRY(collect());
      if (!missing_.empty()) return {};
      if (kinds_.size() != 1)
        return fail(Reason::kBadConfig, Fault::kConfig,
                    "you may only specify a single resource type with --watch");
      print("{}", changed_lines(headed, &told));
      std::fflush(stdout);
      std::this_thread::sleep_for(kWatchInterval);
    }
  }

  std::string changed_lines(bool headed,
                            std::map<config::ObjectKey, std::vector<std::string>>* told) {
    const Columns columns = columns_of(kinds_[0]->kind);
    const std::vector<std::string> header = header_of(*kinds_[0], columns);
    Table table(header);  // of all, so that the lines stay aligned
    std::vector<bool> wanted{!headed};
    std::map<config::ObjectKey, std::vector<std::string>> now;
    for (const ObjectPtr& object : found_) {
      std::vector<std::string> row = row_of(*object, columns, false);
      table.add(row);
      for (size_t i = 0; i < row.size(); ++i)
        if (header[i] == "AGE") row[i].clear();  // it changes by itself
      const auto before = told->find(object->key());
      wanted.push_back(before == told->end() || before->second != row);
      now[object->key()] = std::move(row);
    }
    *told = std::move(now);
    std::string out;
    std::istringstream lines(table.text());
    std::string line;
    for (size_t i = 0; std::getline(lines, line); ++i)
      if (i < wanted.size() && wanted[i]) out += line + "\n";
    return out;
  }

  // kubectl's: what stands after the last slash, in capitals.
  static std::string column_title(const std::string& label) {
    std::string title = label.substr(label.rfind('/') + 1);
    std::transform(title.begin(), title.end(), title.begin(),
                   [](unsigned char c) { return std::toupper(c); });
    return title;
  }

  std::vector<std::string> row_of(const Object& object, const Columns& columns, bool several) {
    std::vector<std::string> row;
    if (options_.all_namespaces && object.info().namespaced) row.push_back(object.ns());
    row.push_back(several ? kubectl_name(object.key()) : object.name());
    for (const Column& c : columns)
      if (!c.wide_only || wide()) row.push_back(c.cell(object));
    for (const std::string& label : options_.label_columns) row.emplace_back(object.label(label));
    if (options_.show_labels) row.push_back(dash(selector_text(object.meta().labels())));
    return row;
  }

  Columns columns_of(Kind kind) {
    switch (kind) {
      case Kind::kNamespace:
        return {{"STATUS", false, [](const Object&) { return "Active"; }}, age()};
      case Kind::kPod:
        return pod_columns();
      case Kind::kService:
        return service_columns();
      case Kind::kDeployment:
        return deployment_columns();
      case Kind::kJob:
        return {{"STATUS", false, job_state}, {"COMPLETIONS", false, completions_of}, age()};
      case Kind::kVirtualService:
        return {{"GATEWAYS", false,
                 [](const Object& o) {
                   return join(o.as<kube::VirtualService>().spec().gateways(), std::identity());
                 }},
                {"HOSTS", false,
                 [](const Object& o) {
                   return join(o.as<kube::VirtualService>().spec().hosts(), std::identity());
                 }},
                age()};
      case Kind::kDestinationRule:
        return {{"HOST", false,
                 [](const Object& o) { return o.as<kube::DestinationRule>().spec().host(); }},
                age()};
      case Kind::kAuthorizationPolicy:
        return {{"ACTION", false,
                 [](const Object& o) {
                   return istio::security::v1beta1::AuthorizationPolicy::Action_Name(
                       o.as<kube::AuthorizationPolicy>().spec().action());
                 }},
                age()};
      case Kind::kPeerAuthentication:
        return {{"MODE", false,
                 [](const Object& o) {
                   return istio::security::v1beta1::PeerAuthentication::MutualTLS::Mode_Name(
                       o.as<kube::PeerAuthentication>().spec().mtls().mode());
                 }},
                age()};
      case Kind::kGateway:
        return gateway_columns();
      default:
        return {age()};
    }
  }

  // What the control plane has made for a Gateway is as old as that.
  Column age() {
    return {"AGE", false, [this](const Object& o) {
              const auto& owners = o.meta().owner_references();
              if (!o.meta().creation_timestamp().empty() || owners.empty())
                return age_of(o.meta().creation_timestamp());
              const KindInfo* kind = config::find_kind_word(owners[0].kind());
              const ObjectPtr owner =
                  kind == nullptr ? nullptr : store().find(kind->kind, o.ns(), owners[0].name());
              return age_of(owner ? owner->meta().creation_timestamp() : "");
            }};
  }

  Columns pod_columns() {
    const auto view = [this](const Object& o) {
      return view_pod(context_, store().find(Kind::kPod, o.ns(), o.name()), truth());
    };
    return {
        {"READY", false, [=](const Object& o) { return view(o).ready(); }},
        {"STATUS", false, [=](const Object& o) { return view(o).status(); }},
        {"RESTARTS", false, [=](const Object& o) { return std::to_string(view(o).restarts()); }},
        age(),
        {"ENROLLED", false, [=](const Object& o) { return view(o).enrolled(); }},
        {"IP", true, [](const Object& o) { return dash(o.as<kube::Pod>().status().pod_ip()); }},
        {"NODE", true, [](const Object& o) { return dash(o.as<kube::Pod>().spec().node_name()); }},
        {"NETNS", true, [=](const Object& o) { return dash(view(o).netns); }},
        {"PIDS", true,
         [=](const Object& o) {
           return dash(join(view(o).pids, [](pid_t pid) { return std::to_string(pid); }));
         }},
        {"GUARD", true, [=](const Object& o) { return dash(view(o).guard()); }},
        {"REASON", true, [=](const Object& o) { return dash(view(o).reason()); }}};
  }

  Columns service_columns() {
    const auto spec = [](const Object& o) -> const kube::Service::Spec& {
      return o.as<kube::Service>().spec();
    };
    return {
        {"TYPE", false,
         [=](const Object& o) { return spec(o).type().empty() ? "ClusterIP" : spec(o).type(); }},
        {"CLUSTER-IP", false, [=](const Object& o) { return dash(spec(o).cluster_ip()); }},
        {"EXTERNAL-IP", false, [=](const Object& o) { return dash(spec(o).external_name()); }},
        {"PORT(S)", false, [=](const Object& o) { return dash(ports_text(spec(o))); }},
        age(),
        {"SELECTOR", true,
         [=](const Object& o) { return dash(selector_text(spec(o).selector())); }},
        {"ENDPOINTS", true,
         [this](const Object& o) {
           return dash(join(sandbox::endpoints_of(store(), o), [](const ObjectPtr& p) {
             return p->as<kube::Pod>().status().pod_ip();
           }));
         }},
        {"WAYPOINT", true, [this](const Object& o) { return dash(waypoint_of(store(), o)); }}};
  }

  Columns deployment_columns() {
    const auto body = [](const Object& o) -> const kube::Deployment& {
      return o.as<kube::Deployment>();
    };
    return {
        {"READY", false,
         [=](const Object& o) {
           const auto& spec = body(o).spec();
           return fmt::format("{}/{}", body(o).status().ready_replicas(),
                              spec.has_replicas() ? spec.replicas() : 1);
         }},
        {"UP-TO-DATE", false,
         [=](const Object& o) { return std::to_string(body(o).status().updated_replicas()); }},
        {"AVAILABLE", false,
         [=](const Object& o) { return std::to_string(body(o).status().available_replicas()); }},
        age(),
        {"CONTAINERS", true,
         [=](const Object& o) { return dash(containers_text(body(o).spec().template_(), false)); }},
        {"IMAGES", true,
         [=](const Object& o) { return dash(containers_text(body(o).spec().template_(), true)); }},
        {"SELECTOR", true, [=](const Object& o) {
           return dash(selector_text(body(o).spec().selector().match_labels()));
         }}};
  }

  Columns gateway_columns() {
    const auto body = [](const Object& o) -> const kube::Gateway& { return o.as<kube::Gateway>(); };
    return {{"CLASS", false, [=](const Object& o) { return body(o).spec().gateway_class_name(); }},
            {"ADDRESS", false,
             [=](const Object& o) {
               return dash(body(o).status().addresses_size() > 0
                               ? body(o).status().addresses(0).value()
                               : "");
             }},
            {"PROGRAMMED", false,
             [=](const Object& o) {
               return condition_text(body(o).status().conditions(), "Programmed");
             }},
            age()};
  }

  // --- the mesh's view --------------------------------------------------------------------------

  const std::map<std::string, local::v1::Pod>& truth() {
    if (!truth_) {
      std::vector<std::string> complaints;
      truth_ = kernel_truth(context_, &complaints);
      for (const std::string& complaint : complaints) complain("warning: {}\n", complaint);
    }
    return *truth_;
  }

  // Rules that nobody enforces are told where they are looked at, with what mends them.
  void warn() {
    for (const ObjectPtr& object : found_) {
      // Where the object was kept is not where the user wrote it.
      config::Problems problems = config::analyze_object(store(), object->key());
      for (config::Problem& problem : problems) problem.file.clear();
      report(problems);
      if (object->kind() != Kind::kPod || !truth_) continue;
      const auto truth = truth_->find(object->meta().uid());
      if (truth == truth_->end()) continue;
      if (truth->second.enrol() && !truth->second.enrolled() && !truth->second.message().empty())
        complain("warning: {}: not captured yet: {}\n", object->key().to_string(),
                 truth->second.message());
      for (const std::string& process : truth->second.uncaptured_processes())
        complain(
            "warning: {}: process {} is in the pod's network but not in its cgroup, so it is not "
            "captured. "
            "Start it with: meltemi exec {} -- ...\n",
            object->key().to_string(), process, object->name());
    }
  }

  const Context& context_;
  const GetOptions& options_;
  sandbox::Directory directory_;
  std::vector<const KindInfo*> kinds_;
  std::vector<ObjectPtr> found_;
  std::vector<Error> missing_;
  bool single_ = false;
  std::optional<std::map<std::string, local::v1::Pod>> truth_;
};

}  // namespace

int get_command(const Context& context, const GetOptions& options) {
  if (!options.words.empty()) {
    const std::string& word = options.words[0];
    if (word == "mesh") return get_mesh(context, options.output, options.no_headers);
    if (is_node_word(word))
      return get_nodes(context, options.output, options.no_headers);
  }
  Getter getter(context, options);
  int code = finish(getter.run());
  for (const Error& error : getter.missing()) code = report(error);
  return code;
}

int api_resources_command() {
  Table table({"NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"});
  for (const KindInfo& info : config::all_kinds())
    table.add({std::string(info.plural), join(info.short_names, std::identity()),
               info.api_version(), info.namespaced ? "true" : "false", std::string(info.name)});
  print("{}", table.text());
  return kExitOk;
}

}  // namespace meltemi::cli
