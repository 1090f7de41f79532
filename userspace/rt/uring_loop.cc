// The io_uring backend: one ring per thread (SINGLE_ISSUER and DEFER_TASKRUN, COOP_TASKRUN where the
// kernel is older), multishot accept and receive, one ring of provided buffers per worker.
//
// Received bytes lie in the provided buffers. Those are given back to the kernel only when the turn
// is over, just before the next enter: until then everything behind a piece of data is ours, which
// is what makes the headroom of RecvCompletion safe. With incremental buffers (kernel 6.12) one
// buffer takes many small receives one behind the other, so that light traffic stays in a few cache
// lines and a bulk receive still gets a large buffer.
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "userspace/base/log.h"
#include "userspace/rt/ops.h"

namespace meltemi::rt {
namespace {

// UAPI constants that are newer than Debian 12's liburing (include/uapi/linux/io_uring.h).
constexpr uint16_t kPbufRingInc = 2;           // IOU_PBUF_RING_INC, Linux 6.12
constexpr uint32_t kCqeBufMore = 1u << 4;      // IORING_CQE_F_BUF_MORE, Linux 6.12

constexpr uint16_t kGroup = 1;
// user_data of completions that nobody waits for, and of wake-ups.
constexpr uint64_t kIgnore = 0;
constexpr uint64_t kWake = 1ull << 63;
constexpr uint64_t kEventfd = kWake | 1;
// No operation has it.
constexpr uint64_t kNothing = ~uint64_t{0};
// Of a wake-up's own completion at the sender; the number of the loop that it is for is added.
constexpr uint64_t kSent = 1ull << 62;
// How long the kernel, which took no operation, is left alone.
constexpr __kernel_timespec kBreath{0, 10'000'000};
constexpr uint32_t kAcceptFlags = SOCK_CLOEXEC;

__kernel_timespec timeout_until(MonoTime until) {
  const Duration left = std::max(Duration(0), until - MonoClock::now());
  return {left.count() / 1'000'000'000, left.count() % 1'000'000'000};
}

// The eventfds of all loops by number: a loop that a ring could not wake may be gone by then.
class WakeBook {
 public:
  uint32_t add(int eventfd) {
    const std::lock_guard lock(mutex_);
    eventfds_[++last_] = eventfd;
    return last_;
  }
  void remove(uint32_t number) {
    const std::lock_guard lock(mutex_);
    eventfds_.erase(number);
  }
  void wake(uint32_t number) {
    const std::lock_guard lock(mutex_);
    const auto it = eventfds_.find(number);
    const uint64_t one = 1;
    if (it == eventfds_.end()) return;
    [[maybe_unused]] const ssize_t n = write(it->second, &one, sizeof one);
  }

 private:
  std::mutex mutex_;
  uint32_t last_ = 0;
  std::unordered_map<uint32_t, int> eventfds_;
};

WakeBook& wake_book() {
  static WakeBook& book = *new WakeBook;  // loops may outlive statics
  return book;
}

log::Scope scope("rt");

}  // namespace

class UringLoop final : public Loop {
 public:
  explicit UringLoop(const LoopOptions& options) : options_(options) {}
  ~UringLoop() override;
  Status init();

  Backend backend() const override { return Backend::kUring; }
  OpId poll(int fd, uint32_t events, Completion& done) override;
  OpId accept(int fd, Completion& done) override;
  OpId connect(int fd, const SocketAddress& to, Completion& done) override;
  OpId receive(int fd, RecvCompletion& done) override;
  void cancel(OpId id) override;
  void forget(OpId id) override;
  void close(UniqueFd fd) override { fd.reset(); }

 protected:
  void wait_and_dispatch(MonoTime until) override;
  void wake() override;

 private:
  struct RecvBuffer {
    uint8_t* base;
    uint32_t offset;  // incremental: bytes that the kernel has filled
  };
  Status init_buffers();
  Status restrict_and_enable();
  Status register_buffers(uint16_t flags);
  io_uring_sqe* sqe();
  void recycle(uint16_t id) { recycle_.push_back(id); }
  void publish_buffers();
  ByteSpan received(int32_t res, uint32_t flags);
  void dispatch(uint64_t user_data, int32_t res, uint32_t flags);
  void dispatch_receive(uint32_t index, int32_t res, uint32_t flags, bool more);
  void watch_eventfd();
  void hand_over();
  bool take_back(uint32_t index);
  // Fills in whose operation `s` is, and where it stands.
  OpId prepared(uint32_t index, io_uring_sqe* s);
  void submitted(int rc);
  void wait(MonoTime until);

  LoopOptions options_;
  io_uring ring_{};
  bool ring_made_ = false;
  bool ring_messages_ = false;
  OpTable ops_;
  UniqueFd eventfd_;
  uint32_t number_ = 0;  // in the book
  // What found the submission queue full while the kernel took nothing (-EAGAIN, -EBUSY).
  std::deque<io_uring_sqe> late_;
  bool refused_ = false;
  // Addresses of connects that are not submitted yet: the kernel copies them when it takes the SQE.
  std::vector<std::unique_ptr<sockaddr_storage>> connect_addresses_;

  io_uring_buf_ring* buf_ring_ = nullptr;
  size_t buf_ring_bytes_ = 0;
  uint8_t* buf_memory_ = nullptr;
  size_t buf_memory_bytes_ = 0;
  uint32_t buf_size_ = 0;
  bool incremental_ = false;
  std::vector<RecvBuffer> bufs_;
  std::vector<uint16_t> recycle_;
};

UringLoop::~UringLoop() {
  drop_pending();
  if (number_) wake_book().remove(number_);
  if (ring_made_) io_uring_queue_exit(&ring_);
  if (buf_ring_) munmap(buf_ring_, buf_ring_bytes_);
  if (buf_memory_) munmap(buf_memory_, buf_memory_bytes_);
}

Status UringLoop::init() {
  io_uring_params params{};
  params.cq_entries = options_.ring_entries * 8;
  constexpr uint32_t kBase = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
                             IORING_SETUP_R_DISABLED;
  const uint32_t attempts[] = {
      options_.allow_defer_taskrun
          ? kBase | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN
          : kBase | IORING_SETUP_COOP_TASKRUN,
      kBase | IORING_SETUP_COOP_TASKRUN};
  int rc = -EINVAL;
  for (uint32_t flags : attempts) {
    params = {};
    params.cq_entries = options_.ring_entries * 8;
    params.flags = flags;
    rc = io_uring_queue_init_params(options_.ring_entries, &ring_, &params);
    if (rc == 0 || rc == -EPERM || rc == -ENOSYS) break;
  }
  if (rc < 0) {
    return fail(Reason::kUnsupported, Fault::kConfig,
                std::string("io_uring_setup: ") + strerror(-rc));
  }
  ring_made_ = true;
  io_uring_register_ring_fd(&ring_);
  if (!(params.features & IORING_FEAT_EXT_ARG)) {
    return fail(Reason::kUnsupported, Fault::kConfig, "the kernel's io_uring lacks EXT_ARG (5.11)");
  }
  MELTEMI_TRY(init_buffers());
  MELTEMI_TRY(restrict_and_enable());
  eventfd_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!eventfd_) return fail_errno(errno, "eventfd");
  number_ = wake_book().add(eventfd_.get());
  watch_eventfd();
  // Does MSG_RING work? Ask the own ring.
  io_uring_sqe* s = sqe();
  io_uring_prep_msg_ring(s, ring_.ring_fd, 0, kWake, 0);
  s->user_data = kIgnore + 2;
  io_uring_submit(&ring_);
  for (int i = 0; i < 8 && !ring_messages_; ++i) {
    io_uring_get_events(&ring_);
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      if (cqe->user_data == kIgnore + 2) ring_messages_ = cqe->res >= 0;
      io_uring_cqe_seen(&ring_, cqe);
    }
  }
  return {};
}

Status UringLoop::register_buffers(uint16_t flags) {
  io_uring_buf_reg reg{};
  reg.ring_addr = reinterpret_cast<uint64_t>(buf_ring_);
  reg.ring_entries = static_cast<uint32_t>(bufs_.size());
  reg.bgid = kGroup;
  static_assert(offsetof(io_uring_buf_reg, resv) == 16);
  // The field after bgid is `flags` since Linux 6.4; liburing 2.3 still calls it a pad.
  std::memcpy(reinterpret_cast<uint8_t*>(&reg) + 14, &flags, sizeof flags);
  const int rc = io_uring_register_buf_ring(&ring_, &reg, 0);
  if (rc < 0) {
    return fail(Reason::kUnsupported, Fault::kConfig,
                std::string("provided buffer rings (5.19): ") + strerror(-rc));
  }
  return {};
}

// A ring's operations are system calls that no seccomp filter sees, so that a ring takes only those that
// stand here, whoever has taken over the process. That no other ring is made is sys::no_more_rings()'s.
// Nothing is registered later.
Status UringLoop::restrict_and_enable() {
  constexpr uint8_t kOperations[] = {IORING_OP_POLL_ADD,     IORING_OP_ACCEPT,   IORING_OP_CONNECT,
                                     IORING_OP_RECV,         IORING_OP_MSG_RING, IORING_OP_ASYNC_CANCEL};
  constexpr size_t kCount = std::size(kOperations);
  io_uring_restriction restrictions[kCount + 2] = {};
  for (size_t i = 0; i < kCount; ++i) {
    restrictions[i].opcode = IORING_RESTRICTION_SQE_OP;
    restrictions[i].sqe_op = kOperations[i];
  }
  restrictions[kCount].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
  restrictions[kCount].sqe_flags = IOSQE_BUFFER_SELECT;
  restrictions[kCount + 1].opcode = IORING_RESTRICTION_REGISTER_OP;
  restrictions[kCount + 1].register_op = IORING_UNREGISTER_RING_FDS;  // at the end
  // Debian 12's liburing declares both calls, and has neither.
  if (::syscall(SYS_io_uring_register, ring_.ring_fd, IORING_REGISTER_RESTRICTIONS, restrictions,
                kCount + 2) < 0)
    return fail_errno(errno, "io_uring_register(IORING_REGISTER_RESTRICTIONS)");
  if (::syscall(SYS_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) < 0)
    return fail_errno(errno, "io_uring_register(IORING_REGISTER_ENABLE_RINGS)");
  return {};
}

Status UringLoop::init_buffers() {
  // Incremental or plain is decided by what the kernel accepts; plain buffers are smaller and more.
  for (const bool incremental : {true, false}) {
    if (incremental && !options_.allow_incremental) continue;
    const uint32_t count = incremental ? options_.recv_buffers : options_.recv_buffers * 8;
    buf_size_ = incremental ? options_.recv_buffer_size : options_.recv_plain_size;
    const size_t stride = kRecvHeadroom + buf_size_;
    buf_memory_bytes_ = stride * count;
    buf_ring_bytes_ = std::max<size_t>(4096, count * sizeof(io_uring_buf));
    const auto map = [](size_t bytes) -> uint8_t* {
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
      return p == MAP_FAILED ? nullptr : static_cast<uint8_t*>(p);
    };
    buf_memory_ = map(buf_memory_bytes_);
    buf_ring_ = reinterpret_cast<io_uring_buf_ring*>(map(buf_ring_bytes_));
    if (!buf_memory_ || !buf_ring_) return fail_errno(ENOMEM, "receive buffers");
    io_uring_buf_ring_init(buf_ring_);
    bufs_.clear();
    for (uint32_t i = 0; i < count; ++i) bufs_.push_back({buf_memory_ + i * stride + kRecvHeadroom, 0});
    auto registered = register_buffers(incremental ? kPbufRingInc : 0);
    if (registered) {
      incremental_ = incremental;
      for (uint32_t i = 0; i < count; ++i) recycle(static_cast<uint16_t>(i));
      return {};
    }
    munmap(buf_memory_, buf_memory_bytes_);
    munmap(buf_ring_, buf_ring_bytes_);
    buf_memory_ = nullptr;
    buf_ring_ = nullptr;
    if (!incremental) return registered;
  }
  return {};
}

void UringLoop::publish_buffers() {
  if (recycle_.empty()) return;
  const int mask = io_uring_buf_ring_mask(static_cast<uint32_t>(bufs_.size()));
  int i = 0;
  for (const uint16_t id : recycle_) {
    bufs_[id].offset = 0;
    io_uring_buf_ring_add(buf_ring_, bufs_[id].base, buf_size_, id, mask, i++);
  }
  io_uring_buf_ring_advance(buf_ring_, i);
  recycle_.clear();
}

io_uring_sqe* UringLoop::sqe() {
  if (late_.empty()) {
    if (io_uring_sqe* s = io_uring_get_sqe(&ring_)) return s;
    hand_over();
    if (io_uring_sqe* s = io_uring_get_sqe(&ring_)) return s;
  }
  return &late_.emplace_back();
}

// Hands over what is there, and lets overflown completions in.
void UringLoop::hand_over() {
  submitted(io_uring_submit_and_get_events(&ring_));
  while (!late_.empty()) {
    io_uring_sqe* s = io_uring_get_sqe(&ring_);
    if (!s) return;
    *s = late_.front();
    late_.pop_front();
  }
}

// `rc` of an enter that had something to submit. What the kernel did not take stays in the queue.
void UringLoop::submitted(int rc) {
  if (io_uring_sq_ready(&ring_) == 0 && late_.empty()) connect_addresses_.clear();
  const bool refused = rc < 0 && rc != -ETIME && rc != -EINTR;
  stats_.not_taken += refused;
  if (refused == refused_) return;
  refused_ = refused;
  if (refused) {
    scope.warn("io_uring takes no operation: {} (errno {}); trying again", strerror(-rc), -rc);
  } else {
    scope.info("io_uring takes operations again");
  }
}

OpId UringLoop::prepared(uint32_t i, io_uring_sqe* s) {
  ops_.at(i).events = ring_.sq.sqe_tail - 1;
  s->user_data = ops_.id(i).value;
  return ops_.id(i);
}

OpId UringLoop::poll(int fd, uint32_t events, Completion& done) {
  const uint32_t i = ops_.take(OpKind::kPoll, fd);
  ops_.at(i).done = &done;
  io_uring_sqe* s = sqe();
  io_uring_prep_poll_add(s, fd, events);
  return prepared(i, s);
}

OpId UringLoop::accept(int fd, Completion& done) {
  set_nonblocking(fd, false);  // io_uring does not wait on O_NONBLOCK files
  const uint32_t i = ops_.take(OpKind::kAccept, fd);
  ops_.at(i).done = &done;
  io_uring_sqe* s = sqe();
  io_uring_prep_multishot_accept(s, fd, nullptr, nullptr, kAcceptFlags);
  return prepared(i, s);
}

OpId UringLoop::connect(int fd, const SocketAddress& to, Completion& done) {
  set_nonblocking(fd, false);
  const uint32_t i = ops_.take(OpKind::kConnect, fd);
  ops_.at(i).done = &done;
  io_uring_sqe* s = sqe();
  auto address = std::make_unique<sockaddr_storage>();
  const socklen_t length = to.to_sockaddr(*address);
  io_uring_prep_connect(s, fd, reinterpret_cast<sockaddr*>(address.get()), length);
  connect_addresses_.push_back(std::move(address));
  return prepared(i, s);
}

OpId UringLoop::receive(int fd, RecvCompletion& done) {
  const uint32_t i = ops_.take(OpKind::kReceive, fd);
  ops_.at(i).received = &done;
  io_uring_sqe* s = sqe();
  io_uring_prep_recv_multishot(s, fd, nullptr, 0, 0);
  s->flags |= IOSQE_BUFFER_SELECT;
  s->buf_group = kGroup;
  return prepared(i, s);
}

void UringLoop::cancel(OpId id) {
  const uint32_t i = ops_.find(id);
  if (!i || ops_.at(i).cancelled) return;
  ops_.at(i).cancelled = true;
  io_uring_sqe* s = sqe();
  io_uring_prep_cancel64(s, id.value, 0);
  s->user_data = kIgnore;
}

// What the kernel has not seen yet is taken back: its descriptor will be closed, and whoever gets the
// number before the submission would find a stranger's operation on it, which eats his first bytes.
bool UringLoop::take_back(uint32_t i) {
  const uint64_t id = ops_.id(i).value;
  const auto blank = [id](io_uring_sqe& s) {
    if (s.user_data != id) return false;
    io_uring_prep_cancel64(&s, kNothing, 0);
    s.user_data = kIgnore;
    return true;
  };
  const auto queued = [this](unsigned at) -> io_uring_sqe& {
    return ring_.sq.sqes[at & *ring_.sq.kring_mask];
  };
  const unsigned tail = ring_.sq.sqe_tail, waiting = io_uring_sq_ready(&ring_);
  const unsigned age = tail - ops_.at(i).events;
  if (age >= 1 && age <= waiting && blank(queued(tail - age))) return true;
  if (!refused_ && late_.empty()) return false;
  // It may have been late, and is anywhere.
  for (unsigned n = 1; n <= waiting; ++n)
    if (blank(queued(tail - n))) return true;
  return std::ranges::any_of(late_, blank);
}

void UringLoop::forget(OpId id) {
  const uint32_t i = ops_.find(id);
  if (!i) return;
  if (take_back(i)) return ops_.release(i);
  ops_.at(i).done = nullptr;
  ops_.at(i).received = nullptr;
  cancel(id);
}

void UringLoop::watch_eventfd() {
  io_uring_sqe* s = sqe();
  io_uring_prep_poll_multishot(s, eventfd_.get(), POLLIN);
  s->user_data = kEventfd;
}

void UringLoop::wake() {
  auto* from = dynamic_cast<UringLoop*>(Loop::current());
  if (from == this) return;  // the turn that runs looks at the inbox when it ends
  if (from && from->in_turn() && from->ring_messages_ && ring_messages_) {
    io_uring_sqe* s = from->sqe();
    io_uring_prep_msg_ring(s, ring_.ring_fd, 0, kWake, 0);
    s->user_data = kSent | number_;
    return;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(eventfd_.get(), &one, sizeof one);
}

void UringLoop::wait(MonoTime until) {
  io_uring_cqe* cqe = nullptr;
  if (until <= now() || !late_.empty()) {
    submitted(io_uring_submit_and_get_events(&ring_));
  } else if (until == MonoTime::max()) {
    submitted(io_uring_submit_and_wait(&ring_, 1));
  } else {
    __kernel_timespec ts = timeout_until(until);
    submitted(io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &ts, nullptr));
  }
  if (!refused_) return;
  // Without submitting: what completes frees memory, and nobody may spin until it is there.
  __kernel_timespec breath = kBreath;
  io_uring_wait_cqe_timeout(&ring_, &cqe, &breath);
}

void UringLoop::wait_and_dispatch(MonoTime until) {
  publish_buffers();
  if (!late_.empty()) hand_over();
  wait(until);
  refresh_now();
  // What completes while we work belongs to the next turn.
  unsigned head = *ring_.cq.khead;
  const unsigned tail = io_uring_smp_load_acquire(ring_.cq.ktail);
  while (head != tail) {
    const io_uring_cqe& cqe = ring_.cq.cqes[head & *ring_.cq.kring_mask];
    const uint64_t user_data = cqe.user_data;
    const int32_t res = cqe.res;
    const uint32_t flags = cqe.flags;
    io_uring_cq_advance(&ring_, 1);
    ++head;
    ++stats_.completions;
    dispatch(user_data, res, flags);
  }
  stats_.operations = ops_.used();
}

void UringLoop::dispatch(uint64_t user_data, int32_t res, uint32_t flags) {
  const bool more = flags & IORING_CQE_F_MORE;
  if (user_data == kIgnore || user_data == kWake) return;
  if (user_data & kSent) {
    // The other ring had no memory for it: there is a second way.
    if (res < 0) wake_book().wake(static_cast<uint32_t>(user_data));
    return;
  }
  if (user_data == kEventfd) {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = read(eventfd_.get(), &count, sizeof count);
    if (!more) watch_eventfd();
    return;
  }
  const uint32_t i = ops_.find({user_data});
  if (!i) return;
  if (ops_.at(i).kind == OpKind::kReceive) {
    dispatch_receive(i, res, flags, more);
    return;
  }
  Completion* done = ops_.at(i).done;
  if (!done && ops_.at(i).kind == OpKind::kAccept && res >= 0) ::close(res);
  if (!more) ops_.release(i);
  if (done) done->on_complete(res, more);
}

ByteSpan UringLoop::received(int32_t res, uint32_t flags) {
  if (!(flags & IORING_CQE_F_BUFFER)) return {};
  const uint16_t id = static_cast<uint16_t>(flags >> IORING_CQE_BUFFER_SHIFT);
  RecvBuffer& b = bufs_[id];
  const ByteSpan data(b.base + b.offset, res > 0 ? static_cast<size_t>(res) : 0);
  b.offset += static_cast<uint32_t>(data.size());
  if (!incremental_ || !(flags & kCqeBufMore)) recycle(id);
  return data;
}

void UringLoop::dispatch_receive(uint32_t i, int32_t res, uint32_t flags, bool more) {
  const ByteSpan data = received(res, flags);
  RecvCompletion* receiver = ops_.at(i).received;
  if (res == -ENOBUFS) ++stats_.no_buffers;
  if (!more) ops_.release(i);
  if (receiver) receiver->on_received(res, data, more);
}

Result<std::unique_ptr<Loop>> make_uring_loop(const LoopOptions& options) {
  auto loop = std::make_unique<UringLoop>(options);
  MELTEMI_TRY(loop->init());
  return loop;
}

}  // namespace meltemi::rt
