// See pod_index.h.
#include "userspace/control/pod_index.h"

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

void PodIndex::add(const PodEntry& entry, int count) {
  if (entry.ended || entry.node.empty()) return;
  const Place place{entry.node, entry.ns, entry.service_account};
  if ((places_[place] += count) <= 0) places_.erase(place);
}

bool PodIndex::apply(const std::vector<config::ObjectChange>& changes) {
  bool any = false;
  const std::unique_lock lock(mutex_);
  for (const config::ObjectChange& change : changes) {
    if (change.key.kind != config::Kind::kPod) continue;
    any = true;
    const auto key = std::pair(change.key.ns, change.key.name);
    if (const auto old = pods_.find(key); old != pods_.end()) {
      add(old->second, -1);
      by_uid_.erase(old->second.uid);
      pods_.erase(old);
    }
    if (change.after == nullptr) continue;
    PodEntry entry = entry_of(*change.after);
    add(entry, 1);
    if (!entry.uid.empty()) by_uid_[entry.uid] = key;
    pods_.emplace(key, std::move(entry));
  }
  return any;
}

bool PodIndex::runs_on(std::string_view node, std::string_view ns,
                       std::string_view service_account) const {
  const std::shared_lock lock(mutex_);
  return places_.contains(
      {std::string(node), std::string(ns), std::string(service_account)});
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

std::set<std::string> PodIndex::uids() const {
  const std::shared_lock lock(mutex_);
  std::set<std::string> out;
  for (const auto& [uid, key] : by_uid_) out.insert(uid);
  return out;
}

}  // namespace meltemi::control
