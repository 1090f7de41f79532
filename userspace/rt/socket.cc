// See socket.h. Must never keep bytes but those that arrived after pause().
#include "userspace/rt/socket.h"

#include <poll.h>
#include <sys/socket.h>

#include "userspace/rt/ops.h"
#include "userspace/rt/socket_options.h"

namespace meltemi::rt {
namespace {

// A multishot receive of this size shows a bulk sender: read directly from then on.
constexpr int32_t kBulkReceive = 48 * 1024;
// Direct reads smaller than this, so many in a row, show a light one again.
constexpr size_t kLightRead = 16 * 1024;
constexpr uint8_t kLightReads = 64;
// Direct reads of one wake-up; the others get their turn then.
constexpr int kReadsPerWake = 4;

}  // namespace

void Socket::open(Loop& loop, UniqueFd fd, SocketHandler& handler) {
  loop_ = &loop;
  handler_ = &handler;
  fd_ = std::move(fd);
  // io_uring does not wait on O_NONBLOCK files; our own calls say MSG_DONTWAIT.
  if (loop.backend() == Backend::kUring) set_nonblocking(fd_.get(), false);
}

void Socket::arm() {
  if (in_ || ended_ || !fd_) return;
  in_ = mode_ == Mode::kDirect ? loop_->poll(fd_.get(), POLLIN | POLLRDHUP, poll_in_)
                               : loop_->receive(fd_.get(), *this);
}

void Socket::resume() {
  if (!paused_ || !fd_) return;
  paused_ = false;
  if (ended_) return;
  unwatch();
  if (!held_.empty() || end_ <= 0) {
    loop_->at_turn_end(*this);
  } else if (mode_ == Mode::kDirect && !in_ && read_at_turn_end_) {
    loop_->at_turn_end(*this);  // it was reading when it was paused: likely there is more
  } else {
    arm();
  }
}

void Socket::pause() {
  if (paused_) return;
  paused_ = true;
  if (mode_ == Mode::kMultishot && in_ && !cancelling_) {
    cancelling_ = true;
    mode_ = Mode::kDirect;
    loop_->cancel(in_);
  } else if (!in_) {
    loop_->at_turn_end(*this);
  }
}

// A paused socket still hears of a reset.
void Socket::watch() {
  if (in_ || ended_ || end_ <= 0 || !fd_) return;
  watching_ = true;
  in_ = loop_->poll(fd_.get(), 0, poll_in_);
}

void Socket::unwatch() {
  if (!watching_) return;
  watching_ = false;
  loop_->forget(in_);
  in_ = {};
}

bool Socket::deliver(ByteSpan data) {
  bool alive = true;
  alive_ = &alive;
  handler_->on_socket_data(data);
  if (!alive) return false;
  alive_ = nullptr;
  return true;
}

void Socket::finish(int32_t res) {
  if (res == 0 && (paused_ || !held_.empty())) {
    end_ = res;
    return;
  }
  held_.clear();  // void after a reset
  ended_ = true;
  if (res == 0) {
    handler_->on_socket_eof();
  } else {
    handler_->on_socket_error(-res);
  }
}

void Socket::on_turn_end() {
  if (paused_) return watch();
  read_at_turn_end_ = false;
  while (!paused_ && !held_.empty()) {
    // Through the scratch buffer, for its headroom and because handlers may write to it.
    iovec piece;
    held_.peek(&piece, 1);
    const ByteSpan out = loop_->scratch().first(piece.iov_len);
    std::memcpy(out.data(), piece.iov_base, piece.iov_len);
    held_.drop(piece.iov_len);
    if (!deliver(out)) return;
  }
  if (paused_) return watch();
  if (end_ <= 0) {
    const int32_t res = end_;
    end_ = 1;
    finish(res);
  } else if (mode_ == Mode::kDirect && !in_) {
    read_direct();
  } else {
    arm();
  }
}

void Socket::on_received(int32_t res, ByteSpan data, bool more) {
  if (!more) {
    in_ = {};
    cancelling_ = false;
  }
  if (res > 0) {
    if (paused_ || !held_.empty()) {
      held_.append(data);
      if (!paused_) loop_->at_turn_end(*this);
    } else if (!deliver(data)) {
      return;
    }
    if (res >= kBulkReceive && mode_ == Mode::kMultishot) {
      mode_ = Mode::kDirect;
      if (in_ && !cancelling_) {
        cancelling_ = true;
        loop_->cancel(in_);
      }
    }
    if (!in_) loop_->at_turn_end(*this);
    return;
  }
  if (res == -ECANCELED || res == -ENOBUFS) {
    // Goes on in whatever way is right by now, in the next turn.
    read_at_turn_end_ = paused_;
    loop_->at_turn_end(*this);
    return;
  }
  finish(res);
}

void Socket::on_readable(int32_t events) {
  in_ = {};
  const bool watched = std::exchange(watching_, false);
  if (!paused_) return read_direct();
  if (!watched) {
    read_at_turn_end_ = true;
    loop_->at_turn_end(*this);
    return;
  }
  // Not re-armed without an error: a FIN alone would fire again and again.
  int err = 0;
  socklen_t length = sizeof err;
  if (events >= 0 && !(events & POLLERR)) return;
  if (getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &err, &length) < 0 || err == 0) return;
  held_.clear();
  ended_ = true;
  handler_->on_socket_error(err);
}

void Socket::read_direct() {
  for (int i = 0; i < kReadsPerWake; ++i) {
    const size_t want = limit_;
    const ByteSpan buffer = loop_->scratch().first(want);
    const ssize_t n = recv(fd_.get(), buffer.data(), want, MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) {
      finish(n < 0 ? -errno : 0);
      return;
    }
    small_reads_ = static_cast<size_t>(n) < kLightRead && static_cast<size_t>(n) < want
                       ? static_cast<uint8_t>(small_reads_ + 1) : uint8_t{0};
    if (!deliver(buffer.first(static_cast<size_t>(n)))) return;
    if (paused_) {
      read_at_turn_end_ = true;
      loop_->at_turn_end(*this);
      return;
    }
    if (static_cast<size_t>(n) < want) break;
  }
  if (small_reads_ >= kLightReads) {
    small_reads_ = 0;
    mode_ = Mode::kMultishot;
  }
  arm();
}

ssize_t Socket::send(ByteView bytes) {
  for (;;) {
    const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return -errno;
  }
}

ssize_t Socket::send(const iovec* pieces, size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces);
  message.msg_iovlen = count;
  for (;;) {
    const ssize_t n = sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) return n;
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return -errno;
  }
}

void Socket::want_writable() {
  if (!out_ && fd_) out_ = loop_->poll(fd_.get(), POLLOUT, poll_out_);
}

void Socket::on_writable() {
  out_ = {};
  handler_->on_socket_writable();
}

void Socket::shutdown_write() {
  if (fd_) ::shutdown(fd_.get(), SHUT_WR);
}

void Socket::close(bool reset) {
  if (!fd_) return;
  if (alive_) *alive_ = false;
  alive_ = nullptr;
  if (in_) loop_->forget(in_);
  if (out_) loop_->forget(out_);
  in_ = out_ = {};
  watching_ = false;
  held_.clear();
  TurnHook::unlink();
  if (reset) set_reset_on_close(fd_.get());
  loop_->close(std::move(fd_));
}

UniqueFd Socket::release() { return std::move(fd_); }

}  // namespace meltemi::rt
