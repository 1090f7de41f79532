// A connected stream socket on a loop: received bytes are pushed to its handler, sends are done on
// the spot. It owns no buffer: bytes arrive in the worker's memory and must be used up or copied
// before the handler returns.
//
// Two ways of reading, chosen by the traffic: light sockets sit in a multishot receive on the
// worker's shared buffers; a socket that fills them reads on the spot into one large buffer, as much
// as its handler allows, so that a stalled peer cannot make the kernel hand us more than we asked
// for. Handlers see no difference.
#pragma once

#include <sys/uio.h>

#include "userspace/rt/loop.h"
#include "userspace/rt/memory.h"

namespace meltemi::rt {

class SocketHandler {
 public:
  // At least one byte. Valid until return; may be changed, with kRecvHeadroom bytes in front.
  virtual void on_socket_data(ByteSpan data) = 0;
  virtual void on_socket_eof() = 0;           // the peer's FIN; comes once
  virtual void on_socket_error(int err) = 0;  // errno of a receive, e.g. ECONNRESET; comes once
  virtual void on_socket_writable() = 0;      // after want_writable()

 protected:
  ~SocketHandler() = default;
};

class Socket final : private RecvCompletion, private TurnHook {
 public:
  Socket() : poll_in_(*this), poll_out_(*this) {}
  ~Socket() { close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  // Takes a connected socket. It is paused until resume().
  void open(Loop& loop, UniqueFd fd, SocketHandler& handler);
  bool is_open() const { return fd_.valid(); }
  int fd() const { return fd_.get(); }

  // No on_socket_data/eof after pause() until resume(). A reset is told all the same: what was not
  // read is void then, and a stalled flow must not outlive its peer.
  void resume();
  void pause();
  bool paused() const { return paused_; }
  // The most bytes that one on_socket_data() should carry from now on. What the kernel already
  // handed over may exceed it once. 1..kRecvMax.
  void limit_read(size_t bytes) { limit_ = bytes < 1 ? 1 : bytes > kRecvMax ? kRecvMax : bytes; }

  // Sends now. Returns how many bytes the kernel took (0: it is full) or -errno.
  ssize_t send(ByteView bytes);
  ssize_t send(const iovec* pieces, size_t count);
  // Calls on_socket_writable() once when there is room again.
  void want_writable();
  // FIN. Later sends fail.
  void shutdown_write();
  // Closes; with `reset` by RST. No callback follows. Idempotent.
  void close(bool reset = false);
  // Gives the descriptor away without closing it. REQUIRES: paused and never resumed.
  UniqueFd release();

 private:
  enum class Mode : uint8_t { kMultishot, kDirect };
  struct PollIn final : Completion {
    explicit PollIn(Socket& s) : socket(s) {}
    void on_complete(int32_t res, bool more) override { socket.on_readable(res); }
    Socket& socket;
  };
  struct PollOut final : Completion {
    explicit PollOut(Socket& s) : socket(s) {}
    void on_complete(int32_t res, bool more) override { socket.on_writable(); }
    Socket& socket;
  };
  void on_received(int32_t res, ByteSpan data, bool more) override;
  void on_turn_end() override;  // what resume() could not do on its caller's stack
  bool deliver(ByteSpan data);  // false: the socket was closed inside
  void on_readable(int32_t events);
  void on_writable();
  void arm();
  void watch();
  void unwatch();
  void read_direct();
  void deliver_held();
  void finish(int32_t res);

  Loop* loop_ = nullptr;
  SocketHandler* handler_ = nullptr;
  bool* alive_ = nullptr;  // set while a callback runs: cleared by close()
  UniqueFd fd_;
  PollIn poll_in_;
  PollOut poll_out_;
  OpId in_, out_;
  ByteQueue held_;  // arrived while paused
  uint32_t limit_ = kRecvMax;
  int32_t end_ = 1;  // 0 end of stream or -errno that waits for resume(); 1 none
  Mode mode_ = Mode::kMultishot;
  bool paused_ = true;
  bool cancelling_ = false;
  bool ended_ = false;  // eof or error was delivered
  bool read_at_turn_end_ = false;
  bool watching_ = false;  // in_ only waits for a reset, since we are paused
  uint8_t small_reads_ = 0;
};

}  // namespace meltemi::rt
