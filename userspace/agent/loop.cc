// epoll, an eventfd and a timer map; see loop.h.
#include "userspace/agent/loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>

namespace meltemi::agent {

Result<std::unique_ptr<Loop>> Loop::create() {
  std::unique_ptr<Loop> loop(new Loop());
  loop->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  loop->wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!loop->epoll_ || !loop->wake_) return fail_errno(errno, "create an epoll loop");
  MELTEMI_TRY(loop->watch(loop->wake_.get(), EPOLLIN, [l = loop.get()](uint32_t) {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = ::read(l->wake_.get(), &count, sizeof count);
    l->run_posted();
  }));
  return loop;
}

Status Loop::watch(int fd, uint32_t events, std::function<void(uint32_t)> callback) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  const int operation = watched_.contains(fd) ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (::epoll_ctl(epoll_.get(), operation, fd, &event) < 0) return fail_errno(errno, "epoll_ctl");
  watched_[fd] = std::make_shared<std::function<void(uint32_t)>>(std::move(callback));
  return {};
}

void Loop::unwatch(int fd) {
  if (watched_.erase(fd) > 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

Loop::TimerId Loop::after(Duration delay, std::function<void()> callback) {
  const TimerId id = next_timer_++;
  const MonoTime time = MonoClock::now() + delay;
  timers_.emplace(std::pair(time, id), std::move(callback));
  timer_times_.emplace(id, time);
  return id;
}

void Loop::cancel(TimerId id) {
  const auto found = timer_times_.find(id);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, id});
  timer_times_.erase(found);
}

void Loop::post(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(work));
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof one);
}

void Loop::stop() {
  stopping_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof one);
}

void Loop::run_posted() {
  std::vector<std::function<void()>> work;
  {
    const std::lock_guard lock(mutex_);
    work.swap(posted_);
  }
  for (const auto& f : work) f();
}

int Loop::milliseconds_to_next_timer() const {
  if (timers_.empty()) return -1;
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(timers_.begin()->first.first - MonoClock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3600'000));
}

void Loop::run_timers() {
  const MonoTime now = MonoClock::now();
  while (!timers_.empty() && timers_.begin()->first.first <= now) {
    auto node = timers_.extract(timers_.begin());
    timer_times_.erase(node.key().second);
    node.mapped()();
  }
}

void Loop::run() {
  std::array<epoll_event, 64> events;
  while (!stopping_) {
    const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                               milliseconds_to_next_timer());
    for (int i = 0; i < n; ++i) {
      // A callback may unwatch the next one's descriptor, or itself.
      const auto found = watched_.find(events[static_cast<size_t>(i)].data.fd);
      if (found == watched_.end()) continue;
      const auto callback = found->second;
      (*callback)(events[static_cast<size_t>(i)].events);
    }
    run_timers();
  }
}

}  // namespace meltemi::agent
