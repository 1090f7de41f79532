#include "userspace/model/store.h"

#include <fmt/format.h>

#include <algorithm>

namespace meltemi::model {
namespace {

Symbol joined(std::string_view ns, std::string_view name) {
  return Symbol(fmt::format("{}/{}", ns, name));
}

// Adds to or removes from one of the small sorted key lists of an index.
template <typename Map, typename Key>
void add_key(Map& map, const Key& at, const Symbol& key) {
  const auto* old = map.find(at);
  auto keys = old ? *old : std::vector<Symbol>();
  const auto pos = std::lower_bound(keys.begin(), keys.end(), key);
  if (pos != keys.end() && *pos == key) return;
  keys.insert(pos, key);
  map.set(at, std::move(keys));
}

template <typename Map, typename Key>
void drop_key(Map& map, const Key& at, const Symbol& key) {
  const auto* old = map.find(at);
  if (!old) return;
  auto keys = *old;
  std::erase(keys, key);
  if (keys.empty()) {
    map.erase(at);
  } else {
    map.set(at, std::move(keys));
  }
}

// Which of two workloads on one address answers: Pods first, then HBONE, then by uid for a stable
// order.
bool answers_before(const WorkloadPtr& a, const WorkloadPtr& b) {
  const auto rank = [](const Workload& w) {
    return (w.uid.view().find("//Pod/") != std::string_view::npos ? 2 : 0) +
           (w.protocol == TunnelProtocol::kHbone ? 1 : 0);
  };
  const int ra = rank(*a), rb = rank(*b);
  return ra != rb ? ra > rb : a->uid < b->uid;
}

bool is_reached_by_hbone(const ServiceEntry& entry) {
  return entry.service->waypoint || !entry.service->weighted_waypoints.empty() || entry.meshed;
}

// After a change of the endpoints: without any the service is what it was with the last.
void count_endpoint(ServiceEntry& entry, const Endpoint* before, const Endpoint* after) {
  const auto speaks = [](const Endpoint* e) {
    return e != nullptr && e->workload->protocol == TunnelProtocol::kHbone;
  };
  entry.hbone_endpoints += speaks(after);
  entry.hbone_endpoints -= speaks(before);
  if (!entry.endpoints.empty()) entry.meshed = entry.hbone_endpoints > 0;
}

uint32_t endpoint_weight(const Workload& workload, const Service* service) {
  const bool all = service && service->load_balancing.health == HealthPolicy::kAllowAll;
  return workload.healthy || all ? workload.capacity : 0;
}

}  // namespace

// --- reading --------------------------------------------------------------------------------

WorkloadPtr Snapshot::workload(std::string_view uid) const {
  const WorkloadPtr* w = workloads_.find(uid);
  return w ? *w : nullptr;
}

WorkloadPtr Snapshot::workload_by_ip(const NetworkAddress& address) const {
  const auto* list = by_ip_.find(address);
  return list ? list->front() : nullptr;
}

WorkloadPtr Snapshot::workload_by_hostname(std::string_view key) const {
  const Keys* uids = by_workload_hostname_.find(key);
  return uids ? workload(uids->front()) : nullptr;
}

WorkloadPtr Snapshot::workload_by_name(std::string_view ns, std::string_view name,
                                       std::string_view service_account) const {
  const Keys* uids = by_name_.find(std::string_view(fmt::format("{}/{}", ns, name)));
  if (!uids) return nullptr;
  for (auto it = uids->rbegin(); it != uids->rend(); ++it) {
    WorkloadPtr w = workload(*it);
    if (w && w->service_account == service_account) return w;
  }
  return nullptr;
}

const ServiceEntry* Snapshot::service(std::string_view key) const {
  const ServiceEntryPtr* entry = services_.find(key);
  return entry && (*entry)->service ? entry->get() : nullptr;
}

const ServiceEntry* Snapshot::best_of(const Keys& keys, std::string_view client_ns) const {
  const ServiceEntry* best = nullptr;
  const auto rank = [&](const Service& s) { return (s.ns == client_ns ? 2 : 0) + s.canonical; };
  for (const Symbol& key : keys) {
    const ServiceEntry* entry = service(key);
    if (!entry || !entry->service->visible_to(client_ns)) continue;
    if (!best || rank(*entry->service) > rank(*best->service)) best = entry;
  }
  return best;
}

const ServiceEntry* Snapshot::service_by_vip(const NetworkAddress& address,
                                             std::string_view client_ns) const {
  const ServiceEntry* found = nullptr;
  if (const Keys* keys = by_vip_.find(address)) found = best_of(*keys, client_ns);
  if (found) return found;
  by_cidr_.match(address.network, address.ip, [&](const Keys& keys, uint8_t) {
    found = best_of(keys, client_ns);
    return found != nullptr;
  });
  return found;
}

const ServiceEntry* Snapshot::service_by_hostname(std::string_view hostname,
                                                  std::string_view client_ns) const {
  const Keys* keys = by_hostname_.find(hostname);
  return keys ? best_of(*keys, client_ns) : nullptr;
}

PolicyPtr Snapshot::policy(std::string_view key) const {
  const PolicyPtr* p = policies_.find(key);
  return p ? *p : nullptr;
}

PolicyVerdict Snapshot::authorize(const Workload& destination, const PolicyInput& input) const {
  const std::vector<PolicyPtr>* of_namespace = namespace_policies_.find(destination.ns);
  PolicyEvaluation evaluation(input);
  const auto each = [&](auto&& fn) {
    for (const PolicyPtr& p : global_policies_) fn(p);
    if (of_namespace) {
      for (const PolicyPtr& p : *of_namespace) fn(p);
    }
    for (const Symbol& name : destination.authorization_policies) {
      if (const PolicyPtr* p = policies_.find(name)) fn(*p);
    }
  };
  each([&](const PolicyPtr& p) { evaluation.deny_phase(p); });
  for (const Symbol& name : destination.authorization_policies) {
    if (!policies_.find(name)) evaluation.unknown(name);
  }
  each([&](const PolicyPtr& p) { evaluation.allow_phase(p); });
  return std::move(evaluation).verdict();
}

void Snapshot::each_workload(const std::function<void(const Workload&)>& fn) const {
  workloads_.for_each([&](const Symbol&, const WorkloadPtr& w) { fn(*w); });
}
void Snapshot::each_service(const std::function<void(const ServiceEntry&)>& fn) const {
  services_.for_each([&](const Symbol&, const ServiceEntryPtr& e) {
    if (e->service) fn(*e);
  });
}
void Snapshot::each_policy(const std::function<void(const Policy&)>& fn) const {
  policies_.for_each([&](const Symbol&, const PolicyPtr& p) { fn(*p); });
}

// --- writing --------------------------------------------------------------------------------

MeshStore::MeshStore() : published_(std::make_shared<const Snapshot>()) {}

SnapshotPtr MeshStore::snapshot() const {
  std::lock_guard lock(mutex_);
  return published_;
}

uint64_t MeshStore::apply(const Batch& batch) {
  bool changed = false, policies_changed = false;
  for (const std::string& name : batch.removed_addresses) {
    changed |= remove_workload(name) || remove_service(name);
  }
  for (const std::string& name : batch.removed_policies) policies_changed |= remove_policy(name);
  // Services before workloads: an endpoint then finds its service's health policy at once.
  for (const ServicePtr& s : batch.services) changed |= put(s);
  for (const WorkloadPtr& w : batch.workloads) changed |= put(w);
  for (const PolicyPtr& p : batch.policies) policies_changed |= put(p);
  if (!changed && !policies_changed) return work_.version_;
  if (policies_changed) ++work_.policy_generation_;
  publish();
  return work_.version_;
}

void MeshStore::publish() {
  ++work_.version_;
  auto next = std::make_shared<const Snapshot>(work_);
  {
    std::lock_guard lock(mutex_);
    published_.swap(next);
    version_.store(work_.version_, std::memory_order_release);
  }
  if (changed_) changed_();
}

void MeshStore::restore_departed(const std::vector<NetworkAddress>& addresses) {
  for (const NetworkAddress& at : addresses) {
    if (!work_.by_ip_.find(at) && !work_.by_vip_.find(at)) depart(at);
  }
  if (!addresses.empty()) publish();
}

bool MeshStore::put(const WorkloadPtr& workload) {
  const WorkloadPtr old = work_.workload(workload->uid);
  if (old && *old == *workload) return false;
  if (old) unlink(*old);
  work_.workloads_.set(workload->uid, workload);
  link(workload);
  if (old) depart_unclaimed(*old);
  return true;
}

bool MeshStore::remove_workload(std::string_view uid) {
  const WorkloadPtr old = work_.workload(uid);
  if (!old) return false;
  unlink(*old);
  work_.workloads_.erase(uid);
  depart_unclaimed(*old);
  return true;
}

// A workload that spoke HBONE has let go of these addresses, and nobody else has them.
void MeshStore::depart_unclaimed(const Workload& old) {
  if (old.protocol != TunnelProtocol::kHbone || old.network_mode != NetworkMode::kStandard) return;
  for (const IpAddress& ip : old.addresses) {
    const NetworkAddress at{old.network, ip};
    if (!work_.by_ip_.find(at)) depart(at);
  }
}

void MeshStore::depart_unclaimed(const ServiceEntry& old) {
  if (!is_reached_by_hbone(old)) return;
  for (const NetworkAddress& vip : old.service->vips) {
    if (!work_.by_vip_.find(vip)) depart(vip);
  }
}

void MeshStore::depart(const NetworkAddress& address) {
  work_.departed_.set(address, next_departure_);
  if (departure_) departure_(address, next_departure_);
  departures_.emplace_back(address, next_departure_++);
  while (departures_.size() > kMaxDeparted) {
    const auto& [oldest, number] = departures_.front();
    // It may have come back, or even left again, since.
    const uint64_t* current = work_.departed_.find(oldest);
    if (current && *current == number) no_longer_departed(oldest);
    departures_.pop_front();
  }
}

void MeshStore::no_longer_departed(const NetworkAddress& address) {
  if (!work_.departed_.find(address)) return;
  if (departure_) departure_(address, 0);
  work_.departed_.erase(address);
}

void MeshStore::link(const WorkloadPtr& workload) {
  const Workload& w = *workload;
  if (w.network_mode == NetworkMode::kStandard) {
    for (const IpAddress& ip : w.addresses) {
      const NetworkAddress at{w.network, ip};
      const auto* old = work_.by_ip_.find(at);
      auto list = old ? *old : std::vector<WorkloadPtr>();
      std::erase_if(list, [&](const WorkloadPtr& other) { return other->uid == w.uid; });
      list.insert(std::lower_bound(list.begin(), list.end(), workload, answers_before), workload);
      work_.by_ip_.set(at, std::move(list));
      no_longer_departed(at);
    }
  }
  if (!w.hostname.empty()) {
    add_key(work_.by_workload_hostname_, joined(w.ns, w.hostname), w.uid);
  }
  add_key(work_.by_name_, joined(w.ns, w.name), w.uid);
  for (uint32_t i = 0; i < w.services.size(); ++i) set_endpoint(workload, i);
}

void MeshStore::unlink(const Workload& w) {
  if (w.network_mode == NetworkMode::kStandard) {
    for (const IpAddress& ip : w.addresses) {
      const NetworkAddress at{w.network, ip};
      const auto* old = work_.by_ip_.find(at);
      if (!old) continue;
      auto list = *old;
      std::erase_if(list, [&](const WorkloadPtr& other) { return other->uid == w.uid; });
      if (list.empty()) {
        work_.by_ip_.erase(at);
      } else {
        work_.by_ip_.set(at, std::move(list));
      }
    }
  }
  if (!w.hostname.empty()) {
    drop_key(work_.by_workload_hostname_, joined(w.ns, w.hostname), w.uid);
  }
  drop_key(work_.by_name_, joined(w.ns, w.name), w.uid);
  for (const ServiceMembership& m : w.services) drop_endpoint(w, m.service);
}

void MeshStore::set_endpoint(const WorkloadPtr& workload, uint32_t membership) {
  const Symbol& key = workload->services[membership].service;
  const ServiceEntryPtr* old = work_.services_.find(key);
  auto entry = old ? std::make_shared<ServiceEntry>(**old) : std::make_shared<ServiceEntry>();
  const uint32_t weight = endpoint_weight(*workload, entry->service.get());
  const Endpoint endpoint{workload, membership, weight};
  const Endpoint* before = old ? (*old)->endpoints.find(workload->uid) : nullptr;
  entry->endpoints.set(workload->uid, endpoint);
  count_endpoint(*entry, before, &endpoint);
  work_.services_.set(key, std::move(entry));
}

void MeshStore::drop_endpoint(const Workload& workload, const Symbol& service) {
  const ServiceEntryPtr* old = work_.services_.find(service);
  if (!old || !(*old)->endpoints.find(workload.uid)) return;
  auto entry = std::make_shared<ServiceEntry>(**old);
  entry->endpoints.erase(workload.uid);
  count_endpoint(*entry, (*old)->endpoints.find(workload.uid), nullptr);
  if (!entry->service && entry->endpoints.empty()) {
    work_.services_.erase(service);
  } else {
    work_.services_.set(service, std::move(entry));
  }
}

bool MeshStore::put(const ServicePtr& service) {
  const ServiceEntryPtr* found = work_.services_.find(service->key);
  const ServiceEntryPtr old = found ? *found : nullptr;
  if (old && old->service && *old->service == *service) return false;
  auto entry = old ? std::make_shared<ServiceEntry>(*old) : std::make_shared<ServiceEntry>();
  const HealthPolicy before =
      entry->service ? entry->service->load_balancing.health : HealthPolicy::kOnlyHealthy;
  if (entry->service) unindex(*entry->service);
  entry->service = service;
  if (before != service->load_balancing.health) {
    EndpointMap weighed;
    entry->endpoints.for_each([&](const Symbol& uid, const Endpoint& e) {
      weighed.set(uid,
                  Endpoint{e.workload, e.membership, endpoint_weight(*e.workload, service.get())});
    });
    entry->endpoints = std::move(weighed);
  }
  work_.services_.set(service->key, std::move(entry));
  index(*service);
  if (old && old->service) depart_unclaimed(*old);  // VIPs that it has no longer
  return true;
}

bool MeshStore::remove_service(std::string_view key) {
  const ServiceEntryPtr* found = work_.services_.find(key);
  if (!found || !(*found)->service) return false;
  const ServiceEntryPtr old = *found;
  unindex(*old->service);
  depart_unclaimed(*old);
  if (old->endpoints.empty()) {
    work_.services_.erase(key);
    return true;
  }
  // The workloads still claim it: keep them for when it comes back. Weights are then recomputed,
  // because a placeholder counts as kOnlyHealthy.
  auto entry = std::make_shared<ServiceEntry>();
  entry->hbone_endpoints = old->hbone_endpoints;
  entry->meshed = old->meshed;
  old->endpoints.for_each([&](const Symbol& uid, const Endpoint& e) {
    entry->endpoints.set(uid, Endpoint{e.workload, e.membership,
                                       endpoint_weight(*e.workload, nullptr)});
  });
  work_.services_.set(old->service->key, std::move(entry));
  return true;
}

void MeshStore::index(const Service& s) {
  for (const NetworkAddress& vip : s.vips) {
    add_key(work_.by_vip_, vip, s.key);
    no_longer_departed(vip);
  }
  for (const NetworkCidr& cidr : s.cidr_vips) add_key(work_.by_cidr_, cidr, s.key);
  add_key(work_.by_hostname_, s.hostname, s.key);
}

void MeshStore::unindex(const Service& s) {
  for (const NetworkAddress& vip : s.vips) drop_key(work_.by_vip_, vip, s.key);
  for (const NetworkCidr& cidr : s.cidr_vips) drop_key(work_.by_cidr_, cidr, s.key);
  drop_key(work_.by_hostname_, s.hostname, s.key);
}

bool MeshStore::put(const PolicyPtr& policy) {
  const PolicyPtr old = work_.policy(policy->key);
  if (old && *old == *policy) return false;
  if (old) unindex(*old);
  work_.policies_.set(policy->key, policy);
  index(policy);
  return true;
}

bool MeshStore::remove_policy(std::string_view key) {
  const PolicyPtr old = work_.policy(key);
  if (!old) return false;
  unindex(*old);
  work_.policies_.erase(key);
  return true;
}

void MeshStore::index(const PolicyPtr& policy) {
  if (policy->scope == PolicyScope::kGlobal) {
    work_.global_policies_.push_back(policy);
  } else if (policy->scope == PolicyScope::kNamespace) {
    const auto* old = work_.namespace_policies_.find(policy->ns);
    auto list = old ? *old : std::vector<PolicyPtr>();
    list.push_back(policy);
    work_.namespace_policies_.set(policy->ns, std::move(list));
  }
}

void MeshStore::unindex(const Policy& policy) {
  const auto same = [&](const PolicyPtr& p) { return p->key == policy.key; };
  if (policy.scope == PolicyScope::kGlobal) {
    std::erase_if(work_.global_policies_, same);
  } else if (policy.scope == PolicyScope::kNamespace) {
    const auto* old = work_.namespace_policies_.find(policy.ns);
    if (!old) return;
    auto list = *old;
    std::erase_if(list, same);
    if (list.empty()) {
      work_.namespace_policies_.erase(policy.ns);
    } else {
      work_.namespace_policies_.set(policy.ns, std::move(list));
    }
  }
}

}  // namespace meltemi::model
