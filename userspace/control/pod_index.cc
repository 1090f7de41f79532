// See pod_index.h.
#include "userspace/control/pod_index.h"

#include <algorithm>
#include <mutex>

#include "userspace/control/gateway_controller.h"

namespace meltemi::control {
namespace {

PodEntry entry_of(const config::Object& object) {
  const auto& pod = object.as<config::kube::Pod>();
  PodEntry out{.ns = object.ns(), .name = object.name(), .uid = object.meta().uid(),
               .service_account = pod.spec().service_account_name(),
               .node = pod.spec().node_name(), .gateway = {}, .ended = false};
  if (out.service_account.empty()) out.service_account = pod.spec().service_account();
  if (out.service_account.empty()) out.service_account = "default";
  out.gateway = object.label(kGatewayNameLabel);
  const std::string& phase = pod.status().phase();
  out.ended = phase == "Succeeded" || phase == "Failed";
  return out;
}

}  // namespace

void PodIndex::place(const PodEntry& entry, bool there) {
  if (entry.ended || entry.node.empty()) return;
  const Place key{entry.node, entry.ns, entry.service_account};
  if (there) {
    places_[key].insert(entry.uid);
    return;
  }
  const auto found = places_.find(key);
  if (found == places_.end()) return;
  found->second.erase(entry.uid);
  if (found->second.empty()) places_.erase(found);
}

bool PodIndex::apply(const std::vector<config::ObjectChange>& changes) {
  bool any = false;
  const std::unique_lock lock(mutex_);
  for (const config::ObjectChange& change : changes) {
    if (change.key.kind != config::Kind::kPod) continue;
    any = true;
    const auto key = std::pair(change.key.ns, change.key.name);
    if (const auto old = pods_.find(key); old != pods_.end()) {
      place(old->second, false);
      by_uid_.erase(old->second.uid);
      pods_.erase(old);
    }
    if (change.after == nullptr) continue;
    PodEntry entry = entry_of(*change.after);
    place(entry, true);
    if (!entry.uid.empty()) by_uid_[entry.uid] = key;
    pods_.emplace(key, std::move(entry));
  }
  return any;
}

void PodIndex::decide(const std::string& uid, bool enrol) {
  const std::unique_lock lock(mutex_);
  if (enrol) {
    decided_.insert(uid);
  } else {
    decided_.erase(uid);
  }
}

void PodIndex::report(const std::string& node, std::set<std::string> enrolled_uids) {
  const std::unique_lock lock(mutex_);
  reported_[node] = std::move(enrolled_uids);
}

bool PodIndex::enrolled_on(std::string_view node, std::string_view ns,
                           std::string_view service_account) const {
  const std::shared_lock lock(mutex_);
  const auto pods =
      places_.find({std::string(node), std::string(ns), std::string(service_account)});
  if (pods == places_.end()) return false;
  const auto reported = reported_.find(node);
  return std::ranges::any_of(pods->second, [&](const std::string& uid) {
    return decided_.contains(uid) ||
           (reported != reported_.end() && reported->second.contains(uid));
  });
}

std::optional<PodEntry> PodIndex::find(std::string_view ns, std::string_view name) const {
  const std::shared_lock lock(mutex_);
  const auto it = pods_.find({std::string(ns), std::string(name)});
  return it == pods_.end() ? std::nullopt : std::optional(it->second);
}

std::optional<PodEntry> PodIndex::find_uid(std::string_view uid) const {
  const std::shared_lock lock(mutex_);
  const auto it = by_uid_.find(uid);
  return it == by_uid_.end() ? std::nullopt : std::optional(pods_.at(it->second));
}

std::vector<PodEntry> PodIndex::on_node(std::string_view node) const {
  const std::shared_lock lock(mutex_);
  std::vector<PodEntry> out;
  for (auto at = places_.lower_bound({std::string(node), "", ""});
       at != places_.end() && std::get<0>(at->first) == node; ++at) {
    for (const std::string& uid : at->second) {
      if (const auto key = by_uid_.find(uid); key != by_uid_.end()) out.push_back(pods_.at(key->second));
    }
  }
  return out;
}

std::set<std::string> PodIndex::uids() const {
  const std::shared_lock lock(mutex_);
  std::set<std::string> out;
  for (const auto& [uid, key] : by_uid_) out.insert(uid);
  return out;
}

}  // namespace meltemi::control
