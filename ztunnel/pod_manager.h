// The pods of this node: what the agent says (ZDS) becomes listeners on workers and, when it ends,
// their end. One lock, held shortly; nothing of the data path comes here. Must never exit or stop
// serving other pods because of one bad message.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "userspace/codec/zds.h"
#include "userspace/telemetry/exposition.h"
#include "ztunnel/pod.h"
#include "ztunnel/proxy_worker.h"

namespace meltemi::ztunnel {

class PodManager {
 public:
  // `registry` gets the workload_manager_* families.
  PodManager(Shared& shared, telemetry::Registry& registry);

  // ZDS Add: `fds` are what `add.fds` says, in that order. The same pod again is no change, or a change
  // of listeners if it comes with others; the same uid in another namespace replaces the pod. Errors:
  // kBadRequest, kSystem.
  Status add(const codec::zds::Add& add, std::vector<UniqueFd> fds);
  // Dedicated mode: one workload in the own namespace, Istio's ports.
  Status add_own(const std::string& ns, const std::string& name, const std::string& account);
  void remove(const std::string& uid);
  // The agent's snapshot is complete: pods it did not name are gone.
  void keep_only(const std::set<std::string>& uids);
  bool has(const std::string& uid) const;
  std::vector<std::string> uids() const;
  // Copies of a pod's listening sockets, for an agent that lost them. Empty if unknown.
  std::vector<std::pair<ListenerKind, UniqueFd>> listeners(const std::string& uid) const;

  // For who goes through all of them: the pod behind `uid` in their order, the first behind the last; null:
  // there is none.
  PodPtr next_after(const std::string& uid) const;
  PodPtr find(const std::string& uid) const;
  // A copy of one listening socket.
  std::optional<UniqueFd> listener(const std::string& uid, ListenerKind kind) const;

  struct Row {
    std::string uid, ns, name, service_account;
  };
  std::vector<Row> rows() const;
  // SIGTERM: accept no more anywhere.
  void stop_listening();

 private:
  struct Entry {
    PodPtr pod;
    std::vector<std::pair<ListenerKind, UniqueFd>> listeners;
  };
  Status take_up(const codec::zds::Add& add, std::vector<UniqueFd> fds);
  Status start(Entry entry);
  // The agent made new listeners for a pod that is served: flows stay, accepting moves over.
  Status replace_listeners(const std::string& uid,
                           std::vector<std::pair<ListenerKind, UniqueFd>> fresh);
  Status accept_on_home(const Entry& entry);
  void end(const Entry& entry);
  rt::Worker& home(const std::string& uid) const;

  Shared& shared_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry> pods_;
  std::set<std::string> waiting_;  // uids whose last Add failed; the agent sends them again
  telemetry::SimpleMetric active_, pending_, started_, stopped_;
};

}  // namespace meltemi::ztunnel
