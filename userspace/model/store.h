// The mesh as one process knows it: an immutable Snapshot that any thread reads without locks, and
// the MeshStore that one thread feeds with batches of changes. A batch costs in proportion to what it
// changes (structure is shared with the snapshot before), and its members may come in any order: a
// workload before its service, a policy after its workload.
//
// Must never block a reader, nor show half of a batch.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "userspace/model/lpm_table.h"
#include "userspace/model/persistent_map.h"
#include "userspace/model/policy.h"
#include "userspace/model/types.h"

namespace meltemi::model {

// A workload as member of one service.
struct Endpoint {
  WorkloadPtr workload;
  uint32_t membership = 0;  // index into workload->services
  uint32_t weight = 0;      // its capacity, 0 while it must not get traffic (unhealthy)
  std::span<const Port> ports() const { return workload->services[membership].ports; }
};
struct WeighEndpoint {
  uint64_t operator()(const Endpoint& e) const { return e.weight; }
};
using EndpointMap = PersistentMap<Symbol, Endpoint, TextHash, WeighEndpoint>;  // by workload uid

struct ServiceEntry {
  ServicePtr service;  // never null in what Snapshot returns
  EndpointMap endpoints;
  size_t hbone_endpoints = 0;
  bool meshed = false;  // there are such, or the last ones that there were are
};
using ServiceEntryPtr = std::shared_ptr<const ServiceEntry>;

class Snapshot {
 public:
  uint64_t version() const { return version_; }
  // Moves whenever any policy was added, changed or removed.
  uint64_t policy_generation() const { return policy_generation_; }

  // All return null if there is none. Returned pointers stay valid as long as the snapshot.
  WorkloadPtr workload(std::string_view uid) const;
  // Several workloads on one address: Pods first, then HBONE ones. Host-network ones are not found.
  WorkloadPtr workload_by_ip(const NetworkAddress& address) const;
  // By Workload.hostname and namespace ("ns/hostname").
  WorkloadPtr workload_by_hostname(std::string_view key) const;
  // By pod name, namespace and service account (what ZDS tells). The newest uid if several.
  WorkloadPtr workload_by_name(std::string_view ns, std::string_view name,
                               std::string_view service_account) const;
  const ServiceEntry* service(std::string_view key) const;  // namespace/hostname
  // Exact VIPs before prefixes, longer prefixes first. Among several: visible to `client_ns`, then of
  // the same namespace, canonical, first by key.
  const ServiceEntry* service_by_vip(const NetworkAddress& address,
                                     std::string_view client_ns) const;
  const ServiceEntry* service_by_hostname(std::string_view hostname,
                                          std::string_view client_ns) const;

  // Whether the last that was known of this address is that it was reached by HBONE (a workload, or the
  // VIP of a service with such workloads or a waypoint), and it was then removed: not put again as
  // something else. Who calls it gets an error, not plaintext: either it is gone, or the control plane
  // has lost it.
  bool departed(const NetworkAddress& address) const { return departed_.find(address) != nullptr; }

  PolicyPtr policy(std::string_view key) const;  // namespace/name
  // Decides what `destination` lets in: global policies, those of its namespace, those it names.
  PolicyVerdict authorize(const Workload& destination, const PolicyInput& input) const;

  // For /config_dump; order is unspecified.
  void each_workload(const std::function<void(const Workload&)>& fn) const;
  void each_service(const std::function<void(const ServiceEntry&)>& fn) const;
  void each_policy(const std::function<void(const Policy&)>& fn) const;
  size_t workload_count() const { return workloads_.size(); }
  size_t policy_count() const { return policies_.size(); }

 private:
  friend class MeshStore;
  using Keys = std::vector<Symbol>;  // small, kept sorted

  const ServiceEntry* best_of(const Keys& keys, std::string_view client_ns) const;

  uint64_t version_ = 0;
  uint64_t policy_generation_ = 0;
  PersistentMap<Symbol, WorkloadPtr> workloads_;
  PersistentMap<NetworkAddress, std::vector<WorkloadPtr>, NetworkAddressHash> by_ip_;
  PersistentMap<Symbol, Keys> by_workload_hostname_;  // ns/hostname -> uids
  PersistentMap<Symbol, Keys> by_name_;               // ns/name -> uids
  PersistentMap<Symbol, ServiceEntryPtr> services_;   // service may be null: endpoints came first
  PersistentMap<NetworkAddress, Keys, NetworkAddressHash> by_vip_;
  LpmTable<Keys> by_cidr_;
  PersistentMap<NetworkAddress, uint64_t, NetworkAddressHash> departed_;  // -> number in the order
  PersistentMap<Symbol, Keys> by_hostname_;
  PersistentMap<Symbol, PolicyPtr> policies_;
  PersistentMap<Symbol, std::vector<PolicyPtr>> namespace_policies_;
  std::vector<PolicyPtr> global_policies_;
};
using SnapshotPtr = std::shared_ptr<const Snapshot>;

// How many departed addresses are remembered, the newest: 2 MB, and the pods that a large cluster
// replaces in hours. An address is forgotten as soon as somebody else gets it.
inline constexpr size_t kMaxDeparted = 16384;

struct Batch {
  std::vector<WorkloadPtr> workloads;
  std::vector<ServicePtr> services;
  std::vector<PolicyPtr> policies;
  // xDS resource names: a workload uid or a service's namespace/hostname.
  std::vector<std::string> removed_addresses;
  std::vector<std::string> removed_policies;
  bool empty() const {
    return workloads.empty() && services.empty() && policies.empty() &&
           removed_addresses.empty() && removed_policies.empty();
  }
};

class MeshStore {
 public:
  MeshStore();
  MeshStore(const MeshStore&) = delete;
  MeshStore& operator=(const MeshStore&) = delete;

  // Applies the batch (removals first) and publishes it as one new snapshot. One writer at a time.
  // Returns the new version; unchanged objects do not count, an empty effect publishes nothing.
  uint64_t apply(const Batch& batch);

  // Thread safe. A reader keeps its pointer and asks again when version() moved.
  SnapshotPtr snapshot() const;
  uint64_t version() const { return version_.load(std::memory_order_acquire); }

  // Called by apply() after publishing, on the writer's thread. Set before the first apply().
  void on_change(std::function<void()> fn) { changed_ = std::move(fn); }

  // For whoever keeps departed addresses beyond this process. The function is called by apply() while it
  // works, on the writer's thread, for each address that departs (with a number that grows) or does so
  // no longer: it is somebody's again, or too old (0). Set before the first apply().
  using OnDeparture = std::function<void(const NetworkAddress&, uint64_t number)>;
  void on_departure(OnDeparture fn) { departure_ = std::move(fn); }
  // What an earlier process kept, the oldest first; the writer's thread. Addresses that somebody has by now
  // are left out.
  void restore_departed(const std::vector<NetworkAddress>& addresses);

 private:
  bool put(const WorkloadPtr& workload);
  bool put(const ServicePtr& service);
  bool put(const PolicyPtr& policy);
  bool remove_workload(std::string_view uid);
  bool remove_service(std::string_view key);
  bool remove_policy(std::string_view key);
  void link(const WorkloadPtr& workload);
  void unlink(const Workload& workload);
  void depart_unclaimed(const Workload& old);
  void depart_unclaimed(const ServiceEntry& old);
  void depart(const NetworkAddress& address);
  void no_longer_departed(const NetworkAddress& address);
  void publish();
  void set_endpoint(const WorkloadPtr& workload, uint32_t membership);
  void drop_endpoint(const Workload& workload, const Symbol& service);
  void index(const Service& service);
  void unindex(const Service& service);
  void index(const PolicyPtr& policy);
  void unindex(const Policy& policy);

  Snapshot work_;  // the writer's copy
  std::deque<std::pair<NetworkAddress, uint64_t>> departures_;  // oldest first; may name revived ones
  uint64_t next_departure_ = 1;
  std::function<void()> changed_;
  OnDeparture departure_;
  mutable std::mutex mutex_;  // guards published_ (the pointer only)
  SnapshotPtr published_;
  std::atomic<uint64_t> version_{0};
};

// A worker's view: get() costs one atomic load while nothing changes.
class SnapshotReader {
 public:
  explicit SnapshotReader(const MeshStore& store) : store_(&store), current_(store.snapshot()) {}
  const Snapshot& get() {
    if (current_->version() != store_->version()) current_ = store_->snapshot();
    return *current_;
  }

 private:
  const MeshStore* store_;
  SnapshotPtr current_;
};

}  // namespace meltemi::model
