// Which pods run where, as whom: what the CA and the xDS server decide by. Fed by the control loop, read
// by gRPC's threads. Must never be fed from anything but the configuration source.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "userspace/config/store.h"

namespace meltemi::control {

struct PodEntry {
  std::string ns, name, uid, service_account, node;
  std::string gateway;  // the Gateway that it belongs to; "" for ordinary pods
  bool ended = false;   // Succeeded or Failed
  bool operator==(const PodEntry&) const = default;
};

class PodIndex {
 public:
  // Takes the Pods among the changes; true if there were any.
  bool apply(const std::vector<config::ObjectChange>& changes);

  // Whether a pod of that service account has a place on the node and has not ended.
  bool runs_on(std::string_view node, std::string_view ns, std::string_view service_account) const;
  std::optional<PodEntry> find(std::string_view ns, std::string_view name) const;
  std::optional<PodEntry> find_uid(std::string_view uid) const;
  std::set<std::string> uids() const;

 private:
  using Place = std::tuple<std::string, std::string, std::string>;  // node, namespace, account
  void add(const PodEntry& entry, int count);

  mutable std::shared_mutex mutex_;
  std::map<std::pair<std::string, std::string>, PodEntry> pods_;
  std::map<std::string, std::pair<std::string, std::string>, std::less<>> by_uid_;
  std::map<Place, int> places_;  // pods that have not ended
};

}  // namespace meltemi::control
