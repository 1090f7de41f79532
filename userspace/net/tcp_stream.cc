// TCP as a ByteStream. Sends happen on the spot; only what the kernel does not take is held.
#include "userspace/net/tcp_stream.h"

#include <cstring>

#include "userspace/rt/socket.h"
#include "userspace/rt/socket_options.h"

namespace meltemi::net {
namespace {

// What write_room() promises of a socket that takes everything so far.
constexpr size_t kRoom = rt::kRecvMax;
// Pieces of held bytes that go out with one sendmsg().
constexpr size_t kMaxPieces = 32;
// After close(): how long and how much is still read and dropped, so that the peer, which may be
// sending, gets our last bytes and FIN instead of an RST that voids them.
constexpr Duration kLinger = std::chrono::seconds(2);
constexpr uint64_t kLingerBytes = 1024 * 1024;

class TcpStream final : public ByteStream, private rt::SocketHandler, private rt::TurnHook {
 public:
  TcpStream(rt::Loop& loop, UniqueFd fd, rt::Budget* held) : loop_(loop), budget_(held) {
    held_.set_budget(held);
    socket_.open(loop, std::move(fd), *this);
  }

  rt::Loop& loop() override { return loop_; }
  bool write(const Slices& data) override;
  size_t write_room() const override { return held_.empty() ? kRoom : 0; }
  void shutdown_write() override;
  void close() override;
  void abort(Reason reason) override;
  void pause_read() override {
    if (!closing_) socket_.pause();
  }
  void resume_read() override {
    if (!closing_) socket_.resume();
  }
  void limit_read(size_t bytes) override { socket_.limit_read(bytes); }
  void detach() override {
    socket_.close(!finished());
    held_.clear();
  }

 private:
  bool finished() const { return ended_ || (read_ended_ && write_ended_) || closing_; }
  void hold(const Slices& data, size_t sent);
  bool flush();
  void end_write();
  void end(Reason reason, bool by_peer, bool reset);
  void end_if_done();
  void linger();

  void on_socket_data(ByteSpan data) override;
  void on_socket_eof() override;
  void on_socket_error(int err) override;
  void on_socket_writable() override;
  void on_turn_end() override;

  rt::Loop& loop_;
  rt::Socket socket_;
  rt::Budget* budget_;
  rt::ByteQueue held_;
  std::unique_ptr<rt::FnTimer> linger_;
  uint32_t dropped_ = 0;
  StreamEnd end_;
  bool read_ended_ = false;
  bool write_ending_ = false;  // shutdown_write() was called
  bool write_ended_ = false;   // FIN was sent
  bool closing_ = false;       // close(): only the held bytes matter
  bool ended_ = false;         // the socket is closed, on_closed() is owed or told
  bool told_ = false;
  bool blocked_ = false;       // write() said false: on_writable() is owed
};

bool TcpStream::write(const Slices& data) {
  if (ended_ || write_ending_) return true;
  bytes_written_ += data.bytes;
  if (!held_.empty()) {
    hold(data, 0);
    return false;
  }
  const ssize_t n = data.count == 1
                        ? socket_.send({static_cast<const uint8_t*>(data.pieces[0].iov_base),
                                        data.pieces[0].iov_len})
                        : socket_.send(data.pieces, data.count);
  if (n < 0) {
    end(reason_of_connect_errno(static_cast<int>(-n)), true, true);
    return false;
  }
  if (static_cast<size_t>(n) == data.bytes) return true;
  hold(data, static_cast<size_t>(n));
  if (!ended_) socket_.want_writable();
  return false;
}

void TcpStream::hold(const Slices& data, size_t sent) {
  if (budget_ && budget_->used() + data.bytes - sent > budget_->limit())
    return end(Reason::kLimitExceeded, false, true);
  for (size_t i = 0; i < data.count; ++i) {
    const ByteView piece(static_cast<const uint8_t*>(data.pieces[i].iov_base),
                         data.pieces[i].iov_len);
    if (sent >= piece.size()) {
      sent -= piece.size();
      continue;
    }
    held_.append(piece.subspan(sent));
    sent = 0;
  }
  blocked_ = true;
}

// Sends held bytes. True: none is left.
bool TcpStream::flush() {
  while (!held_.empty()) {
    iovec pieces[kMaxPieces];
    const size_t count = held_.peek(pieces, kMaxPieces);
    const ssize_t n = socket_.send(pieces, count);
    if (n < 0) {
      end(reason_of_connect_errno(static_cast<int>(-n)), true, true);
      return false;
    }
    if (n == 0) {
      socket_.want_writable();
      return false;
    }
    held_.drop(static_cast<size_t>(n));
  }
  return true;
}

void TcpStream::end_write() {
  if (!read_ended_) socket_.shutdown_write();  // else close() follows, and sends the FIN
  write_ended_ = true;
  if (closing_ && !read_ended_) {
    linger();
  } else {
    end_if_done();
  }
}

void TcpStream::linger() {
  linger_ = std::make_unique<rt::FnTimer>([this] { end(Reason::kOk, false, false); });
  loop_.start(*linger_, loop_.now() + kLinger);
  socket_.resume();
}

void TcpStream::shutdown_write() {
  if (ended_ || write_ending_) return;
  write_ending_ = true;
  if (held_.empty()) end_write();
}

void TcpStream::close() {
  if (ended_ || closing_) return;
  closing_ = true;
  if (write_ended_) {
    linger();
  } else if (!write_ending_) {
    shutdown_write();
  }
}

void TcpStream::abort(Reason reason) { end(reason, false, true); }

// Closes the socket now; on_closed() follows at the end of the turn.
void TcpStream::end(Reason reason, bool by_peer, bool reset) {
  if (ended_) return;
  ended_ = true;
  end_ = {reason, by_peer, reset};
  socket_.close(reset);
  held_.clear();
  if (linger_) loop_.stop(*linger_);
  loop_.at_turn_end(*this);
}

void TcpStream::end_if_done() {
  if (read_ended_ && write_ended_) end(Reason::kOk, false, false);
}

void TcpStream::on_turn_end() {
  if (!ended_ || told_) return;
  told_ = true;
  if (events_) events_->on_closed(end_);
}

void TcpStream::on_socket_data(ByteSpan data) {
  if (closing_) {
    dropped_ += static_cast<uint32_t>(data.size());
    if (dropped_ > kLingerBytes && write_ended_) end(Reason::kOk, false, false);
    return;
  }
  bytes_read_ += data.size();
  if (events_) events_->on_data(OneSlice(data));
}

void TcpStream::on_socket_eof() {
  read_ended_ = true;
  if (events_ && !closing_) events_->on_read_end();
  end_if_done();
}

void TcpStream::on_socket_error(int err) {
  // All was said before: how the peer hangs up does not matter any more.
  if (closing_ && write_ended_) return end(Reason::kOk, false, false);
  end(reason_of_connect_errno(err), true, true);
}

void TcpStream::on_socket_writable() {
  if (ended_ || !flush()) return;
  if (write_ending_) {
    if (!write_ended_) end_write();
    return;
  }
  if (std::exchange(blocked_, false) && events_) events_->on_writable();
}

}  // namespace

StreamPtr make_tcp_stream(rt::Loop& loop, UniqueFd fd, rt::Budget* held) {
  return StreamPtr(new TcpStream(loop, std::move(fd), held));
}

// --- TcpDial -------------------------------------------------------------------------------------

TcpDial::TcpDial(rt::Loop& loop)
    : loop_(loop), timer_([this] {
        if (failed_) return finish(fail(std::move(*failed_)));
        finish(fail(Reason::kConnectTimeout, Fault::kUpstream, to_.to_string() + ": no answer",
                    Retry::kSafe));
      }) {}

TcpDial::~TcpDial() { cancel(); }

void TcpDial::start(const SocketFactory& factory, const SocketAddress& to, MonoTime deadline,
                    Done done) {
  to_ = to;
  done_ = std::move(done);
  failed_.reset();
  auto fd = factory ? factory(to) : rt::make_tcp_socket(to);
  if (!fd) {
    failed_ = std::move(fd).error();
    failed_->retry = Retry::kSafe;
    loop_.start(timer_, loop_.now());  // not from inside start()
    return;
  }
  fd_ = std::move(*fd);
  op_ = loop_.connect(fd_.get(), to, *this);
  if (deadline != MonoTime::max()) loop_.start(timer_, deadline);
}

void TcpDial::on_complete(int32_t res, bool more) {
  op_ = {};
  if (res == 0) return finish(std::move(fd_));
  finish(fail(reason_of_connect_errno(-res), Fault::kUpstream,
              to_.to_string() + ": " + strerror(-res), Retry::kSafe));
}

void TcpDial::finish(Result<UniqueFd> result) {
  Done done = std::move(done_);
  cancel();
  done(std::move(result));  // may destroy this dial
}

void TcpDial::cancel() {
  done_ = nullptr;
  loop_.stop(timer_);
  if (op_) loop_.forget(op_);
  op_ = {};
  if (fd_) loop_.close(std::move(fd_));
}

}  // namespace meltemi::net
