#include "userspace/codec/h2_tunnel.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>

#include "userspace/codec/fifo.h"
#include "userspace/codec/stream_history.h"
#include "userspace/codec/h2_frame.h"
#include "userspace/codec/h2_message.h"
#include "userspace/codec/hpack_read.h"
#include "userspace/codec/hpack_write.h"
#include "userspace/codec/stream_table.h"

namespace meltemi::codec {
namespace {

using namespace h2;

// Flags of a stream.
constexpr uint8_t kLocalEnded = 1;   // we sent END_STREAM
constexpr uint8_t kRemoteEnded = 2;  // the peer did
constexpr uint8_t kHeadersSent = 4;  // request (client) or final response (server) was queued
constexpr uint8_t kHeadersSeen = 8;  // final response (client) was received
constexpr uint8_t kBlocked = 16;     // sendable() said 0 for want of window: owe a kWritable
constexpr uint8_t kWindowLimited = 32;
constexpr uint8_t kQueued = 64;  // its id is in conn_blocked or ready

// PING payloads of the peers we know, so that traces read alike (facts: h2 crate).
constexpr uint8_t kKeepalivePayload[8] = {0x3b, 0x7c, 0xdb, 0x7a, 0x0b, 0x87, 0x16, 0xb4};
constexpr uint8_t kShutdownPayload[8] = {0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54};

constexpr std::string_view kLimitNames[] = {
#define MELTEMI_TUNNEL_LIMIT_NAME(id, text, meaning) text,
    MELTEMI_TUNNEL_LIMITS(MELTEMI_TUNNEL_LIMIT_NAME)
#undef MELTEMI_TUNNEL_LIMIT_NAME
};
constexpr std::string_view kLimitMeanings[] = {
#define MELTEMI_TUNNEL_LIMIT_MEANING(id, text, meaning) meaning,
    MELTEMI_TUNNEL_LIMITS(MELTEMI_TUNNEL_LIMIT_MEANING)
#undef MELTEMI_TUNNEL_LIMIT_MEANING
};

struct TunnelStream {
  uint32_t id = 0;
  uint8_t flags = 0;
  int32_t send_window = 0;   // may be negative after SETTINGS (RFC 9113 section 6.9.2)
  int32_t recv_avail = 0;    // what the peer may still send
  uint32_t recv_window = 0;  // what it is granted in all
  uint32_t consumed = 0;     // passed on by the caller, not yet returned to the peer
  uint32_t headers_at = 0;   // generation of pending() that holds our HEADERS
  void* user = nullptr;
};
static_assert(sizeof(TunnelStream) <= 48);

}  // namespace

std::string_view tunnel_limit_name(TunnelLimit limit) {
  return kLimitNames[static_cast<size_t>(limit)];
}

struct TunnelSession::State {
  TunnelRole role;
  TunnelOptions options;

  // Output.
  std::string pending;
  uint32_t generation = 0;  // counts clear_pending()
  uint32_t unread_replies = 0;
  bool table_size_told = false;

  // Input: the frame being read.
  enum class Phase : uint8_t { kPreface, kFrameHeader, kPayload } phase = Phase::kFrameHeader;
  uint8_t scratch[16] = {};  // a frame header, or a small payload, that came in pieces
  uint8_t have = 0;
  bool discard = false;       // the frame's payload goes nowhere
  bool pad_known = false;     // the Pad Length octet was read, or there is none
  uint8_t priority_left = 0;  // bytes of HEADERS' priority fields still to be skipped
  FrameHeader frame;
  uint32_t left = 0;  // of the payload, still to come
  uint32_t pad = 0;
  uint32_t settings_window = 0;
  bool settings_window_set = false;
  bool first_frame = true;

  // The header block being read.
  hpack::Decoder decoder;
  std::string block;          // what has come of it
  uint32_t block_stream = 0;  // 0: none; CONTINUATION must follow on this one
  bool block_end_stream = false;
  bool block_discard = false;
  uint32_t block_continuations = 0;
  HeaderList headers;
  std::vector<HeaderField> views;
  bool headers_lent = false;  // the last event has views into `headers`

  // Streams.
  StreamTable<TunnelStream> streams;
  uint32_t next_id = 1;         // client
  uint32_t last_peer_id = 0;    // server: highest that was accepted
  StreamHistory history;        // server: which of those below were used
  struct PastStream {
    uint32_t id = 0;
    int64_t window = 0;
  };
  static constexpr size_t kPastStreams = 8;  // frames to older ones are under way no more
  std::array<PastStream, kPastStreams> past;
  size_t past_next = 0;
  Fifo<uint32_t> conn_blocked;  // want connection window, first come first served
  Fifo<uint32_t> ready;         // owe a kWritable, to be checked again
  Fifo<TunnelEvent> queued;     // resets after a GOAWAY

  // Peer's settings.
  uint32_t peer_frame_size = kDefaultFrameSize;
  uint32_t peer_window = kDefaultWindow;
  uint32_t peer_max_streams;
  uint32_t peer_max_header_list = 0xffffffff;
  bool peer_settings = false;
  bool peer_streams_said = false;

  // Windows of the connection.
  int64_t conn_send = kDefaultWindow;
  int64_t conn_recv = kDefaultWindow;
  int64_t grants = 0;  // sum of recv_avail of all streams

  // Life.
  bool failed = false;
  bool failure_told = false;
  Error failure;
  bool goaway_sent = false;   // no new streams
  bool goaway_final = false;  // server: the second one, with the real last id
  bool goaway_seen = false;
  MonoTime last_received{};
  MonoTime ping_sent{};
  bool ping_open = false;

  RateLimit resets, controls, empty_data;
  int64_t window_budget = kTunnelWindowBurst;

  State(TunnelRole r, const TunnelOptions& o)
      : role(r), options(o), peer_max_streams(o.assumed_peer_streams) {}

  // --- output ---
  std::string start_block() {
    std::string block;
    block.reserve(256);
    if (!table_size_told) block.push_back(static_cast<char>(hpack::kNoDynamicTable));
    table_size_told = true;
    return block;
  }

  // --- ends ---
  void die(H2Code code, Reason reason, std::string detail) {
    if (failed) return;
    failed = true;
    const Fault fault = role == TunnelRole::kClient ? Fault::kUpstream : Fault::kDownstream;
    failure = Error{reason, fault, Retry::kNo, detail};
    // A peer that does not read must not make us keep answers for it.
    if (unread_replies > kTunnelMaxUnreadReplies) pending.clear();
    put_goaway(pending, role == TunnelRole::kServer ? last_peer_id : 0, code,
               std::string_view(detail).substr(0, 128));
    streams.clear();
    ready.clear();
    conn_blocked.clear();
    queued.clear();
  }
  void protocol_error(std::string detail, H2Code code = H2Code::kProtocolError) {
    die(code, Reason::kTunnelH2Error, std::move(detail));
  }
  void limit_hit(TunnelLimit limit) {
    const auto i = static_cast<size_t>(limit);
    std::string detail(kLimitNames[i]);
    detail += ": ";
    detail += kLimitMeanings[i];
    die(H2Code::kEnhanceYourCalm, Reason::kLimitExceeded, std::move(detail));
  }
  void count_reply() {
    if (++unread_replies > kTunnelMaxUnreadReplies) limit_hit(TunnelLimit::kUnreadReplies);
  }
  void count_reset(MonoTime now) {
    if (!resets.take(now, kTunnelResetBurst, kTunnelResetsPerSecond))
      limit_hit(TunnelLimit::kResetFlood);
  }
  void count_control(MonoTime now) {
    if (!controls.take(now, kTunnelControlBurst, kTunnelControlPerSecond))
      limit_hit(TunnelLimit::kControlFlood);
  }

  void forget(uint32_t id) {
    if (TunnelStream* s = streams.find(id)) {
      grants -= s->recv_avail;
      past[past_next++ % kPastStreams] = {id, s->send_window};
    }
    streams.erase(id);
  }
  // What is wrong with a WINDOW_UPDATE for a stream that is no longer there: it is legal (RFC 9113
  // section 5.1), but not with any value.
  H2Code past_window_fault(uint32_t id, uint32_t increment) {
    if (increment == 0) return H2Code::kProtocolError;
    for (PastStream& p : past) {
      if (p.id != id) continue;
      p.window += increment;
      if (p.window > kMaxWindow) return H2Code::kFlowControlError;
    }
    return H2Code::kNoError;
  }
  // Our RST_STREAM for a stream that the peer broke; the caller of next() learns by kReset.
  bool stream_error(uint32_t id, H2Code code, MonoTime now, TunnelEvent& out) {
    put_rst(pending, id, code);
    count_reply();
    count_reset(now);
    if (failed) return false;
    TunnelStream* s = streams.find(id);
    if (s == nullptr) return false;
    out.kind = TunnelEventKind::kReset;
    out.stream = id;
    out.code = static_cast<uint32_t>(code);
    out.user = s->user;
    forget(id);
    return true;
  }
  TunnelStream& open_stream(uint32_t id) {
    TunnelStream& s = streams.insert(id);
    s.send_window = static_cast<int32_t>(peer_window);
    s.recv_window = options.initial_stream_window;
    s.recv_avail = static_cast<int32_t>(options.initial_stream_window);
    grants += s.recv_avail;
    raise_connection_window();
    return s;
  }
  // The connection's window is never what holds a stream back: it covers the sum of what streams
  // were granted, so that one stalled reader cannot starve the others.
  void raise_connection_window() {
    const int64_t floor = std::max<int64_t>(options.connection_window / 2, grants);
    if (conn_recv >= floor) return;
    const int64_t target =
        std::min<int64_t>(std::max<int64_t>(options.connection_window, 2 * grants), kMaxWindow);
    if (target <= conn_recv) return;
    put_window_update(pending, 0, static_cast<uint32_t>(target - conn_recv));
    conn_recv = target;
  }
  // Returns consumed bytes to the peer once they are half of the stream's window.
  void give_back(TunnelStream& s) {
    if (s.consumed == 0 || s.consumed < s.recv_window / 2 || (s.flags & kRemoteEnded) != 0) return;
    put_window_update(pending, s.id, s.consumed);
    s.recv_avail += static_cast<int32_t>(s.consumed);
    grants += s.consumed;
    s.consumed = 0;
    raise_connection_window();
  }
  void forget_if_done(uint32_t id, uint8_t stream_flags) {
    if ((stream_flags & (kLocalEnded | kRemoteEnded)) == (kLocalEnded | kRemoteEnded)) forget(id);
  }
  void queue_writable(TunnelStream& s) {
    if ((s.flags & kQueued) == 0) {
      s.flags |= kQueued;
      ready.push(s.id);
    }
  }

  // --- input, in the order of a frame's life; true: `out` is an event ---
  bool pop_queued(TunnelEvent& out);
  bool read_preface(ByteView& in);
  bool read_frame_header(ByteView& in);
  bool start_frame(MonoTime now, TunnelEvent& out);
  bool start_data(MonoTime now, TunnelEvent& out);
  bool start_headers(MonoTime now, TunnelEvent& out);
  void start_continuation();
  bool read_payload(ByteView& in, MonoTime now, TunnelEvent& out);
  bool read_data(ByteView& in, TunnelEvent& out);
  bool end_data(TunnelEvent& out);
  void read_header_bytes(ByteView& in);
  void decode_block(MessageRules& rules);
  bool end_headers(MonoTime now, TunnelEvent& out);
  bool on_request(const MessageRules& rules, MonoTime now, TunnelEvent& out);
  bool on_response_or_trailers(const MessageRules& rules, MonoTime now, TunnelEvent& out);
  bool on_small_frame(ByteView& in, MonoTime now, TunnelEvent& out);
  void on_setting(uint16_t id, uint32_t value);
  void end_settings();
  bool on_ping(TunnelEvent& out);
  bool on_goaway(TunnelEvent& out);
  bool on_window_update(MonoTime now, TunnelEvent& out);
  bool on_rst(MonoTime now, TunnelEvent& out);
  void end_frame() {
    phase = Phase::kFrameHeader;
    have = 0;
  }
  // Gathers `want` bytes in scratch. False: more input is needed.
  bool gather(ByteView& in, uint8_t want) {
    const size_t n = std::min<size_t>(in.size(), static_cast<size_t>(want - have));
    if (n != 0) std::memcpy(scratch + have, in.data(), n);
    have = static_cast<uint8_t>(have + n);
    in = in.subspan(n);
    return have == want;
  }
  void lend_headers(TunnelEvent& out) {
    views.clear();
    for (const HeaderField f : headers) views.push_back(f);
    out.headers = views;
    headers_lent = true;
  }
};

bool TunnelSession::State::pop_queued(TunnelEvent& out) {
  if (headers_lent) {
    headers_lent = false;
    if (headers.bytes() > 1024) {
      headers.release();
      std::vector<HeaderField>().swap(views);
    } else {
      headers.clear();
      views.clear();
    }
  }
  if (failed) {
    if (failure_told) return false;
    failure_told = true;
    out.kind = TunnelEventKind::kFailed;
    return true;
  }
  if (!queued.empty()) {
    out = queued.pop();
    return true;
  }
  while (!ready.empty()) {
    const uint32_t id = ready.pop();
    TunnelStream* s = streams.find(id);
    if (s == nullptr) continue;
    s->flags &= ~kQueued;
    if ((s->flags & kBlocked) == 0 || s->send_window <= 0) continue;
    if (conn_send <= 0) {  // used up by those before it
      s->flags |= kQueued;
      conn_blocked.push(id);
      continue;
    }
    s->flags &= ~kBlocked;
    out.kind = TunnelEventKind::kWritable;
    out.stream = id;
    out.user = s->user;
    return true;
  }
  return false;
}

bool TunnelSession::State::read_preface(ByteView& in) {
  while (!in.empty() && have < kPreface.size()) {
    if (in[0] != static_cast<uint8_t>(kPreface[have])) {
      protocol_error("not an HTTP/2 connection preface");
      return false;
    }
    ++have;
    in = in.subspan(1);
  }
  if (have < kPreface.size()) return false;
  end_frame();
  return true;
}

// True: the 9 bytes are there.
bool TunnelSession::State::read_frame_header(ByteView& in) {
  const uint8_t* p;
  if (have == 0 && in.size() >= kFrameHeader) {
    p = in.data();
    in = in.subspan(kFrameHeader);
  } else {
    if (!gather(in, kFrameHeader)) return false;
    p = scratch;
  }
  frame = h2::read_frame_header(p);
  left = frame.length;
  have = 0;
  pad = 0;
  discard = false;
  priority_left = 0;
  pad_known = true;
  phase = Phase::kPayload;
  return true;
}

// Checks a frame as soon as its header is known. True: `out` is an event.
bool TunnelSession::State::start_frame(MonoTime now, TunnelEvent& out) {
  if (first_frame) {
    if (frame.type != kSettings || (frame.flags & kFlagAck) != 0) {
      protocol_error("the first frame is not SETTINGS");
      return false;
    }
    first_frame = false;
  }
  if (block_stream != 0 && (frame.type != kContinuation || frame.stream != block_stream)) {
    protocol_error("a frame inside a header block");
    return false;
  }
  if (const FrameFault fault = check_frame(frame, options.max_frame_size); fault.why != nullptr) {
    protocol_error(fault.why, fault.code);
    return false;
  }
  switch (frame.type) {
    case kData:
      return start_data(now, out);
    case kHeaders:
      return start_headers(now, out);
    case kContinuation:
      start_continuation();
      return false;
    case kRstStream:
      return false;
    case kSettings:
      if (frame.length > kMaxSettings * 6) limit_hit(TunnelLimit::kControlFlood);
      [[fallthrough]];
    case kPing:
      if (!frame.has(kFlagAck)) count_control(now);
      return false;
    case kGoaway:
      count_control(now);
      return false;
    case kWindowUpdate:
      if (--window_budget < 0) limit_hit(TunnelLimit::kWindowFlood);
      return false;
    default:
      count_control(now);
      discard = true;  // PRIORITY; unknown types are ignored (RFC 9113 section 4.1)
      return false;
  }
}

bool TunnelSession::State::start_data(MonoTime now, TunnelEvent& out) {
  if (frame.length > conn_recv) {
    protocol_error("DATA above the connection's window", H2Code::kFlowControlError);
    return false;
  }
  conn_recv -= frame.length;
  pad_known = (frame.flags & kFlagPadded) == 0;
  if (frame.length == 0 && (frame.flags & kFlagEndStream) == 0 &&
      !empty_data.take(now, kTunnelEmptyDataBurst, kTunnelEmptyDataPerSecond)) {
    limit_hit(TunnelLimit::kEmptyDataFlood);
    return false;
  }
  TunnelStream* s = streams.find(frame.stream);
  if (s == nullptr) {
    const bool idle = role == TunnelRole::kClient ? frame.stream >= next_id || frame.stream % 2 == 0
                                                  : frame.stream > last_peer_id && !goaway_sent;
    if (idle) protocol_error("DATA on an idle stream");
    discard = true;  // a stream that we have forgotten: what was under way is dropped
    raise_connection_window();
    return false;
  }
  if ((s->flags & kRemoteEnded) != 0) {
    discard = true;
    return stream_error(frame.stream, H2Code::kStreamClosed, now, out);
  }
  if (role == TunnelRole::kClient && (s->flags & kHeadersSeen) == 0) {
    discard = true;
    return stream_error(frame.stream, H2Code::kProtocolError, now, out);
  }
  if (static_cast<int64_t>(frame.length) > s->recv_avail) {
    discard = true;
    return stream_error(frame.stream, H2Code::kFlowControlError, now, out);
  }
  s->recv_avail -= static_cast<int32_t>(frame.length);
  grants -= frame.length;
  if (s->recv_avail < static_cast<int32_t>(s->recv_window / 4)) s->flags |= kWindowLimited;
  raise_connection_window();
  return false;
}

bool TunnelSession::State::start_headers(MonoTime now, TunnelEvent& out) {
  pad_known = (frame.flags & kFlagPadded) == 0;
  priority_left = (frame.flags & kFlagPriority) != 0 ? 5 : 0;
  block_stream = frame.stream;
  block_end_stream = (frame.flags & kFlagEndStream) != 0;
  block_discard = false;
  block_continuations = 0;
  block.clear();
  bool event = false;
  TunnelStream* s = streams.find(frame.stream);
  if (s != nullptr) {
    if ((s->flags & kRemoteEnded) != 0) {
      block_discard = true;
      event = stream_error(frame.stream, H2Code::kStreamClosed, now, out);
    }
  } else if (role == TunnelRole::kClient) {
    if (frame.stream >= next_id) protocol_error("HEADERS on an idle stream");
    block_discard = true;  // an answer on a stream that we have reset
  } else if (frame.stream <= last_peer_id) {
    if (history.fate(frame.stream) == StreamHistory::Fate::kNeverOpened) {
      protocol_error("HEADERS open a stream below one that is open");  // RFC 9113 section 5.1.1
      return false;
    }
    // Trailers on a stream that we have ended. HPACK state must advance all the same.
    block_discard = true;
    count_control(now);
  } else if (goaway_final) {
    block_discard = true;
  } else {
    last_peer_id = frame.stream;
    history.opened(frame.stream);
    if (streams.size() >= options.max_concurrent_streams) {
      block_discard = true;
      event = stream_error(frame.stream, H2Code::kRefusedStream, now, out);
    }
  }
  return event;
}

void TunnelSession::State::start_continuation() {
  if (block_stream == 0) return protocol_error("CONTINUATION without HEADERS");
  if (++block_continuations > kTunnelMaxContinuations) limit_hit(TunnelLimit::kContinuationFlood);
}

bool TunnelSession::State::read_payload(ByteView& in, MonoTime now, TunnelEvent& out) {
  if (!pad_known) {  // of a frame that is dropped as well: RFC 9113 section 6.1 knows no exception
    if (in.empty()) return false;
    pad = in[0];
    in = in.subspan(1);
    --left;
    pad_known = true;
    if (pad + priority_left > left) {
      protocol_error("padding longer than its frame");
      return false;
    }
  }
  if (discard || (frame.flags & kFlagAck && frame.type == kSettings)) {
    const size_t n = std::min<size_t>(left, in.size());
    in = in.subspan(n);
    left -= static_cast<uint32_t>(n);
    if (left == 0) end_frame();
    return false;
  }
  switch (frame.type) {
    case kData:
      return read_data(in, out);
    case kHeaders:
    case kContinuation:
      read_header_bytes(in);
      if (failed || left != 0) return false;
      end_frame();
      if ((frame.flags & kFlagEndHeaders) == 0) return false;
      return end_headers(now, out);
    case kSettings:
      while (left > 0 && gather(in, 6)) {
        have = 0;
        left -= 6;
        on_setting(load_be<uint16_t>(scratch), load_be<uint32_t>(scratch + 2));
        if (failed) return false;
      }
      if (left == 0) {
        end_settings();
        end_frame();
      }
      return false;
    default:
      return on_small_frame(in, now, out);
  }
}

bool TunnelSession::State::read_data(ByteView& in, TunnelEvent& out) {
  if (left > pad && !in.empty()) {
    const size_t n = std::min<size_t>(left - pad, in.size());
    out.data = in.first(n);
    in = in.subspan(n);
    left -= static_cast<uint32_t>(n);
    TunnelStream* s = streams.find(frame.stream);
    if (s == nullptr) {  // reset by us in the middle of the frame
      discard = true;
      return false;
    }
    out.kind = TunnelEventKind::kData;
    out.stream = frame.stream;
    out.user = s->user;
    if (left == 0 && pad == 0 && (frame.flags & kFlagEndStream) != 0) {
      out.end_stream = true;
      s->flags |= kRemoteEnded;
      const uint8_t f = s->flags;
      forget_if_done(frame.stream, f);
    }
    if (left == 0) end_frame();
    return true;
  }
  if (left > pad) return false;
  const size_t n = std::min<size_t>(left, in.size());  // the padding
  in = in.subspan(n);
  left -= static_cast<uint32_t>(n);
  if (left != 0) return false;
  return end_data(out);
}

// A DATA frame that did not end with a piece of payload: it was empty or padded.
bool TunnelSession::State::end_data(TunnelEvent& out) {
  end_frame();
  TunnelStream* s = streams.find(frame.stream);
  if (s == nullptr) return false;
  if ((frame.flags & kFlagPadded) != 0) {  // credit that nobody will consume()
    s->consumed += pad + 1;
    give_back(*s);
  }
  if ((frame.flags & kFlagEndStream) == 0) return false;
  out.kind = TunnelEventKind::kEnd;
  out.end_stream = true;
  out.stream = frame.stream;
  out.user = s->user;
  s->flags |= kRemoteEnded;
  const uint8_t f = s->flags;
  forget_if_done(frame.stream, f);
  return true;
}

void TunnelSession::State::read_header_bytes(ByteView& in) {
  if (priority_left > 0) {
    const size_t n = std::min<size_t>(priority_left, in.size());
    in = in.subspan(n);
    priority_left = static_cast<uint8_t>(priority_left - n);
    left -= static_cast<uint32_t>(n);
    if (priority_left > 0) return;
  }
  if (left > pad) {
    const size_t n = std::min<size_t>(left - pad, in.size());
    if (block.size() + n > options.max_header_list) return limit_hit(TunnelLimit::kHeaderBytes);
    block.append(as_text(in.first(n)));
    in = in.subspan(n);
    left -= static_cast<uint32_t>(n);
    if (failed) return;
  }
  if (left <= pad) {
    const size_t n = std::min<size_t>(left, in.size());
    in = in.subspan(n);
    left -= static_cast<uint32_t>(n);
  }
}

// Every block is decoded, even if nobody wants it: HPACK's state is the connection's.
void TunnelSession::State::decode_block(MessageRules& rules) {
  const std::string whole = std::exchange(block, {});
  headers.clear();
  size_t size = 0;
  const bool good = decoder.decode(as_bytes(whole), [&](const hpack::Field& f) {
    size += f.name.size() + f.value.size() + hpack::kFieldOverhead;
    if (size > options.max_header_list) return limit_hit(TunnelLimit::kHeaderBytes);
    if (headers.size() >= kTunnelMaxHeaderCount) return limit_hit(TunnelLimit::kHeaderCount);
    rules.add(f);
    headers.add(f.name, f.value);
  });
  decoder.trim();
  if (!good) protocol_error("HPACK error", H2Code::kCompressionError);
}

bool TunnelSession::State::end_headers(MonoTime now, TunnelEvent& out) {
  MessageRules rules;
  decode_block(rules);
  frame.stream = block_stream;
  block_stream = 0;
  if (failed || block_discard) {
    headers.clear();
    return false;
  }
  if (role == TunnelRole::kServer && streams.find(frame.stream) == nullptr)
    return on_request(rules, now, out);
  return on_response_or_trailers(rules, now, out);
}

bool TunnelSession::State::on_request(const MessageRules& rules, MonoTime now, TunnelEvent& out) {
  if (!rules.valid_request(headers, false)) {
    headers.clear();
    return stream_error(frame.stream, H2Code::kProtocolError, now, out);
  }
  TunnelStream& s = open_stream(frame.stream);
  if (block_end_stream) s.flags |= kRemoteEnded;
  out.kind = TunnelEventKind::kRequest;
  out.stream = frame.stream;
  out.end_stream = block_end_stream;
  lend_headers(out);
  return true;
}

bool TunnelSession::State::on_response_or_trailers(const MessageRules& rules, MonoTime now,
                                                   TunnelEvent& out) {
  TunnelStream* s = streams.find(frame.stream);
  if (s == nullptr) {  // reset by us while its block came in
    headers.clear();
    return false;
  }
  const bool trailers = role == TunnelRole::kServer || (s->flags & kHeadersSeen) != 0;
  const bool informational = !trailers && rules.status() < 200;
  if (trailers ? !block_end_stream || !rules.valid_trailers()
               : !rules.valid_response() || (informational && block_end_stream)) {
    headers.clear();
    return stream_error(frame.stream, H2Code::kProtocolError, now, out);
  }
  if (informational) {  // nothing for a tunnel
    headers.clear();
    count_control(now);
    return false;
  }
  out.stream = frame.stream;
  out.user = s->user;
  out.end_stream = block_end_stream;
  if (trailers) {
    out.kind = TunnelEventKind::kEnd;
    headers.clear();
  } else {
    out.kind = TunnelEventKind::kResponse;
    out.status = rules.status();
    s->flags |= kHeadersSeen;
    lend_headers(out);
  }
  if (block_end_stream) {
    s->flags |= kRemoteEnded;
    const uint8_t f = s->flags;
    forget_if_done(frame.stream, f);
  }
  return true;
}

// RST_STREAM, PING, GOAWAY and WINDOW_UPDATE: at most 8 bytes that matter.
bool TunnelSession::State::on_small_frame(ByteView& in, MonoTime now, TunnelEvent& out) {
  const uint8_t want = frame.type == kRstStream || frame.type == kWindowUpdate ? 4 : 8;
  if (!gather(in, want)) return false;
  left -= want;
  if (left == 0)
    end_frame();
  else
    discard = true;  // GOAWAY's debug data
  switch (frame.type) {
    case kRstStream:
      return on_rst(now, out);
    case kPing:
      return on_ping(out);
    case kGoaway:
      return on_goaway(out);
    default:
      return on_window_update(now, out);
  }
}

void TunnelSession::State::on_setting(uint16_t id, uint32_t value) {
  switch (id) {
    case kEnablePush:
      if (value > 1 || (value == 1 && role == TunnelRole::kClient))
        protocol_error("SETTINGS_ENABLE_PUSH");
      return;
    case kMaxConcurrentStreams:
      peer_max_streams = value;
      peer_streams_said = true;
      return;
    case kInitialWindowSize:
      if (value > kMaxWindow)
        return protocol_error("SETTINGS_INITIAL_WINDOW_SIZE", H2Code::kFlowControlError);
      // Applied once a frame: streams are walked for it.
      settings_window = value;
      settings_window_set = true;
      return;
    case kMaxFrameSize:
      if (value < kDefaultFrameSize || value > 0xffffff)
        return protocol_error("SETTINGS_MAX_FRAME_SIZE");
      peer_frame_size = value;
      return;
    case kMaxHeaderListSize:
      peer_max_header_list = value;
      return;
    default:  // HEADER_TABLE_SIZE included: we keep no table
      return;
  }
}

void TunnelSession::State::end_settings() {
  // What the first SETTINGS do not limit is not limited (RFC 9113 section 6.5.2).
  if (!peer_settings && !peer_streams_said) peer_max_streams = 0xffffffff;
  peer_settings = true;
  if (settings_window_set) {
    settings_window_set = false;
    const int64_t delta = int64_t{settings_window} - peer_window;
    peer_window = settings_window;
    bool overflow = false;
    if (delta != 0) {
      streams.for_each([&](TunnelStream& s) {
        const int64_t window = s.send_window + delta;
        overflow |= window > kMaxWindow;
        s.send_window = static_cast<int32_t>(std::min<int64_t>(window, kMaxWindow));
        if (s.send_window > 0 && (s.flags & kBlocked) != 0) queue_writable(s);
      });
    }
    if (overflow)
      return protocol_error("SETTINGS overflow a stream's window", H2Code::kFlowControlError);
  }
  put_frame(pending, 0, kSettings, kFlagAck, 0);
  count_reply();
}

bool TunnelSession::State::on_ping(TunnelEvent& out) {
  if ((frame.flags & kFlagAck) == 0) {
    put_ping(pending, scratch, kFlagAck);
    count_reply();
    return false;
  }
  if (std::memcmp(scratch, kKeepalivePayload, 8) == 0) {
    ping_open = false;
    return false;
  }
  if (std::memcmp(scratch, kShutdownPayload, 8) == 0) {
    if (role == TunnelRole::kServer && goaway_sent && !goaway_final) {
      goaway_final = true;
      put_goaway(pending, last_peer_id, H2Code::kNoError, {});
    }
    return false;
  }
  out.kind = TunnelEventKind::kPong;
  out.data = {scratch, 8};
  return true;
}

bool TunnelSession::State::on_goaway(TunnelEvent& out) {
  const uint32_t last = load_be<uint32_t>(scratch) & kMaxStreamId;
  goaway_seen = true;
  out.kind = TunnelEventKind::kGoaway;
  out.code = load_be<uint32_t>(scratch + 4);
  if (role == TunnelRole::kServer) return true;
  streams.for_each([&](const TunnelStream& s) {
    if (s.id <= last) return;
    TunnelEvent e;
    e.kind = TunnelEventKind::kReset;
    e.code = static_cast<uint32_t>(H2Code::kRefusedStream);
    e.unprocessed = true;
    e.stream = s.id;
    e.user = s.user;
    queued.push(e);
  });
  for (size_t i = 0; i < queued.size(); ++i) forget(queued[i].stream);
  return true;
}

bool TunnelSession::State::on_window_update(MonoTime now, TunnelEvent& out) {
  const uint32_t increment = load_be<uint32_t>(scratch) & kMaxWindow;
  if (frame.stream == 0) {
    if (increment == 0) {
      protocol_error("WINDOW_UPDATE of 0");
    } else if (conn_send + increment > kMaxWindow) {
      protocol_error("WINDOW_UPDATE overflows", H2Code::kFlowControlError);
    } else {
      conn_send += increment;
      if (conn_send > 0)
        while (!conn_blocked.empty()) ready.push(conn_blocked.pop());
    }
    return false;
  }
  TunnelStream* s = streams.find(frame.stream);
  if (s == nullptr) {
    if (role == TunnelRole::kClient ? frame.stream >= next_id : frame.stream > last_peer_id)
      return protocol_error("WINDOW_UPDATE on an idle stream"), false;
    const H2Code fault = past_window_fault(frame.stream, increment);
    return fault != H2Code::kNoError && stream_error(frame.stream, fault, now, out);
  }
  if (increment == 0) return stream_error(frame.stream, H2Code::kProtocolError, now, out);
  if (int64_t{s->send_window} + increment > kMaxWindow)
    return stream_error(frame.stream, H2Code::kFlowControlError, now, out);
  s->send_window += static_cast<int32_t>(increment);
  if ((s->flags & kBlocked) != 0 && s->send_window > 0) queue_writable(*s);
  return false;
}

bool TunnelSession::State::on_rst(MonoTime now, TunnelEvent& out) {
  TunnelStream* s = streams.find(frame.stream);
  if (s == nullptr) {
    if (role == TunnelRole::kClient ? frame.stream >= next_id : frame.stream > last_peer_id)
      protocol_error("RST_STREAM on an idle stream");
    else
      count_control(now);
    return false;
  }
  if (role == TunnelRole::kServer) count_reset(now);
  if (failed) return false;
  out.kind = TunnelEventKind::kReset;
  out.stream = frame.stream;
  out.code = load_be<uint32_t>(scratch);
  out.unprocessed = out.code == static_cast<uint32_t>(H2Code::kRefusedStream);
  out.user = s->user;
  forget(frame.stream);
  return true;
}

// --- the public face ----------------------------------------------------------------------------

TunnelSession::TunnelSession(TunnelRole role, const TunnelOptions& options, MonoTime now)
    : state_(std::make_unique<State>(role, options)) {
  State& s = *state_;
  s.last_received = now;
  const bool client = role == TunnelRole::kClient;
  if (client) {
    s.pending.append(kPreface);
  } else {
    s.phase = State::Phase::kPreface;
  }
  // The order of Istio's ztunnel.
  put_frame(s.pending, 4 * 6, kSettings, 0, 0);
  s.pending.resize(s.pending.size() - 4 * 6);
  if (client)
    put_setting(s.pending, kEnablePush, 0);
  else
    put_setting(s.pending, kMaxConcurrentStreams, options.max_concurrent_streams);
  put_setting(s.pending, kInitialWindowSize, options.initial_stream_window);
  put_setting(s.pending, kMaxFrameSize, options.max_frame_size);
  put_setting(s.pending, kMaxHeaderListSize, options.max_header_list);
  s.raise_connection_window();
}
TunnelSession::~TunnelSession() = default;
TunnelSession::TunnelSession(TunnelSession&&) noexcept = default;
TunnelSession& TunnelSession::operator=(TunnelSession&&) noexcept = default;

TunnelEvent TunnelSession::next(ByteView& in, MonoTime now) {
  State& s = *state_;
  if (!in.empty()) s.last_received = now;
  TunnelEvent out;
  while (true) {
    if (s.pop_queued(out)) return out;
    if (s.failed) {
      in = in.subspan(in.size());
      return out;
    }
    switch (s.phase) {
      case State::Phase::kPreface:
        if (!s.read_preface(in) && !s.failed) return out;
        break;
      case State::Phase::kFrameHeader:
        if (in.empty() || !s.read_frame_header(in)) return out;
        if (s.start_frame(now, out)) return out;
        break;
      case State::Phase::kPayload:
        if (in.empty() && s.left != 0) return out;
        if (s.read_payload(in, now, out)) return out;
        break;
    }
  }
}

const Error& TunnelSession::failure() const {
  return state_->failure;
}
bool TunnelSession::failed() const {
  return state_->failed;
}

bool TunnelSession::can_connect() const {
  const State& s = *state_;
  return s.role == TunnelRole::kClient && !s.failed && !s.goaway_sent && !s.goaway_seen &&
         s.next_id <= kMaxStreamId && s.streams.size() < s.peer_max_streams;
}

Result<uint32_t> TunnelSession::connect(std::string_view authority,
                                        std::span<const HeaderField> headers, void* user) {
  State& s = *state_;
  if (s.failed) return fail(s.failure);
  if (s.role != TunnelRole::kClient)
    return fail(Reason::kInternal, Fault::kInternal, "connect() on a server's session");
  if (s.goaway_sent || s.goaway_seen || s.next_id > kMaxStreamId)
    return fail(Reason::kPoolDraining, Fault::kUpstream, "the tunnel takes no more streams",
                Retry::kSafe);
  if (s.streams.size() >= s.peer_max_streams)
    return fail(Reason::kLimitExceeded, Fault::kUpstream,
                "the peer's SETTINGS_MAX_CONCURRENT_STREAMS", Retry::kSafe);
  size_t list_size = 7 + 7 + 32 + 10 + authority.size() + 32;
  for (const HeaderField& f : headers) list_size += f.name.size() + f.value.size() + 32;
  if (list_size > s.peer_max_header_list)
    return fail(Reason::kLimitExceeded, Fault::kDownstream,
                "CONNECT above the peer's SETTINGS_MAX_HEADER_LIST_SIZE");
  std::string block = s.start_block();
  hpack::write_method_connect(block);
  hpack::write_authority(block, authority);
  for (const HeaderField& f : headers) hpack::write_field(block, f.name, f.value);
  const uint32_t id = s.next_id;
  s.next_id += 2;
  put_headers(s.pending, id, block, false, s.peer_frame_size);
  TunnelStream& stream = s.open_stream(id);
  stream.user = user;
  stream.flags = kHeadersSent;
  stream.headers_at = s.generation;
  return id;
}

void TunnelSession::respond(uint32_t id, uint16_t status, std::span<const HeaderField> headers,
                            bool end_stream) {
  State& s = *state_;
  TunnelStream* stream = s.streams.find(id);
  if (s.failed || s.role != TunnelRole::kServer || stream == nullptr) return;
  if ((stream->flags & kHeadersSent) != 0) return;
  size_t list_size = 7 + 3 + 32;
  for (const HeaderField& f : headers) list_size += f.name.size() + f.value.size() + 32;
  std::string block = s.start_block();
  hpack::write_status(block, status);
  if (list_size <= s.peer_max_header_list)
    for (const HeaderField& f : headers) hpack::write_field(block, f.name, f.value);
  put_headers(s.pending, id, block, end_stream, s.peer_frame_size);
  stream->flags |= kHeadersSent;
  stream->headers_at = s.generation;
  if (!end_stream) return;
  if ((stream->flags & kRemoteEnded) == 0) put_rst(s.pending, id, H2Code::kNoError);
  s.forget(id);
}

void TunnelSession::reset(uint32_t id, H2Code code) {
  State& s = *state_;
  if (s.failed || s.streams.find(id) == nullptr) return;
  put_rst(s.pending, id, code);
  s.forget(id);
}

void TunnelSession::set_user(uint32_t id, void* user) {
  if (TunnelStream* stream = state_->streams.find(id)) stream->user = user;
}
void* TunnelSession::user(uint32_t id) const {
  const TunnelStream* stream = state_->streams.find(id);
  return stream == nullptr ? nullptr : stream->user;
}
bool TunnelSession::known(uint32_t id) const {
  return state_->streams.find(id) != nullptr;
}
size_t TunnelSession::stream_count() const {
  return state_->streams.size();
}

uint32_t TunnelSession::sendable(uint32_t id) {
  State& s = *state_;
  TunnelStream* stream = s.streams.find(id);
  if (stream == nullptr || s.failed) return 0;
  if ((stream->flags & (kLocalEnded | kHeadersSent)) != kHeadersSent) return 0;
  if (stream->headers_at == s.generation && !s.pending.empty()) return 0;
  const int64_t room = std::min<int64_t>(stream->send_window, s.conn_send);
  if (room > 0) return static_cast<uint32_t>(std::min<int64_t>(room, s.peer_frame_size));
  stream->flags |= kBlocked;
  if (stream->send_window > 0 && (stream->flags & kQueued) == 0) {
    stream->flags |= kQueued;
    s.conn_blocked.push(id);
  }
  return 0;
}

uint32_t TunnelSession::send_room(uint32_t id) const {
  const TunnelStream* stream = state_->streams.find(id);
  if (stream == nullptr) return 0;
  return static_cast<uint32_t>(
      std::max<int64_t>(0, std::min<int64_t>(stream->send_window, state_->conn_send)));
}

bool TunnelSession::write_data_header(uint32_t id, uint32_t length, bool end_stream,
                                      std::span<uint8_t, 9> out) {
  State& s = *state_;
  TunnelStream* stream = s.streams.find(id);
  if (stream == nullptr || s.failed) return false;
  if ((stream->flags & (kLocalEnded | kHeadersSent)) != kHeadersSent) return false;
  if (stream->headers_at == s.generation && !s.pending.empty()) return false;
  if (length == 0 ? !end_stream
                  : int64_t{length} > std::min<int64_t>(stream->send_window, s.conn_send) ||
                        length > s.peer_frame_size)
    return false;
  stream->send_window -= static_cast<int32_t>(length);
  s.conn_send -= length;
  s.window_budget = std::min<int64_t>(s.window_budget + 2 + (length >> 10), 1 << 30);
  write_frame_header(out.data(), length, kData, end_stream ? kFlagEndStream : 0, id);
  if (end_stream) {
    stream->flags |= kLocalEnded;
    s.forget_if_done(id, stream->flags);
  }
  return true;
}

void TunnelSession::consume(uint32_t id, uint32_t bytes) {
  State& s = *state_;
  TunnelStream* stream = s.streams.find(id);
  if (stream == nullptr || (stream->flags & kRemoteEnded) != 0) return;
  // Never more than what came: a caller's mistake must not become a window without bound.
  const int64_t held = int64_t{stream->recv_window} - stream->recv_avail - stream->consumed;
  stream->consumed +=
      static_cast<uint32_t>(std::clamp<int64_t>(bytes, 0, std::max<int64_t>(held, 0)));
  s.give_back(*stream);
}

void TunnelSession::grow_window(uint32_t id, uint32_t window) {
  State& s = *state_;
  TunnelStream* stream = s.streams.find(id);
  if (stream == nullptr || (stream->flags & kRemoteEnded) != 0) return;
  stream->flags &= ~kWindowLimited;
  window = std::min(window, std::min(s.options.max_stream_window, kMaxWindow));
  if (window <= stream->recv_window) return;
  const uint32_t increment = window - stream->recv_window + stream->consumed;
  stream->recv_window = window;
  stream->consumed = 0;
  put_window_update(s.pending, id, increment);
  stream->recv_avail += static_cast<int32_t>(increment);
  s.grants += increment;
  s.raise_connection_window();
}

uint32_t TunnelSession::window(uint32_t id) const {
  const TunnelStream* stream = state_->streams.find(id);
  return stream == nullptr ? 0 : stream->recv_window;
}
bool TunnelSession::window_limited(uint32_t id) const {
  const TunnelStream* stream = state_->streams.find(id);
  return stream != nullptr && (stream->flags & kWindowLimited) != 0;
}

ByteView TunnelSession::pending() const {
  return as_bytes(state_->pending);
}

void TunnelSession::clear_pending() {
  State& s = *state_;
  ++s.generation;
  s.unread_replies = 0;
  if (s.pending.capacity() > 1024)
    std::string().swap(s.pending);  // an idle tunnel keeps no buffer
  else
    s.pending.clear();
}

void TunnelSession::ping(std::span<const uint8_t, 8> payload) {
  if (!state_->failed) put_ping(state_->pending, payload.data(), 0);
}

void TunnelSession::drain() {
  State& s = *state_;
  if (s.failed || s.goaway_sent) return;
  s.goaway_sent = true;
  if (s.role == TunnelRole::kServer) {
    put_goaway(s.pending, kMaxStreamId, H2Code::kNoError, {});
    put_ping(s.pending, kShutdownPayload, 0);
  } else {
    s.goaway_final = true;
    put_goaway(s.pending, 0, H2Code::kNoError, {});
  }
}

void TunnelSession::close(H2Code code, std::string_view debug) {
  State& s = *state_;
  if (s.failed) return;
  s.die(code, Reason::kShutdown, std::string(debug));
  s.failure_told = true;
}

bool TunnelSession::draining() const {
  return state_->goaway_sent || state_->goaway_seen;
}

bool TunnelSession::finished() const {
  const State& s = *state_;
  return !s.failed && (s.goaway_final || s.goaway_seen) && s.streams.size() == 0;
}

MonoTime TunnelSession::deadline() const {
  const State& s = *state_;
  if (s.failed || s.options.ping_interval == Duration::zero()) return MonoTime::max();
  if (!s.ping_open) return s.last_received + s.options.ping_interval;
  // Under load the answer may stand behind megabytes of DATA: those are signs of life too.
  return std::max(s.ping_sent, s.last_received) + s.options.ping_timeout;
}

bool TunnelSession::on_time(MonoTime now) {
  State& s = *state_;
  if (now < deadline()) return true;
  if (s.ping_open) {
    s.die(H2Code::kNoError, Reason::kConnectTimeout, "no answer to PING");
    return false;
  }
  s.ping_open = true;
  s.ping_sent = now;
  put_ping(s.pending, kKeepalivePayload, 0);
  return true;
}

bool TunnelSession::peer_settings_seen() const {
  return state_->peer_settings;
}
uint32_t TunnelSession::granted_streams() const {
  return state_->peer_settings ? state_->peer_max_streams : 0;
}

}  // namespace meltemi::codec
