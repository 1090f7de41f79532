#include "waypoint/proxy/h1_client.h"

#include <fmt/format.h>

namespace meltemi::waypoint {
namespace {

constexpr size_t kCopyBelow = 4096;      // bytes of body that ride along with the head in one send
constexpr size_t kReadPiece = 64 * 1024;  // bytes of one on_data()
// A response that a retry throws away is read to its end if it is this short: cheaper than a new
// connection.
constexpr uint64_t kDiscardBelow = 16 * 1024;

}  // namespace

H1Client::H1Client(Host& host, net::StreamPtr stream)
    : host_(host),
      stream_(std::move(stream)),
      parser_(codec::H1Role::kResponses),
      idle_timer_(host.worker().loop(), *this),
      certificate_epoch_(host.worker().certificate_epoch()) {
  stream_->set_events(this);
  stream_->limit_read(kReadPiece);
  wait_idle();
  stream_->resume_read();
}

H1Client::~H1Client() = default;

// Also before the first request: whom it was made for may have left.
void H1Client::wait_idle() {
  const Duration idle = host_.cluster().config().idle_timeout;
  if (idle > Duration::zero()) idle_timer_.set(host_.worker().now() + idle);
}

Status H1Client::start(AttemptPlan& plan) {
  build_h1_request(*plan.head, plan.info, fields_);
  for (const HeaderOps* ops : plan.request_ops) {
    if (ops && !ops->empty()) ops->apply(fields_);
  }
  MELTEMI_TRY(codec::append_request_head(out_, plan.head->method, plan.info.target, fields_));
  parser_.expect_response_to(plan.head->method);
  plan_ = &plan;
  ++requests_;
  chunked_ = plan.head->framing == H1Framing::kChunked;
  request_done_ = response_begun_ = informational_ = tunnel_ = head_seen_ = false;
  idle_timer_.clear();
  if (plan.head->framing != H1Framing::kNone || plan.head->websocket) {
    host_.worker().loop().at_turn_end(*this);
  }
  return {};
}

bool H1Client::flush(ByteView tail) {
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

bool H1Client::body(ByteView data) {
  if (dead_ || data.empty()) return true;
  if (chunked_) {
    uint8_t header[18];
    const size_t n = codec::write_chunk_header(data.size(), header);
    out_.append(reinterpret_cast<const char*>(header), n);
  }
  if (data.size() < kCopyBelow) {
    out_.append(as_text(data));
    if (chunked_) out_.append(codec::kChunkEnd);
    host_.worker().loop().at_turn_end(*this);
    return !blocked_;
  }
  const bool room = flush(data);
  if (chunked_) out_.append(codec::kChunkEnd);  // goes with the next piece, or at the turn's end
  if (chunked_) host_.worker().loop().at_turn_end(*this);
  return room;
}

void H1Client::finish(const Fields* trailers) {
  if (dead_ || request_done_) return;
  request_done_ = true;
  if (tunnel_) {
    flush({});
    stream_->shutdown_write();
    return;
  }
  if (chunked_) {
    static const Fields kNone;
    if (!codec::append_last_chunk(out_, trailers ? *trailers : kNone)) out_.append("0\r\n\r\n");
  }
  flush({});
}

void H1Client::pause_response(bool pause) {
  if (dead_ || pause == paused_) return;
  paused_ = pause;
  pause ? stream_->pause_read() : stream_->resume_read();
}

void H1Client::cancel() {
  plan_ = nullptr;
  const bool is_short = head_.no_body || head_.framing == H1Framing::kNone ||
                        (head_.framing == H1Framing::kLength && head_.content_length < kDiscardBelow);
  if (head_seen_ && request_done_ && is_short && !tunnel_ && head_.status != 101) {
    discarding_ = true;
    return pause_response(false);
  }
  in_order_ = false;
  close();
}

void H1Client::close() {
  if (dead_) return;
  dead_ = true;
  if (in_order_ && !plan_) host_.worker().farewell(std::move(stream_));
  stream_.reset();
  host_.gone(*this);
}

void H1Client::fail_attempt(Reason reason, std::string_view detail) {
  AttemptFailure failure;
  failure.reason = reason;
  failure.detail = detail;
  failure.connected = true;
  failure.request_sent = true;
  failure.reused = requests_ > 1 && !response_begun_;
  AttemptPlan* plan = std::exchange(plan_, nullptr);
  in_order_ = false;
  close();
  if (plan) plan->events->on_attempt_failed(failure);
}

void H1Client::on_data(const net::Slices& data) {
  for (size_t i = 0; i < data.count && !dead_; ++i) {
    feed({static_cast<const uint8_t*>(data.pieces[i].iov_base), data.pieces[i].iov_len});
  }
}

bool H1Client::feed(ByteView in) {
  while (!dead_) {
    if (tunnel_) {
      if (!in.empty() && plan_) plan_->events->on_response_body(in);
      return true;
    }
    if (!plan_ && !discarding_) {
      if (in.empty()) return true;
      close();  // nobody asked for this
      return false;
    }
    response_begun_ = response_begun_ || !in.empty();
    const codec::H1Event event = parser_.next(in);
    if (event.kind == codec::H1EventKind::kNeedMore) return true;
    if (!on_event(event, !in.empty())) return false;
  }
  return false;
}

bool H1Client::on_event(const codec::H1Event& event, bool more_input) {
  switch (event.kind) {
    case codec::H1EventKind::kHead: return response_head();
    case codec::H1EventKind::kBody:
      if (plan_) plan_->events->on_response_body(event.data);
      return !dead_;
    case codec::H1EventKind::kComplete:
      if (informational_) {
        informational_ = false;
      } else {
        response_end(more_input);
      }
      return !dead_;
    case codec::H1EventKind::kUpgrade:
      tunnel_ = true;
      return true;
    case codec::H1EventKind::kError:
      fail_attempt(Reason::kUpstreamProtocol,
                   fmt::format("malformed response: {}", parser_.error().detail));
      return false;
    case codec::H1EventKind::kNeedMore: break;
  }
  return true;
}

bool H1Client::response_head() {
  const codec::H1Head& head = parser_.head();
  head_ = ResponseHead{};
  head_.status = head.status;
  head_.reason = head.reason;
  head_.fields = &head.headers;
  head_.framing = head.framing;
  head_.content_length = head.content_length;
  head_.no_body = plan_->head->method == "HEAD" || head.status == 204 || head.status == 304;
  informational_ = head.status < 200 && head.status != 101;
  if (informational_) {
    plan_->events->on_informational(head_);
    return !dead_;
  }
  if (head.status == 101 && !plan_->head->websocket) {
    fail_attempt(Reason::kUpstreamProtocol, "malformed response: 101 to a request without Upgrade");
    return false;
  }
  head_seen_ = true;
  plan_->events->on_response(head_, false);
  return !dead_;
}

void H1Client::response_end(bool more_input) {
  AttemptPlan* plan = std::exchange(plan_, nullptr);
  discarding_ = false;
  const uint32_t most = host_.cluster().config().max_requests_per_connection;
  const bool old_tunnel =
      host_.endpoint().tunnel && certificate_epoch_ != host_.worker().certificate_epoch();
  const bool keep = !old_tunnel && parser_.head().keep_alive && request_done_ && !more_input && !blocked_ &&
                    (most == 0 || requests_ < most) && !host_.worker().draining();
  if (keep) {
    pause_response(false);
    wait_idle();
    host_.idle(*this);
  } else {
    close();
  }
  if (plan) plan->events->on_response_end(&parser_.trailers());
}

void H1Client::on_read_end() {
  if (!plan_) return close();
  if (tunnel_) {
    AttemptPlan* plan = std::exchange(plan_, nullptr);
    flush({});
    close();
    return plan->events->on_response_end(nullptr);
  }
  const codec::H1Event event = parser_.finish();
  if (event.kind == codec::H1EventKind::kComplete) {
    AttemptPlan* plan = std::exchange(plan_, nullptr);
    close();
    return plan->events->on_response_end(&parser_.trailers());
  }
  fail_attempt(Reason::kServerClosedEarly,
               response_begun_ ? "in the middle of the response" : "before the response");
}

void H1Client::on_writable() {
  blocked_ = false;
  if (plan_) plan_->events->on_upstream_room();
}

void H1Client::on_closed(const net::StreamEnd& end) {
  if (!plan_) return close();
  fail_attempt(end.reason == Reason::kOk ? Reason::kServerClosedEarly : end.reason, "");
}

}  // namespace meltemi::waypoint
