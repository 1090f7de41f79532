// The agent's end of ZDS: tells each connected ztunnel which pods to serve and hands the listeners
// over (codec/zds.h). One request is under way per connection, in order;
// a peer that does not answer in time is disconnected and comes back by itself.
//
// A ztunnel that does not take listeners (Istio's) is refused by name: the pods' listeners are what
// captured connections arrive at, and 15008 is bound already, so all that it could do is to report
// itself ready while every connection hangs. It is told of no pod and its connection stays open, so
// that it is not ready itself and does not call again at once, as it would after a close.
//
// A new connection first gets every pod, then SnapshotSent, then changes. Only the newest
// connection gets additions (an older one is draining); removals go to all.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "userspace/agent/loop.h"
#include "userspace/agent/packet_listener.h"
#include "userspace/agent/pod_netns.h"
#include "userspace/base/error.h"
#include "userspace/codec/zds.h"

namespace meltemi::agent {

inline constexpr Duration kZdsAnswerTimeout = std::chrono::seconds(5);
inline constexpr Duration kZdsRetry = std::chrono::seconds(5);  // after a refused Add
inline constexpr size_t kMaxZdsConnections = 16;
inline constexpr size_t kMaxRefusedZtunnels = 4;  // held open; the oldest gives way

// What a pod looks like to ztunnel. Descriptors are borrowed for the call.
struct ZdsPod {
  codec::zds::WorkloadInfo info;
  int netns = -1;
  int outbound = -1, inbound = -1, hbone = -1;  // -1: this process does not hold it
  bool has_listeners() const { return outbound >= 0 && inbound >= 0 && hbone >= 0; }
};

class ZdsServer {
 public:
  struct Callbacks {
    std::function<std::vector<std::string>()> pods;  // uids to serve now
    // nullopt: no such pod (any more).
    std::function<std::optional<ZdsPod>(const std::string& uid)> describe;
    // A ztunnel gave listeners back after a restart of the agent.
    std::function<void(const std::string& uid, Listeners)> returned;
    // Outcome of the newest Add of a pod.
    std::function<void(const std::string& uid, const Status&)> added;
    std::function<void(bool connected)> connection_changed;
    // The process at the other end of a connection that is not refused; before it is told anything. May
    // be empty.
    std::function<void(pid_t pid)> peer_connected;
  };

  ZdsServer(Loop& loop, Callbacks callbacks);
  ~ZdsServer();

  // Mode 0600: ztunnel runs as root.
  Status listen(const std::string& path);
  void add(const std::string& uid);  // also when something of the pod changed
  void remove(const std::string& uid);
  // A ztunnel that takes listeners is there.
  bool connected() const { return newest() != nullptr; }
  // Why the one that is there is not told of pods; "" if one is served, or none is there.
  std::string refusal() const;
  uint64_t refused_total() const { return refused_total_; }
  // The newest connection has the snapshot.
  bool synced() const;

 private:
  struct Connection;
  struct Request {
    enum class Kind { kAdd, kKeep, kDel, kSnapshotSent, kGetListeners } kind;
    std::string uid;
  };

  void accept(UniqueFd fd);
  void on_readable(Connection& c);
  void on_hello(Connection& c, const std::string& bytes);
  void on_ack(Connection& c, const std::string& bytes, std::vector<UniqueFd> fds);
  void send_next(Connection& c);
  void continue_with(uint64_t serial);
  Status send(Connection& c, const Request& request, bool* skipped);
  Status send_add(Connection& c, const std::string& uid, bool* skipped);
  void refuse(Connection& c);
  void close(Connection& c, std::string_view why);

  Loop& loop_;
  Callbacks callbacks_;
  PacketListener listener_{loop_, [this](UniqueFd fd) { accept(std::move(fd)); }};
  std::map<int, std::unique_ptr<Connection>> connections_;  // by descriptor
  uint64_t next_serial_ = 1;
  uint64_t refused_total_ = 0;
  Connection* newest() const;
};

}  // namespace meltemi::agent
