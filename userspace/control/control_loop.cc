// The way of a change: file, objects, generated objects, resources, statuses. See control_plane.h.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "userspace/base/log.h"
#include "userspace/config/analyze.h"
#include "userspace/control/control_plane.h"
#include "userspace/xds/address_names.h"

namespace meltemi::control {
namespace {

log::Scope scope("config");

using config::Kind;
using config::ObjectChange;

constexpr int kControllerLayer = 1;
constexpr std::string_view kGeneratedPrefix = "state/control/";

std::string now_text() { return format_rfc3339(std::chrono::system_clock::now()); }

bool concerns_gateways(Kind kind) {
  return kind == Kind::kGateway || kind == Kind::kService || kind == Kind::kPod ||
         kind == Kind::kDeployment || kind == Kind::kConfigMap || kind == Kind::kServiceAccount;
}

std::set<std::string> namespaces_of(const std::vector<ObjectChange>& changes) {
  std::set<std::string> out;
  for (const ObjectChange& change : changes) {
    if (concerns_gateways(change.key.kind)) out.insert(change.key.ns);
  }
  return out;
}

void log_problems(const config::Problems& problems) {
  for (const config::Problem& problem : problems) {
    const std::string text = log::escape(problem.to_string());
    if (problem.severity == config::Severity::kError) {
      scope.error("{}", text);
    } else {
      scope.info("{}", text);
    }
  }
}

}  // namespace

void ControlPlane::read_source(MonoTime now) {
  std::vector<FileEvent> events;
  const Status polled = source_->poll([&](const FileEvent& event) { events.push_back(event); });
  retry_source_ = {};
  if (source_->owes()) retry_source_ = now + kSourceRetry;
  note_trouble(source_->trouble());
  // meltemid is the only writer of its own files, and knows what it wrote.
  std::erase_if(events, [](const FileEvent& event) { return event.layer == kControllerLayer; });
  const auto removed = static_cast<size_t>(
      std::ranges::count_if(events, [](const FileEvent& event) { return event.removed; }));
  const bool suspicious = removed >= kShrinkFiles && removed * 2 >= known_files_.size();
  if (suspicious) {
    scope.warn("{} of {} files are gone at once; looking again in {} ms before believing it",
               removed, known_files_.size(), kConfirm.count());
    stats_.held_removals += removed;
  }
  std::vector<ObjectChange> changes;
  for (const FileEvent& event : events) {
    held_.erase(event.path);
    if (event.removed && suspicious) {
      held_[event.path] = now + kConfirm;
    } else {
      apply(event, &changes);
    }
  }
  release_held(now, &changes);
  stats_.events += events.size();
  // What nobody has read yet may be a policy that denies.
  if (!loaded_ && polled && !source_->unread()) {
    loaded_ = true;
    // Nothing at all at the start may be a volume that is not mounted yet.
    if (store_.size(Kind::kNamespace) == 0 && known_files_.empty()) empty_since_ = now;
  }
  if (!known_files_.empty()) empty_since_ = {};
  if (changes.empty() && events.empty()) return;
  last_batch_ = now;
  settle(std::move(changes));
  stats_.last_batch = MonoClock::now() - now;
  publish_statuses();
}

// Told once per change, and at every look at /ready.
void ControlPlane::note_trouble(std::string trouble) {
  const std::lock_guard lock(trouble_mutex_);
  if (trouble == source_trouble_) return;
  source_trouble_ = std::move(trouble);
  if (source_trouble_.empty()) {
    scope.info("all of {} can be read again", source_->root());
  } else {
    scope.error("{}; what was read before stays in effect, tried again every {} s",
                log::escape(source_trouble_), kSourceRetry.count());
  }
}

std::string ControlPlane::source_trouble() const {
  const std::lock_guard lock(trouble_mutex_);
  return source_trouble_;
}

void ControlPlane::apply(const FileEvent& event, std::vector<ObjectChange>* changes) {
  if (unreadable_.erase(event.path) > 0) problems_changed_ = true;
  if (!event.problem.empty()) {
    problems_changed_ = true;
    known_files_.insert(event.path);
    unreadable_[event.path] = event.problem;
    scope.error("{}: {}; its last good objects stay", event.path, event.problem);
    return;
  }
  config::ManifestTree::Outcome outcome;
  if (event.removed) {
    known_files_.erase(event.path);
    outcome = tree_.remove(event.path);
  } else {
    known_files_.insert(event.path);
    outcome = tree_.put(event.path, event.bytes, event.layer);
  }
  log_problems(outcome.problems);
  if (troubled_.erase(event.path) > 0 || !outcome.problems.empty()) problems_changed_ = true;
  if (!outcome.problems.empty()) troubled_.insert(event.path);
  if (config::has_errors(outcome.problems)) {
    ++stats_.rejected_files;
    scope.warn("{}: not applied; its last good objects stay", event.path);
  }
  std::ranges::move(outcome.changes, std::back_inserter(*changes));
}

void ControlPlane::release_held(MonoTime now, std::vector<ObjectChange>* changes) {
  for (auto it = held_.begin(); it != held_.end();) {
    if (now < it->second) {
      ++it;
      continue;
    }
    const std::string path = it->first;
    it = held_.erase(it);
    // If it came back meanwhile, the source has told that or will.
    if (::access((source_->root() + "/" + path).c_str(), F_OK) == 0) continue;
    if (errno != ENOENT && errno != ENOTDIR) {  // nobody can tell
      held_[path] = now + kConfirm;
      continue;
    }
    apply({path, layer_of(path), true, {}, {}}, changes);
  }
}

void ControlPlane::settle(std::vector<ObjectChange> changes) {
  const std::set<std::string> namespaces = namespaces_of(changes);
  generate(namespaces, &changes);
  const bool pods_changed = pods_.apply(changes);
  const bool accounts_changed = accounts_.apply(changes);
  // The kernel's truth first: no translation may call an enrolled pod plaintext.
  if (pods_changed) count_enrolled_again(changes);
  board_.note(changes);
  publish(translator_.apply(changes));
  end_decided_enrolments();
  std::set<std::string> with_generated = namespaces;
  with_generated.merge(namespaces_of(changes));
  gateway_statuses(with_generated);
  ++stats_.batches;
  stats_.changes += changes.size();
  if (!changes.empty()) analyze_due_ = true;
  if (pods_changed || accounts_changed) end_unwelcome();
}

void ControlPlane::end_unwelcome() {
  server_.disconnect([this](const xds::Caller& caller, const xds::Node& node) {
    return access_.still_welcome(caller, node);
  });
}

WaypointSettings ControlPlane::waypoint_settings() const {
  WaypointSettings out;
  out.discovery_address = settings_.discovery_address;
  out.root_cert_pem = ca_->root_bundle_pem();
  out.image = settings_.waypoint_image;
  out.names = settings_.names();
  return out;
}

// Brings the generated objects of these namespaces to what their Gateways want.
void ControlPlane::generate(const std::set<std::string>& namespaces,
                            std::vector<ObjectChange>* changes) {
  for (const std::string& ns : namespaces) {
    std::set<std::string> wanted;
    for (const auto& gateway : store_.list(Kind::kGateway, ns)) {
      generate_for(*gateway, &wanted, changes);
    }
    // Names of files are KIND.NAMESPACE.NAME.yaml, and namespaces have no dots.
    std::erase_if(generated_, [&](const std::string& file) {
      const size_t dot = file.find('.');
      const bool ours = file.substr(dot + 1, ns.size() + 1) == ns + ".";
      if (!ours || wanted.contains(file)) return false;
      files_.erase(file);
      std::ranges::move(tree_.remove(std::string(kGeneratedPrefix) + file).changes,
                        std::back_inserter(*changes));
      return true;
    });
  }
}

void ControlPlane::generate_for(const config::Object& gateway, std::set<std::string>* wanted,
                                std::vector<ObjectChange>* changes) {
  for (const config::Object& object : waypoint_objects(gateway, waypoint_settings())) {
    const std::string file = file_name_of(object.key());
    const std::string path = std::string(kGeneratedPrefix) + file;
    const auto existing = store_.find(object.key());
    const bool ours = existing == nullptr || generated_.contains(file) ||
                      existing->label(kManagedLabel) == kManagedBy;
    if (!ours) {
      scope.warn("{} exists and is not managed by Gateway {}/{}: it stays as it is",
                 object.key().to_string(), gateway.ns(), gateway.name());
      continue;
    }
    wanted->insert(file);
    generated_.insert(file);
    std::string bytes = config::objects_to_yaml({object});
    if (!files_.put(file, bytes)) continue;
    auto outcome = tree_.put(path, bytes, kControllerLayer);
    log_problems(outcome.problems);
    std::ranges::move(outcome.changes, std::back_inserter(*changes));
  }
}

void ControlPlane::gateway_statuses(const std::set<std::string>& namespaces) {
  const WaypointSettings settings = waypoint_settings();
  for (const std::string& ns : namespaces) {
    for (const auto& gateway : store_.list(Kind::kGateway, ns)) {
      if (!is_waypoint(*gateway)) continue;
      // The status so far: ours, or what a former process left on disk.
      config::Object with_status = *gateway;
      if (const auto* known = board_.gateway(gateway->key())) {
        with_status.edit<config::kube::Gateway>(
            [&](config::kube::Gateway& body) { *body.mutable_status() = *known; });
      } else {
        const auto old = config::read_objects(
            files_.left_over("status." + file_name_of(gateway->key())), "status");
        if (old.objects.size() == 1 && old.objects[0].key() == gateway->key()) {
          with_status = old.objects[0];
          with_status.mutable_meta() = gateway->meta();
          with_status.edit<config::kube::Gateway>([&](config::kube::Gateway& body) {
            *body.mutable_spec() = gateway->as<config::kube::Gateway>().spec();
          });
        }
      }
      board_.set_gateway(gateway->key(),
                         gateway_status(with_status, store_, now_text(), settings));
    }
  }
}

void ControlPlane::publish(const config::TranslationResult& result) {
  std::vector<xds::ResourceUpdate> batch;
  batch.reserve(result.resources.size());
  for (const config::ResourceChange& change : result.resources) {
    xds::ResourceUpdate update{.type_url = std::string(config::type_url(change.type)),
                               .scope = change.scope, .name = change.name, .version = {},
                               .body = {}, .removed = change.resource == nullptr};
    if (change.type == config::ResourceType::kPodEnrolment) {
      node::v1::PodEnrolment told;
      const bool enrol = change.resource != nullptr && told.ParseFromString(change.resource->body) &&
                         told.enrol();
      pods_.decide(change.name, enrol);
    }
    if (change.resource != nullptr) {
      update.version = change.resource->version;
      update.body = change.resource->body;
      if (change.type == config::ResourceType::kAddress) {
        update.aliases = xds::address_aliases(update.body);
      }
    }
    batch.push_back(std::move(update));
  }
  stats_.resource_changes += batch.size();
  stats_.recomputed_units += result.recomputed_units;
  server_.update(std::move(batch));
  board_.note(result.statuses);
}

void ControlPlane::publish_statuses() {
  if (std::exchange(problems_changed_, false)) {
    config::Problems problems = tree_.problems();
    for (const auto& [path, text] : unreadable_) {
      problems.push_back({.severity = config::Severity::kError, .code = std::string(config::kCodeSyntax),
                          .object = {}, .file = path, .line = 0, .field = {}, .message = text,
                          .fix = {}});
    }
    board_.set_file_problems(std::move(problems));
  }
  board_.publish(now_text(), [this](const config::ObjectKey& key) {
    return std::string(tree_.file_of(key));
  });
}

}  // namespace meltemi::control
