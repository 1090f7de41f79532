// Proves that the pods' port 15008 answers: once a second one pod is connected to like by any client,
// from inside of its namespace, and the worker that takes the connection says so. A pod that did not
// answer is asked again in turn with the others. Not ready is only what is this process's own doing;
// what a pod can do to its own network is said, but takes nobody's readiness. Its connections never
// count as anybody's, and nothing is ever sent on them.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "userspace/base/clock.h"
#include "ztunnel/pod.h"

namespace meltemi::ztunnel {

class PodManager;

class PortWatch {
 public:
  static constexpr Duration kEvery = std::chrono::seconds(1);
  // An answer takes a millisecond; this is for a machine that is short of everything.
  static constexpr Duration kPatience = std::chrono::seconds(4);

  // Goes on with its question or begins the next. Some times a second, one thread.
  void poll(const PodManager& pods, MonoTime now);
  // Whether a connection that a worker has accepted for `pod` is the question, which is answered now:
  // close it. Any thread; one load for others.
  bool is_question(const Pod& pod, int fd);

  // Readiness: what is wrong with us; and what is wrong with pods. "": nothing. Any thread.
  std::string trouble() const;
  std::string note() const;
  uint64_t failures() const { return failures_.load(std::memory_order_relaxed); }

 private:
  struct Fault {
    std::string what;
    bool ours = false;
    uint64_t asked = 0;  // the turn
  };
  PodPtr choose(const PodManager& pods);
  void begin(const PodManager& pods, PodPtr pod, MonoTime now);
  Status connect(const SocketAddress& to);
  void judge(const PodManager& pods, MonoTime now);
  void fault(std::string what, bool ours);
  void end();
  std::string say(bool ours) const;

  PodPtr pod_;  // who is asked; null: nobody
  UniqueFd fd_;
  MonoTime began_{}, next_{};
  std::string last_;  // uid of the turn among all
  uint64_t turn_ = 0;
  std::atomic<const Pod*> asked_{nullptr};
  std::atomic<uint16_t> port_{0};  // of our end
  std::atomic<bool> taken_{false};
  std::atomic<uint64_t> failures_{0};
  mutable std::mutex mutex_;
  std::map<std::string, Fault> faults_;  // by uid
};

}  // namespace meltemi::ztunnel
