#include "userspace/cli/rollout.h"

#include <strings.h>

#include <algorithm>
#include <functional>
#include <thread>

#include "userspace/cli/manifests.h"
#include "userspace/cli/objects.h"
#include "userspace/cli/targets.h"
#include "userspace/sandbox/workload_status.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::Object;
using config::ObjectPtr;
using config::ObjectStore;
namespace kube = config::kube;

constexpr auto kPollInterval = std::chrono::milliseconds(100);

// --- workloads ------------------------------------------------------------------------------

bool has_replicas(Kind kind) {
  return kind == Kind::kDeployment || kind == Kind::kReplicaSet;
}

Result<std::vector<Target>> workload_targets(const std::vector<std::string>& words, bool deployment) {
  std::vector<Target> targets = MELTEMI_TRY(parse_targets(words));
  for (const Target& target : targets) {
    const bool fits =
        deployment ? target.kind->kind == Kind::kDeployment : has_replicas(target.kind->kind);
    if (!fits || target.names.empty())
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("\"{}\" names no Deployment. Use deployment/NAME",
                              fmt::join(words, " ")));
  }
  return targets;
}

int change_workloads(const Context& context, const std::vector<std::string>& words,
                     bool deployments_only, std::string_view done,
                     const std::function<void(Object*)>& change) {
  const auto change_all = [&]() -> Status {
    Manifests manifests = MELTEMI_TRY(Manifests::open(context));
    for (const Target& target : MELTEMI_TRY(workload_targets(words, deployments_only))) {
      for (const std::string& name : target.names) {
        Object object = *MELTEMI_TRY(find_mine(manifests, *target.kind, context.ns(), name));
        change(&object);
        object.mutable_meta().set_generation(object.meta().generation() + 1);
        MELTEMI_TRY(manifests.write(object));
        print("{} {}\n", kubectl_name(object.key()), done);
      }
    }
    return {};
  };
  return finish(change_all());
}

// What a rollout still waits for; "" when it is done. kubectl's words.
std::string rollout_waits_for(const Object& deployment) {
  const auto& spec = deployment.as<kube::Deployment>().spec();
  const auto& s = deployment.as<kube::Deployment>().status();
  const int wanted = spec.has_replicas() ? spec.replicas() : 1;
  if (s.updated_replicas() < wanted)
    return fmt::format("{} out of {} new replicas have been updated", s.updated_replicas(), wanted);
  if (s.replicas() > s.updated_replicas())
    return fmt::format("{} old replicas are pending termination",
                       s.replicas() - s.updated_replicas());
  if (s.available_replicas() < wanted || s.replicas() > wanted)
    return fmt::format("{} of {} updated replicas are available", s.available_replicas(), wanted);
  return {};
}

Status follow_rollout(const Context& context, const std::string& name, MonoTime deadline) {
  sandbox::Directory directory = context.open(sandbox::View::kMerged);
  std::string told;
  while (true) {
    directory.refresh();
    const ObjectStore& store = directory.store();
    const ObjectPtr deployment = store.find(Kind::kDeployment, context.ns(), name);
    if (!deployment) return no_such_object(config::kind_info(Kind::kDeployment), name);
    const std::string waits = rollout_waits_for(sandbox::with_status(store, *deployment));
    if (waits.empty()) break;
    if (waits != told)
      print("Waiting for deployment \"{}\" rollout to finish: {}...\n", name, waits);
    ::fflush(stdout);
    told = waits;
    if (MonoClock::now() > deadline)
      return fail(Reason::kRequestTimeout, Fault::kUpstream,
                  fmt::format("timed out: {}. See: meltemi get pods -n {}", waits, context.ns()));
    std::this_thread::sleep_for(kPollInterval);
  }
  print("deployment \"{}\" successfully rolled out\n", name);
  return {};
}

// --- conditions -----------------------------------------------------------------------------

struct Wanted {
  enum class What : uint8_t { kCondition, kDeleted, kCreated } what = What::kCondition;
  std::string type, status = "True";
};

Result<Wanted> parse_wanted(const std::string& text) {
  if (text == "delete") return Wanted{Wanted::What::kDeleted, "", ""};
  if (text == "create") return Wanted{Wanted::What::kCreated, "", ""};
  constexpr std::string_view kPrefix = "condition=";
  if (!text.starts_with(kPrefix) || text.size() == kPrefix.size())
    return fail(Reason::kBadConfig, Fault::kConfig,
                "--for must be condition=NAME, condition=NAME=VALUE, create or delete");
  Wanted out;
  out.type = text.substr(kPrefix.size());
  if (const size_t equals = out.type.find('='); equals != std::string::npos) {
    out.status = out.type.substr(equals + 1);
    out.type.resize(equals);
  }
  return out;
}

bool same_word(const std::string& a, const std::string& b) {  // as kubectl: "ready" is "Ready"
  return ::strcasecmp(a.c_str(), b.c_str()) == 0;
}

bool meets(const Object& object, const Wanted& wanted) {
  const auto check = [&](const auto& conditions) {
    return std::any_of(conditions.begin(), conditions.end(), [&](const kube::Condition& c) {
      return same_word(c.type(), wanted.type) && same_word(c.status(), wanted.status);
    });
  };
  switch (object.kind()) {
    case Kind::kPod:
      return check(object.as<kube::Pod>().status().conditions());
    case Kind::kGateway:
      return check(object.as<kube::Gateway>().status().conditions());
    case Kind::kDeployment:
      return check(object.as<kube::Deployment>().status().conditions());
    case Kind::kJob:
      return check(object.as<kube::Job>().status().conditions());
    default:
      return false;
  }
}

class Waiter {
 public:
  Waiter(const Context& context, const WaitOptions& options)
      : context_(context),
        options_(options),
        directory_(context.open(sandbox::View::kMerged)) {}

  Status run() {
    targets_ = MELTEMI_TRY(parse_targets(options_.words));
    selector_ = MELTEMI_TRY(parse_selector(options_.selector));
    wanted_ = MELTEMI_TRY(parse_wanted(options_.condition));
    const MonoTime deadline = MonoClock::now() + options_.timeout;
    while (true) {
      directory_.refresh();
      std::vector<ObjectPtr> found;
      std::string waits_for = MELTEMI_TRY(look(&found));
      if (waits_for.empty()) {
        for (const ObjectPtr& object : found)
          print("{} condition met\n", kubectl_name(object->key()));
        return {};
      }
      if (MonoClock::now() > deadline)
        return fail(Reason::kRequestTimeout, Fault::kUpstream,
                    fmt::format("timed out waiting for {} on {}", options_.condition, waits_for));
      std::this_thread::sleep_for(kPollInterval);
    }
  }

 private:
  // What is still waited for, "" if nothing.
  Result<std::string> look(std::vector<ObjectPtr>* found) {
    for (const Target& target : targets_) {
      const auto& store = directory_.store();
      const std::string ns = target.kind->namespaced ? context_.ns() : "";
      for (const std::string& name : target.names) {
        if (ObjectPtr object = store.find(target.kind->kind, ns, name))
          found->push_back(std::move(object));
        else if (wanted_.what == Wanted::What::kCreated)
          return fmt::format("{}/{}", target.kind->plural, name);
        else if (wanted_.what == Wanted::What::kCondition)
          return no_such_object(*target.kind, name);
      }
      if (!target.names.empty()) continue;
      for (const ObjectPtr& object : store.list(target.kind->kind, ns))
        if (selected(*object, selector_)) found->push_back(object);
    }
    if (wanted_.what == Wanted::What::kDeleted)
      return found->empty() ? std::string() : kubectl_name(found->front()->key());
    if (found->empty()) return std::string(targets_.front().kind->plural);
    if (wanted_.what == Wanted::What::kCreated) return std::string();
    for (const ObjectPtr& object : *found)
      if (!meets(sandbox::with_status(directory_.store(), *object), wanted_))
        return kubectl_name(object->key());
    return std::string();
  }

  const Context& context_;
  const WaitOptions& options_;
  sandbox::Directory directory_;
  std::vector<Target> targets_;
  Selector selector_;
  Wanted wanted_;
};

}  // namespace

int scale_command(const Context& context, const std::vector<std::string>& words, int replicas) {
  return change_workloads(context, words, false, "scaled", [&](Object* object) {
    if (object->kind() == Kind::kDeployment)
      object->edit<kube::Deployment>(
          [&](kube::Deployment& d) { d.mutable_spec()->set_replicas(replicas); });
    else
      object->edit<kube::ReplicaSet>(
          [&](kube::ReplicaSet& r) { r.mutable_spec()->set_replicas(replicas); });
  });
}

int rollout_restart_command(const Context& context, const std::vector<std::string>& words) {
  const std::string now = format_rfc3339(std::chrono::system_clock::now());
  return change_workloads(context, words, true, "restarted", [&](Object* object) {
    object->edit<kube::Deployment>([&](kube::Deployment& d) {
      (*d.mutable_spec()->mutable_template_()->mutable_metadata()->mutable_annotations())
          ["kubectl.kubernetes.io/restartedAt"] = now;
    });
  });
}

int rollout_status_command(const Context& context, const std::vector<std::string>& words,
                           Duration timeout) {
  const auto follow = [&]() -> Status {
    const MonoTime deadline = MonoClock::now() + timeout;
    for (const Target& target : MELTEMI_TRY(workload_targets(words, true)))
      for (const std::string& name : target.names)
        MELTEMI_TRY(follow_rollout(context, name, deadline));
    return {};
  };
  return finish(follow());
}

int wait_command(const Context& context, const WaitOptions& options) {
  return finish(Waiter(context, options).run());
}

}  // namespace meltemi::cli
