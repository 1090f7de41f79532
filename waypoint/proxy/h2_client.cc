#include "waypoint/proxy/h2_client.h"

#include <fmt/format.h>

#include <charconv>

namespace meltemi::waypoint {
namespace {

constexpr size_t kReadPiece = 256 * 1024;
constexpr size_t kMaxSpare = 128;

uint16_t status_in(const Fields& fields) {
  const std::string_view text = fields.value(":status");
  uint16_t status = 0;
  std::from_chars(text.data(), text.data() + text.size(), status);
  return status;
}

codec::H2Options options_of(const Cluster& cluster) {
  codec::H2Options h2;
  h2.initial_stream_window = cluster.stream_window;
  h2.connection_window = cluster.connection_window;
  return h2;
}

Reason reason_of(uint32_t code) {
  return code == static_cast<uint32_t>(codec::H2Code::kRefusedStream) ? Reason::kPoolDraining
                                                                      : Reason::kUpstreamReset;
}

}  // namespace

// --- one stream -------------------------------------------------------------------------------

bool H2ClientStream::body(ByteView data) {
  if (!connection_ || data.empty()) return true;
  buffer_.put(data);
  connection_->session_.resume(id_);
  connection_->want_flush();
  const bool room = buffer_.size() < connection_->host_.worker().shared().limits.stream_buffer;
  waiting_room_ = waiting_room_ || !room;
  return room;
}

void H2ClientStream::finish(const Fields* trailers) {
  if (!connection_ || done_) return;
  done_ = true;
  if (trailers) {
    trailers_ = *trailers;
    has_trailers_ = true;
  }
  connection_->session_.resume(id_);
  connection_->want_flush();
}

void H2ClientStream::cancel() {
  H2Client* connection = connection_;
  if (!connection) return;
  connection->session_.reset(id_, codec::H2Code::kCancel);
  connection->want_flush();
  connection->forget(*this);
}

void H2ClientStream::pause_response(bool pause) {
  paused_ = pause;
  if (pause || unread_ == 0 || !connection_) return;
  connection_->session_.consume(id_, std::exchange(unread_, 0));
  connection_->want_flush();
}

codec::H2Body::Ready H2ClientStream::ready(size_t max) {
  const size_t n = std::min(max, buffer_.size());
  sent_all_ = done_ && n == buffer_.size();
  return {n, sent_all_};
}

void H2ClientStream::take(size_t bytes, codec::H2Sink& sink) {
  if (bytes == 0) return;
  sink.append(buffer_.front(bytes));
  buffer_.drop(bytes);
  if (waiting_room_ && buffer_.size() == 0 && plan_) {
    waiting_room_ = false;
    plan_->events->on_upstream_room();
  }
}

// --- the connection ---------------------------------------------------------------------------

H2Client::H2Client(Host& host, net::StreamPtr stream)
    : host_(host),
      stream_(std::move(stream)),
      session_(codec::H2Role::kClient, *this, options_of(host.cluster().config())),
      idle_timer_(host.worker().loop(), *this) {
  stream_->set_events(this);
  stream_->limit_read(kReadPiece);
  stream_->resume_read();
  when_idle();  // whom it was made for may have left
  want_flush();
}

H2Client::~H2Client() = default;

bool H2Client::can_request() const {
  const Cluster& cluster = host_.cluster().config();
  const uint32_t most = cluster.max_requests_per_connection;
  return !dead_ && !draining_ && streams_.size() < bearable_ &&
         streams_.size() < cluster.max_streams && session_.can_request() &&
         (most == 0 || requests_ < most);
}

void H2Client::on_settings() {
  settling_ = false;
  bearable_ = kAsSettingsSay;
  host_.room_changed();
}

void H2Client::on_goaway(uint32_t) {
  draining_ = true;
  host_.room_changed();
}

Result<ClientSide*> H2Client::start(AttemptPlan& plan) {
  build_h2_request(*plan.head, plan.info, fields_);
  for (const HeaderOps* ops : plan.request_ops) {
    if (ops && !ops->empty()) ops->apply(fields_);
  }
  std::unique_ptr<H2ClientStream> stream;
  if (spare_.empty()) {
    stream = std::make_unique<H2ClientStream>();
  } else {
    stream = std::move(spare_.back());
    spare_.pop_back();
  }
  const bool has_body = plan.head->framing != H1Framing::kNone;
  const uint32_t id =
      MELTEMI_TRY(session_.request(fields_, has_body ? stream.get() : nullptr));
  ++requests_;
  idle_timer_.clear();
  stream->connection_ = this;
  stream->plan_ = &plan;
  stream->id_ = id;
  stream->done_ = stream->has_trailers_ = stream->paused_ = stream->waiting_room_ = false;
  stream->response_begun_ = stream->sent_all_ = false;
  stream->unread_ = 0;
  H2ClientStream* side = stream.get();
  streams_.insert(id, std::move(stream));
  want_flush();
  return side;
}

void H2Client::forget(H2ClientStream& stream) {
  std::unique_ptr<H2ClientStream> owned = streams_.take(stream.id_);
  if (!owned) return;
  stream.connection_ = nullptr;
  stream.plan_ = nullptr;
  stream.buffer_.clear();
  stream.trailers_.clear();
  if (spare_.size() < kMaxSpare) spare_.push_back(std::move(owned));
  host_.room_changed();
  when_idle();
}

void H2Client::when_idle() {
  if (!streams_.empty() || dead_) return;
  const Duration idle = host_.cluster().config().idle_timeout;
  if (draining_) {
    idle_timer_.set(host_.worker().now());
  } else if (idle > Duration::zero()) {
    idle_timer_.set(host_.worker().now() + idle);
  }
}

void H2Client::on_deadline() {
  if (streams_.empty()) close(Reason::kIdleTimeout, "");
}

void H2Client::drain() {
  draining_ = true;
  when_idle();
}

void H2Client::on_head(uint32_t id, Fields& headers, bool end) {
  H2ClientStream* s = find(id);
  if (!s) return;
  ResponseHead head;
  head.status = status_in(headers);
  head.fields = &headers;
  s->response_begun_ = true;
  head.no_body = s->plan_->head->method == "HEAD" || head.status == 204 || head.status == 304;
  const auto length = headers.get("content-length");
  if (end) {
    head.framing = H1Framing::kNone;
  } else if (length) {
    head.framing = H1Framing::kLength;
    std::from_chars(length->data(), length->data() + length->size(), head.content_length);
  } else {
    head.framing = H1Framing::kChunked;
  }
  s->plan_->events->on_response(head, false);
  static const Fields kNone;
  if (end) on_end(id, kNone);  // no other call comes
}

void H2Client::on_informational(uint32_t id, const Fields& headers) {
  H2ClientStream* s = find(id);
  if (!s) return;
  ResponseHead head;
  head.status = status_in(headers);
  head.fields = &headers;
  s->plan_->events->on_informational(head);
}

void H2Client::on_data(uint32_t id, ByteView data) {
  H2ClientStream* s = find(id);
  if (!s) {
    session_.consume(id, data.size());
    return;
  }
  s->plan_->events->on_response_body(data);
  if (!(s = find(id))) return;
  if (s->paused_) {
    s->unread_ += data.size();
  } else {
    session_.consume(id, data.size());
  }
}

void H2Client::on_end(uint32_t id, const Fields& trailers) {
  H2ClientStream* s = find(id);
  if (!s) return;
  UpstreamEvents* events = s->plan_->events;
  if (bearable_ != kAsSettingsSay) ++bearable_;
  if (!s->sent_all_ && s->plan_->head->framing != H1Framing::kNone) {
    session_.reset(id, codec::H2Code::kNoError);  // answered before the request was complete
  }
  forget(*s);
  events->on_response_end(&trailers);
}

void H2Client::on_closed(uint32_t id, uint32_t code, bool unprocessed) {
  H2ClientStream* s = find(id);
  if (!s) return;
  AttemptFailure failure;
  const bool malformed = session_.broken_by_peer(id);
  failure.reason = malformed ? Reason::kUpstreamProtocol : reason_of(code);
  const std::string detail = fmt::format("{}: {}", malformed ? "malformed response" : "stream reset",
                                         codec::h2_code_name(code));
  failure.detail = detail;
  failure.connected = true;
  failure.request_sent = true;
  failure.unprocessed = unprocessed;
  UpstreamEvents* events = s->plan_->events;
  forget(*s);
  if (unprocessed && !draining_) bearable_ = std::max<size_t>(streams_.size(), 1);
  events->on_attempt_failed(failure);
}

void H2Client::on_data(const net::Slices& data) {
  for (size_t i = 0; i < data.count && !dead_; ++i) {
    const Status ok = session_.receive(
        {static_cast<const uint8_t*>(data.pieces[i].iov_base), data.pieces[i].iov_len},
        host_.worker().now());
    if (!ok) {
      flush();
      return close(Reason::kUpstreamProtocol, "malformed response: " + ok.error().detail);
    }
  }
  if (dead_) return;
  if (session_.wants_write()) want_flush();
  if (draining_) when_idle();
}

void H2Client::flush() {
  if (dead_ || blocked_) return;
  bool more = true;
  while (more && !blocked_) {
    FlushSink sink;
    more = session_.flush(sink, FlushSink::kFlush);
    if (sink.empty()) break;
    blocked_ = !stream_->write(sink.bytes());
  }
}

void H2Client::on_writable() {
  blocked_ = false;
  flush();
}

void H2Client::on_read_end() { close(Reason::kServerClosedEarly, "connection closed"); }

void H2Client::on_closed(const net::StreamEnd& end) {
  close(end.reason == Reason::kOk ? Reason::kServerClosedEarly : end.reason, "connection closed");
}

void H2Client::close(Reason reason, std::string_view detail) {
  if (dead_) return;
  dead_ = true;
  if (streams_.empty() && !blocked_) {
    host_.worker().farewell(std::move(stream_));
  } else {
    stream_.reset();
  }
  host_.gone(*this);
  const auto streams = streams_.take_all();
  for (const auto& s : streams) {
    AttemptFailure failure;
    failure.reason = reason;
    failure.detail = detail;
    failure.connected = failure.request_sent = true;
    failure.reused = requests_ > 1 && !s->response_begun_;
    UpstreamEvents* events = s->plan_->events;
    s->connection_ = nullptr;
    s->plan_ = nullptr;
    events->on_attempt_failed(failure);
  }
}

}  // namespace meltemi::waypoint
