#include "userspace/codec/h2.h"

#include <algorithm>
#include <cassert>
#include <utility>
#include <vector>

#include "userspace/codec/fifo.h"
#include "userspace/codec/h2_frame.h"
#include "userspace/codec/h2_message.h"
#include "userspace/codec/hpack_read.h"
#include "userspace/codec/hpack_write.h"
#include "userspace/codec/stream_history.h"
#include "userspace/codec/stream_table.h"

namespace meltemi::codec {
namespace {

using namespace h2;

constexpr std::string_view kLimitNames[] = {
#define MELTEMI_H2_LIMIT_NAME(id, text, meaning) text,
    MELTEMI_H2_LIMITS(MELTEMI_H2_LIMIT_NAME)
#undef MELTEMI_H2_LIMIT_NAME
};
constexpr std::string_view kLimitMeanings[] = {
#define MELTEMI_H2_LIMIT_MEANING(id, text, meaning) meaning,
    MELTEMI_H2_LIMITS(MELTEMI_H2_LIMIT_MEANING)
#undef MELTEMI_H2_LIMIT_MEANING
};

// Flags of a stream.
constexpr uint16_t kHeadTold = 1;       // on_head() was called
constexpr uint16_t kRemoteEnded = 2;    // the peer sent END_STREAM
constexpr uint16_t kAnswered = 4;       // server: the final response was queued
constexpr uint16_t kLocalEnded = 8;     // our END_STREAM was written
constexpr uint16_t kLocalSent = 16;     // and went out: a flush has passed
constexpr uint16_t kResetAtEnd = 32;    // RST_STREAM(NO_ERROR) once it did
constexpr uint16_t kResetQueued = 64;   // our RST_STREAM was written; the stream goes with it
constexpr uint16_t kReady = 128;        // in `ready`
constexpr uint16_t kConnBlocked = 256;  // in `conn_blocked`
constexpr uint16_t kNoContent = 512;    // client: asked with HEAD, no DATA may come

// Streams that a peer allows which has sent SETTINGS without a number. Not "no limit", which is what
// the RFC has: more go on another connection.
constexpr uint32_t kAssumedStreams = 100;

struct Stream {
  uint32_t id = 0;
  uint16_t flags = 0;
  int32_t send_window = 0;    // may be negative after SETTINGS (RFC 9113 section 6.9.2)
  int32_t recv_avail = 0;     // what the peer may still send
  uint32_t unconsumed = 0;    // told to the handler, not consumed
  uint32_t returnable = 0;    // consumed, not yet returned to the peer
  uint32_t reset_code = 0;    // of kResetQueued
  int64_t content_left = -1;  // of Content-Length; -1: not known
  H2Body* body = nullptr;     // that still has something to send
  bool has(uint16_t flag) const { return (flags & flag) != 0; }
};

constexpr uint32_t number(H2Code code) {
  return static_cast<uint32_t>(code);
}

std::unexpected<Error> refuse(std::string_view why, std::string_view name) {
  return fail(Reason::kBadRequest, Fault::kDownstream,
              "HTTP/2: " + std::string(why) + ": " + std::string(name.substr(0, 64)));
}

}  // namespace

std::string_view h2_limit_name(H2Limit limit) {
  return kLimitNames[static_cast<size_t>(limit)];
}

struct H2Session::State {
  const H2Role role;
  H2Handler& handler;
  const H2Options options;

  // Output: control frames and header blocks, in the order in which the peer must see them. DATA is
  // made in flush(), after them.
  std::string pending;
  uint32_t unread_replies = 0;
  hpack::Encoder encoder;
  std::string lowered;          // a field's name in lower case
  Fifo<uint32_t> ready;         // streams whose body may have something to send
  Fifo<uint32_t> conn_blocked;  // streams that wait for the connection's window
  std::vector<uint32_t> ended;  // streams whose end or RST_STREAM is in `pending`

  // Input: the frame being read.
  enum class Phase : uint8_t { kPreface, kFrameHeader, kData, kSkip, kPayload };
  Phase phase = Phase::kFrameHeader;
  FrameHeader frame;
  uint32_t left = 0;      // of the payload
  uint32_t pad = 0;       // DATA
  bool pad_known = true;  // DATA: the Pad Length octet was read, or there is none
  bool discard = false;   // DATA goes nowhere, its window comes back at once
  bool first_frame = true;
  std::string gathered;  // a preface, a frame header or a payload that came in pieces

  // The header block being read; CONTINUATION must follow on this stream. 0: none.
  uint32_t block_stream = 0;
  bool block_end_stream = false;
  uint32_t continuations = 0;
  std::string block;  // fragments, if it came in several frames
  hpack::Decoder decoder;
  HeaderList list;

  // Streams.
  StreamTable<Stream> streams;
  StreamHistory history;
  uint32_t next_id = 1;       // client
  uint32_t last_peer_id = 0;  // server: the highest that was opened

  // Windows of the connection.
  int64_t conn_send = kDefaultWindow;
  int64_t conn_avail;            // what the peer may still send
  uint32_t conn_window;          // what it is granted in all
  uint32_t conn_returnable = 0;  // consumed, not yet returned
  int64_t window_budget;

  // The peer's settings, and ours as far as it has confirmed them.
  uint32_t peer_frame_size = kDefaultFrameSize;
  uint32_t peer_window = kDefaultWindow;
  uint32_t peer_max_streams = kAssumedStreams;
  bool settings_seen = false;
  bool peer_connect_protocol = false;
  bool settings_acked = false;
  uint32_t stream_window;  // for new streams

  // Life.
  MonoTime now{}, begun{};
  RateLimit resets, controls, empty_data;
  bool failed = false;
  Error error;
  bool notice_sent = false, goaway_sent = false, goaway_seen = false;

  State(H2Role r, H2Handler& h, const H2Options& o);

  // --- ends ---
  void die(H2Code code, Reason reason, std::string detail);
  void protocol_error(std::string_view detail, H2Code code = H2Code::kProtocolError) {
    die(code, Reason::kBadRequest,
        "HTTP/2: " + std::string(h2_code_name(number(code))) + ": " + std::string(detail));
  }
  void limit_hit(H2Limit limit) {
    const auto i = static_cast<size_t>(limit);
    if (limit == H2Limit::kUnreadReplies) pending.clear();  // the peer does not read it anyway
    die(H2Code::kEnhanceYourCalm, Reason::kLimitExceeded,
        std::string(kLimitNames[i]) + ": " + std::string(kLimitMeanings[i]));
  }
  void count_reply() {
    if (++unread_replies > kH2MaxUnreadReplies || pending.size() > kH2MaxPending)
      limit_hit(H2Limit::kUnreadReplies);
  }
  void count_reset() {
    if (!resets.take(now, options.reset_burst, options.resets_per_second))
      limit_hit(H2Limit::kResetFlood);
  }
  void count_control() {
    if (!controls.take(now, options.control_burst, options.controls_per_second))
      limit_hit(H2Limit::kControlFlood);
  }
  void reset_stream(uint32_t id, H2Code code) {
    put_rst(pending, id, code);
    history.reset_by_us(id);
  }
  // The last call of the handler for a stream.
  void close_stream(uint32_t id, uint32_t code, bool unprocessed);
  // Our answer to a stream that the peer broke.
  void stream_error(uint32_t id, H2Code code);
  // How many streams we may have at once. Until the peer has said it, one: a peer that allows few
  // must not have to refuse the rest of our first flight.
  uint32_t stream_room() const { return settings_seen ? peer_max_streams : 1; }

  // --- input ---
  bool gather(ByteView& in, size_t want);
  void read_preface(ByteView& in);
  void read_frame_header(ByteView& in);
  void start_frame();
  void start_data();
  void read_data(ByteView& in);
  void data_piece(ByteView piece);
  void return_window(Stream* s, uint32_t bytes);
  void read_payload(ByteView& in);
  void on_payload(ByteView payload);
  void on_headers(ByteView payload);
  void check_priority(ByteView payload);
  void on_continuation(ByteView payload);
  void on_block(ByteView fragment);
  bool decode(ByteView fragment, MessageRules& rules, bool keep);
  void on_late_block(uint32_t id);
  void on_request(uint32_t id, const MessageRules& rules, bool too_large);
  void on_response(Stream& s, const MessageRules& rules);
  void on_trailers(Stream& s, const MessageRules& rules);
  void refuse_large(uint32_t id);
  void remote_end(uint32_t id);
  void on_settings(ByteView payload);
  void apply_peer_window(uint32_t window);
  void on_settings_ack();
  void on_ping(ByteView payload);
  void on_goaway(ByteView payload);
  void on_window_update(ByteView payload);
  void on_rst(ByteView payload);
  bool idle(uint32_t id) const {
    if (role == H2Role::kClient) return id % 2 == 0 || id >= next_id;
    return id % 2 == 0 || id > last_peer_id;
  }

  // --- output ---
  Stream& open_stream(uint32_t id);
  Status put_header_block(uint32_t id, const HeaderList& fields, bool end_stream, bool pseudo);
  Status encode(const HeaderList& fields, bool pseudo);
  Status encode_new(HeaderField field);
  void end_local(Stream& s);
  void queue_ready(Stream& s) {
    if (s.has(kReady) || s.body == nullptr) return;
    s.flags |= kReady;
    ready.push(s.id);
  }
  void block_on_window(Stream& s) {
    if (conn_send > 0 || s.has(kConnBlocked)) return;  // else: WINDOW_UPDATE of the stream
    s.flags |= kConnBlocked;
    conn_blocked.push(s.id);
  }
  void put_settings();
  void flush_pending(H2Sink& sink, size_t& written);
  void flush_ended();
  bool flush_data(H2Sink& sink, size_t& written);
};

// --- life ----------------------------------------------------------------------------------------

H2Session::State::State(H2Role r, H2Handler& h, const H2Options& o)
    : role(r), handler(h), options(o) {
  conn_window = std::max(options.connection_window, kDefaultWindow);
  conn_avail = conn_window;
  // A smaller window than the default binds the peer only once it has confirmed our SETTINGS.
  stream_window = std::max(options.initial_stream_window, kDefaultWindow);
  window_budget = kH2WindowBurst;
  if (role == H2Role::kServer) phase = Phase::kPreface;
  put_settings();
}

void H2Session::State::put_settings() {
  const bool client = role == H2Role::kClient;
  if (client) pending.append(kPreface);
  const size_t at = pending.size();
  put_frame(pending, 0, kSettings, 0, 0);
  if (client)
    put_setting(pending, kEnablePush, 0);
  else
    put_setting(pending, kMaxConcurrentStreams, options.max_concurrent_streams);
  if (!client && options.extended_connect) put_setting(pending, kEnableConnectProtocol, 1);
  put_setting(pending, kInitialWindowSize, options.initial_stream_window);
  put_setting(pending, kMaxFrameSize, options.max_frame_size);
  put_setting(pending, kMaxHeaderListSize, options.max_header_list);
  store_be24(reinterpret_cast<uint8_t*>(pending.data()) + at,
             static_cast<uint32_t>(pending.size() - at - kFrameHeader));
  if (conn_window > kDefaultWindow) put_window_update(pending, 0, conn_window - kDefaultWindow);
}

void H2Session::State::die(H2Code code, Reason reason, std::string detail) {
  if (failed) return;
  failed = true;
  error = Error{reason, role == H2Role::kClient ? Fault::kUpstream : Fault::kDownstream, Retry::kNo,
                std::move(detail)};
  put_goaway(pending, last_peer_id, code, {});
  streams.clear();
  ready.clear();
  conn_blocked.clear();
  ended.clear();
}

void H2Session::State::close_stream(uint32_t id, uint32_t code, bool unprocessed) {
  Stream* s = streams.find(id);
  if (s == nullptr) return;
  const bool told = role == H2Role::kClient || s->has(kHeadTold);
  // What the handler has not consumed must not be missing in the connection's window for ever.
  const uint32_t lost = s->unconsumed;
  streams.erase(id);
  if (lost != 0) return_window(nullptr, lost);
  if (told) handler.on_closed(id, code, unprocessed);
}

void H2Session::State::stream_error(uint32_t id, H2Code code) {
  count_reset();
  if (failed) return;
  reset_stream(id, code);
  count_reply();
  if (failed) return;
  close_stream(id, number(code), code == H2Code::kRefusedStream);
}

// --- input ---------------------------------------------------------------------------------------

// Gathers `want` bytes. False: more input is needed.
bool H2Session::State::gather(ByteView& in, size_t want) {
  const size_t n = std::min(in.size(), want - gathered.size());
  gathered.append(as_text(in.first(n)));
  in = in.subspan(n);
  return gathered.size() == want;
}

void H2Session::State::read_preface(ByteView& in) {
  const size_t n = std::min(in.size(), kPreface.size() - gathered.size());
  if (as_text(in.first(n)) != kPreface.substr(gathered.size(), n))
    return protocol_error("not a connection preface");
  if (!gather(in, kPreface.size())) return;
  gathered.clear();
  phase = Phase::kFrameHeader;
}

void H2Session::State::read_frame_header(ByteView& in) {
  if (gathered.empty() && in.size() >= kFrameHeader) {
    frame = h2::read_frame_header(in.data());
    in = in.subspan(kFrameHeader);
  } else {
    if (!gather(in, kFrameHeader)) return;
    frame = h2::read_frame_header(as_bytes(gathered).data());
    gathered.clear();
  }
  start_frame();
}

void H2Session::State::start_frame() {
  if (first_frame) {
    if (frame.type != kSettings || frame.has(kFlagAck))
      return protocol_error("the first frame is not SETTINGS");
    first_frame = false;
  }
  if (block_stream != 0 && (frame.type != kContinuation || frame.stream != block_stream))
    return protocol_error("a frame inside a header block");
  if (const FrameFault fault = check_frame(frame, options.max_frame_size); fault.why != nullptr)
    return protocol_error(fault.why, fault.code);
  left = frame.length;
  phase = Phase::kPayload;
  switch (frame.type) {
    case kData:
      return start_data();
    case kHeaders:
      return;
    case kContinuation:
      if (block_stream == 0) return protocol_error("CONTINUATION without HEADERS");
      if (++continuations > options.max_continuations)
        return limit_hit(H2Limit::kContinuationFlood);
      return;
    case kRstStream:
      if (role == H2Role::kServer) count_reset();
      return;
    case kWindowUpdate:
      if (--window_budget < 0) limit_hit(H2Limit::kWindowFlood);
      return;
    case kSettings:
      if (frame.length > kMaxSettings * 6) return limit_hit(H2Limit::kControlFlood);
      [[fallthrough]];
    case kPing:
      if (!frame.has(kFlagAck)) count_control();
      return;
    case kGoaway:
      return count_control();
    case kPriority:
      return count_control();
    default:
      phase = Phase::kSkip;  // unknown types cost no more than their bytes
      return;
  }
}

void H2Session::State::start_data() {
  phase = Phase::kData;
  pad = 0;
  pad_known = !frame.has(kFlagPadded);
  discard = true;
  if (frame.length > conn_avail)
    return protocol_error("DATA above the connection's window", H2Code::kFlowControlError);
  conn_avail -= frame.length;
  if (frame.length == 0 && !frame.has(kFlagEndStream) &&
      !empty_data.take(now, options.empty_data_burst, options.empty_data_per_second))
    return limit_hit(H2Limit::kEmptyDataFlood);
  Stream* s = streams.find(frame.stream);
  if (s == nullptr) {
    if (idle(frame.stream)) return protocol_error("DATA on an idle stream");
    switch (history.fate(frame.stream)) {
      case StreamHistory::Fate::kNeverOpened:
      case StreamHistory::Fate::kEnded:
        return stream_error(frame.stream, H2Code::kStreamClosed);
      default:
        return;  // what was under way is dropped
    }
  }
  if (s->has(kResetQueued)) return;
  if (s->has(kRemoteEnded)) return stream_error(frame.stream, H2Code::kStreamClosed);
  if (static_cast<int64_t>(frame.length) > s->recv_avail)
    return stream_error(frame.stream, H2Code::kFlowControlError);
  s->recv_avail -= static_cast<int32_t>(frame.length);
  if (!s->has(kHeadTold)) {
    // A client that sends the body of a request that we refuse is not at fault.
    if (role == H2Role::kClient) stream_error(frame.stream, H2Code::kProtocolError);
    return;
  }
  discard = false;
}

void H2Session::State::read_data(ByteView& in) {
  if (!pad_known) {
    if (in.empty()) return;
    pad = in[0];
    in = in.subspan(1);
    --left;
    pad_known = true;
    if (pad > left) return protocol_error("padding longer than its frame");
    return_window(discard ? nullptr : streams.find(frame.stream), pad + 1);
  }
  if (left > pad) {
    const size_t n = std::min<size_t>(left - pad, in.size());
    if (n == 0) return;
    const ByteView piece = in.first(n);
    in = in.subspan(n);
    left -= static_cast<uint32_t>(n);
    data_piece(piece);
    if (failed) return;
  }
  if (left > pad) return;
  const size_t n = std::min<size_t>(left, in.size());  // the padding
  in = in.subspan(n);
  left -= static_cast<uint32_t>(n);
  if (left != 0) return;
  phase = Phase::kFrameHeader;
  if (discard || !frame.has(kFlagEndStream)) return;
  Stream* s = streams.find(frame.stream);
  if (s == nullptr || s->has(kResetQueued)) return;
  if (s->content_left > 0) return stream_error(frame.stream, H2Code::kProtocolError);
  s->flags |= kRemoteEnded;
  handler.on_end(frame.stream, HeaderList());
  remote_end(frame.stream);
}

void H2Session::State::data_piece(ByteView piece) {
  const auto n = static_cast<uint32_t>(piece.size());
  Stream* s = discard ? nullptr : streams.find(frame.stream);
  // It may have been reset in the middle of the frame.
  if (s == nullptr || s->has(kResetQueued)) return return_window(nullptr, n);
  if (s->content_left >= 0 && n > s->content_left) {
    discard = true;
    return_window(nullptr, n);
    return stream_error(frame.stream, H2Code::kProtocolError);
  }
  if (s->content_left >= 0) s->content_left -= n;
  s->unconsumed += n;
  handler.on_data(frame.stream, piece);
}

// Bytes that nobody holds any more become window: of the connection, and of the stream if there is
// one that still receives. Told to the peer in halves of the window.
void H2Session::State::return_window(Stream* s, uint32_t bytes) {
  conn_returnable += bytes;
  if (conn_returnable >= conn_window / 2) {
    put_window_update(pending, 0, conn_returnable);
    conn_avail += conn_returnable;
    conn_returnable = 0;
  }
  if (s == nullptr || s->has(kRemoteEnded | kResetQueued)) return;
  s->returnable += bytes;
  if (s->returnable == 0 || s->returnable < stream_window / 2) return;
  put_window_update(pending, s->id, s->returnable);
  s->recv_avail += static_cast<int32_t>(s->returnable);
  s->returnable = 0;
}

void H2Session::State::read_payload(ByteView& in) {
  if (gathered.empty() && in.size() >= left) {
    const ByteView payload = in.first(left);
    in = in.subspan(left);
    phase = Phase::kFrameHeader;
    return on_payload(payload);
  }
  if (!gather(in, left)) return;
  const std::string whole = std::exchange(gathered, {});
  phase = Phase::kFrameHeader;
  on_payload(as_bytes(whole));
}

void H2Session::State::on_payload(ByteView payload) {
  switch (frame.type) {
    case kHeaders:
      return on_headers(payload);
    case kContinuation:
      return on_continuation(payload);
    case kSettings:
      return frame.has(kFlagAck) ? on_settings_ack() : on_settings(payload);
    case kPing:
      return on_ping(payload);
    case kGoaway:
      return on_goaway(payload);
    case kPriority:
      return check_priority(payload);
    case kWindowUpdate:
      return on_window_update(payload);
    default:
      return on_rst(payload);
  }
}

// --- header blocks -------------------------------------------------------------------------------

void H2Session::State::on_headers(ByteView payload) {
  if (frame.has(kFlagPadded)) {
    const size_t padding = payload[0];
    payload = payload.subspan(1);
    if (padding + (frame.has(kFlagPriority) ? 5 : 0) > payload.size())
      return protocol_error("padding longer than its frame");
    payload = payload.first(payload.size() - padding);
  }
  if (frame.has(kFlagPriority)) {
    check_priority(payload);
    if (failed) return;
    payload = payload.subspan(5);
  }
  block_stream = frame.stream;
  block_end_stream = frame.has(kFlagEndStream);
  continuations = 0;
  if (frame.has(kFlagEndHeaders)) return on_block(payload);
  block.assign(as_text(payload));
}

// RFC 9113 section 5.3.2 has done with priorities, and so have we; that a stream may not depend on
// itself is what RFC 7540 section 5.3.1 asked for and strict peers still expect.
void H2Session::State::check_priority(ByteView payload) {
  if ((load_be<uint32_t>(payload.data()) & kMaxStreamId) == frame.stream)
    protocol_error("a stream that depends on itself");
}

void H2Session::State::on_continuation(ByteView payload) {
  block.append(as_text(payload));  // bounded by the number of frames
  if (!frame.has(kFlagEndHeaders)) return;
  const std::string whole = std::exchange(block, {});
  on_block(as_bytes(whole));
}

// Every block is decoded, even if nobody wants it: HPACK's state is the connection's. False: the
// list is above the limits, and not kept.
bool H2Session::State::decode(ByteView fragment, MessageRules& rules, bool keep) {
  list.clear();
  bool small = true;
  size_t size = 0, count = 0;
  const bool good = decoder.decode(fragment, [&](const hpack::Field& f) {
    size += f.name.size() + f.value.size() + hpack::kFieldOverhead;
    ++count;
    small = small && size <= options.max_header_list && count <= options.max_header_count;
    if (!keep || !small) return;
    rules.add(f);
    list.add(f.name, f.value, f.never_indexed);
  });
  decoder.trim();
  if (!good) protocol_error("HPACK", H2Code::kCompressionError);
  if (!small) list.release();
  return small;
}

void H2Session::State::on_block(ByteView fragment) {
  const uint32_t id = std::exchange(block_stream, 0);
  MessageRules rules;
  Stream* s = streams.find(id);
  const bool opens = role == H2Role::kServer && s == nullptr && id > last_peer_id;
  const bool wanted =
      opens ? !goaway_sent : s != nullptr && !s->has(kResetQueued) && !s->has(kRemoteEnded);
  const bool small = decode(fragment, rules, wanted);
  if (failed) return;
  if (opens) {
    last_peer_id = id;
    history.opened(id);
    if (!wanted) history.reset_by_us(id);  // our GOAWAY told the peer
    if (wanted) on_request(id, rules, !small);
    return;
  }
  if (s == nullptr) {
    if (idle(id)) return protocol_error("HEADERS on an idle stream");
    return on_late_block(id);
  }
  if (s->has(kResetQueued)) return;
  if (s->has(kRemoteEnded)) return stream_error(id, H2Code::kStreamClosed);
  const bool trailers = s->has(kHeadTold);
  if (role == H2Role::kServer && !trailers) return;  // of a request that was refused
  if (!small) return refuse_large(id);
  return trailers ? on_trailers(*s, rules) : on_response(*s, rules);
}

// A header block of a stream that is gone.
void H2Session::State::on_late_block(uint32_t id) {
  switch (history.fate(id)) {
    case StreamHistory::Fate::kNeverOpened:
      return protocol_error("HEADERS on a lower stream than the last");
    case StreamHistory::Fate::kEnded:
      return protocol_error("HEADERS on a closed stream", H2Code::kStreamClosed);
    default:
      return count_control();  // it was under way, or is a flood
  }
}

void H2Session::State::on_request(uint32_t id, const MessageRules& rules, bool too_large) {
  if (streams.size() >= options.max_concurrent_streams)
    return stream_error(id, H2Code::kRefusedStream);
  if (too_large) {
    Stream& s = open_stream(id);
    if (block_end_stream) s.flags |= kRemoteEnded;
    return refuse_large(id);
  }
  if (!rules.valid_request(list, options.extended_connect) ||
      (block_end_stream && rules.content_length() > 0))
    return stream_error(id, H2Code::kProtocolError);
  Stream& s = open_stream(id);
  s.content_left = rules.content_length();
  s.flags |= kHeadTold;
  if (block_end_stream) s.flags |= kRemoteEnded;
  window_budget = std::min<int64_t>(window_budget + 4, kH2WindowBurst);
  if (rules.cookies() > 1) list.join("cookie", "; ");  // RFC 9113 section 8.2.3
  handler.on_head(id, list, block_end_stream);
}

void H2Session::State::on_response(Stream& s, const MessageRules& rules) {
  const uint32_t id = s.id;
  const bool informational = rules.status() < 200;
  if (!rules.valid_response() || (informational && block_end_stream))
    return stream_error(id, H2Code::kProtocolError);
  if (informational) {
    count_control();
    if (!failed) handler.on_informational(id, list);
    return;
  }
  const bool no_content = s.has(kNoContent) || rules.status() == 204 || rules.status() == 304;
  if (block_end_stream && !no_content && rules.content_length() > 0)
    return stream_error(id, H2Code::kProtocolError);
  s.content_left = no_content ? 0 : rules.content_length();
  s.flags |= kHeadTold;
  if (block_end_stream) s.flags |= kRemoteEnded;
  handler.on_head(id, list, block_end_stream);
  if (block_end_stream) remote_end(id);
}

void H2Session::State::on_trailers(Stream& s, const MessageRules& rules) {
  const uint32_t id = s.id;
  if (!block_end_stream || !rules.valid_trailers() || s.content_left > 0)
    return stream_error(id, H2Code::kProtocolError);
  s.flags |= kRemoteEnded;
  handler.on_end(id, list);
  remote_end(id);
}

// A list above the limits costs its stream only. A server answers by itself if it still can.
void H2Session::State::refuse_large(uint32_t id) {
  Stream* s = streams.find(id);
  if (role == H2Role::kClient || s->has(kHeadTold))
    return stream_error(id, H2Code::kEnhanceYourCalm);
  count_reset();
  if (failed) return;
  HeaderList answer;
  answer.add(":status", "431");
  s->flags |= kAnswered | kResetAtEnd;
  (void)put_header_block(id, answer, true, true);
  end_local(*s);
  count_reply();
}

// After the handler heard of the peer's END_STREAM.
void H2Session::State::remote_end(uint32_t id) {
  Stream* s = streams.find(id);
  if (s != nullptr && s->has(kLocalSent) && !s->has(kResetQueued)) close_stream(id, 0, false);
}

// --- the other frames ----------------------------------------------------------------------------

void H2Session::State::on_settings(ByteView payload) {
  uint32_t window = peer_window;
  for (; !payload.empty(); payload = payload.subspan(6)) {
    const uint32_t value = load_be<uint32_t>(payload.data() + 2);
    switch (load_be<uint16_t>(payload.data())) {
      case kHeaderTableSize:
        encoder.set_peer_limit(value);
        break;
      case kEnablePush:
        if (value > 1 || (value == 1 && role == H2Role::kClient))
          return protocol_error("SETTINGS_ENABLE_PUSH");
        break;
      case kMaxConcurrentStreams:
        peer_max_streams = value;
        break;
      case kInitialWindowSize:
        if (value > kMaxWindow)
          return protocol_error("SETTINGS_INITIAL_WINDOW_SIZE", H2Code::kFlowControlError);
        window = value;
        break;
      case kMaxFrameSize:
        if (value < kDefaultFrameSize || value > 0xffffff)
          return protocol_error("SETTINGS_MAX_FRAME_SIZE");
        peer_frame_size = value;
        break;
      case kEnableConnectProtocol:
        if (value > 1 || (value == 0 && peer_connect_protocol))
          return protocol_error("SETTINGS_ENABLE_CONNECT_PROTOCOL");
        peer_connect_protocol = value == 1;
        break;
      default:  // MAX_HEADER_LIST_SIZE included: advice, and the peer answers 431
        break;
    }
  }
  apply_peer_window(window);
  if (failed) return;
  put_frame(pending, 0, kSettings, kFlagAck, 0);
  count_reply();
  settings_seen = true;
  if (!failed) handler.on_settings();
}

void H2Session::State::apply_peer_window(uint32_t window) {
  const int64_t delta = int64_t{window} - peer_window;
  peer_window = window;
  if (delta == 0) return;
  bool overflow = false;
  streams.for_each([&](Stream& s) {
    const int64_t wide = s.send_window + delta;
    overflow |= wide > kMaxWindow;
    s.send_window = static_cast<int32_t>(std::min<int64_t>(wide, kMaxWindow));
    if (s.send_window > 0) queue_ready(s);
  });
  if (overflow) protocol_error("SETTINGS overflow a stream's window", H2Code::kFlowControlError);
}

void H2Session::State::on_settings_ack() {
  if (settings_acked) return;
  settings_acked = true;
  const int64_t delta = int64_t{options.initial_stream_window} - stream_window;
  stream_window = options.initial_stream_window;
  if (delta == 0) return;
  streams.for_each([&](Stream& s) {
    s.recv_avail += static_cast<int32_t>(delta);
    return_window(&s, 0);  // the half of a smaller window is reached sooner
  });
}

void H2Session::State::on_ping(ByteView payload) {
  if (frame.has(kFlagAck))
    return handler.on_ping_ack(std::span<const uint8_t, 8>(payload.data(), 8));
  put_ping(pending, payload.data(), kFlagAck);
  count_reply();
}

void H2Session::State::on_goaway(ByteView payload) {
  const uint32_t last = load_be<uint32_t>(payload.data()) & kMaxStreamId;
  goaway_seen = true;
  handler.on_goaway(load_be<uint32_t>(payload.data() + 4));
  if (role == H2Role::kServer || failed) return;
  std::vector<uint32_t> unprocessed;
  streams.for_each([&](const Stream& s) {
    if (s.id > last) unprocessed.push_back(s.id);
  });
  for (const uint32_t id : unprocessed) close_stream(id, number(H2Code::kRefusedStream), true);
}

void H2Session::State::on_window_update(ByteView payload) {
  const uint32_t increment = load_be<uint32_t>(payload.data()) & kMaxWindow;
  if (frame.stream == 0) {
    if (increment == 0) return protocol_error("WINDOW_UPDATE of 0");
    if (conn_send + increment > kMaxWindow)
      return protocol_error("WINDOW_UPDATE overflows", H2Code::kFlowControlError);
    conn_send += increment;
    while (conn_send > 0 && !conn_blocked.empty()) {
      Stream* s = streams.find(conn_blocked.pop());
      if (s == nullptr) continue;
      s->flags &= ~kConnBlocked;
      queue_ready(*s);
    }
    return;
  }
  Stream* s = streams.find(frame.stream);
  if (s == nullptr) {
    if (idle(frame.stream)) protocol_error("WINDOW_UPDATE on an idle stream");
    return;
  }
  if (s->has(kResetQueued)) return;
  if (increment == 0) return stream_error(frame.stream, H2Code::kProtocolError);
  if (int64_t{s->send_window} + increment > kMaxWindow)
    return stream_error(frame.stream, H2Code::kFlowControlError);
  s->send_window += static_cast<int32_t>(increment);
  if (s->send_window > 0) queue_ready(*s);
}

void H2Session::State::on_rst(ByteView payload) {
  if (idle(frame.stream)) return protocol_error("RST_STREAM on an idle stream");
  const uint32_t code = load_be<uint32_t>(payload.data());
  close_stream(frame.stream, code, code == number(H2Code::kRefusedStream));
}

// --- output --------------------------------------------------------------------------------------

Stream& H2Session::State::open_stream(uint32_t id) {
  Stream& s = streams.insert(id);
  s.send_window = static_cast<int32_t>(peer_window);
  s.recv_avail = static_cast<int32_t>(stream_window);
  return s;
}

// Appends HEADERS, and CONTINUATIONs if they are needed, or nothing on an error.
Status H2Session::State::put_header_block(uint32_t id, const HeaderList& fields, bool end_stream,
                                          bool pseudo) {
  const size_t at = pending.size();
  pending.resize(at + kFrameHeader);
  encoder.begin_block(pending);
  if (Status ok = encode(fields, pseudo); !ok) {
    pending.resize(at);
    encoder.forget();  // the peer never sees what the block put into the table
    return ok;
  }
  const size_t size = pending.size() - at - kFrameHeader;
  if (size <= peer_frame_size) [[likely]] {
    write_frame_header(reinterpret_cast<uint8_t*>(pending.data()) + at, static_cast<uint32_t>(size),
                       kHeaders, kFlagEndHeaders | (end_stream ? kFlagEndStream : 0), id);
    return {};
  }
  const std::string whole = pending.substr(at + kFrameHeader);
  pending.resize(at);
  put_headers(pending, id, whole, end_stream, peer_frame_size);
  return {};
}

Status H2Session::State::encode(const HeaderList& fields, bool pseudo) {
  bool regular = false;
  for (const HeaderField f : fields) {
    if (f.name.starts_with(':')) {
      if (regular || !pseudo) return refuse("misplaced pseudo-header", f.name);
    } else {
      regular = true;
    }
    if (encoder.write_known(pending, f)) [[likely]]
      continue;
    MELTEMI_TRY(encode_new(f));
  }
  return {};
}

Status H2Session::State::encode_new(HeaderField f) {
  if (has_upper_case(f.name)) {
    lowered.assign(f.name);
    for (char& c : lowered)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    f.name = lowered;
    if (encoder.write_known(pending, f)) return {};
  }
  switch (classify_field(f.name, f.value)) {
    case FieldKind::kMalformed:
      return refuse("malformed header", f.name);
    case FieldKind::kConnectionSpecific:
      return refuse("connection-specific header", f.name);
    default:
      encoder.write_new(pending, f);
      return {};
  }
}

// END_STREAM was written; what follows from it waits until it went out.
void H2Session::State::end_local(Stream& s) {
  s.flags |= kLocalEnded;
  s.body = nullptr;
  ended.push_back(s.id);
}

void H2Session::State::flush_pending(H2Sink& sink, size_t& written) {
  if (pending.empty()) return;
  sink.append(as_bytes(pending));
  written += pending.size();
  unread_replies = 0;
  if (pending.capacity() > 16384)
    std::string().swap(pending);
  else
    pending.clear();
}

void H2Session::State::flush_ended() {
  for (const uint32_t id : std::exchange(ended, {})) {
    Stream* s = streams.find(id);
    if (s == nullptr) continue;
    if (s->has(kResetQueued)) {
      const uint32_t code = s->reset_code;
      close_stream(id, code, code == number(H2Code::kRefusedStream));
      continue;
    }
    s->flags |= kLocalSent;
    if (!s->has(kRemoteEnded)) {
      if (!s->has(kResetAtEnd)) continue;
      reset_stream(id, H2Code::kNoError);
    }
    close_stream(id, 0, false);
  }
}

// One DATA frame, or what stands in for it. False: no stream has anything that may go out.
bool H2Session::State::flush_data(H2Sink& sink, size_t& written) {
  while (!ready.empty()) {
    const uint32_t id = ready.pop();
    Stream* s = streams.find(id);
    if (s == nullptr) continue;
    s->flags &= ~kReady;
    if (s->body == nullptr) continue;
    H2Body& body = *s->body;
    const int64_t room = std::max<int64_t>(
        0, std::min<int64_t>({s->send_window, conn_send, peer_frame_size, kDefaultFrameSize}));
    const H2Body::Ready r = body.ready(static_cast<size_t>(room));
    assert(r.bytes <= static_cast<size_t>(room));
    if (r.bytes == 0 && !r.end) {
      if (room == 0) block_on_window(*s);
      continue;
    }
    const HeaderList* trailers = r.end ? body.trailers() : nullptr;
    if (trailers != nullptr && trailers->empty()) trailers = nullptr;
    const auto n = static_cast<uint32_t>(r.bytes);
    if (r.end) {
      // An empty frame in front of trailers would carry nothing: peers count those as abuse.
      if (trailers != nullptr && !put_header_block(id, *trailers, true, false)) trailers = nullptr;
      end_local(*s);
    } else if (n == room) {
      queue_ready(*s);  // there may be more
    }
    if (n == 0 && trailers != nullptr) return true;
    s->send_window -= static_cast<int32_t>(n);
    conn_send -= n;
    window_budget = std::min<int64_t>(window_budget + 2 + (n >> 10), kH2WindowBurst);
    uint8_t header[kFrameHeader];
    write_frame_header(header, n, kData, r.end && trailers == nullptr ? kFlagEndStream : 0, id);
    sink.append({header, kFrameHeader});
    written += kFrameHeader + n;
    if (n != 0) body.take(n, sink);  // may call us
    return true;
  }
  return false;
}

// --- the public face -----------------------------------------------------------------------------

H2Session::H2Session(H2Role role, H2Handler& handler, const H2Options& options)
    : state_(std::make_unique<State>(role, handler, options)) {}
H2Session::~H2Session() = default;
H2Session::H2Session(H2Session&&) noexcept = default;
H2Session& H2Session::operator=(H2Session&&) noexcept = default;

Status H2Session::receive(ByteView in, MonoTime now) {
  State& s = *state_;
  s.now = now;
  if (s.begun == MonoTime{}) s.begun = now;
  if (!s.settings_acked && now - s.begun > s.options.settings_timeout && !s.failed)
    s.protocol_error("our SETTINGS were not acknowledged", H2Code::kSettingsTimeout);
  while (!s.failed) {
    // Frames without payload are complete with their header.
    if (in.empty() && (s.left != 0 || s.phase <= State::Phase::kFrameHeader)) break;
    switch (s.phase) {
      case State::Phase::kPreface:
        s.read_preface(in);
        break;
      case State::Phase::kFrameHeader:
        s.read_frame_header(in);
        break;
      case State::Phase::kData:
        s.read_data(in);
        break;
      case State::Phase::kSkip: {
        const size_t n = std::min<size_t>(s.left, in.size());
        in = in.subspan(n);
        s.left -= static_cast<uint32_t>(n);
        if (s.left == 0) s.phase = State::Phase::kFrameHeader;
        break;
      }
      case State::Phase::kPayload:
        s.read_payload(in);
        break;
    }
  }
  if (s.failed) return fail(s.error);
  return {};
}

const Error* H2Session::failure() const {
  return state_->failed ? &state_->error : nullptr;
}

bool H2Session::flush(H2Sink& sink, size_t max) {
  State& s = *state_;
  size_t written = 0;
  while (true) {
    s.flush_pending(sink, written);
    if (s.failed) return false;
    if (!s.ended.empty()) {
      s.flush_ended();
      continue;
    }
    if (written >= max) return wants_write();
    if (!s.flush_data(sink, written)) return false;
  }
}

bool H2Session::wants_write() const {
  const State& s = *state_;
  return !s.pending.empty() || !s.ended.empty() || !s.ready.empty();
}

bool H2Session::can_request() const {
  const State& s = *state_;
  return s.role == H2Role::kClient && !s.failed && !s.goaway_seen && !s.goaway_sent &&
         s.next_id <= kMaxStreamId && s.streams.size() < s.stream_room();
}

Result<uint32_t> H2Session::request(const HeaderList& headers, H2Body* body) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  if (s.goaway_seen || s.goaway_sent || s.next_id > kMaxStreamId)
    return fail(Reason::kPoolDraining, Fault::kUpstream, "the connection takes no more requests",
                Retry::kSafe);
  if (s.streams.size() >= s.stream_room())
    return fail(Reason::kLimitExceeded, Fault::kUpstream,
                "the peer's SETTINGS_MAX_CONCURRENT_STREAMS", Retry::kSafe);
  const uint32_t id = s.next_id;
  MELTEMI_TRY(s.put_header_block(id, headers, body == nullptr, true));
  s.next_id += 2;
  s.history.opened(id);
  s.window_budget = std::min<int64_t>(s.window_budget + 4, kH2WindowBurst);
  Stream& stream = s.open_stream(id);
  if (!headers.empty() && headers[0].name == ":method" && headers[0].value == "HEAD")
    stream.flags |= kNoContent;
  stream.body = body;
  if (body != nullptr)
    s.queue_ready(stream);
  else
    s.end_local(stream);
  return id;
}

Status H2Session::informational(uint32_t id, const HeaderList& headers) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  const Stream* stream = s.streams.find(id);
  if (stream == nullptr || stream->has(kResetQueued | kAnswered)) return {};
  return s.put_header_block(id, headers, false, true);
}

Status H2Session::respond(uint32_t id, const HeaderList& headers, H2Body* body) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  Stream* stream = s.streams.find(id);
  if (stream == nullptr || stream->has(kResetQueued | kAnswered)) return {};
  MELTEMI_TRY(s.put_header_block(id, headers, body == nullptr, true));
  stream->flags |= kAnswered;
  stream->body = body;
  if (body != nullptr)
    s.queue_ready(*stream);
  else
    s.end_local(*stream);
  return {};
}

void H2Session::resume(uint32_t id) {
  if (Stream* stream = state_->streams.find(id)) state_->queue_ready(*stream);
}

void H2Session::reset(uint32_t id, H2Code code) {
  State& s = *state_;
  Stream* stream = s.streams.find(id);
  if (stream == nullptr || stream->has(kResetQueued)) return;
  if (code == H2Code::kNoError && stream->has(kAnswered) && !stream->has(kLocalSent)) {
    stream->flags |= kResetAtEnd;
    return;
  }
  stream->body = nullptr;  // the caller may free it now
  stream->flags |= kResetQueued;
  stream->reset_code = number(code);
  s.reset_stream(id, code);
  s.ended.push_back(id);
}

void H2Session::consume(uint32_t id, size_t bytes) {
  State& s = *state_;
  Stream* stream = s.streams.find(id);
  if (stream == nullptr) return;
  // Never more than what came: a caller's mistake must not become a window without bound.
  const auto n = static_cast<uint32_t>(std::min<size_t>(bytes, stream->unconsumed));
  if (n == 0) return;
  stream->unconsumed -= n;
  s.return_window(stream, n);
}

bool H2Session::broken_by_peer(uint32_t id) const {
  return state_->history.fate(id) == StreamHistory::Fate::kResetByUs;
}

void H2Session::ping(std::span<const uint8_t, 8> payload) {
  if (!state_->failed) put_ping(state_->pending, payload.data(), 0);
}

void H2Session::drain() {
  State& s = *state_;
  if (s.failed || s.goaway_sent) return;
  if (s.role == H2Role::kServer && !s.notice_sent) {
    s.notice_sent = true;
    return put_goaway(s.pending, kMaxStreamId, H2Code::kNoError, {});
  }
  s.goaway_sent = true;
  put_goaway(s.pending, s.last_peer_id, H2Code::kNoError, {});
}

void H2Session::close(H2Code code) {
  state_->die(code, Reason::kShutdown, "closed by us");
}

size_t H2Session::stream_count() const {
  return state_->streams.size();
}

uint32_t H2Session::peer_max_streams() const {
  return state_->peer_max_streams;
}

bool H2Session::peer_allows_extended_connect() const {
  return state_->peer_connect_protocol;
}

bool H2Session::finished() const {
  const State& s = *state_;
  return !s.failed && (s.goaway_sent || s.goaway_seen) && s.streams.size() == 0;
}

}  // namespace meltemi::codec
