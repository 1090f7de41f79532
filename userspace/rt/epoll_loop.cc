// The epoll backend: the same operations by readiness and a system call each. It is the fallback
// where io_uring is refused, so it is kept simple: edge-triggered registration once per descriptor,
// and a list of operations that are worth a try now.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "userspace/rt/ops.h"

namespace meltemi::rt {
namespace {

constexpr int kMaxEvents = 256;
// Receives and accepts of one operation before the others get their turn.
constexpr int kBurst = 16;
// Until epoll is asked again to watch a descriptor that it refused, milliseconds.
constexpr int kAgain = 100;

}  // namespace

class EpollLoop final : public Loop {
 public:
  explicit EpollLoop(const LoopOptions& options)
      : piece_(options.recv_buffer_size), buffer_(kRecvHeadroom + options.recv_buffer_size) {}
  ~EpollLoop() override { drop_pending(); }
  Status init();

  Backend backend() const override { return Backend::kEpoll; }
  OpId poll(int fd, uint32_t events, Completion& done) override;
  OpId accept(int fd, Completion& done) override;
  OpId connect(int fd, const SocketAddress& to, Completion& done) override;
  OpId receive(int fd, RecvCompletion& done) override;
  void cancel(OpId id) override;
  void forget(OpId id) override;
  void close(UniqueFd fd) override;

 protected:
  void wait_and_dispatch(MonoTime until) override;
  void wake() override;

 private:
  struct Watch {
    uint64_t in = 0, out = 0;  // OpIds that wait for each direction
    bool registered = false;
  };
  Watch& watch(int fd);
  void enqueue(uint32_t index);
  void attempt(OpId id);
  void try_accept(OpId id, int fd);
  void try_receive(OpId id, int fd);
  void complete(uint32_t index, int32_t res);
  void unwatch(int fd, OpId id);
  void watch_again();

  UniqueFd epoll_;
  UniqueFd eventfd_;
  OpTable ops_;
  std::vector<Watch> watches_;
  std::vector<uint64_t> ready_;
  std::vector<int> unwatched_;  // epoll had no memory, or the user has no watches left
  size_t piece_;
  std::vector<uint8_t> buffer_;
};

Status EpollLoop::init() {
  epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return fail_errno(errno, "epoll_create1");
  eventfd_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!eventfd_) return fail_errno(errno, "eventfd");
  epoll_event e{};
  e.events = EPOLLIN;
  e.data.fd = eventfd_.get();
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, eventfd_.get(), &e) < 0)
    return fail_errno(errno, "epoll_ctl");
  return {};
}

EpollLoop::Watch& EpollLoop::watch(int fd) {
  if (watches_.size() <= static_cast<size_t>(fd)) watches_.resize(fd + 1);
  Watch& w = watches_[fd];
  if (!w.registered) {
    epoll_event e{};
    e.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    e.data.fd = fd;
    // EEXIST: the number was used before by a descriptor that somebody else closed.
    w.registered = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &e) == 0 || errno == EEXIST;
    if (!w.registered) unwatched_.push_back(fd);
  }
  return w;
}

// Until they are watched, their operations are tried now and then.
void EpollLoop::watch_again() {
  std::vector<int> fds;
  fds.swap(unwatched_);
  for (const int fd : fds) {
    if (!watches_[fd].in && !watches_[fd].out) continue;
    const Watch& w = watch(fd);
    for (const uint64_t id : {w.in, w.out})
      if (const uint32_t i = id ? ops_.find({id}) : 0) enqueue(i);
  }
}

void EpollLoop::enqueue(uint32_t i) {
  OpSlot& s = ops_.at(i);
  if (s.queued) return;
  s.queued = true;
  ready_.push_back(ops_.id(i).value);
}

OpId EpollLoop::poll(int fd, uint32_t events, Completion& done) {
  const uint32_t i = ops_.take(OpKind::kPoll, fd);
  const OpId id = ops_.id(i);
  ops_.at(i).done = &done;
  ops_.at(i).events = events;
  Watch& w = watch(fd);
  (events & POLLOUT ? w.out : w.in) = id.value;
  // Edges that were before this call do not come again, so look at the level.
  enqueue(i);
  return id;
}

OpId EpollLoop::accept(int fd, Completion& done) {
  set_nonblocking(fd, true);
  const uint32_t i = ops_.take(OpKind::kAccept, fd);
  ops_.at(i).done = &done;
  watch(fd).in = ops_.id(i).value;
  enqueue(i);
  return ops_.id(i);
}

OpId EpollLoop::connect(int fd, const SocketAddress& to, Completion& done) {
  set_nonblocking(fd, true);
  const uint32_t i = ops_.take(OpKind::kConnect, fd);
  ops_.at(i).done = &done;
  sockaddr_storage address{};
  const socklen_t length = to.to_sockaddr(address);
  const int rc = ::connect(fd, reinterpret_cast<sockaddr*>(&address), length);
  // Positive `events` is the errno of a connect that failed at once.
  ops_.at(i).events = rc == 0 || errno == EINPROGRESS ? 0 : static_cast<uint32_t>(errno);
  watch(fd).out = ops_.id(i).value;
  if (rc == 0 || ops_.at(i).events) enqueue(i);
  return ops_.id(i);
}

OpId EpollLoop::receive(int fd, RecvCompletion& done) {
  const uint32_t i = ops_.take(OpKind::kReceive, fd);
  ops_.at(i).received = &done;
  watch(fd).in = ops_.id(i).value;
  enqueue(i);
  return ops_.id(i);
}

void EpollLoop::cancel(OpId id) {
  const uint32_t i = ops_.find(id);
  if (!i) return;
  ops_.at(i).cancelled = true;
  enqueue(i);
}

void EpollLoop::forget(OpId id) {
  const uint32_t i = ops_.find(id);
  if (!i) return;
  unwatch(ops_.at(i).fd, id);
  ops_.release(i);
}

void EpollLoop::unwatch(int fd, OpId id) {
  if (fd < 0 || static_cast<size_t>(fd) >= watches_.size()) return;
  Watch& w = watches_[fd];
  if (w.in == id.value) w.in = 0;
  if (w.out == id.value) w.out = 0;
}

void EpollLoop::close(UniqueFd fd) {
  const int n = fd.get();
  if (n >= 0 && static_cast<size_t>(n) < watches_.size()) {
    // Another process or descriptor may hold the file open, so closing is not enough.
    if (watches_[n].registered) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, n, nullptr);
    watches_[n] = {};
  }
  fd.reset();
}

void EpollLoop::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(eventfd_.get(), &one, sizeof one);
}

void EpollLoop::complete(uint32_t i, int32_t res) {
  Completion* done = ops_.at(i).done;
  RecvCompletion* received = ops_.at(i).received;
  unwatch(ops_.at(i).fd, ops_.id(i));
  ops_.release(i);
  if (done) done->on_complete(res, false);
  if (received) received->on_received(res, {}, false);
}

void EpollLoop::try_accept(OpId id, int fd) {
  for (int n = 0; n < kBurst; ++n) {
    const int got = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC);
    if (got < 0) {
      if (errno == EAGAIN) return;
      if (errno == ECONNABORTED || errno == EINTR) continue;
      complete(ops_.find(id), -errno);
      return;
    }
    ++stats_.completions;
    ops_.at(ops_.find(id)).done->on_complete(got, true);
    if (!ops_.find(id)) return;
  }
  enqueue(ops_.find(id));
}

void EpollLoop::try_receive(OpId id, int fd) {
  for (int n = 0; n < kBurst; ++n) {
    uint8_t* data = buffer_.data() + kRecvHeadroom;
    const ssize_t got = recv(fd, data, piece_, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      complete(ops_.find(id), got < 0 ? -errno : 0);
      return;
    }
    ++stats_.completions;
    OpSlot& s = ops_.at(ops_.find(id));
    s.received->on_received(static_cast<int32_t>(got), {data, static_cast<size_t>(got)}, true);
    const uint32_t i = ops_.find(id);
    if (!i || ops_.at(i).cancelled) return;
  }
  enqueue(ops_.find(id));
}

void EpollLoop::attempt(OpId id) {
  const uint32_t i = ops_.find(id);
  if (!i) return;
  OpSlot& s = ops_.at(i);
  s.queued = false;
  const int fd = s.fd;
  if (s.cancelled) {
    complete(i, -ECANCELED);
    return;
  }
  switch (s.kind) {
    case OpKind::kPoll: {
      pollfd p{fd, static_cast<short>(s.events), 0};
      if (::poll(&p, 1, 0) > 0) complete(i, p.revents);
      return;
    }
    case OpKind::kConnect: {
      int err = static_cast<int>(s.events);
      socklen_t length = sizeof err;
      if (!err && getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &length) < 0) err = errno;
      if (!err) {
        // An edge may come before the handshake is done.
        pollfd p{fd, POLLOUT, 0};
        if (::poll(&p, 1, 0) == 0) return;
      }
      complete(i, -err);
      return;
    }
    case OpKind::kAccept:
      return try_accept(id, fd);
    case OpKind::kReceive:
      return try_receive(id, fd);
    case OpKind::kFree:
      return;
  }
}

void EpollLoop::wait_and_dispatch(MonoTime until) {
  int timeout = -1;
  if (!ready_.empty() || until <= now()) {
    timeout = 0;
  } else if (until != MonoTime::max()) {
    const Duration left = std::max(Duration(0), until - MonoClock::now());
    timeout = static_cast<int>(std::min<int64_t>((left.count() + 999'999) / 1'000'000, 60'000));
  }
  if (!unwatched_.empty()) timeout = timeout < 0 ? kAgain : std::min(timeout, kAgain);
  epoll_event events[kMaxEvents];
  const int n = epoll_wait(epoll_.get(), events, kMaxEvents, timeout);
  refresh_now();
  for (int k = 0; k < n; ++k) {
    const int fd = events[k].data.fd;
    if (fd == eventfd_.get()) {
      uint64_t count;
      [[maybe_unused]] const ssize_t got = read(fd, &count, sizeof count);
      continue;
    }
    if (static_cast<size_t>(fd) >= watches_.size()) continue;
    const Watch w = watches_[fd];
    const uint32_t e = events[k].events;
    const bool broken = e & (EPOLLERR | EPOLLHUP);
    if (w.in && (broken || e & (EPOLLIN | EPOLLRDHUP)))
      if (const uint32_t i = ops_.find({w.in})) enqueue(i);
    if (w.out && (broken || e & EPOLLOUT))
      if (const uint32_t i = ops_.find({w.out})) enqueue(i);
  }
  if (!unwatched_.empty()) watch_again();
  std::vector<uint64_t> batch;
  batch.swap(ready_);
  for (const uint64_t id : batch) attempt({id});
  if (ready_.empty()) {
    batch.clear();
    ready_.swap(batch);
  }
  stats_.operations = ops_.used();
}

Result<std::unique_ptr<Loop>> make_epoll_loop(const LoopOptions& options) {
  auto loop = std::make_unique<EpollLoop>(options);
  MELTEMI_TRY(loop->init());
  return loop;
}

}  // namespace meltemi::rt
