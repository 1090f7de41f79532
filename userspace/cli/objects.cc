#include "userspace/cli/objects.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "userspace/base/clock.h"
#include "userspace/cli/manifests.h"
#include "userspace/config/analyze.h"
#include "userspace/config/validate.h"
#include "userspace/sandbox/controllers.h"
#include "userspace/sandbox/services.h"
#include "userspace/sys/files.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::KindInfo;
using config::Object;
using config::ObjectKey;
using config::ObjectPtr;
using config::ObjectStore;
using config::Problems;
namespace kube = config::kube;

constexpr auto kPollInterval = std::chrono::milliseconds(100);
constexpr Duration kDeleteTimeout = std::chrono::minutes(2);

// --- reading ---------------------------------------------------------------------------------

// A folder stands for its manifests, in order of their names.
std::vector<std::string> expand_folders(const std::vector<std::string>& files) {
  std::vector<std::string> out;
  for (const std::string& file : files) {
    std::error_code error;
    if (file == "-" || !std::filesystem::is_directory(file, error)) {
      out.push_back(file);
      continue;
    }
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(file, error)) {
      const std::string extension = entry.path().extension();
      if (extension == ".yaml" || extension == ".yml" || extension == ".json")
        found.push_back(entry.path());
    }
    std::sort(found.begin(), found.end());
    out.insert(out.end(), found.begin(), found.end());
  }
  return out;
}

// All objects of all files that are valid by themselves; what is wrong with the others goes to
// `problems`.
Result<std::vector<Object>> read_all(const Context& context, const std::vector<std::string>& files,
                                     Problems* problems) {
  std::vector<Object> out;
  config::ReadOptions options;
  options.default_namespace = context.ns();
  for (const std::string& file : expand_folders(files)) {
    const std::string bytes = MELTEMI_TRY(read_source(file));
    config::ReadResult read = config::read_and_validate(bytes, file, options);
    std::move(read.objects.begin(), read.objects.end(), std::back_inserter(out));
    problems->insert(problems->end(), read.problems.begin(), read.problems.end());
  }
  return out;
}

void check_namespaces(const std::vector<Object>& objects, const ObjectStore& store,
                      Problems* problems) {
  for (const Object& object : objects) {
    if (!object.info().namespaced || store.find(Kind::kNamespace, "", object.ns())) continue;
    const bool comes_along = std::any_of(objects.begin(), objects.end(), [&](const Object& other) {
      return other.kind() == Kind::kNamespace && other.name() == object.ns();
    });
    if (comes_along) continue;
    problems->push_back(
        object.problem(config::Severity::kError, config::kCodeReference, "metadata.namespace",
                       fmt::format("namespaces \"{}\" not found", object.ns()),
                       fmt::format("Create it: meltemi create ns {}", object.ns())));
  }
}

// What the mesh would look like with `objects` in it.
ObjectStore with_objects(const ObjectStore& now, const std::vector<Object>& objects) {
  ObjectStore store = now;
  for (const Object& object : objects) {
    Object candidate = object;
    // A running pod has its address and status from its node, not from its manifest.
    if (object.kind() == Kind::kPod && now.find(Kind::kPod, object.ns(), object.name())) continue;
    store.upsert(std::move(candidate));
  }
  return store;
}

Problems analyze_all(const ObjectStore& store, const std::vector<Object>& objects) {
  Problems out;
  for (const Object& object : objects) {
    Problems found = config::analyze_object(store, object.key());
    for (config::Problem& problem : found) {
      problem.file = object.file();
      problem.line = object.line_of(problem.field);
      out.push_back(std::move(problem));
    }
  }
  return out;
}

int refuse(const Problems& problems) {
  report(problems);
  complain("Nothing was changed.\n");
  return kExitBadInput;
}

// Namespaces first, then what others refer to: a reader never sees a reference before its target.
constexpr int kLastApplyRank = 3;
int apply_rank(const Object& object) {
  switch (object.kind()) {
    case Kind::kNamespace:
      return 0;
    case Kind::kServiceAccount:
    case Kind::kConfigMap:
    case Kind::kSecret:
      return 1;
    case Kind::kDestinationRule:
      return 2;
    default:
      return kLastApplyRank;
  }
}

// --- deleting ------------------------------------------------------------------------------------

// The objects that exist beyond the user's manifests: pods that controllers made.
ObjectPtr running_pod(const ObjectStore& merged, const ObjectKey& key) {
  return key.kind == Kind::kPod ? merged.find(key.kind, key.ns, key.name) : nullptr;
}

Status ask_for_deletion(const Context& context, const Object& pod, const DeleteOptions& options) {
  const std::string grace = options.grace_seconds ? std::to_string(*options.grace_seconds) : "";
  return sys::write_file_atomically(context.layout().deletions_dir() + "/" + pod.meta().uid(),
                                    grace, 0644);
}

std::vector<ObjectKey> contents_of(const ObjectStore& store, std::string_view ns) {
  std::vector<ObjectKey> out;
  for (const KindInfo& info : config::all_kinds())
    if (info.namespaced)
      for (const ObjectPtr& object : store.list(info.kind, ns)) out.push_back(object->key());
  return out;
}

// Deletes one object. True if it was there.
Result<bool> delete_one(const Context& context, Manifests& manifests, const ObjectKey& key,
                        const DeleteOptions& options) {
  const ObjectPtr pod = running_pod(manifests.merged(), key);
  const bool by_user = manifests.user().find(key.kind, key.ns, key.name) != nullptr;
  if (!pod && !by_user) {
    if (manifests.merged().find(key.kind, key.ns, key.name))
      return fail(
          Reason::kBadConfig, Fault::kConfig,
          fmt::format("{} was made by a controller of the mesh and would come back. Delete the "
                      "Gateway that it belongs to",
                      key.to_string()));
    return false;
  }
  if (key.kind == Kind::kNamespace)
    for (const ObjectKey& inner : contents_of(manifests.user(), key.name))
      MELTEMI_TRY(delete_one(context, manifests, inner, options));
  if (pod && !pod->meta().uid().empty()) MELTEMI_TRY(ask_for_deletion(context, *pod, options));
  MELTEMI_TRY(manifests.erase(key));
  return true;
}

// Pods go when their processes have ended.
Status wait_until_gone(const Context& context, const std::map<ObjectKey, std::string>& uids) {
  sandbox::Directory directory = context.open(sandbox::View::kMerged);
  const MonoTime deadline = MonoClock::now() + kDeleteTimeout;
  for (const auto& [key, uid] : uids) {
    while (true) {
      directory.refresh();
      const ObjectPtr left = directory.store().find(key.kind, key.ns, key.name);
      if (!left || left->meta().uid() != uid) break;
      if (MonoClock::now() > deadline)
        return fail(Reason::kRequestTimeout, Fault::kUpstream,
                    fmt::format("{} is still there after {} s", key.to_string(),
                                kDeleteTimeout / std::chrono::seconds(1)));
      std::this_thread::sleep_for(kPollInterval);
    }
  }
  return {};
}

void collect_pods(const ObjectStore& merged, const ObjectKey& key,
                  std::map<ObjectKey, std::string>* uids) {
  if (key.kind == Kind::kNamespace) {
    for (const ObjectPtr& pod : merged.list(Kind::kPod, key.name))
      (*uids)[pod->key()] = pod->meta().uid();
  } else if (const ObjectPtr pod = running_pod(merged, key)) {
    (*uids)[key] = pod->meta().uid();
  }
}

Result<std::vector<ObjectKey>> keys_to_delete(const Context& context, const ObjectStore& merged,
                                              const DeleteOptions& options) {
  std::vector<ObjectKey> out;
  if (!options.files.empty()) {
    Problems problems;
    // Deleting needs no valid object, only a name; what cannot be read at all is told.
    for (const Object& object : MELTEMI_TRY(read_all(context, options.files, &problems)))
      out.push_back(object.key());
    if (has_errors(problems)) return fail(to_error(problems));
    return out;
  }
  const Target target = MELTEMI_TRY(parse_target(options.words));
  const std::string ns = target.kind->namespaced ? context.ns() : "";
  for (const std::string& name : target.names) out.push_back({target.kind->kind, ns, name});
  if (!target.names.empty()) return out;
  if (!options.all && options.selector.empty())
    return fail(
        Reason::kBadConfig, Fault::kConfig,
        "resource(s) were provided, but no name was specified. Give a name, -l SELECTOR or --all");
  const auto selector = MELTEMI_TRY(parse_selector(options.selector));
  for (const ObjectPtr& object : merged.list(target.kind->kind, ns))
    if (selected(*object, selector)) out.push_back(object->key());
  return out;
}

// --- changing one object -------------------------------------------------------------------------

Result<ObjectPtr> find_mine(const Manifests& manifests, const KindInfo& kind, std::string_view ns,
                            const std::string& name) {
  const std::string_view where = kind.namespaced ? ns : std::string_view();
  if (const ObjectPtr mine = manifests.user().find(kind.kind, where, name)) return mine;
  if (manifests.merged().find(kind.kind, where, name))
    return fail(Reason::kUnsupported, Fault::kConfig,
                fmt::format("{} was made by a controller and would be changed back. Change what it "
                            "was made from (its Deployment, Job or Gateway)",
                            ObjectKey{kind.kind, std::string(where), name}.to_string()));
  return no_such_object(kind, name);
}

struct Edit {
  std::string key;
  std::optional<std::string> value;  // nullopt: remove
};

Result<Edit> parse_edit(const std::string& word) {
  const size_t equals = word.find('=');
  if (equals == std::string::npos) {
    if (word.size() > 1 && word.ends_with('-'))
      return Edit{word.substr(0, word.size() - 1), std::nullopt};
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("\"{}\" is neither key=value nor key-", word));
  }
  return Edit{word.substr(0, equals), word.substr(equals + 1)};
}

bool is_edit(const std::string& word) {
  return word.find('=') != std::string::npos || word.ends_with('-');
}

Status apply_edits(google::protobuf::Map<std::string, std::string>* map,
                   const std::vector<Edit>& edits, bool overwrite) {
  for (const Edit& edit : edits) {
    const auto old = map->find(edit.key);
    if (edit.value && old != map->end() && old->second != *edit.value && !overwrite)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("'{}' already has a value ({}), and --overwrite is false", edit.key,
                              old->second));
  }
  for (const Edit& edit : edits) {
    if (edit.value)
      (*map)[edit.key] = *edit.value;
    else
      map->erase(edit.key);
  }
  return {};
}

// The pod template of a Deployment or ReplicaSet named by "deploy/x" or "deploy x".
Result<std::pair<const KindInfo*, std::string>> workload_target(const std::string& target) {
  const Target parsed = MELTEMI_TRY(parse_target({target}));
  if (parsed.names.size() != 1 ||
      (parsed.kind->kind != Kind::kDeployment && parsed.kind->kind != Kind::kReplicaSet))
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("\"{}\" names no Deployment. Use deployment/NAME", target));
  return std::pair(parsed.kind, parsed.names[0]);
}

int change_workload(const Context& context, const std::string& target, std::string_view done,
                    const std::function<void(Object*)>& change) {
  const auto change_it = [&]() -> Status {
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    const auto [kind, name] = MELTEMI_TRY(workload_target(target));
    Object object = *MELTEMI_TRY(find_mine(manifests, *kind, context.ns(), name));
    change(&object);
    object.mutable_meta().set_generation(object.meta().generation() + 1);
    MELTEMI_TRY(manifests.write(object));
    print("{} {}\n", kubectl_name(object.key()), done);
    return {};
  };
  return finish(change_it());
}

bool has_condition(const Object& object, std::string_view type) {
  const auto check = [&](const auto& conditions) {
    return std::any_of(conditions.begin(), conditions.end(), [&](const kube::Condition& c) {
      return c.type() == type && c.status() == "True";
    });
  };
  if (object.kind() == Kind::kPod) return check(object.as<kube::Pod>().status().conditions());
  if (object.kind() == Kind::kGateway)
    return check(object.as<kube::Gateway>().status().conditions());
  return false;
}

struct Rollout {
  int wanted = 0, updated = 0, ready = 0, old = 0;
  bool done() const { return updated >= wanted && ready >= wanted && old == 0; }
};

Result<Rollout> rollout_of(const ObjectStore& store, std::string_view ns, const std::string& name) {
  const ObjectPtr deployment = store.find(Kind::kDeployment, ns, name);
  if (!deployment) return no_such_object(config::kind_info(Kind::kDeployment), name);
  const auto& spec = deployment->as<kube::Deployment>().spec();
  Rollout out;
  out.wanted = spec.has_replicas() ? spec.replicas() : 1;
  std::string newest, newest_time;
  const auto set_of = [](const Object& pod) {
    const auto& owners = pod.meta().owner_references();
    return owners.empty() ? std::string() : owners[0].name();
  };
  for (const ObjectPtr& pod : store.list(Kind::kPod, ns))
    if (pod->annotation(sandbox::kControllerAnnotation) == "Deployment/" + name &&
        pod->meta().creation_timestamp() >= newest_time) {
      newest = set_of(*pod);
      newest_time = pod->meta().creation_timestamp();
    }
  for (const ObjectPtr& pod : store.list(Kind::kPod, ns)) {
    if (pod->annotation(sandbox::kControllerAnnotation) != "Deployment/" + name) continue;
    if (set_of(*pod) != newest) {
      ++out.old;
    } else {
      ++out.updated;
      out.ready += sandbox::is_ready(*pod);
    }
  }
  return out;
}

}  // namespace

Result<Target> parse_target(const std::vector<std::string>& words) {
  if (words.empty())
    return fail(Reason::kBadConfig, Fault::kConfig, "name what to act on: KIND NAME, or KIND/NAME");
  Target target;
  const size_t slash = words[0].find('/');
  target.kind = config::find_kind_word(words[0].substr(0, slash));
  if (target.kind == nullptr)
    return fail(
        Reason::kBadConfig, Fault::kConfig,
        fmt::format("the server doesn't have a resource type \"{}\". Known: pods, services, "
                    "deployments, namespaces, virtualservices, ... (meltemi api-resources)",
                    words[0].substr(0, slash)));
  if (slash != std::string::npos) target.names.push_back(words[0].substr(slash + 1));
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t inner = words[i].find('/');
    target.names.push_back(inner == std::string::npos ? words[i] : words[i].substr(inner + 1));
  }
  return target;
}

Result<std::vector<std::pair<std::string, std::optional<std::string>>>> parse_selector(
    std::string_view text) {
  std::vector<std::pair<std::string, std::optional<std::string>>> out;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view part = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    const size_t equals = part.find('=');
    if (part.empty() || equals == 0)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  "a selector is key=value[,key=value...] or key");
    if (equals == std::string_view::npos) {
      out.emplace_back(std::string(part), std::nullopt);
      continue;
    }
    if (part[equals - 1] == '!')
      return fail(Reason::kUnsupported, Fault::kConfig,
                  fmt::format("selector \"{}\": only key=value and key are supported", part));
    std::string_view value = part.substr(equals + 1);
    if (value.starts_with('=')) value.remove_prefix(1);
    out.emplace_back(std::string(part.substr(0, equals)), std::string(value));
  }
  return out;
}

bool selected(const Object& object,
              const std::vector<std::pair<std::string, std::optional<std::string>>>& selector) {
  return std::all_of(selector.begin(), selector.end(), [&](const auto& wanted) {
    const auto label = object.meta().labels().find(wanted.first);
    if (label == object.meta().labels().end()) return false;
    return !wanted.second || label->second == *wanted.second;
  });
}

int apply_command(const Context& context, const ApplyOptions& options) {
  Problems problems;
  auto read = read_all(context, options.files, &problems);
  if (!read) return report(read.error());
  std::vector<Object> objects = std::move(*read);
  if (has_errors(problems)) return refuse(problems);
  if (objects.empty()) {
    complain("error: no objects passed to apply\n");
    return kExitBadInput;
  }
  auto manifests = Manifests::open(context);
  if (!manifests) return report(manifests.error());
  check_namespaces(objects, manifests->merged(), &problems);
  if (has_errors(problems)) return refuse(problems);
  const Problems findings = analyze_all(with_objects(manifests->merged(), objects), objects);
  problems.insert(problems.end(), findings.begin(), findings.end());
  if (has_errors(findings) && !options.force) return refuse(problems);

  for (int rank = 0; rank <= kLastApplyRank; ++rank) {
    for (const Object& object : objects) {
      if (apply_rank(object) != rank) continue;
      const auto outcome = manifests->apply(object);
      if (!outcome) return report(outcome.error());
      print("{} {}\n", kubectl_name(object.key()), outcome_name(*outcome));
    }
  }
  report(problems);
  return kExitOk;
}

int create_namespace_command(const Context& context, const std::string& name) {
  const auto create = [&]() -> Status {
    const Object ns = Object::make(Kind::kNamespace, "", name);
    const Problems problems = config::validate(ns);
    if (has_errors(problems)) return fail(to_error(problems));
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    if (manifests.user().find(Kind::kNamespace, "", name))
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("namespaces \"{}\" already exists", name));
    MELTEMI_TRY(manifests.apply(ns));
    print("namespace/{} created\n", name);
    return {};
  };
  return finish(create());
}

int delete_command(const Context& context, const DeleteOptions& options) {
  const auto delete_all = [&]() -> Status {
    std::map<ObjectKey, std::string> uids;
    {
      Manifests manifests = MELTEMI_TRY(Manifests::open(context));
      std::vector<ObjectKey> keys =
          MELTEMI_TRY(keys_to_delete(context, manifests.merged(), options));
      if (keys.empty()) complain("No resources found\n");
      std::reverse(keys.begin(), keys.end());  // what was applied last goes first
      for (const ObjectKey& key : keys) {
        collect_pods(manifests.merged(), key, &uids);
        if (MELTEMI_TRY(delete_one(context, manifests, key, options)))
          print("{} \"{}\" deleted\n", kubectl_name(key).substr(0, kubectl_name(key).rfind('/')),
                key.name);
        else if (!options.ignore_not_found && options.files.empty())
          return no_such_object(config::kind_info(key.kind), key.name);
      }
    }
    return options.wait ? wait_until_gone(context, uids) : Status();
  };
  return finish(delete_all());
}

int label_command(const Context& context, const LabelOptions& options) {
  const auto label_all = [&]() -> Status {
    std::vector<std::string> words;
    std::vector<Edit> edits;
    for (const std::string& word : options.words) {
      if (is_edit(word))
        edits.push_back(MELTEMI_TRY(parse_edit(word)));
      else
        words.push_back(word);
    }
    if (edits.empty())
      return fail(Reason::kBadConfig, Fault::kConfig,
                  "at least one label update is required: key=value or key-");
    const Target target = MELTEMI_TRY(parse_target(words));
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    for (const std::string& name : target.names) {
      const ObjectPtr found = MELTEMI_TRY(find_mine(manifests, *target.kind, context.ns(), name));
      Object object = *found;
      auto* map = options.annotations ? object.mutable_meta().mutable_annotations()
                                      : object.mutable_meta().mutable_labels();
      MELTEMI_TRY(apply_edits(map, edits, options.overwrite));
      const Problems problems = config::validate(object);
      if (has_errors(problems)) return fail(to_error(problems));
      const bool same = object.same_content(*found);
      if (!same) MELTEMI_TRY(manifests.write(object));
      const char* verb = options.annotations ? "annotated" : "labeled";
      print("{} {}{}\n", kubectl_name(object.key()), same ? "not " : "", verb);
      report(config::analyze_object(manifests.merged(), object.key()));
    }
    return {};
  };
  return finish(label_all());
}

int scale_command(const Context& context, const std::string& target, int replicas) {
  return change_workload(context, target, "scaled", [&](Object* object) {
    if (object->kind() == Kind::kDeployment)
      object->edit<kube::Deployment>(
          [&](kube::Deployment& d) { d.mutable_spec()->set_replicas(replicas); });
    else
      object->edit<kube::ReplicaSet>(
          [&](kube::ReplicaSet& r) { r.mutable_spec()->set_replicas(replicas); });
  });
}

int rollout_restart_command(const Context& context, const std::string& target) {
  return change_workload(context, target, "restarted", [](Object* object) {
    const std::string now = format_rfc3339(std::chrono::system_clock::now());
    const auto stamp = [&](kube::PodTemplateSpec* pod) {
      (*pod->mutable_metadata()->mutable_annotations())["kubectl.kubernetes.io/restartedAt"] = now;
    };
    if (object->kind() == Kind::kDeployment)
      object->edit<kube::Deployment>(
          [&](kube::Deployment& d) { stamp(d.mutable_spec()->mutable_template_()); });
  });
}

int rollout_status_command(const Context& context, const std::string& target, Duration timeout) {
  const auto follow = [&]() -> Status {
    const auto [kind, name] = MELTEMI_TRY(workload_target(target));
    sandbox::Directory directory = context.open(sandbox::View::kMerged);
    const MonoTime deadline = MonoClock::now() + timeout;
    while (true) {
      directory.refresh();
      const Rollout rollout = MELTEMI_TRY(rollout_of(directory.store(), context.ns(), name));
      if (rollout.done()) break;
      if (MonoClock::now() > deadline)
        return fail(Reason::kRequestTimeout, Fault::kUpstream,
                    fmt::format("timed out: {} of {} new pods are ready, {} old ones are left",
                                rollout.ready, rollout.wanted, rollout.old));
      std::this_thread::sleep_for(kPollInterval);
    }
    print("deployment \"{}\" successfully rolled out\n", name);
    return {};
  };
  return finish(follow());
}

int wait_command(const Context& context, const WaitOptions& options) {
  const auto follow = [&]() -> Status {
    const Target target = MELTEMI_TRY(parse_target(options.words));
    const auto selector = MELTEMI_TRY(parse_selector(options.selector));
    const bool gone = options.condition == "delete";
    const std::string type =
        options.condition.starts_with("condition=") ? options.condition.substr(10) : "";
    if (!gone && type.empty())
      return fail(Reason::kBadConfig, Fault::kConfig, "--for must be condition=NAME or delete");
    sandbox::Directory directory = context.open(sandbox::View::kMerged);
    const std::string ns = target.kind->namespaced ? context.ns() : "";
    const MonoTime deadline = MonoClock::now() + options.timeout;
    while (true) {
      directory.refresh();
      std::vector<ObjectPtr> matching;
      for (const ObjectPtr& object : directory.store().list(target.kind->kind, ns)) {
        const bool named = std::find(target.names.begin(), target.names.end(), object->name()) !=
                           target.names.end();
        if (named || (target.names.empty() && selected(*object, selector)))
          matching.push_back(object);
      }
      const bool all_met = std::all_of(matching.begin(), matching.end(),
                                       [&](const ObjectPtr& o) { return has_condition(*o, type); });
      if (gone ? matching.empty() : !matching.empty() && all_met) {
        for (const ObjectPtr& object : matching)
          print("{} condition met\n", kubectl_name(object->key()));
        return {};
      }
      if (MonoClock::now() > deadline)
        return fail(
            Reason::kRequestTimeout, Fault::kUpstream,
            fmt::format("timed out waiting for {} on {}", options.condition, target.kind->plural));
      std::this_thread::sleep_for(kPollInterval);
    }
  };
  return finish(follow());
}

}  // namespace meltemi::cli
