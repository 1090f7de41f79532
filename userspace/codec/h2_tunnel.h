// HTTP/2 for CONNECT tunnels (RFC 9113, HBONE): the few frames that a tunnel needs, without a copy,
// an allocation or a queue per DATA frame. Both roles. The general HTTP/2 of waypoints is h2.h.
//
// Sans-io: decrypted bytes and the time go in; events come out; frames are written into the
// caller's buffers. It must never hold payload bytes: flow control bounds what the *caller* holds.
// Not thread-safe; one object a connection.
//
// Receiving:
//   while (true) { TunnelEvent e = session.next(in, now); if (e.kind == kNone) break; ... }
//   `in` is advanced; bytes of DATA are emitted as they come, as views into `in`.
// Sending, in one flush, in this order:
//   1. session.pending() (control frames and HEADERS), then session.clear_pending();
//   2. any number of DATA frames: n = session.sendable(id); session.write_data_header(id, n, fin,
//      out9); followed by n bytes of payload by the caller.
// Never write an empty DATA frame unless it ends the stream; gather small pieces into one frame
// (peers count small and empty frames as abuse).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/codec/h2_code.h"
#include "userspace/codec/header_list.h"

namespace meltemi::codec {

// What a peer may not exceed. The names appear in errors, logs and metrics.
#define MELTEMI_TUNNEL_LIMITS(X)                                                               \
  X(kResetFlood, "h2_reset_flood", "streams reset by the peer or refused")                     \
  X(kControlFlood, "h2_control_flood", "PING, SETTINGS, PRIORITY and unknown frames")          \
  X(kWindowFlood, "h2_window_flood", "WINDOW_UPDATEs out of proportion to what we sent")       \
  X(kEmptyDataFlood, "h2_empty_data_flood", "DATA frames that neither carry nor end anything") \
  X(kContinuationFlood, "h2_continuation_flood", "CONTINUATION frames of one header block")    \
  X(kHeaderBytes, "h2_header_bytes", "bytes of one header list, encoded or decoded")           \
  X(kHeaderCount, "h2_header_count", "fields of one header list")                              \
  X(kUnreadReplies, "h2_unread_replies", "answers we owe while the peer does not read")
enum class TunnelLimit : uint8_t {
#define MELTEMI_TUNNEL_LIMIT_ENUM(id, text, meaning) id,
  MELTEMI_TUNNEL_LIMITS(MELTEMI_TUNNEL_LIMIT_ENUM)
#undef MELTEMI_TUNNEL_LIMIT_ENUM
};
std::string_view tunnel_limit_name(TunnelLimit limit);

inline constexpr uint32_t kTunnelResetBurst = 500;  // then kTunnelResetsPerSecond
inline constexpr uint32_t kTunnelResetsPerSecond = 50;
inline constexpr uint32_t kTunnelControlBurst = 200;
inline constexpr uint32_t kTunnelControlPerSecond = 20;
inline constexpr uint32_t kTunnelEmptyDataBurst = 100;
inline constexpr uint32_t kTunnelEmptyDataPerSecond = 10;
inline constexpr uint32_t kTunnelWindowBurst = 10000;  // plus 2 a DATA frame and 1 a KiB sent
inline constexpr uint32_t kTunnelMaxContinuations = 16;
inline constexpr uint32_t kTunnelMaxHeaderCount = 100;
inline constexpr uint32_t kTunnelMaxUnreadReplies = 1000;

enum class TunnelRole : uint8_t { kClient, kServer };

// Defaults are the wire values of Istio's ztunnel, except the lazily granted windows.
struct TunnelOptions {
  uint32_t max_concurrent_streams = 200;          // server: advertised and enforced
  uint32_t initial_stream_window = 256 * 1024;    // SETTINGS_INITIAL_WINDOW_SIZE
  uint32_t max_stream_window = 4 * 1024 * 1024;   // where grow_window() stops
  uint32_t connection_window = 16 * 1024 * 1024;  // floor; raised to twice the sum of stream grants
  uint32_t max_frame_size = 1024 * 1024;          // what we accept; 16384..2^24-1
  uint32_t max_header_list = 64 * 1024;           // bytes as in RFC 9113 section 6.5.2
  // Client: until the peer's SETTINGS, which come in the first round trip. One cannot be too many.
  uint32_t assumed_peer_streams = 1;
  Duration ping_interval = std::chrono::seconds(10);  // of silence; 0 = no keepalive
  Duration ping_timeout = std::chrono::seconds(20);
};

enum class TunnelEventKind : uint8_t {
  kNone,      // all input consumed (or the session is dead)
  kRequest,   // server: a CONNECT (or another method: see `headers`); `end_stream` possible
  kResponse,  // client: final response; `status`, `headers`, `end_stream`
  kData,      // `data` is a piece of payload, >= 1 byte; `end_stream`: the peer sends no more
  kEnd,       // the peer sends no more on this stream (END_STREAM without payload, or trailers)
  kReset,     // the stream is gone: `code`; `unprocessed`: safe to retry elsewhere. Forget `user`.
  kWritable,  // sendable() was 0 and is not any more
  kGoaway,    // the peer is going away: open no more streams here. `code`.
  kPong,      // answer to ping(); `data` is the 8 bytes
  kFailed,    // connection error, ours or the peer's: flush pending(), then close. See failure().
};

struct TunnelEvent {
  TunnelEventKind kind = TunnelEventKind::kNone;
  bool end_stream = false;
  bool unprocessed = false;
  uint16_t status = 0;
  uint32_t stream = 0;
  uint32_t code = 0;     // H2Code or a peer's unknown number
  void* user = nullptr;  // of the stream; see set_user()
  ByteView data;
  std::span<const HeaderField> headers;  // valid until the next call of next()
};

class TunnelSession {
 public:
  // Queues the preface and SETTINGS in pending(). `now` starts the keepalive.
  TunnelSession(TunnelRole role, const TunnelOptions& options, MonoTime now);
  ~TunnelSession();
  TunnelSession(TunnelSession&&) noexcept;
  TunnelSession& operator=(TunnelSession&&) noexcept;

  // The next event in `in`, which is advanced by what was used. kNone: `in` is empty, give the next
  // bytes. After kFailed only kNone comes. Never blocks, never allocates for DATA.
  TunnelEvent next(ByteView& in, MonoTime now);
  // The error of a dead session; kTunnelH2Error, or kLimitExceeded with the limit's name.
  const Error& failure() const;
  bool failed() const;

  // --- streams ---
  // Client: opens a CONNECT stream (`:method`, `:authority`, then `headers` in order). Errors:
  // kPoolDraining (GOAWAY seen or sent, ids used up; retry safe), kLimitExceeded (the peer's
  // concurrent streams are used up; retry safe; or the header list is above the peer's maximum),
  // kTunnelH2Error (session failed).
  Result<uint32_t> connect(std::string_view authority, std::span<const HeaderField> headers,
                           void* user);
  bool can_connect() const;
  // Server: answers. `status` 100..599. With `end_stream` nothing can be sent after it; if the
  // request's stream is still open, RST_STREAM(NO_ERROR) follows and the stream is forgotten.
  // Unknown or finished stream: no effect.
  void respond(uint32_t stream, uint16_t status, std::span<const HeaderField> headers,
               bool end_stream);
  // Forgets the stream, telling the peer if it does not know yet. No event follows.
  void reset(uint32_t stream, H2Code code);
  void set_user(uint32_t stream, void* user);
  void* user(uint32_t stream) const;  // nullptr if unknown
  bool known(uint32_t stream) const;
  size_t stream_count() const;
  // A stream is forgotten as soon as both sides ended it or one reset it; later calls with its id
  // have no effect.

  // --- sending DATA ---
  // How many payload bytes one DATA frame of the stream may carry now: the least of stream window,
  // connection window and the peer's frame size. 0 when the stream is gone, when its sending side
  // has ended, while its HEADERS are in a pending() that was not taken yet, and when windows are
  // used up: only then kWritable will come.
  uint32_t sendable(uint32_t stream);
  // The window that is left for the stream, whatever the frame size; owes nothing. A hint for how
  // much to read for it. 0 if unknown.
  uint32_t send_room(uint32_t stream) const;
  // Writes the 9-byte frame header. REQUIRES: length <= sendable(stream), and length > 0 unless
  // end_stream. An empty frame with end_stream needs no window, only taken HEADERS.
  // Returns false, and writes nothing, when the stream is gone or its sending side has ended.
  bool write_data_header(uint32_t stream, uint32_t length, bool end_stream,
                         std::span<uint8_t, 9> out);

  // --- receive credit ---
  // The caller has passed `bytes` of the stream's payload on: they become window again. Credit is
  // returned to the peer in halves of the window. Unknown streams are ignored.
  void consume(uint32_t stream, uint32_t bytes);
  // Raises the stream's window to `window` (up to max_stream_window) at once. Lower: no effect.
  void grow_window(uint32_t stream, uint32_t window);
  // Size of the stream's window, and whether the peer has used up more than 3/4 of what it was
  // granted at some time since the last grow_window(): with an app that drains, a reason to grow.
  uint32_t window(uint32_t stream) const;
  bool window_limited(uint32_t stream) const;

  // --- connection ---
  // Frames that wait for being sent. The view is valid until the next call of any other function.
  ByteView pending() const;
  void clear_pending();
  // Sends PING with this payload; kPong comes back.
  void ping(std::span<const uint8_t, 8> payload);
  // No more streams. Server: GOAWAY(2^31-1) and a PING; when its answer is there, the second GOAWAY
  // with the last stream. Client: one GOAWAY. Streams that are there go on.
  void drain();
  // Ends the session: GOAWAY with `code` is queued, every stream is forgotten without events.
  void close(H2Code code, std::string_view debug);
  bool draining() const;  // drain(), or GOAWAY seen
  // Draining and no stream left: flush pending() and close the connection.
  bool finished() const;
  // When on_time() wants to be called; MonoTime::max() if never. Changes with every call.
  MonoTime deadline() const;
  // Sends a keepalive PING after silence. Returns false when the last one was not answered in
  // time: failed() is true, with kConnectTimeout.
  bool on_time(MonoTime now);
  bool peer_settings_seen() const;
  // Client: how many streams the peer's SETTINGS allow; 0 until they have come.
  uint32_t granted_streams() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace meltemi::codec
