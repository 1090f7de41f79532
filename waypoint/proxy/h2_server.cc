#include "waypoint/proxy/h2_server.h"

#include <charconv>

namespace meltemi::waypoint {
namespace {

constexpr size_t kReadPiece = 256 * 1024;
constexpr size_t kMaxSpare = 128;

codec::H2Options options_of(const HttpOptions& o) {
  codec::H2Options h2;
  h2.max_concurrent_streams = o.max_concurrent_streams;
  h2.initial_stream_window = o.stream_window;
  h2.connection_window = o.connection_window;
  h2.max_header_list = o.max_head_bytes;
  h2.max_header_count = o.max_header_count;
  h2.extended_connect = o.websocket;
  return h2;
}

// Sec-WebSocket-Key: 16 random bytes in base64 (RFC 6455 section 4.1).
std::string websocket_key(model::Random& random) {
  static constexpr char kAlphabet[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string key;
  for (int i = 0; i < 21; ++i) key += kAlphabet[random.below(64)];
  key += kAlphabet[random.below(4) * 16];  // 128 bits: the last character holds two of them
  return key + "==";
}

}  // namespace

// --- one stream -------------------------------------------------------------------------------

H2ServerStream::H2ServerStream(H2Server& connection)
    : connection_(connection), exchange_(connection.worker_) {}

void H2ServerStream::informational(const ResponseHead& head) {
  if (gone_) return;
  build_h2_response(head, connection_.out_fields_);
  (void)connection_.session_.informational(id_, connection_.out_fields_);
  connection_.want_flush();
}

void H2ServerStream::respond(const ResponseHead& head, bool end, bool tunnel) {
  if (gone_) return;
  ResponseHead out = head;
  if (tunnel) out.status = 200;
  build_h2_response(out, connection_.out_fields_);
  if (tunnel) connection_.out_fields_.remove("sec-websocket-accept");
  if (head.framing == H1Framing::kLength && !head.no_body &&
      !connection_.out_fields_.has("content-length")) {
    char buffer[20];
    const auto last = std::to_chars(buffer, buffer + sizeof buffer, head.content_length).ptr;
    connection_.out_fields_.add("content-length", {buffer, static_cast<size_t>(last - buffer)});
  }
  whole_ = end || (head.framing == H1Framing::kNone && !tunnel) || head.no_body;
  const Status ok =
      connection_.session_.respond(id_, connection_.out_fields_, whole_ ? nullptr : this);
  if (!ok) {
    connection_.session_.reset(id_, codec::H2Code::kInternalError);
  } else if (whole_) {
    answered();
  }
  connection_.want_flush();
}

bool H2ServerStream::body(ByteView data) {
  if (gone_ || data.empty()) return true;
  buffer_.put(data);
  connection_.session_.resume(id_);
  connection_.want_flush();
  const bool room = buffer_.size() < connection_.worker_.shared().limits.stream_buffer;
  waiting_room_ = waiting_room_ || !room;
  return room;
}

void H2ServerStream::finish(const Fields* trailers) {
  if (gone_ || whole_) return;
  done_ = true;
  if (trailers) {
    trailers_ = *trailers;
    has_trailers_ = true;
  }
  connection_.session_.resume(id_);
  answered();
  connection_.want_flush();
}

// Nobody wants what the client has not sent yet: it is told so behind the response, or it would hold
// the stream, and the bytes, for as long as it liked (RFC 9113 section 8.1).
void H2ServerStream::answered() {
  if (!request_ended_) connection_.session_.reset(id_, codec::H2Code::kNoError);
}

void H2ServerStream::abort(Reason) {
  if (gone_) return;
  gone_ = true;
  connection_.session_.reset(id_, codec::H2Code::kInternalError);
  connection_.want_flush();
}

void H2ServerStream::pause_request(bool pause) {
  paused_ = pause;
  if (pause || unread_ == 0 || gone_) return;
  connection_.session_.consume(id_, std::exchange(unread_, 0));
  connection_.want_flush();
}

codec::H2Body::Ready H2ServerStream::ready(size_t max) {
  const size_t n = std::min(max, buffer_.size());
  return {n, done_ && n == buffer_.size()};
}

void H2ServerStream::take(size_t bytes, codec::H2Sink& sink) {
  if (bytes == 0) return;
  sink.append(buffer_.front(bytes));
  buffer_.drop(bytes);
  if (waiting_room_ && buffer_.size() == 0) {
    waiting_room_ = false;
    exchange_.client_room();
  }
}

// --- the connection ---------------------------------------------------------------------------

H2Server::H2Server(ProxyWorker& worker, ConnectionOwner& owner, ClientInfo client,
                   const HttpOptions& options, net::StreamPtr stream, ByteView early)
    : worker_(worker),
      owner_(owner),
      client_(std::move(client)),
      options_(options),
      stream_(std::move(stream)),
      session_(codec::H2Role::kServer, *this, options_of(options)),
      idle_timer_(worker.loop(), *this),
      early_(as_text(early)) {
  client_.lease.idle(worker.now());
  client_.lease.on_give_way(rt::post_to(worker.loop()), [this](rt::GiveWay) { drain(); });
  stream_->set_events(this);
  stream_->limit_read(kReadPiece);
  if (options_.connection_idle > Duration::zero()) {
    idle_timer_.set(worker.now() + options_.connection_idle);
  }
  want_flush();
  stream_->resume_read();
}

H2Server::~H2Server() = default;

void H2Server::on_head(uint32_t id, Fields& headers, bool end) {
  std::unique_ptr<H2ServerStream> owned;
  if (spare_.empty()) {
    owned = std::make_unique<H2ServerStream>(*this);
  } else {
    owned = std::move(spare_.back());
    spare_.pop_back();
  }
  H2ServerStream& s = *owned;
  streams_.insert(id, std::move(owned));
  ++requests_;
  client_.lease.active();
  idle_timer_.clear();
  s.id_ = id;
  std::swap(s.fields_, headers);
  s.done_ = s.has_trailers_ = s.paused_ = s.waiting_room_ = s.gone_ = s.whole_ = false;
  s.request_ended_ = end;
  s.unread_ = 0;
  s.head_ = RequestHead{};
  s.head_.fields = &s.fields_;
  s.head_.version = HttpVersion::kHttp2;
  s.head_.method = s.fields_.value(":method");
  s.head_.target = s.fields_.value(":path");
  s.head_.authority = s.fields_.value(":authority");
  if (s.head_.authority.empty()) s.head_.authority = s.fields_.value("host");
  const std::string_view scheme = s.fields_.value(":scheme");
  if (!scheme.empty()) s.head_.scheme = scheme;
  s.head_.grpc = is_grpc(s.fields_);
  if (!end) {
    const auto length = s.fields_.get("content-length");
    s.head_.framing = length ? H1Framing::kLength : H1Framing::kChunked;
    if (length) {
      std::from_chars(length->data(), length->data() + length->size(), s.head_.content_length);
    }
  }
  s.extended_ = s.head_.method == "CONNECT" && s.fields_.value(":protocol") == "websocket";
  if (s.head_.method == "CONNECT" && !s.extended_) {
    return s.exchange_.refuse(s.head_, s, client_, 405,
                              Error{Reason::kUnsupported, Fault::kDownstream, Retry::kNo,
                                    "CONNECT is not served here"});
  }
  if (s.extended_) {
    s.head_.method = "GET";
    s.head_.websocket = true;
    s.head_.framing = H1Framing::kNone;
    s.fields_.set("sec-websocket-key", websocket_key(worker_.random()));  // RFC 8441 section 5.1
    s.head_.target = s.fields_.value(":path");  // set() may have moved the text
    s.head_.authority = s.fields_.value(":authority");
    s.head_.scheme = s.fields_.value(":scheme");
  }
  s.exchange_.start(s.head_, s, client_);
  static const Fields kNone;
  if (end) s.exchange_.request_end(kNone);
}

void H2Server::on_data(uint32_t id, ByteView data) {
  H2ServerStream* s = find(id);
  if (!s || s->gone_) {
    session_.consume(id, data.size());
    return;
  }
  s->exchange_.request_body(data);
  if (s->paused_) {
    s->unread_ += data.size();
  } else {
    session_.consume(id, data.size());
  }
}

void H2Server::on_end(uint32_t id, const Fields& trailers) {
  if (H2ServerStream* s = find(id)) {
    s->request_ended_ = true;
    s->exchange_.request_end(trailers);
  }
}

void H2Server::on_closed(uint32_t id, uint32_t code, bool unprocessed) {
  H2ServerStream* s = find(id);
  if (!s) return;
  s->gone_ = true;
  if (s->exchange_.active()) s->exchange_.client_gone(Reason::kClientClosedEarly);
  recycle(id);
}

void H2Server::recycle(uint32_t id) {
  ended_.push_back(streams_.take(id));
  ended_.back()->buffer_.clear();
  ended_.back()->trailers_.clear();
  want_flush();
  if (!streams_.empty()) return;
  client_.lease.idle(worker_.now());
  if (options_.connection_idle > Duration::zero()) {
    idle_timer_.set(worker_.now() + options_.connection_idle);
  }
}

void H2Server::take_early() {
  if (early_.empty()) return;
  const std::string early = std::move(early_);
  early_.clear();
  receive(as_bytes(early));
}

void H2Server::receive(ByteView bytes) {
  const Status ok = session_.receive(bytes, worker_.now());
  if (ok) return;
  worker_.stats().limit_hits.fetch_add(ok.error().reason == Reason::kLimitExceeded,
                                       std::memory_order_relaxed);
  flush();
  close(ok.error().reason);
}

void H2Server::on_data(const net::Slices& data) {
  take_early();
  for (size_t i = 0; i < data.count && !dead_; ++i) {
    receive({static_cast<const uint8_t*>(data.pieces[i].iov_base), data.pieces[i].iov_len});
  }
  if (!dead_ && session_.wants_write()) want_flush();
}

void H2Server::on_turn_end() {
  if (dead_) return;
  take_early();
  if (dead_) return;
  const uint32_t most = options_.max_requests_per_connection;
  if ((worker_.draining() || (most != 0 && requests_ >= most)) && !draining_) drain();
  flush();
  for (auto& s : ended_) {
    if (spare_.size() < kMaxSpare) spare_.push_back(std::move(s));
  }
  ended_.clear();
  if (!dead_ && draining_ && !blocked_ && session_.finished()) close(Reason::kOk);
}

void H2Server::flush() {
  if (dead_ || blocked_) return;
  bool more = true;
  while (more && !blocked_) {
    FlushSink sink;
    more = session_.flush(sink, FlushSink::kFlush);
    if (sink.empty()) break;
    blocked_ = !stream_->write(sink.bytes());
  }
}

void H2Server::on_writable() {
  blocked_ = false;
  want_flush();
}

void H2Server::on_closed(const net::StreamEnd& end) {
  close(end.reason == Reason::kOk ? Reason::kClientClosedEarly : end.reason);
}

void H2Server::on_deadline() {
  if (!streams_.empty()) return;
  session_.close(codec::H2Code::kNoError);
  flush();
  close(Reason::kIdleTimeout);
}

void H2Server::drain() {
  draining_ = true;
  session_.drain();
  want_flush();
}

void H2Server::close(Reason reason) {
  if (dead_) return;
  dead_ = true;
  idle_timer_.clear();
  for (auto& s : streams_.take_all()) {
    s->gone_ = true;
    if (s->exchange_.active()) s->exchange_.client_gone(reason);
    ended_.push_back(std::move(s));  // it may be on the stack
  }
  worker_.farewell(std::move(stream_));  // our last words (GOAWAY) still go out
  owner_.connection_gone(*this);
}

}  // namespace meltemi::waypoint
