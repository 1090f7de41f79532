// The sending end of HBONE: tunnels of one worker, shared by all flows with the same source identity,
// destination and expected peer. One dial serves everybody who waits for it; waiters of one target
// never hear of another's.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "userspace/net/hbone.h"
#include "userspace/net/stream.h"
#include "userspace/net/tcp_stream.h"
#include "userspace/net/tls_context.h"

namespace meltemi::net {

class ClientTunnel;

// What makes two flows share a tunnel. `expected` in any order; an empty one is refused.
struct TunnelTarget {
  std::string source;       // identity of the caller plus whatever must not be shared (source IP)
  SocketAddress address;    // usually port 15008
  std::vector<model::Identity> expected;
};

// How to make one, when there is none. The pool keeps the newest one of each target and may call
// `socket` for another flow of that target, later: it must own what it needs.
struct TunnelDial {
  std::shared_ptr<const TlsContext> tls;
  SocketFactory socket;
};

// The answer to a CONNECT.
struct ConnectAnswer {
  uint16_t status = 0;
  std::vector<Header> headers;
  TunnelPeer peer;
};

// One CONNECT under way: fill the public part, then TunnelPool::open(). The object belongs to the
// caller and may be destroyed at any time, which cancels (RST_STREAM CANCEL if it was sent).
class TunnelConnect {
 public:
  TunnelConnect();
  virtual ~TunnelConnect();
  TunnelConnect(const TunnelConnect&) = delete;
  TunnelConnect& operator=(const TunnelConnect&) = delete;

  std::string authority;
  std::vector<Header> headers;  // in order, lower-case names

  // Exactly one of these, never from inside open(). `this` may be destroyed inside.
  virtual void on_connected(StreamPtr stream, const ConnectAnswer& answer) = 0;
  // `answer` is not null if the peer answered with another status than 200 (kTunnelHttpStatus).
  // error.retry == kSafe: the peer cannot have acted on it.
  virtual void on_connect_failed(const Error& error, const ConnectAnswer* answer) = 0;

  bool running() const { return state_ != nullptr; }
  void cancel();

  struct State;  // the pool's

 private:
  friend struct PoolAccess;
  State* state_ = nullptr;
};

class TunnelPool {
 public:
  // All arguments must outlive it.
  TunnelPool(rt::Loop& loop, const HboneOptions& options, HboneStats& stats);
  // Cuts what is left; waiting connects fail with kShutdown before.
  ~TunnelPool();
  TunnelPool(const TunnelPool&) = delete;
  TunnelPool& operator=(const TunnelPool&) = delete;

  // Sends the CONNECT on a tunnel that exists, or dials one by `dial` and sends it then. A tunnel
  // takes one until the peer's SETTINGS are here, and then as many as they allow. A CONNECT that the
  // peer did not process (REFUSED_STREAM, above the last stream of GOAWAY) waits for room like one
  // that was never sent; one whose tunnel broke is tried once more. `call` fails with
  // kConnectTimeout at `deadline`, or earlier at the options' timeouts.
  void open(const TunnelTarget& target, const TunnelDial& dial, TunnelConnect& call,
            MonoTime deadline = MonoTime::max());
  // GOAWAY on all (or those of one source): flows go on, new connects dial anew. After a rotation
  // of credentials, or at shutdown.
  void drain(std::string_view source = {});
  // Ends the tunnels of one source (or all) and their streams now.
  void close(Reason reason, std::string_view source = {});
  // Does at once what the ends of certificates ask for; the pool does so by itself, in time.
  void check_credentials();
  // The roots of an identity changed: ends its tunnels whose peer none of them vouches for.
  void check_roots(const std::shared_ptr<const TlsContext>& renewed);
  size_t tunnels() const;
  size_t streams() const;
  // For /config_dump: target text, streams, state.
  struct Row {
    std::string source;
    SocketAddress address;
    model::Identity peer;
    size_t streams = 0;
    bool draining = false;
  };
  std::vector<Row> rows() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace meltemi::net
