// HTTP/1.1 (RFC 9112) on codec's parser: one request at a time, pipelined ones wait.
#include <array>
#include <utility>

#include "userspace/codec/h1.h"
#include "userspace/codec/http_date.h"
#include "userspace/http/session.h"
#include "userspace/http/target.h"

namespace meltemi::http {
namespace {

using codec::H1Event;
using codec::H1EventKind;
using codec::H1Framing;

class H1Session final : public Session {
 public:
  H1Session(const Limits& limits, const SocketAddress& peer, const Answer& answer)
      : limits_(limits),
        peer_(peer),
        answer_(answer),
        parser_(codec::H1Role::kRequests, {.head_bytes = limits.head_bytes,
                                           .header_count = limits.header_count,
                                           .target_bytes = limits.head_bytes}) {}

  void receive(ByteView in, MonoTime) override {
    if (done_) return;
    in_.append(reinterpret_cast<const char*>(in.data()), in.size());
    parse();
  }
  void produce(std::string& out, size_t max) override;
  bool wants_input() const override { return !responding_; }
  bool reading() const override { return !responding_ && parser_.in_message(); }
  bool responding() const override { return responding_; }
  bool done() const override { return done_ && !responding_; }
  void drain() override {
    draining_ = true;
    if (!responding_ && !parser_.in_message()) done_ = true;
  }
  std::unique_ptr<Upgrade> take_upgrade() override {
    return responding_ ? nullptr : std::move(upgrade_);
  }

 private:
  void parse();
  void on_event(const H1Event& event);
  void begin_request();
  void end_request();
  void add_body(ByteView data);
  void refuse(int status, std::string why);
  void respond(Response response);
  void begin_body(const Response& response, codec::HeaderList& fields);
  void end_response();
  void next_piece(std::string& out);

  const Limits limits_;
  const SocketAddress peer_;
  const Answer& answer_;
  codec::H1Parser parser_;
  std::string in_;       // not parsed yet: at most what one read brought
  Request request_;
  bool http10_ = false, head_only_ = false, chunked_ = false;
  bool keep_ = false;        // the connection goes on after this response
  bool asked_upgrade_ = false;
  bool responding_ = false;
  bool done_ = false;
  bool draining_ = false;
  std::string out_;          // head, and the body that is not streamed
  size_t sent_ = 0;
  std::shared_ptr<BodySource> source_;
  std::unique_ptr<Upgrade> upgrade_;
};

void H1Session::parse() {
  const std::string input = std::exchange(in_, {});
  ByteView rest(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  while (!responding_ && !done_) {
    const H1Event event = parser_.next(rest);
    if (event.kind == H1EventKind::kNeedMore) break;
    // What an upgrade hands on. Not before: body pieces are views into the input.
    if (event.kind == H1EventKind::kUpgrade) in_.assign(input, input.size() - rest.size());
    on_event(event);
  }
  if (!upgrade_) in_.assign(input, input.size() - rest.size());
}

void H1Session::on_event(const H1Event& event) {
  switch (event.kind) {
    case H1EventKind::kHead: return begin_request();
    case H1EventKind::kBody: return add_body(event.data);
    case H1EventKind::kUpgrade:
      asked_upgrade_ = true;
      return end_request();
    case H1EventKind::kComplete: return end_request();
    default: return refuse(event.status, parser_.error().detail);
  }
}

void H1Session::begin_request() {
  const codec::H1Head& head = parser_.head();
  request_ = Request();
  asked_upgrade_ = false;
  request_.method = head.method;
  request_.peer = peer_;
  http10_ = head.minor_version == 0;
  head_only_ = head.method == "HEAD";
  keep_ = head.keep_alive && !http10_;
  if (head.method == "CONNECT") return refuse(405, "this is no proxy");
  auto target = parse_target(head.target);
  if (!target) return refuse(400, target.error().detail);
  request_.path = std::move(target->path);
  request_.query = std::move(target->query);
  request_.headers = head.headers;
  if (head.framing == H1Framing::kLength && head.content_length > limits_.body_bytes) {
    return refuse(413, "the body is too large");
  }
  if (head.expect_continue && head.framing != H1Framing::kNone) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
  }
}

void H1Session::add_body(ByteView data) {
  if (request_.body.size() + data.size() > limits_.body_bytes) {
    return refuse(413, "the body is too large");
  }
  request_.body.append(reinterpret_cast<const char*>(data.data()), data.size());
}

void H1Session::end_request() { respond(answer_(request_)); }

// What the client sends behind a refused head cannot be trusted to be a request.
void H1Session::refuse(int status, std::string why) {
  keep_ = false;
  respond(refusal(status, std::move(why)));
}

void H1Session::respond(Response response) {
  if (response.status == 101) {
    if (!asked_upgrade_ || !response.upgrade) response = {426, "this needs an upgrade\n"};
  }
  if (response.status == 101) {
    upgrade_ = std::make_unique<Upgrade>(Upgrade{std::move(response.upgrade), std::move(in_)});
    in_.clear();
    keep_ = true;
  } else if (asked_upgrade_) {
    parser_.decline_upgrade();
  }
  codec::HeaderList fields;
  if (!upgrade_) begin_body(response, fields);
  fields.add("date", codec::http_date(std::chrono::system_clock::now()));
  for (const auto& [name, value] : response.headers) fields.add(name, value);
  if (!keep_ || draining_) fields.add("connection", "close");
  const std::string_view reason = codec::reason_phrase(static_cast<uint16_t>(response.status));
  if (!codec::append_response_head(out_, static_cast<uint16_t>(response.status), reason, fields)) {
    // A field that would split the response is a fault of ours; the client learns that much.
    codec::HeaderList bare;
    bare.add("content-length", "0");
    bare.add("connection", "close");
    (void)codec::append_response_head(out_, 500, "Internal Server Error", bare);
    keep_ = false;
    source_.reset();
    response.body.clear();
  }
  if (!head_only_) out_ += response.body;
  if (head_only_) source_.reset();
  request_ = Request();
  responding_ = true;
}

void H1Session::begin_body(const Response& response, codec::HeaderList& fields) {
  fields.add("content-type", response.content_type);
  source_ = response.source;
  chunked_ = source_ && !http10_;
  if (chunked_) {
    fields.add("transfer-encoding", "chunked");
  } else if (source_) {
    keep_ = false;  // HTTP/1.0: the end of the connection ends the body
  } else {
    fields.add("content-length", std::to_string(response.body.size()));
  }
}

void H1Session::next_piece(std::string& out) {
  std::string piece;
  const bool more = source_->more(piece);
  if (!piece.empty() && chunked_) {
    std::array<uint8_t, 18> header;
    const size_t n = codec::write_chunk_header(piece.size(), header);
    out.append(reinterpret_cast<const char*>(header.data()), n);
    out += piece;
    out += codec::kChunkEnd;
  } else {
    out += piece;
  }
  if (more) return;
  if (chunked_) (void)codec::append_last_chunk(out, {});
  source_.reset();
}

void H1Session::produce(std::string& out, size_t max) {
  while (out.size() < max) {
    if (sent_ < out_.size()) {
      const size_t n = std::min(out_.size() - sent_, max - out.size());
      out.append(out_, sent_, n);
      sent_ += n;
    } else if (!responding_) {
      return;
    } else if (source_) {
      next_piece(out);
    } else {
      end_response();
    }
  }
}

void H1Session::end_response() {
  out_.clear();
  sent_ = 0;
  responding_ = false;
  done_ = !keep_ || draining_;
  if (!upgrade_) parse();  // pipelined requests
}

}  // namespace

std::unique_ptr<Session> make_h1_session(const Limits& limits, const SocketAddress& peer,
                                         const Session::Answer& answer) {
  return std::make_unique<H1Session>(limits, peer, answer);
}

Version version_of(ByteView first) {
  constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  const std::string_view have(reinterpret_cast<const char*>(first.data()), first.size());
  if (have.size() >= kPreface.size()) {
    return have.starts_with(kPreface) ? Version::kHttp2 : Version::kHttp1;
  }
  return kPreface.starts_with(have) ? Version::kUnknown : Version::kHttp1;
}

}  // namespace meltemi::http
