#include "waypoint/proxy/h1_server.h"

#include <fmt/format.h>

namespace meltemi::waypoint {
namespace {

constexpr size_t kCopyBelow = 4096;
constexpr size_t kReadPiece = 64 * 1024;
constexpr Duration kLinger = std::chrono::seconds(2);  // for the client to read our last words

codec::H1Limits limits_of(const HttpOptions& o) {
  codec::H1Limits limits;
  limits.head_bytes = o.max_head_bytes;
  limits.header_count = o.max_header_count;
  limits.target_bytes = std::min<uint32_t>(limits.target_bytes, o.max_head_bytes);
  return limits;
}

}  // namespace

H1Server::H1Server(ProxyWorker& worker, ConnectionOwner& owner, ClientInfo client,
                   const HttpOptions& options, net::StreamPtr stream, ByteView early)
    : worker_(worker),
      owner_(owner),
      client_(std::move(client)),
      options_(options),
      stream_(std::move(stream)),
      parser_(codec::H1Role::kRequests, limits_of(options)),
      timer_(worker.loop(), *this),
      exchange_(worker) {
  client_.lease.idle(worker.now());
  client_.lease.on_give_way(rt::post_to(worker.loop()), [this](rt::GiveWay) { drain(); });
  stream_->set_events(this);
  stream_->limit_read(kReadPiece);
  timer_.set(idle_deadline());
  if (!early.empty()) {
    held_.assign(as_text(early));
    worker_.loop().at_turn_end(*this);  // not from inside the constructor
  }
  stream_->resume_read();
}

H1Server::~H1Server() = default;

MonoTime H1Server::head_deadline() const {
  return options_.headers_timeout > Duration::zero() ? worker_.now() + options_.headers_timeout
                                                     : MonoTime::max();
}

MonoTime H1Server::idle_deadline() const {
  return options_.connection_idle > Duration::zero() ? worker_.now() + options_.connection_idle
                                                     : MonoTime::max();
}

// --- writing ----------------------------------------------------------------------------------

bool H1Server::flush(ByteView tail) {
  if (dead_ || (out_.empty() && tail.empty())) return !blocked_;
  iovec pieces[2] = {{out_.data(), out_.size()},
                     {const_cast<uint8_t*>(tail.data()), tail.size()}};
  const net::Slices slices{out_.empty() ? pieces + 1 : pieces,
                           static_cast<size_t>(!out_.empty()) + !tail.empty(),
                           out_.size() + tail.size()};
  blocked_ = !stream_->write(slices);
  out_.clear();
  return !blocked_;
}

void H1Server::informational(const ResponseHead& head) {
  if (dead_ || head_.version == HttpVersion::kHttp10) return;
  build_h1_response(head, H1Framing::kNone, AfterResponse::kDefault, fields_);
  if (head.status == 100) expecting_ = false;
  if (codec::append_response_head(out_, head.status, codec::reason_phrase(head.status), fields_)) {
    flush({});
  }
}

void H1Server::respond(const ResponseHead& head, bool end, bool tunnel) {
  if (dead_) return;
  H1Framing framing = response_framing(head, head_.version);
  if (tunnel) framing = H1Framing::kNone;
  until_close_ = framing == H1Framing::kUntilClose;
  chunked_ = framing == H1Framing::kChunked;
  // A request that wanted to upgrade and may not, or whose body may come or not because nobody told its
  // client to continue (RFC 9110 section 10.1.1), leaves bytes behind that cannot be told apart: the
  // connection ends with this response.
  if (until_close_ || refused_ || draining_ || worker_.draining() ||
      (upgrade_pending_ && !tunnel) || expecting_ ||
      (options_.max_requests_per_connection && requests_ >= options_.max_requests_per_connection)) {
    keep_alive_ = false;
  }
  AfterResponse after = AfterResponse::kDefault;
  if (!keep_alive_) {
    after = AfterResponse::kClose;
  } else if (head_.version == HttpVersion::kHttp10) {
    after = AfterResponse::kKeepAlive10;
  }
  build_h1_response(head, framing, after, fields_);
  const std::string_view reason =
      head.reason.empty() ? codec::reason_phrase(head.status) : head.reason;
  if (!codec::append_response_head(out_, head.status, reason, fields_)) {
    static const Fields kEmpty;
    keep_alive_ = false;
    (void)codec::append_response_head(out_, 502, codec::reason_phrase(502), kEmpty);
    until_close_ = true;
  }
  if (tunnel) {
    tunnel_ = true;
    upgrade_pending_ = false;
    flush({});
    if (!held_.empty()) worker_.loop().at_turn_end(*this);
    return;
  }
  if (end) {
    flush({});
    return response_done();
  }
  worker_.loop().at_turn_end(*this);
}

bool H1Server::body(ByteView data) {
  if (dead_ || data.empty()) return true;
  if (chunked_) {
    uint8_t header[18];
    const size_t n = codec::write_chunk_header(data.size(), header);
    out_.append(reinterpret_cast<const char*>(header), n);
  }
  if (data.size() < kCopyBelow) {
    out_.append(as_text(data));
    if (chunked_) out_.append(codec::kChunkEnd);
    worker_.loop().at_turn_end(*this);
    return !blocked_;
  }
  const bool room = flush(data);
  if (chunked_) {
    out_.append(codec::kChunkEnd);
    worker_.loop().at_turn_end(*this);
  }
  return room;
}

void H1Server::finish(const Fields* trailers) {
  if (dead_) return;
  if (chunked_) {
    static const Fields kNone;
    if (!codec::append_last_chunk(out_, trailers ? *trailers : kNone)) out_.append("0\r\n\r\n");
  }
  flush({});
  response_done();
}

void H1Server::abort(Reason) {
  if (dead_) return;
  // Cutting the connection is the only way to say in HTTP/1 that a body is not whole.
  flush({});
  stream_->abort(Reason::kUpstreamReset);
  close();
}

void H1Server::response_done() {
  response_done_ = true;
  if (tunnel_ || !keep_alive_) {
    keep_alive_ = false;
    return part();
  }
  if (!request_open_) return next_request();
  timer_.set(head_deadline());  // for what is left of the body
}

void H1Server::part() {
  if (dead_ || closing_) return;
  closing_ = true;
  held_.clear();
  flush({});
  stream_->shutdown_write();
  timer_.set(worker_.now() + kLinger);
  // Bytes that the client still sends must be read: unread ones would make the kernel send a reset,
  // which could overtake the response.
  paused_ = false;
  stream_->resume_read();
}

// --- reading ----------------------------------------------------------------------------------

void H1Server::next_request() {
  client_.lease.idle(worker_.now());
  timer_.set(idle_deadline());
  if (!held_.empty() || read_ended_) worker_.loop().at_turn_end(*this);
}

void H1Server::on_turn_end() {
  if (dead_) return;
  flush({});
  pump();
}

// Goes on with bytes that had to wait.
void H1Server::pump() {
  const bool can_go_on = tunnel_ || request_open_ || (response_done_ && !upgrade_pending_);
  if (!held_.empty() && can_go_on) {
    std::string bytes;
    bytes.swap(held_);
    if (!paused_) stream_->resume_read();
    feed(as_bytes(bytes));
    if (dead_) return;
  }
  if (!read_ended_ || !held_.empty()) return;
  if (cut_off()) return end_cut_off();
  if (!waiting()) part();
}

void H1Server::end_cut_off() {
  if (!exchange_.active()) return part();  // answers to the requests before are on their way
  exchange_.client_gone(Reason::kClientClosedEarly);
  close();
}

void H1Server::on_data(const net::Slices& data) {
  for (size_t i = 0; i < data.count && !dead_; ++i) {
    const ByteView piece(static_cast<const uint8_t*>(data.pieces[i].iov_base),
                         data.pieces[i].iov_len);
    if (held_.empty()) {
      feed(piece);
    } else {
      hold(piece);  // behind what waits already
    }
  }
}

void H1Server::hold(ByteView rest) {
  if (rest.empty()) return;
  held_.append(as_text(rest));
  if (held_.size() >= worker_.shared().limits.pipeline_buffer) stream_->pause_read();
}

void H1Server::feed(ByteView in) {
  while (!dead_) {
    if (closing_ || refused_) return;  // read and dropped until the client is gone
    if (tunnel_) {
      if (!in.empty()) exchange_.request_body(in);
      return;
    }
    // The next request waits for the end of this one's response; early bytes of an upgrade for 101.
    if (upgrade_pending_ || (!request_open_ && !response_done_)) return hold(in);
    if (in.empty() && !request_open_) return;  // a message's end may need no bytes
    const codec::H1Event event = parser_.next(in);
    if (event.kind == codec::H1EventKind::kNeedMore) {
      if (!request_open_ && response_done_ && parser_.in_message() &&
          timer_.wanted() > head_deadline()) {
        timer_.set(head_deadline());
      }
      return;
    }
    if (!request_event(event)) return;
  }
}

bool H1Server::request_event(const codec::H1Event& event) {
  switch (event.kind) {
    case codec::H1EventKind::kHead: request_head(); return !dead_;
    case codec::H1EventKind::kBody:
      expecting_ = false;
      exchange_.request_body(event.data);
      return !dead_;
    case codec::H1EventKind::kComplete:
      request_open_ = expecting_ = false;
      exchange_.request_end(parser_.trailers());
      if (!dead_ && response_done_ && keep_alive_) next_request();
      return !dead_;
    case codec::H1EventKind::kUpgrade:
      request_open_ = false;
      if (tunnel_) return true;
      upgrade_pending_ = exchange_.active();
      return true;
    case codec::H1EventKind::kError: {
      Error error = parser_.error();
      refuse(event.status, error);
      return false;
    }
    case codec::H1EventKind::kNeedMore: break;
  }
  return true;
}

void H1Server::request_head() {
  const codec::H1Head& h = parser_.head();
  ++requests_;
  client_.lease.active();
  request_open_ = true;
  response_done_ = false;
  keep_alive_ = h.keep_alive;
  expecting_ = h.expect_continue && h.framing != H1Framing::kNone;
  chunked_ = until_close_ = false;
  head_ = RequestHead{};
  head_.method = h.method;
  head_.target = h.target;
  head_.authority = h.headers.value("host");
  head_.fields = &h.headers;
  head_.version = h.minor_version == 0 ? HttpVersion::kHttp10 : HttpVersion::kHttp11;
  head_.framing = h.framing;
  head_.content_length = h.content_length;
  head_.grpc = is_grpc(h.headers);
  if (h.upgrade && h.method != "CONNECT") {
    each_token(h.headers.value("upgrade"), [this](std::string_view token) {
      head_.websocket = name_is(token, "websocket");
      return !head_.websocket;
    });
    head_.websocket = head_.websocket && h.method == "GET" && h.framing == H1Framing::kNone;
    if (head_.websocket && h.headers.count("sec-websocket-key") > 1) {  // RFC 6455 section 11.3.1
      refused_ = true;
      return exchange_.refuse(head_, *this, client_, 400,
                              Error{Reason::kBadRequest, Fault::kDownstream, Retry::kNo,
                                    "more than one Sec-WebSocket-Key"});
    }
  }
  if (options_.request_timeout > Duration::zero()) {
    timer_.set(worker_.now() + options_.request_timeout);
  } else {
    timer_.clear();
  }
  if (h.method == "CONNECT") {
    refused_ = true;
    keep_alive_ = false;
    return exchange_.refuse(head_, *this, client_, 405,
                            Error{Reason::kUnsupported, Fault::kDownstream, Retry::kNo,
                                  "CONNECT is not served here"});
  }
  exchange_.start(head_, *this, client_);
  // What is no WebSocket for the route is an ordinary request; its Upgrade is not forwarded.
  if (h.upgrade && !exchange_.upgrading()) parser_.decline_upgrade();
}

void H1Server::refuse(uint16_t status, const Error& error) {
  worker_.stats().limit_hits.fetch_add(error.reason == Reason::kLimitExceeded,
                                       std::memory_order_relaxed);
  refused_ = true;
  keep_alive_ = false;
  if (request_open_) {
    // The head was good and the body is not: nobody knows where it ends.
    if (exchange_.bad_body(status, error)) return;
    stream_->abort(Reason::kBadRequest);
    return close();
  }
  ++requests_;
  response_done_ = false;
  head_ = RequestHead{};
  static const Fields kNone;
  head_.fields = &kNone;
  head_.method = "-";
  head_.target = "-";
  exchange_.refuse(head_, *this, client_, status, error);
}

void H1Server::pause_request(bool pause) {
  if (dead_ || paused_ == pause) return;
  paused_ = pause;
  pause ? stream_->pause_read() : stream_->resume_read();
}

void H1Server::on_read_end() {
  read_ended_ = true;
  if (closing_) return;
  if (tunnel_) {
    static const Fields kNone;
    return exchange_.request_end(kNone);
  }
  if (upgrade_pending_) return end_cut_off();
  if (!held_.empty()) return;  // whole requests may wait in it: pump() goes on
  if (cut_off()) return end_cut_off();
  // A client may close its side and still wait for the answer.
  keep_alive_ = false;
  if (!waiting()) part();
}

void H1Server::on_writable() {
  blocked_ = false;
  exchange_.client_room();
}

void H1Server::on_closed(const net::StreamEnd& end) {
  if (dead_) return;
  if (exchange_.active()) {
    exchange_.client_gone(end.reason == Reason::kOk ? Reason::kClientClosedEarly : end.reason);
  }
  close();
}

void H1Server::on_deadline() {
  if (dead_) return;
  if (closing_) {
    // The client reads slowly and there are bytes for it: it has as long as a stalled stream has.
    if (stream_->write_room() > 0 || std::exchange(lingered_, true)) return close();
    const bool limited = options_.stream_idle > Duration::zero();
    const Duration patience = limited ? options_.stream_idle : options_.connection_idle;
    timer_.set(worker_.now() + std::max<Duration>(patience, kLinger));
    return;
  }
  if (request_open_ && response_done_) return part();
  if (!waiting() && !parser_.in_message()) return part();
  if (request_open_ && exchange_.active()) {
    exchange_.client_gone(Reason::kRequestTimeout);
    stream_->abort(Reason::kRequestTimeout);
    return close();
  }
  if (!waiting()) {
    refuse(408, Error{Reason::kIdleTimeout, Fault::kDownstream, Retry::kNo,
                      "request_headers_timeout"});
  }
}

void H1Server::drain() {
  draining_ = true;
  if (!waiting() && !parser_.in_message() && held_.empty()) part();
}

void H1Server::close() {
  if (dead_) return;
  dead_ = true;
  timer_.clear();
  stream_.reset();
  owner_.connection_gone(*this);
}

}  // namespace meltemi::waypoint
