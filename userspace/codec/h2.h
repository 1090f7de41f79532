// HTTP/2 (RFC 9113, RFC 7541, extended CONNECT of RFC 8441) for waypoints and gateways, client or
// server. Sans-io: bytes go in by receive(), come out by flush(); DATA is never copied into the
// session: received pieces are views into the input, sent pieces come from the body source of the
// stream. Receive windows are returned only by consume(): a stalled reader stalls its sender. It
// must never block, know a socket or a clock (the time is an argument). Not thread-safe. The
// handler must not destroy the session from inside a callback nor call receive() and flush(); it
// may call every other function.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/codec/h2_code.h"
#include "userspace/codec/header_list.h"

namespace meltemi::codec {

enum class H2Role : uint8_t { kClient, kServer };

// What a peer may not exceed. Each ends in GOAWAY(ENHANCE_YOUR_CALM) but kHeaderBytes and
// kHeaderCount, which cost only the stream: a server answers 431 by itself, a client resets it.
#define MELTEMI_H2_LIMITS(X)                                                             \
  X(kResetFlood, "h2_reset_flood", "streams reset by the peer, or by us for its errors") \
  X(kControlFlood, "h2_control_flood", "frames and 1xx responses that carry nothing")    \
  X(kEmptyDataFlood, "h2_empty_data_flood", "DATA that neither carries nor ends")        \
  X(kContinuationFlood, "h2_continuation_flood", "CONTINUATION frames of a block")       \
  X(kHeaderBytes, "h2_header_bytes", "bytes of a header list")                           \
  X(kHeaderCount, "h2_header_count", "fields of a header list")                          \
  X(kWindowFlood, "h2_window_flood", "WINDOW_UPDATEs out of proportion to what we sent") \
  X(kUnreadReplies, "h2_unread_replies", "answers we owe while the peer does not read")
enum class H2Limit : uint8_t {
#define MELTEMI_H2_LIMIT_ENUM(id, text, meaning) id,
  MELTEMI_H2_LIMITS(MELTEMI_H2_LIMIT_ENUM)
#undef MELTEMI_H2_LIMIT_ENUM
};
std::string_view h2_limit_name(H2Limit limit);

struct H2Options {
  uint32_t max_concurrent_streams = 100;
  uint32_t initial_stream_window = 256 * 1024;
  uint32_t connection_window = 1024 * 1024;
  uint32_t max_frame_size = 16384;
  uint32_t max_header_list = 60 * 1024;
  uint32_t max_header_count = 100;
  uint32_t max_continuations = 7;  // of one header block
  uint32_t reset_burst = 500, resets_per_second = 50;
  uint32_t control_burst = 200, controls_per_second = 20;
  uint32_t empty_data_burst = 100, empty_data_per_second = 10;
  bool extended_connect = true;  // server: SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441)
  Duration settings_timeout = std::chrono::seconds(30);  // for the peer's SETTINGS ACK
};

inline constexpr uint32_t kH2MaxUnreadReplies = 1000;     // answers that wait for the peer
inline constexpr size_t kH2MaxPending = 4 * 1024 * 1024;  // bytes of them and of header blocks
inline constexpr int64_t kH2WindowBurst = 10000;  // and 4 a stream, 2 a DATA frame, 1 a KiB sent

// Where flush() puts bytes. Pieces must be copied or sealed during the call.
class H2Sink {
 public:
  virtual ~H2Sink() = default;
  virtual void append(ByteView piece) = 0;
};

// The body of one message that we send. Owned by the caller; must live until it was read to its
// end, the stream was reset by us, or on_closed(). All calls come from inside flush().
class H2Body {
 public:
  struct Ready {
    size_t bytes = 0;  // can be taken now, at most `max`
    bool end = false;  // and that is all there is
  };
  virtual ~H2Body() = default;
  // What can be sent now. {0, false}: nothing yet; call H2Session::resume() when there is. What was
  // announced must stay there: take() of it may come in a later flush().
  virtual Ready ready(size_t max) = 0;
  // Appends exactly `bytes` bytes, as announced by ready(), to `sink`.
  virtual void take(size_t bytes, H2Sink& sink) = 0;
  // Asked once after {.., end}: trailers to send, or nullptr.
  virtual const HeaderList* trailers() { return nullptr; }
};

class H2Handler {
 public:
  virtual ~H2Handler() = default;
  // A request's head (server) or a final response's (client), pseudo-headers first, names lower
  // case, checked against RFC 9113 section 8, cookies of a request joined into one. `end`: no body and no trailers, and no on_end()
  // comes. The list may be moved from.
  virtual void on_head(uint32_t stream, HeaderList& headers, bool end) = 0;
  // Client: a 1xx response.
  virtual void on_informational(uint32_t stream, const HeaderList& headers) {}
  // A piece of the body, >= 1 byte, a view into the input of receive(). Give the window back with
  // consume() once it went on.
  virtual void on_data(uint32_t stream, ByteView data) = 0;
  // The peer has sent everything; trailers may be empty.
  virtual void on_end(uint32_t stream, const HeaderList& trailers) = 0;
  // The stream is gone, the last call for it. `code` is NO_ERROR after an orderly end.
  // `unprocessed`: the peer has not acted on it (REFUSED_STREAM, or above GOAWAY's last stream):
  // safe to retry.
  virtual void on_closed(uint32_t stream, uint32_t code, bool unprocessed) = 0;
  // The peer's SETTINGS have come, at first or anew: can_request() may answer otherwise now.
  virtual void on_settings() {}
  // The peer takes no more streams.
  virtual void on_goaway(uint32_t code) {}
  virtual void on_ping_ack(std::span<const uint8_t, 8> payload) {}
};

class H2Session {
 public:
  // Queues preface and SETTINGS. `handler` must outlive the session.
  H2Session(H2Role role, H2Handler& handler, const H2Options& options = H2Options());
  ~H2Session();
  H2Session(H2Session&&) noexcept;
  H2Session& operator=(H2Session&&) noexcept;

  // Feeds all of `in`. Errors (the session is dead: flush() its GOAWAY, then close): kBadRequest
  // for a protocol error, kLimitExceeded with the limit's name. No on_closed() comes for its
  // streams. Time shows only here: a peer that sends nothing is the caller's idle timer's.
  Status receive(ByteView in, MonoTime now);
  // nullptr while the session is good.
  const Error* failure() const;
  // Writes what is due until about `max` bytes are in the sink (a frame is never cut). Returns true
  // when there may be more.
  bool flush(H2Sink& sink, size_t max);
  bool wants_write() const;

  // Client: sends a request; pseudo-headers first in `headers`. `body` nullptr: none.
  // Errors: kPoolDraining (retry safe), kLimitExceeded (streams; retry safe), kBadRequest (a header
  // that HTTP/2 does not allow).
  Result<uint32_t> request(const HeaderList& headers, H2Body* body);
  // Server. `status` 100..199 as informational(): any number before respond().
  Status informational(uint32_t stream, const HeaderList& headers);
  Status respond(uint32_t stream, const HeaderList& headers, H2Body* body);
  // The body source of the stream has bytes (or its end) again.
  void resume(uint32_t stream);
  // What was not flushed of the body is dropped, and its source is not touched again. But kNoError
  // after respond() lets the response go out first, then asks the peer to stop its request (RFC
  // 9113 section 8.1); the body source must live until on_closed() then.
  void reset(uint32_t stream, H2Code code);
  // Returns window of stream and connection.
  void consume(uint32_t stream, size_t bytes);

  // Inside of on_closed(): the stream ended by our own RST_STREAM, for what the peer did wrong on it.
  bool broken_by_peer(uint32_t stream) const;

  void ping(std::span<const uint8_t, 8> payload);
  // Graceful end, first step: GOAWAY(2^31-1) on servers, GOAWAY on clients. Second step (servers):
  // call again after a round trip (ping).
  void drain();
  // Hard end: GOAWAY with `code`.
  void close(H2Code code);
  // Client: whether request() would be taken now. Until the peer's SETTINGS have come only for the
  // first one, so that a peer that allows few streams need not refuse the others.
  bool can_request() const;
  size_t stream_count() const;
  uint32_t peer_max_streams() const;
  bool peer_allows_extended_connect() const;
  // Draining and no stream is left.
  bool finished() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace meltemi::codec
