#include "userspace/cli/objects.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "userspace/base/clock.h"
#include "userspace/cli/manifests.h"
#include "userspace/cli/targets.h"
#include "userspace/config/analyze.h"
#include "userspace/config/validate.h"
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
    if (file.starts_with("http://") || file.starts_with("https://"))
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("{} is not fetched. Run: curl -sSfL {} | meltemi apply -f -", file,
                              file));
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

void check_new(const std::vector<Object>& objects, const ObjectStore& store, Problems* problems) {
  for (const Object& object : objects)
    if (store.find(object.kind(), object.ns(), object.name()))
      problems->push_back(object.problem(
          config::Severity::kError, config::kCodeDuplicateObject, "metadata.name",
          fmt::format("{} \"{}\" already exists", object.info().plural, object.name()),
          "Change it with: meltemi apply -f FILE"));
}

// Images are not pulled, so that a container without a command could never start.
void check_commands(const std::vector<Object>& objects, Problems* problems) {
  for (const Object& object : objects) {
    const auto check = [&](const kube::PodSpec& spec, const std::string& path) {
      for (const auto& [list, name] : {std::pair{&spec.init_containers(), "initContainers"},
                                       {&spec.containers(), "containers"}})
        for (int i = 0; i < list->size(); ++i)
          if ((*list)[i].command().empty() && (*list)[i].args().empty())
            problems->push_back(object.problem(
                config::Severity::kError, config::kCodeInvalid,
                fmt::format("{}.{}[{}].command", path, name, i),
                fmt::format("container {} has no command, and images are not pulled",
                            (*list)[i].name()),
                "Add the command that the image would run, e.g. [python3, -m, http.server]"));
    };
    if (object.kind() == Kind::kPod) check(object.as<kube::Pod>().spec(), "spec");
    if (object.kind() == Kind::kDeployment)
      check(object.as<kube::Deployment>().spec().template_().spec(), "spec.template.spec");
    if (object.kind() == Kind::kReplicaSet)
      check(object.as<kube::ReplicaSet>().spec().template_().spec(), "spec.template.spec");
    if (object.kind() == Kind::kJob)
      check(object.as<kube::Job>().spec().template_().spec(), "spec.template.spec");
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

int no_files(const ApplyOptions& options) {
  const char* verb = options.only_new ? "create" : "apply";
  if (options.kustomize.empty())
    complain("error: must specify what to {0}: -f FILE, -f FOLDER, or -f - for standard input\n", verb);
  else
    complain("error: kustomize is not built in. Run: kustomize build {} | meltemi {} -f -\n",
             options.kustomize, verb);
  return kExitUsage;
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
    case Kind::kNode:
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

int create(const Context& context, const Object& object) {
  const auto create_it = [&]() -> Status {
    Problems problems = config::validate(object);
    if (has_errors(problems)) return fail(to_error(problems));
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    check_namespaces({object}, manifests.merged(), &problems);
    if (has_errors(problems)) return fail(to_error(problems));
    if (manifests.user().find(object.kind(), object.ns(), object.name()))
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("{} \"{}\" already exists", object.info().plural, object.name()));
    MELTEMI_TRY(manifests.apply(object));
    print("{} created\n", kubectl_name(object.key()));
    return {};
  };
  return finish(create_it());
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

bool is_protected(const ObjectKey& key) {
  if (key.kind == Kind::kNode) return true;
  const auto& names = sandbox::kFirstNamespaces;
  return key.kind == Kind::kNamespace &&
         std::find(std::begin(names), std::end(names), key.name) != std::end(names);
}

// Deletes one object. True if it was there.
Result<bool> delete_one(const Context& context, Manifests& manifests, const ObjectKey& key,
                        const DeleteOptions& options) {
  if (is_protected(key))
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("{} \"{}\" is forbidden: it belongs to the sandbox and may not be deleted",
                            config::kind_info(key.kind).plural, key.name));
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
  const Selector selector = MELTEMI_TRY(parse_selector(options.selector));
  for (const Target& target : MELTEMI_TRY(parse_targets(options.words))) {
    const std::string ns = target.kind->namespaced ? context.ns() : "";
    for (const std::string& name : target.names) out.push_back({target.kind->kind, ns, name});
    if (!target.names.empty()) continue;
    if (!options.all && options.selector.empty())
      return fail(Reason::kBadConfig, Fault::kConfig,
                  "resource(s) were provided, but no name was specified. Give a name, -l SELECTOR "
                  "or --all");
    for (const ObjectPtr& object : merged.list(target.kind->kind, ns))
      if (selected(*object, selector)) out.push_back(object->key());
  }
  return out;
}

// --- changing one object -------------------------------------------------------------------------

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

}  // namespace

int apply_command(const Context& context, const ApplyOptions& options) {
  if (!options.kustomize.empty() || options.files.empty()) return no_files(options);
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
  check_commands(objects, &problems);
  if (options.only_new) check_new(objects, manifests->merged(), &problems);
  if (has_errors(problems)) return refuse(problems);
  // An object may come before what it names: that is told, and its status says it until it is there.
  Problems findings = analyze_all(with_objects(manifests->merged(), objects), objects);
  for (config::Problem& finding : findings) {
    if (finding.severity == config::Severity::kError) finding.severity = config::Severity::kWarning;
    problems.push_back(std::move(finding));
  }

  const bool dry = options.dry_run != "none";
  const std::string suffix = dry ? fmt::format(" ({} dry run)", options.dry_run) : "";
  for (int rank = 0; rank <= kLastApplyRank; ++rank) {
    for (const Object& object : objects) {
      if (apply_rank(object) != rank) continue;
      const auto outcome = dry ? manifests->foresee(object) : manifests->apply(object);
      if (!outcome) return report(outcome.error());
      print("{} {}{}\n", kubectl_name(object.key()), outcome_name(*outcome), suffix);
    }
  }
  report(problems);
  return kExitOk;
}

int create_namespace_command(const Context& context, const std::string& name) {
  return create(context, Object::make(Kind::kNamespace, "", name));
}

int create_service_account_command(const Context& context, const std::string& name) {
  return create(context, Object::make(Kind::kServiceAccount, context.ns(), name));
}

int delete_command(const Context& context, const DeleteOptions& options) {
  std::vector<Error> missing;  // told at the end: as with kubectl, the others go all the same
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
        else if (!options.ignore_not_found)
          missing.push_back(no_such_object(config::kind_info(key.kind), key.name).error());
      }
    }
    return options.wait ? wait_until_gone(context, uids) : Status();
  };
  int code = finish(delete_all());
  for (const Error& error : missing) code = report(error);
  return code;
}

Result<ObjectPtr> find_mine(const Manifests& manifests, const KindInfo& kind, std::string_view ns,
                            const std::string& name) {
  const std::string_view where = kind.namespaced ? ns : std::string_view();
  if (ObjectPtr mine = manifests.user().find(kind.kind, where, name)) return mine;
  if (manifests.merged().find(kind.kind, where, name))
    return fail(Reason::kUnsupported, Fault::kConfig,
                fmt::format("{} was made by a controller and would be changed back. Change what it "
                            "was made from (its Deployment, Job or Gateway)",
                            ObjectKey{kind.kind, std::string(where), name}.to_string()));
  return no_such_object(kind, name);
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
    std::vector<std::pair<const KindInfo*, std::string>> named;
    for (const Target& target : MELTEMI_TRY(parse_targets(words)))
      for (const std::string& name : target.names) named.emplace_back(target.kind, name);
    if (named.empty())
      return fail(Reason::kBadConfig, Fault::kConfig, "name what to change: KIND NAME, or KIND/NAME");
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    // All are checked before one is written: an error means that nothing was changed.
    std::vector<std::pair<Object, bool>> edited;  // and whether that changes nothing
    for (const auto& [kind, name] : named) {
      const ObjectPtr found = MELTEMI_TRY(find_mine(manifests, *kind, context.ns(), name));
      Object object = *found;
      auto* map = options.annotations ? object.mutable_meta().mutable_annotations()
                                      : object.mutable_meta().mutable_labels();
      MELTEMI_TRY(apply_edits(map, edits, options.overwrite));
      const Problems problems = config::validate(object);
      if (has_errors(problems)) return fail(to_error(problems));
      const bool same = object.same_content(*found);
      edited.emplace_back(std::move(object), same);
    }
    for (const auto& [object, same] : edited) {
      if (!same) MELTEMI_TRY(manifests.write(object));
      const bool only_removes =
          std::none_of(edits.begin(), edits.end(), [](const Edit& e) { return e.value.has_value(); });
      const char* verb = options.annotations ? "annotated"
                         : only_removes && !same ? "unlabeled"
                                                 : "labeled";
      print("{} {}{}\n", kubectl_name(object.key()), same ? "not " : "", verb);
      report(config::analyze_object(manifests.merged(), object.key()));
    }
    return {};
  };
  return finish(label_all());
}

}  // namespace meltemi::cli
