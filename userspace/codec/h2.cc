#include "userspace/codec/h2.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "userspace/codec/h2_frame.h"

namespace meltemi::codec {
namespace {

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

struct Stream {
  HeaderList headers;       // of the block that comes in
  uint64_t unconsumed = 0;  // window that is to be returned
  H2Body* body = nullptr;
  bool head_told = false;  // on_head() was called
  bool end_told = false;
  bool local_end = false;     // our END_STREAM went out
  bool answered = false;      // a response was submitted
  bool reset_at_end = false;  // RST_STREAM(NO_ERROR) once it did
  bool too_large = false;     // its header block is above the limits: no more of it is kept
};

// nghttp2 copies names (in lower case) and values.
class NvArray {
 public:
  explicit NvArray(const HeaderList& list) {
    fields_.reserve(list.size());
    for (const HeaderField f : list)
      fields_.push_back({bytes(f.name), bytes(f.value), f.name.size(), f.value.size(), 0});
  }
  const nghttp2_nv* data() const { return fields_.data(); }
  size_t size() const { return fields_.size(); }

 private:
  static uint8_t* bytes(std::string_view s) {
    return reinterpret_cast<uint8_t*>(const_cast<char*>(s.data()));
  }
  std::vector<nghttp2_nv> fields_;
};

bool connection_specific(HeaderField f) {
  for (std::string_view bad :
       {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"})
    if (equal_ignoring_case(f.name, bad)) return true;
  return equal_ignoring_case(f.name, "te") && !equal_ignoring_case(f.value, "trailers");
}

Status check_sendable(const HeaderList& list, bool pseudo_allowed) {
  auto refuse = [](std::string_view why, std::string_view name) {
    return fail(Reason::kBadRequest, Fault::kDownstream,
                "HTTP/2: " + std::string(why) + ": " + std::string(name.substr(0, 64)));
  };
  bool regular = false;
  for (const HeaderField f : list) {
    std::string_view name = f.name;
    if (name.starts_with(':')) {
      if (regular || !pseudo_allowed) return refuse("misplaced pseudo-header", name);
      name.remove_prefix(1);
    } else {
      regular = true;
    }
    if (!valid_header_name(name)) return refuse("malformed header name", name);
    if (!valid_header_value(f.value)) return refuse("malformed value of header", name);
    if (connection_specific(f)) return refuse("connection-specific header", name);
  }
  return {};
}

}  // namespace

std::string_view h2_limit_name(H2Limit limit) {
  return kLimitNames[static_cast<size_t>(limit)];
}

struct H2Session::State {
  H2Role role;
  H2Handler& handler;
  H2Options options;
  nghttp2_session* session = nullptr;
  std::unordered_map<int32_t, Stream> streams;
  MonoTime now{};
  h2::RateLimit resets, controls, empty_data;
  uint32_t continuations = 0;

  H2Sink* sink = nullptr;  // during flush()
  size_t written = 0, most = 0;

  std::string last_words;  // our own GOAWAY of a session that was cut short
  std::string why;         // nghttp2's words for the last error
  bool failed = false;
  Error error;
  bool notice_sent = false, goaway_sent = false, goaway_seen = false;

  State(H2Role r, H2Handler& h, const H2Options& o);
  ~State() { nghttp2_session_del(session); }
  static State& of(void* user) { return *static_cast<State*>(user); }

  Stream* find(int32_t id) {
    const auto it = streams.find(id);
    return it == streams.end() ? nullptr : &it->second;
  }

  void die(uint32_t code, Reason reason, std::string detail) {
    if (failed) return;
    failed = true;
    error = Error{reason, role == H2Role::kClient ? Fault::kUpstream : Fault::kDownstream,
                  Retry::kNo, std::move(detail)};
    last_words.resize(h2::kFrameHeader + 8);
    auto* p = reinterpret_cast<uint8_t*>(last_words.data());
    h2::write_frame_header(p, 8, h2::kGoaway, 0, 0);
    store_be(p + 9, static_cast<uint32_t>(nghttp2_session_get_last_proc_stream_id(session)));
    store_be(p + 13, code);
  }
  // What a callback returns when a limit is hit: nghttp2 stops at once.
  int limit_hit(H2Limit limit) {
    const auto i = static_cast<size_t>(limit);
    die(static_cast<uint32_t>(H2Code::kEnhanceYourCalm), Reason::kLimitExceeded,
        std::string(kLimitNames[i]) + ": " + std::string(kLimitMeanings[i]));
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  }

  // --- callbacks of nghttp2 ---
  int on_begin_frame(const nghttp2_frame_hd& hd);
  int on_header(int32_t id, std::string_view name, std::string_view value);
  int on_frame(const nghttp2_frame& frame);
  void on_headers(const nghttp2_frame& frame, Stream& s);
  void refuse_large(int32_t id);
  void on_close(int32_t id, uint32_t code);
  void on_sent(const nghttp2_frame& frame);
  ssize_t read_body(int32_t id, size_t length, uint32_t& flags);
  int send_data(const nghttp2_frame& frame, const uint8_t* header, size_t length);
  void set_callbacks(nghttp2_session_callbacks* cb);

  static ssize_t read_callback(nghttp2_session*, int32_t id, uint8_t*, size_t length,
                               uint32_t* flags, nghttp2_data_source*, void* user) {
    return of(user).read_body(id, length, *flags);
  }
};

// Counts what floods, before nghttp2 looks at the frame.
int H2Session::State::on_begin_frame(const nghttp2_frame_hd& hd) {
  switch (hd.type) {
    case h2::kContinuation:
      if (++continuations > options.max_continuations)
        return limit_hit(H2Limit::kContinuationFlood);
      return 0;
    case h2::kHeaders:
      continuations = 0;
      return 0;
    case h2::kData:
      if (hd.length == 0 && (hd.flags & h2::kFlagEndStream) == 0 &&
          !empty_data.take(now, options.empty_data_burst, options.empty_data_per_second))
        return limit_hit(H2Limit::kEmptyDataFlood);
      return 0;
    case h2::kRstStream:
      if (role == H2Role::kServer &&
          !resets.take(now, options.reset_burst, options.resets_per_second))
        return limit_hit(H2Limit::kResetFlood);
      return 0;
    case h2::kWindowUpdate:
      return 0;
    case h2::kPing:
    case h2::kSettings:
      if ((hd.flags & h2::kFlagAck) != 0) return 0;
      [[fallthrough]];
    default:  // PRIORITY, GOAWAY; unknown types do not come here and cost no more than their bytes
      if (!controls.take(now, options.control_burst, options.controls_per_second))
        return limit_hit(H2Limit::kControlFlood);
      return 0;
  }
}

int H2Session::State::on_header(int32_t id, std::string_view name, std::string_view value) {
  Stream* s = find(id);
  if (s == nullptr || s->too_large) return 0;
  if (s->headers.size() >= options.max_header_count ||
      s->headers.bytes() + name.size() + value.size() + 32 * (s->headers.size() + 1) >
          options.max_header_list) {
    s->too_large = true;
    s->headers.release();
    return 0;
  }
  s->headers.add(name, value);
  return 0;
}

// The block was decoded (HPACK's state is whole) but not kept.
void H2Session::State::refuse_large(int32_t id) {
  if (role == H2Role::kServer && !streams[id].head_told) {
    HeaderList answer;
    answer.add(":status", "431");
    const NvArray nv(answer);
    nghttp2_submit_response(session, id, nv.data(), nv.size(), nullptr);
    streams[id].reset_at_end = true;
  } else {
    nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_ENHANCE_YOUR_CALM);
  }
}

void H2Session::State::on_headers(const nghttp2_frame& frame, Stream& s) {
  const int32_t id = frame.hd.stream_id;
  const bool end = (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
  if (s.too_large) return refuse_large(id);
  HeaderList list = std::move(s.headers);
  s.headers.clear();
  if (s.head_told) {
    s.end_told = true;
    return handler.on_end(static_cast<uint32_t>(id), list);
  }
  if (role == H2Role::kClient && list.value(":status").starts_with('1'))
    return handler.on_informational(static_cast<uint32_t>(id), list);
  s.head_told = true;
  s.end_told = end;
  handler.on_head(static_cast<uint32_t>(id), list, end);
}

int H2Session::State::on_frame(const nghttp2_frame& frame) {
  switch (frame.hd.type) {
    case NGHTTP2_HEADERS:
      if (Stream* s = find(frame.hd.stream_id)) on_headers(frame, *s);
      return 0;
    case NGHTTP2_DATA: {
      Stream* s = find(frame.hd.stream_id);
      if (s == nullptr || (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) == 0 || s->end_told) return 0;
      s->end_told = true;
      handler.on_end(static_cast<uint32_t>(frame.hd.stream_id), HeaderList());
      return 0;
    }
    case NGHTTP2_GOAWAY:
      goaway_seen = true;
      handler.on_goaway(frame.goaway.error_code);
      return 0;
    case NGHTTP2_PING:
      if ((frame.hd.flags & NGHTTP2_FLAG_ACK) != 0)
        handler.on_ping_ack(std::span<const uint8_t, 8>(frame.ping.opaque_data, 8));
      return 0;
    default:
      return 0;
  }
}

void H2Session::State::on_close(int32_t id, uint32_t code) {
  auto node = streams.extract(id);
  if (node.empty()) return;
  const Stream& s = node.mapped();
  // What the handler has not consumed must not be missing in the connection's window for ever.
  if (s.unconsumed != 0)
    nghttp2_session_consume_connection(session, static_cast<size_t>(s.unconsumed));
  if (role == H2Role::kServer && !s.head_told) return;  // the handler never heard of it
  handler.on_closed(static_cast<uint32_t>(id), code, code == NGHTTP2_REFUSED_STREAM);
}

void H2Session::State::on_sent(const nghttp2_frame& frame) {
  if (frame.hd.type == NGHTTP2_GOAWAY && frame.goaway.error_code != NGHTTP2_NO_ERROR && !failed) {
    failed = true;
    error = Error{Reason::kBadRequest,
                  role == H2Role::kClient ? Fault::kUpstream : Fault::kDownstream, Retry::kNo,
                  "HTTP/2: " + std::string(h2_code_name(frame.goaway.error_code)) +
                      (why.empty() ? "" : ": " + why)};
    return;
  }
  if (frame.hd.type != NGHTTP2_HEADERS && frame.hd.type != NGHTTP2_DATA) return;
  if ((frame.hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return;
  Stream* s = find(frame.hd.stream_id);
  if (s == nullptr) return;
  s->local_end = true;
  // nghttp2 drops frames that wait when a stream is reset, so this had to wait for them.
  if (s->reset_at_end)
    nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_NO_ERROR);
}

ssize_t H2Session::State::read_body(int32_t id, size_t length, uint32_t& flags) {
  Stream* s = find(id);
  if (s == nullptr || s->body == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  const H2Body::Ready r = s->body->ready(length);
  if (r.bytes == 0 && !r.end) return NGHTTP2_ERR_DEFERRED;
  flags |= NGHTTP2_DATA_FLAG_NO_COPY;
  if (!r.end) return static_cast<ssize_t>(r.bytes);
  flags |= NGHTTP2_DATA_FLAG_EOF;
  const HeaderList* trailers = s->body->trailers();
  if (trailers != nullptr && !trailers->empty() && check_sendable(*trailers, false)) {
    flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
    const NvArray nv(*trailers);
    if (nghttp2_submit_trailer(session, id, nv.data(), nv.size()) != 0)
      return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  return static_cast<ssize_t>(r.bytes);
}

int H2Session::State::send_data(const nghttp2_frame& frame, const uint8_t* header, size_t length) {
  if (written >= most) return NGHTTP2_ERR_WOULDBLOCK;
  // An empty frame in front of trailers carries nothing: peers count those as abuse.
  if (length == 0 && (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
  Stream* s = find(frame.hd.stream_id);
  // Reset after the frame was made: the frame is dropped.
  if (s == nullptr || s->body == nullptr) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  sink->append({header, h2::kFrameHeader});
  if (length != 0) s->body->take(length, *sink);
  written += h2::kFrameHeader + length;
  return 0;
}

void H2Session::State::set_callbacks(nghttp2_session_callbacks* cb) {
  nghttp2_session_callbacks_set_on_begin_frame_callback(
      cb, [](nghttp2_session*, const nghttp2_frame_hd* hd, void* u) {
        return of(u).on_begin_frame(*hd);
      });
  nghttp2_session_callbacks_set_on_begin_headers_callback(
      cb, [](nghttp2_session*, const nghttp2_frame* f, void* u) {
        Stream& s = of(u).streams[f->hd.stream_id];
        s.headers.clear();
        return 0;
      });
  nghttp2_session_callbacks_set_on_header_callback(
      cb, [](nghttp2_session*, const nghttp2_frame* f, const uint8_t* n, size_t nl,
             const uint8_t* v, size_t vl, uint8_t, void* u) {
        return of(u).on_header(f->hd.stream_id, as_text({n, nl}), as_text({v, vl}));
      });
  nghttp2_session_callbacks_set_on_frame_recv_callback(
      cb, [](nghttp2_session*, const nghttp2_frame* f, void* u) { return of(u).on_frame(*f); });
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
      cb, [](nghttp2_session*, uint8_t, int32_t id, const uint8_t* d, size_t n, void* u) {
        if (Stream* s = of(u).find(id)) {
          s->unconsumed += n;
          if (s->head_told) of(u).handler.on_data(static_cast<uint32_t>(id), {d, n});
        }
        return 0;
      });
  nghttp2_session_callbacks_set_on_stream_close_callback(
      cb, [](nghttp2_session*, int32_t id, uint32_t code, void* u) {
        of(u).on_close(id, code);
        return 0;
      });
  nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(
      cb, [](nghttp2_session*, const nghttp2_frame*, int, void* u) {
        // Resets that the peer provokes cost as much as those it sends.
        State& s = of(u);
        return s.resets.take(s.now, s.options.reset_burst, s.options.resets_per_second)
                   ? 0
                   : s.limit_hit(H2Limit::kResetFlood);
      });
  nghttp2_session_callbacks_set_on_frame_not_send_callback(
      cb, [](nghttp2_session*, const nghttp2_frame* f, int, void* u) {
        // A request that cannot go out any more: its stream was never opened.
        if (f->hd.type == NGHTTP2_HEADERS && f->headers.cat == NGHTTP2_HCAT_REQUEST)
          of(u).on_close(f->hd.stream_id, NGHTTP2_REFUSED_STREAM);
        return 0;
      });
  nghttp2_session_callbacks_set_on_frame_send_callback(
      cb, [](nghttp2_session*, const nghttp2_frame* f, void* u) {
        of(u).on_sent(*f);
        return 0;
      });
  nghttp2_session_callbacks_set_send_data_callback(
      cb, [](nghttp2_session*, nghttp2_frame* f, const uint8_t* hd, size_t n, nghttp2_data_source*,
             void* u) { return of(u).send_data(*f, hd, n); });
  nghttp2_session_callbacks_set_error_callback2(
      cb, [](nghttp2_session*, int, const char* text, size_t n, void* u) {
        of(u).why.assign(text, std::min<size_t>(n, 200));
        return 0;
      });
}

H2Session::State::State(H2Role r, H2Handler& h, const H2Options& o)
    : role(r), handler(h), options(o) {
  nghttp2_session_callbacks* cb = nullptr;
  nghttp2_option* option = nullptr;
  if (nghttp2_session_callbacks_new(&cb) != 0 || nghttp2_option_new(&option) != 0)
    std::abort();  // out of memory
  set_callbacks(cb);
  nghttp2_option_set_no_auto_window_update(option, 1);
  nghttp2_option_set_max_outbound_ack(option, kH2MaxUnreadReplies);
  nghttp2_option_set_peer_max_concurrent_streams(option, 100);
  nghttp2_option_set_max_reserved_remote_streams(option, 0);
  const bool server = r == H2Role::kServer;
  const int rv = server ? nghttp2_session_server_new2(&session, cb, this, option)
                        : nghttp2_session_client_new2(&session, cb, this, option);
  nghttp2_session_callbacks_del(cb);
  nghttp2_option_del(option);
  if (rv != 0) std::abort();  // out of memory

  std::vector<nghttp2_settings_entry> iv;
  if (server) {
    iv.push_back({NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, o.max_concurrent_streams});
    if (o.extended_connect) iv.push_back({NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 1});
  } else {
    iv.push_back({NGHTTP2_SETTINGS_ENABLE_PUSH, 0});
  }
  iv.push_back({NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, o.initial_stream_window});
  iv.push_back({NGHTTP2_SETTINGS_MAX_FRAME_SIZE, o.max_frame_size});
  iv.push_back({NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, o.max_header_list});
  nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, iv.data(), iv.size());
  nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0,
                                        static_cast<int32_t>(o.connection_window));
}

H2Session::H2Session(H2Role role, H2Handler& handler, const H2Options& options)
    : state_(std::make_unique<State>(role, handler, options)) {}
H2Session::~H2Session() = default;
H2Session::H2Session(H2Session&&) noexcept = default;
H2Session& H2Session::operator=(H2Session&&) noexcept = default;

Status H2Session::receive(ByteView in, MonoTime now) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  s.now = now;
  const ssize_t n = nghttp2_session_mem_recv(s.session, in.data(), in.size());
  if (n == NGHTTP2_ERR_FLOODED) s.limit_hit(H2Limit::kUnreadReplies);
  if (n < 0)
    s.die(static_cast<uint32_t>(H2Code::kProtocolError), Reason::kBadRequest,
          std::string("HTTP/2: ") + nghttp2_strerror(static_cast<int>(n)));
  if (s.failed) return fail(s.error);
  return {};
}

const Error* H2Session::failure() const {
  return state_->failed ? &state_->error : nullptr;
}

bool H2Session::flush(H2Sink& sink, size_t max) {
  State& s = *state_;
  if (!s.last_words.empty()) {
    sink.append(as_bytes(s.last_words));
    s.last_words.clear();
    return false;
  }
  if (s.failed) return false;
  s.sink = &sink;
  s.written = 0;
  s.most = max;
  ssize_t n = 0;
  while (s.written < max) {
    const uint8_t* data = nullptr;
    n = nghttp2_session_mem_send(s.session, &data);
    if (n <= 0) break;
    sink.append({data, static_cast<size_t>(n)});
    s.written += static_cast<size_t>(n);
  }
  s.sink = nullptr;
  if (n < 0)
    s.die(static_cast<uint32_t>(H2Code::kInternalError), Reason::kInternal,
          std::string("HTTP/2: ") + nghttp2_strerror(static_cast<int>(n)));
  return s.written >= max && wants_write();
}

bool H2Session::wants_write() const {
  const State& s = *state_;
  return !s.last_words.empty() || (!s.failed && nghttp2_session_want_write(s.session) != 0);
}

bool H2Session::can_request() const {
  const State& s = *state_;
  return s.role == H2Role::kClient && !s.failed && !s.goaway_seen && !s.goaway_sent &&
         nghttp2_session_check_request_allowed(s.session) != 0 &&
         s.streams.size() < peer_max_streams();
}

Result<uint32_t> H2Session::request(const HeaderList& headers, H2Body* body) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  if (s.goaway_seen || s.goaway_sent || nghttp2_session_check_request_allowed(s.session) == 0)
    return fail(Reason::kPoolDraining, Fault::kUpstream, "the connection takes no more requests",
                Retry::kSafe);
  if (s.streams.size() >= peer_max_streams())
    return fail(Reason::kLimitExceeded, Fault::kUpstream,
                "the peer's SETTINGS_MAX_CONCURRENT_STREAMS", Retry::kSafe);
  MELTEMI_TRY(check_sendable(headers, true));
  const NvArray nv(headers);
  nghttp2_data_provider provider{{.ptr = nullptr}, State::read_callback};
  const int32_t id = nghttp2_submit_request(s.session, nullptr, nv.data(), nv.size(),
                                            body != nullptr ? &provider : nullptr, nullptr);
  if (id < 0)
    return fail(Reason::kPoolDraining, Fault::kUpstream, nghttp2_strerror(id), Retry::kSafe);
  s.streams[id].body = body;
  return static_cast<uint32_t>(id);
}

Status H2Session::informational(uint32_t stream, const HeaderList& headers) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  if (s.find(static_cast<int32_t>(stream)) == nullptr) return {};
  MELTEMI_TRY(check_sendable(headers, true));
  const NvArray nv(headers);
  nghttp2_submit_headers(s.session, NGHTTP2_FLAG_NONE, static_cast<int32_t>(stream), nullptr,
                         nv.data(), nv.size(), nullptr);
  return {};
}

Status H2Session::respond(uint32_t stream, const HeaderList& headers, H2Body* body) {
  State& s = *state_;
  if (s.failed) return fail(s.error);
  Stream* st = s.find(static_cast<int32_t>(stream));
  if (st == nullptr) return {};
  MELTEMI_TRY(check_sendable(headers, true));
  const NvArray nv(headers);
  nghttp2_data_provider provider{{.ptr = nullptr}, State::read_callback};
  st->body = body;
  st->answered = true;
  const int rv = nghttp2_submit_response(s.session, static_cast<int32_t>(stream), nv.data(),
                                         nv.size(), body != nullptr ? &provider : nullptr);
  if (rv != 0) return fail(Reason::kInternal, Fault::kInternal, nghttp2_strerror(rv));
  return {};
}

void H2Session::resume(uint32_t stream) {
  if (!state_->failed) nghttp2_session_resume_data(state_->session, static_cast<int32_t>(stream));
}

void H2Session::reset(uint32_t stream, H2Code code) {
  State& s = *state_;
  Stream* st = s.find(static_cast<int32_t>(stream));
  if (s.failed || st == nullptr) return;
  if (code == H2Code::kNoError && st->answered && !st->local_end) {
    st->reset_at_end = true;
    return;
  }
  st->body = nullptr;  // the caller may free it now
  nghttp2_submit_rst_stream(s.session, NGHTTP2_FLAG_NONE, static_cast<int32_t>(stream),
                            static_cast<uint32_t>(code));
}

void H2Session::consume(uint32_t stream, size_t bytes) {
  State& s = *state_;
  Stream* st = s.find(static_cast<int32_t>(stream));
  if (s.failed || st == nullptr) return;
  const size_t n = static_cast<size_t>(std::min<uint64_t>(bytes, st->unconsumed));
  if (n == 0) return;
  st->unconsumed -= n;
  nghttp2_session_consume(s.session, static_cast<int32_t>(stream), n);
}

void H2Session::ping(std::span<const uint8_t, 8> payload) {
  if (!state_->failed) nghttp2_submit_ping(state_->session, NGHTTP2_FLAG_NONE, payload.data());
}

void H2Session::drain() {
  State& s = *state_;
  if (s.failed || s.goaway_sent) return;
  if (s.role == H2Role::kServer && !s.notice_sent) {
    s.notice_sent = true;
    nghttp2_submit_shutdown_notice(s.session);
    return;
  }
  s.goaway_sent = true;
  nghttp2_submit_goaway(s.session, NGHTTP2_FLAG_NONE,
                        nghttp2_session_get_last_proc_stream_id(s.session), NGHTTP2_NO_ERROR,
                        nullptr, 0);
}

void H2Session::close(H2Code code) {
  State& s = *state_;
  s.die(static_cast<uint32_t>(code), Reason::kShutdown, "closed by us");
}

size_t H2Session::stream_count() const {
  return state_->streams.size();
}

uint32_t H2Session::peer_max_streams() const {
  return nghttp2_session_get_remote_settings(state_->session,
                                             NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

bool H2Session::peer_allows_extended_connect() const {
  return nghttp2_session_get_remote_settings(state_->session,
                                             NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL) == 1;
}

bool H2Session::finished() const {
  const State& s = *state_;
  return !s.failed && (s.goaway_sent || s.goaway_seen) && s.streams.empty();
}

}  // namespace meltemi::codec
