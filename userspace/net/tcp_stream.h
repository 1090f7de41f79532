// A TCP connection as a ByteStream, and dialling one. RST from the peer closes the stream with
// kConnectReset, by_peer and reset set; abort() sends RST.
#pragma once

#include <functional>
#include <optional>

#include "userspace/base/address.h"
#include "userspace/net/stream.h"
#include "userspace/rt/memory.h"

namespace meltemi::net {

// `fd`: connected. `held` (may be null) counts bytes that a slow peer makes us hold.
StreamPtr make_tcp_stream(rt::Loop& loop, UniqueFd fd, rt::Budget* held = nullptr);

// Makes the socket for a destination: in which netns, with which mark and source is the caller's
// business. Returns an unconnected TCP socket.
using SocketFactory = std::function<Result<UniqueFd>(const SocketAddress& to)>;

// One connect under way. Destroying it cancels.
class TcpDial final : private rt::Completion {
 public:
  // `done` is called once, never from inside start(): the connected socket or the error (reason of
  // the errno, kConnectTimeout at the deadline; all Retry::kSafe).
  using Done = std::move_only_function<void(Result<UniqueFd>)>;
  explicit TcpDial(rt::Loop& loop);
  ~TcpDial();
  TcpDial(const TcpDial&) = delete;
  TcpDial& operator=(const TcpDial&) = delete;
  void start(const SocketFactory& factory, const SocketAddress& to, MonoTime deadline, Done done);
  bool running() const { return static_cast<bool>(done_); }
  void cancel();

 private:
  void on_complete(int32_t res, bool more) override;
  void finish(Result<UniqueFd> result);

  rt::Loop& loop_;
  rt::OpId op_;
  UniqueFd fd_;
  SocketAddress to_;
  Done done_;
  rt::FnTimer timer_;
  std::optional<Error> failed_;
};

}  // namespace meltemi::net
