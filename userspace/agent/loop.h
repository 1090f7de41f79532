// The agent's one thread: descriptors, timers and work posted from elsewhere. Everything that
// touches pods runs here, so that nothing of it needs a lock. Callbacks may block for a few
// milliseconds (netlink, BPF), never for a peer.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::agent {

class Loop {
 public:
  using TimerId = uint64_t;

  static Result<std::unique_ptr<Loop>> create();

  // Level-triggered epoll events. Watching again replaces events and callback. Unwatch before
  // closing.
  Status watch(int fd, uint32_t events, std::function<void(uint32_t)> callback);
  void unwatch(int fd);
  TimerId after(Duration delay, std::function<void()> callback);  // once
  void cancel(TimerId id);                                        // unknown ids are ignored

  // Any thread, also a signal-driven one.
  void post(std::function<void()> work);
  void stop();
  // Until stop().
  void run();

 private:
  Loop() = default;
  void run_posted();
  int milliseconds_to_next_timer() const;
  void run_timers();

  UniqueFd epoll_, wake_;
  std::map<int, std::shared_ptr<std::function<void(uint32_t)>>> watched_;
  std::map<std::pair<MonoTime, TimerId>, std::function<void()>> timers_;
  std::map<TimerId, MonoTime> timer_times_;
  TimerId next_timer_ = 1;
  std::mutex mutex_;
  std::vector<std::function<void()>> posted_;  // guarded by mutex_
  std::atomic<bool> stopping_{false};
};

}  // namespace meltemi::agent
