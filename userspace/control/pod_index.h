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

  // What the agents are told of a pod (`enrol`), and what one reports of its node: the two grounds on
  // which a node proxy speaks for it. In between, and while it leaves, one of them holds.
  void decide(const std::string& uid, bool enrol);
  void report(const std::string& node, std::set<std::string> enrolled_uids);

  // Whether a pod of that service account is on the node, has not ended, and is the node proxy's to
  // speak for.
  bool enrolled_on(std::string_view node, std::string_view ns, std::string_view service_account) const;
  std::optional<PodEntry> find(std::string_view ns, std::string_view name) const;
  std::optional<PodEntry> find_uid(std::string_view uid) const;
  std::set<std::string> uids() const;
  // Of the pods that were placed there and have not ended.
  std::vector<PodEntry> on_node(std::string_view node) const;

 private:
  using Place = std::tuple<std::string, std::string, std::string>;  // node, namespace, account
  void place(const PodEntry& entry, bool there);

  mutable std::shared_mutex mutex_;
  std::map<std::pair<std::string, std::string>, PodEntry> pods_;
  std::map<std::string, std::pair<std::string, std::string>, std::less<>> by_uid_;
  std::map<Place, std::set<std::string>> places_;  // uids of the pods that have not ended
  std::set<std::string, std::less<>> decided_;     // uids
  std::map<std::string, std::set<std::string>, std::less<>> reported_;  // uids by node
};

}  // namespace meltemi::control
