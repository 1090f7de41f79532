// See relay.h.
#include "userspace/net/relay.h"

#include <algorithm>

namespace meltemi::net {
namespace {

// Reads are not cut below this for want of room: the rest of one is held, and tiny frames cost more.
constexpr size_t kLeastRead = 4 * 1024;

size_t read_size(const ByteStream& out) { return std::max(out.write_room(), kLeastRead); }

}  // namespace

Relay::Relay(StreamPtr client, StreamPtr server, RelayOwner& owner, Duration idle_timeout)
    : owner_(owner), idle_timeout_(idle_timeout) {
  client_side_.relay = server_side_.relay = this;
  client_side_.other = &server_side_;
  server_side_.other = &client_side_;
  client_side_.stream = std::move(client);
  server_side_.stream = std::move(server);
  client_side_.stream->set_events(&client_side_);
  server_side_.stream->set_events(&server_side_);
}

Relay::~Relay() = default;

void Relay::start(bool client_ended) {
  if (idle_timeout_ > Duration(0)) {
    idle_ = std::make_unique<IdleTimer>();
    idle_->relay = this;
    rt::Loop& loop = client_side_.stream->loop();
    loop.start(*idle_, loop.now() + idle_timeout_);
  }
  client_side_.stream->limit_read(read_size(*server_side_.stream));
  server_side_.stream->limit_read(read_size(*client_side_.stream));
  server_side_.stream->resume_read();
  client_side_.stream->resume_read();
  if (client_ended) client_side_.on_read_end();
}

void Relay::Side::on_data(const Slices& data) {
  ByteStream& out = *other->stream;
  if (out.write(data)) [[likely]] {
    stream->limit_read(read_size(out));
  } else {
    stream->pause_read();
  }
}

void Relay::Side::on_writable() {
  if (other->closed) return;
  other->stream->limit_read(read_size(*stream));
  other->stream->resume_read();
}

void Relay::Side::on_read_end() {
  read_ended = true;
  relay->note_end(this == &relay->client_side_ ? RelaySide::kClient : RelaySide::kServer,
                  Reason::kOk, false);
  other->stream->shutdown_write();
}

void Relay::Side::on_closed(const StreamEnd& end) { relay->side_closed(*this, end); }

// The first end names who closed; a later abnormal end still tells why.
void Relay::note_end(RelaySide side, Reason reason, bool reset) {
  if (!noted_) {
    noted_ = true;
    report_.closed_by = side;
  }
  if (report_.reason == Reason::kOk) report_.reason = reason;
  report_.reset |= reset;
}

void Relay::side_closed(Side& side, const StreamEnd& end) {
  side.closed = true;
  const RelaySide who = !end.by_peer && end.reason != Reason::kOk ? RelaySide::kNone
                        : &side == &client_side_                   ? RelaySide::kClient
                                                                   : RelaySide::kServer;
  if (!ended_) note_end(who, end.reason, end.reset);
  Side& other = *side.other;
  if (!other.closed) {
    // A reset goes through; an end in order lets the other side have what is on its way to it.
    if (end.reset) {
      other.stream->abort(end.reason);
    } else if (!side.read_ended || !other.read_ended) {
      other.stream->close();
    }
    return;
  }
  ended_ = true;
  idle_.reset();
  report_.bytes_up = client_side_.stream->bytes_read();
  report_.bytes_down = server_side_.stream->bytes_read();
  owner_.on_relay_end(*this, report_);  // may destroy this relay
}

void Relay::abort(Reason reason) {
  if (ended_) return;
  if (!noted_) report_.closed_by = RelaySide::kNone;
  noted_ = true;
  report_.reason = reason;
  report_.reset = true;
  if (!client_side_.closed) client_side_.stream->abort(reason);
  if (!server_side_.closed) server_side_.stream->abort(reason);
}

void Relay::IdleTimer::on_timer() {
  const uint64_t moved = relay->client_side_.stream->bytes_read() +
                         relay->server_side_.stream->bytes_read();
  if (moved == seen) return relay->abort(Reason::kIdleTimeout);
  seen = moved;
  rt::Loop& loop = relay->client_side_.stream->loop();
  loop.start(*this, loop.now() + relay->idle_timeout_);
}

}  // namespace meltemi::net
