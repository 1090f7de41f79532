// Options, limits and counters that both ends of an HBONE tunnel share. The tunnel is HTTP/2 CONNECT
// in mutual TLS 1.3, as Istio's ztunnel speaks it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/wall_clock.h"
#include "userspace/codec/h2_tunnel.h"
#include "userspace/model/identity.h"
#include "userspace/rt/admission.h"
#include "userspace/rt/memory.h"

namespace meltemi::net {

struct TunnelTarget;  // tunnel_pool.h

struct HboneOptions {
  codec::TunnelOptions h2;
  Duration handshake_timeout = std::chrono::seconds(10);
  Duration connect_timeout = std::chrono::seconds(10);   // client: TCP connect of a tunnel
  Duration response_timeout = std::chrono::seconds(20);  // client: CONNECT until its answer
  Duration idle_release = std::chrono::minutes(5);       // client: an unused tunnel is closed
  // Streams that are there when a tunnel's credentials end may go on for this long. An hour is long
  // for an exchange and short for who holds a stolen key; new streams are on new tunnels since half
  // of the certificate's life.
  Duration credential_grace = std::chrono::hours(1);
  WallClock wall_clock = system_wall_clock;
  uint32_t max_streams = 100;        // client: of one tunnel, the peer's limit below it is respected
  uint32_t open_next_percent = 80;   // client: of max_streams, then a second tunnel is dialled
  uint32_t max_waiters = 10000;      // client: CONNECTs that wait for a tunnel of one target
  // Client: the place of a tunnel that carries nothing and is kept, asked for at the
  // first PING without a stream; a tunnel with streams is counted by its flows. Refused, or told to give way, the tunnel closes.
  // None: not counted.
  std::function<Result<rt::Lease>(const TunnelTarget&)> idle_place;
  rt::Budget* held = nullptr;        // bytes held for slow readers, all workers
  rt::Budget* windows = nullptr;     // grants beyond the first window, all workers
};

// Counters of one worker; read by any thread.
struct HboneStats {
  std::atomic<uint64_t> tunnels_opened{0}, tunnels_closed{0}, handshake_failures{0};
  std::atomic<uint64_t> streams_opened{0}, streams_closed{0}, limit_hits{0};
  std::atomic<uint64_t> records_sent{0}, sends{0};
  std::atomic<uint64_t> credential_ends{0};  // tunnels that drained or ended with a credential
};

struct Header {
  std::string name;  // lower case
  std::string value;
};

// Who is at the other end of a tunnel, as verified.
struct TunnelPeer {
  model::Identity identity;
  SocketAddress address;  // of the TCP connection
  SocketAddress local;
};

}  // namespace meltemi::net
