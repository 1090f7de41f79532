// The ztunnel side of ZDS: connects to the agent, says hello, answers every message, reconnects for
// ever (facts: ztunnel §1.3). A thread of its own. Pods go on being served while the agent is away.
// Must never send unasked, nor let a bad message end the process.
#pragma once

#include <atomic>
#include <set>
#include <string>
#include <thread>

#include "userspace/codec/zds.h"
#include "userspace/sys/packet.h"
#include "userspace/telemetry/readiness.h"
#include "ztunnel/pod_manager.h"

namespace meltemi::ztunnel {

class ZdsClient {
 public:
  // `listener_fds`: offer the extension. Clears the readiness task "workload proxy manager".
  ZdsClient(std::string path, bool listener_fds, PodManager& pods, telemetry::Readiness& readiness);
  ~ZdsClient();
  void start();
  void stop();  // idempotent; joins
  bool connected() const { return connected_.load(std::memory_order_relaxed); }

 private:
  struct Answer {
    codec::zds::Ack ack;
    std::vector<UniqueFd> fds;
  };
  void run();
  Status session(int socket);
  Answer handle(codec::zds::Request request, std::vector<UniqueFd> fds);
  Answer add(const codec::zds::Add& add, std::vector<UniqueFd> fds);
  Answer snapshot_sent();
  void retry_failed();
  bool sleep(Duration duration);  // false: stopping

  std::string path_;
  bool listener_fds_;
  PodManager& pods_;
  telemetry::Readiness& readiness_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> connected_{false};
  // Of the current session.
  bool snapshot_done_ = false;
  std::set<std::string> named_;  // by the snapshot
  // Adds that failed, to be tried again.
  struct Failed {
    codec::zds::Add add;
    std::vector<UniqueFd> fds;
  };
  std::map<std::string, Failed> failed_;
  MonoTime next_retry_{};
};

}  // namespace meltemi::ztunnel
