// HTTP/2 (RFC 9113) on codec's session: each stream is one request, its response is pulled by the
// codec as far as the client's windows go.
#include <unordered_map>

#include "userspace/codec/h2.h"
#include "userspace/codec/http_date.h"
#include "userspace/http/session.h"
#include "userspace/http/target.h"

namespace meltemi::http {
namespace {

// Header fields that mean the connection, which HTTP/2 has no place for (RFC 9113 section 8.2.2).
bool connection_field(std::string_view name) { return name == "connection"; }

class H2Stream final : public codec::H2Body {
 public:
  Request request;
  bool answered = false;
  bool reading = false;  // the request is not whole yet

  void give(Response response) {
    buffer_ = std::move(response.body);
    source_ = std::move(response.source);
  }
  Ready ready(size_t max) override {
    while (source_ && buffer_.size() - at_ < max) {
      buffer_.erase(0, std::exchange(at_, 0));
      if (!source_->more(buffer_)) source_.reset();
    }
    const size_t n = std::min(max, buffer_.size() - at_);
    return {n, !source_ && n == buffer_.size() - at_};
  }
  void take(size_t bytes, codec::H2Sink& sink) override {
    sink.append({reinterpret_cast<const uint8_t*>(buffer_.data()) + at_, bytes});
    at_ += bytes;
  }

 private:
  std::string buffer_;
  size_t at_ = 0;
  std::shared_ptr<BodySource> source_;
};

class H2ServerSession final : public Session, private codec::H2Handler {
 public:
  H2ServerSession(const Limits& limits, const SocketAddress& peer, const Answer& answer)
      : limits_(limits),
        peer_(peer),
        answer_(answer),
        session_(codec::H2Role::kServer, *this, options(limits)) {}

  void receive(ByteView in, MonoTime now) override { (void)session_.receive(in, now); }
  void produce(std::string& out, size_t max) override;
  bool wants_input() const override { return true; }
  bool reading() const override { return reading_ > 0; }
  bool responding() const override { return session_.wants_write(); }
  bool done() const override {
    return (session_.failure() || session_.finished()) && !session_.wants_write();
  }
  void drain() override { session_.drain(); }

 private:
  static codec::H2Options options(const Limits& limits) {
    codec::H2Options o;
    o.max_concurrent_streams = limits.streams;
    o.initial_stream_window = limits.body_bytes;
    o.connection_window = std::max<uint32_t>(limits.body_bytes, 64 * 1024);
    o.max_header_list = limits.head_bytes;
    o.max_header_count = limits.header_count;
    o.extended_connect = false;
    return o;
  }
  void on_head(uint32_t id, codec::HeaderList& headers, bool end) override;
  void on_data(uint32_t id, ByteView data) override;
  void on_end(uint32_t id, const codec::HeaderList& trailers) override;
  void on_closed(uint32_t id, uint32_t code, bool unprocessed) override;
  void respond(uint32_t id, H2Stream& stream, Response response);
  void refuse(uint32_t id, H2Stream& stream, int status, std::string why);
  // Nothing more of its request is waited for.
  void read(H2Stream& stream) {
    if (std::exchange(stream.reading, false)) --reading_;
  }

  const Limits limits_;
  const SocketAddress peer_;
  const Answer& answer_;
  std::unordered_map<uint32_t, std::unique_ptr<H2Stream>> streams_;
  size_t reading_ = 0;  // streams whose request is not whole yet
  codec::H2Session session_;
};

void H2ServerSession::on_head(uint32_t id, codec::HeaderList& headers, bool end) {
  auto& stream = streams_[id] = std::make_unique<H2Stream>();
  Request& request = stream->request;
  request.peer = peer_;
  std::string_view path;
  for (const codec::HeaderField& field : headers) {
    if (field.name == ":method") request.method = field.value;
    if (field.name == ":path") path = field.value;
    if (!field.name.starts_with(':')) request.headers.add(field);
  }
  stream->reading = !end;
  if (!end) ++reading_;
  if (request.method == "CONNECT") return refuse(id, *stream, 405, "this is no proxy");
  auto target = parse_target(path);
  if (!target) return refuse(id, *stream, 400, target.error().detail);
  request.path = std::move(target->path);
  request.query = std::move(target->query);
  if (end) respond(id, *stream, answer_(request));
}

void H2ServerSession::on_data(uint32_t id, ByteView data) {
  session_.consume(id, data.size());
  const auto it = streams_.find(id);
  if (it == streams_.end() || it->second->answered) return;
  std::string& body = it->second->request.body;
  if (body.size() + data.size() > limits_.body_bytes) {
    return refuse(id, *it->second, 413, "the body is too large");
  }
  body.append(reinterpret_cast<const char*>(data.data()), data.size());
}

void H2ServerSession::on_end(uint32_t id, const codec::HeaderList&) {
  const auto it = streams_.find(id);
  if (it == streams_.end() || it->second->answered) return;
  read(*it->second);
  respond(id, *it->second, answer_(it->second->request));
}

void H2ServerSession::on_closed(uint32_t id, uint32_t, bool) {
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  read(*it->second);
  streams_.erase(it);
}

void H2ServerSession::refuse(uint32_t id, H2Stream& stream, int status, std::string why) {
  read(stream);
  respond(id, stream, refusal(status, std::move(why)));
  session_.reset(id, codec::H2Code::kNoError);  // after the response: the rest is not wanted
}

void H2ServerSession::respond(uint32_t id, H2Stream& stream, Response response) {
  stream.answered = true;
  if (response.status == 101) response = {426, "this needs an upgrade of HTTP/1.1\n"};
  const bool head_only = stream.request.method == "HEAD";
  codec::HeaderList fields;
  fields.add(":status", std::to_string(response.status));
  fields.add("content-type", response.content_type);
  fields.add("date", codec::http_date(std::chrono::system_clock::now()));
  if (!response.source) fields.add("content-length", std::to_string(response.body.size()));
  for (const auto& [name, value] : response.headers) {
    if (!connection_field(name)) fields.add(name, value);
  }
  const bool empty = head_only || (!response.source && response.body.empty());
  stream.request = Request();
  stream.give(std::move(response));
  const Status sent = session_.respond(id, fields, empty ? nullptr : &stream);
  if (!sent) session_.reset(id, codec::H2Code::kInternalError);
}

void H2ServerSession::produce(std::string& out, size_t max) {
  struct Sink final : codec::H2Sink {
    explicit Sink(std::string& to) : to(to) {}
    void append(ByteView piece) override {
      to.append(reinterpret_cast<const char*>(piece.data()), piece.size());
    }
    std::string& to;
  } sink(out);
  if (out.size() < max) session_.flush(sink, max - out.size());
}

}  // namespace

std::unique_ptr<Session> make_h2_session(const Limits& limits, const SocketAddress& peer,
                                         const Session::Answer& answer) {
  return std::make_unique<H2ServerSession>(limits, peer, answer);
}

}  // namespace meltemi::http
