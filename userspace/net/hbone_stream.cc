// One CONNECT stream as a ByteStream: flow control, half-close, resets. See tunnel.h.
#include "userspace/net/tunnel.h"

namespace meltemi::net {
namespace {

// Pieces of held bytes that are handed on at once.
constexpr size_t kMaxPieces = 16;
// What one read for a stream should bring: four frames, the room of a send slot.
constexpr size_t kMaxRoom = 4 * (4 * codec::kTlsMaxPlaintext - 9);

}  // namespace

HboneStream::HboneStream(Tunnel& tunnel, uint32_t id)
    : StreamUser(Kind::kStream), loop_(tunnel.loop_), tunnel_(&tunnel), id_(id) {
  tx_.set_budget(tunnel.options_.held);
  rx_.set_budget(tunnel.options_.held);
  tunnel.add(*this);
}

HboneStream::~HboneStream() { leave(); }

void HboneStream::leave() {
  if (!tunnel_) return;
  if (extra_window_ && tunnel_->options_.windows) tunnel_->options_.windows->give(extra_window_);
  extra_window_ = 0;
  tunnel_->remove(*this);
  tunnel_ = nullptr;
}

void HboneStream::detach() {
  if (tunnel_ && !(read_end_ && end_sent_)) {
    tunnel_->session().reset(id_, codec::H2Code::kCancel);
    tunnel_->want_flush();
  }
  leave();
  tx_.clear();
  rx_.leave_budget();  // on_data() may be looking at it further up the stack
  ended_ = told_ = true;
}

// --- sending -------------------------------------------------------------------------------------

bool HboneStream::write(const Slices& data) {
  if (ended_ || end_wanted_ || !tunnel_) return true;
  bytes_written_ += data.bytes;
  SliceCursor cursor(data);
  if (tx_.empty() && tunnel_->send_data(*this, cursor, false)) {
    // Nothing is held, but the next byte would be: better not read it.
    blocked_ = tunnel_->owe_writable(*this);
    return !blocked_;
  }
  if (over_budget(cursor.left())) return false;
  hold(cursor);
  return false;
}

void HboneStream::hold(SliceCursor& rest) {
  while (rest.left() > 0) tx_.append(rest.next(rest.left()));
  blocked_ = true;
}

size_t HboneStream::write_room() const {
  if (!tunnel_ || !tx_.empty() || tunnel_->blocked_) return 0;
  return std::min<size_t>(tunnel_->session_->send_room(id_), kMaxRoom);
}

void HboneStream::flush() {
  for (size_t sent = 0; tunnel_ && !tx_.empty();) {
    if (sent >= Tunnel::kTurnQuota) return tunnel_->wait_for_room(*this);
    iovec pieces[kMaxPieces];
    Slices data{pieces, tx_.peek(pieces, kMaxPieces), 0};
    for (size_t i = 0; i < data.count; ++i) data.bytes += pieces[i].iov_len;
    SliceCursor cursor(data);
    const bool last = data.bytes == tx_.size() && end_wanted_;
    const bool all = tunnel_->send_data(*this, cursor, last);
    const size_t taken = data.bytes - cursor.left();
    sent += taken;
    tx_.drop(taken);
    if (!all) return;
    if (last) {
      end_sent_ = true;
      break;
    }
  }
  if (!tx_.empty() || ended_) return;
  if (end_wanted_) return send_end();
  if (std::exchange(blocked_, false) && events_) events_->on_writable();
}

void HboneStream::shutdown_write() {
  if (ended_ || end_wanted_) return;
  end_wanted_ = true;
  if (tx_.empty()) send_end();
}

void HboneStream::send_end() {
  if (tunnel_ && !end_sent_ && !tunnel_->send_end(*this)) return;
  end_sent_ = true;
  if (closing_) {
    if (tunnel_ && !read_end_) {
      // The peer may go on sending; it is told that nobody listens. Both codes mean "no error" to it.
      const bool server = tunnel_->role_ == codec::TunnelRole::kServer;
      tunnel_->session().reset(id_, server ? codec::H2Code::kNoError : codec::H2Code::kCancel);
      tunnel_->want_flush();
    }
    end(Reason::kOk, false, false);
  } else if (read_end_told_) {
    end(Reason::kOk, false, false);
  }
}

void HboneStream::close() {
  if (ended_ || closing_) return;
  closing_ = true;
  paused_ = false;
  rx_.clear();
  if (end_sent_) {
    send_end();
  } else {
    shutdown_write();
  }
}

void HboneStream::abort(Reason reason) {
  if (ended_) return;
  if (tunnel_) {
    tunnel_->session().reset(id_, codec::H2Code::kConnectError);
    tunnel_->want_flush();
  }
  end(reason, false, true);
}

// Over for the session; on_closed() follows at the end of the turn.
void HboneStream::end(Reason reason, bool by_peer, bool reset) {
  if (ended_) return;
  ended_ = true;
  end_ = {reason, by_peer, reset};
  leave();
  tx_.clear();
  loop_.at_turn_end(*this);
}

// --- receiving -----------------------------------------------------------------------------------

void HboneStream::receive(const Slices& data, bool end) {
  if (ended_) return;
  read_end_ |= end;
  if (closing_) {
    credit(data.bytes);
    return;
  }
  if (paused_ || !rx_.empty() || !events_) {
    if (over_budget(data.bytes)) return;
    for (size_t i = 0; i < data.count; ++i)
      rx_.append({static_cast<const uint8_t*>(data.pieces[i].iov_base), data.pieces[i].iov_len});
    return;
  }
  if (data.bytes > 0) {
    bytes_read_ += data.bytes;
    events_->on_data(data);
    paused_ ? void(uncredited_ += static_cast<uint32_t>(data.bytes)) : credit(data.bytes);
  }
  if (read_end_ && !paused_) tell_read_end();
}

// All streams together hold no more than the budget: the one that would exceed it is cut.
bool HboneStream::over_budget(size_t more) {
  rt::Budget* held = tunnel_ ? tunnel_->options_.held : nullptr;
  if (!held || held->used() + more <= held->limit()) return false;
  bump(tunnel_->stats_.limit_hits);
  abort(Reason::kLimitExceeded);
  return true;
}

void HboneStream::credit(size_t bytes) {
  if (!tunnel_ || read_end_ || bytes == 0) return;
  codec::TunnelSession& session = tunnel_->session();
  session.consume(id_, static_cast<uint32_t>(bytes));
  if (session.window_limited(id_)) {
    // The window held the peer back while the reader keeps up: give it more.
    const uint32_t window = session.window(id_);
    const uint32_t wanted = std::min(window * 2, tunnel_->options_.h2.max_stream_window);
    rt::Budget* budget = tunnel_->options_.windows;
    if (wanted > window && (!budget || budget->try_take(wanted - window))) {
      if (budget) extra_window_ += wanted - window;
      session.grow_window(id_, wanted);
    }
  }
  tunnel_->want_flush();
}

void HboneStream::resume_read() {
  if (!paused_ || told_) return;
  paused_ = false;
  if (uncredited_) credit(std::exchange(uncredited_, 0));
  if (!rx_.empty() || read_end_ || ended_) loop_.at_turn_end(*this);
}

void HboneStream::deliver_held() {
  while (!paused_ && !rx_.empty() && events_ && !told_) {
    iovec pieces[kMaxPieces];
    Slices data{pieces, rx_.peek(pieces, kMaxPieces), 0};
    for (size_t i = 0; i < data.count; ++i) data.bytes += pieces[i].iov_len;
    bytes_read_ += data.bytes;
    events_->on_data(data);
    if (rx_.empty()) return;  // close() inside the callback
    rx_.drop(data.bytes);
    paused_ ? void(uncredited_ += static_cast<uint32_t>(data.bytes)) : credit(data.bytes);
  }
}

void HboneStream::tell_read_end() {
  if (read_end_told_ || told_ || closing_) return;
  read_end_told_ = true;
  if (events_) events_->on_read_end();
  if (end_sent_) end(Reason::kOk, false, false);
}

void HboneStream::on_turn_end() {
  const bool in_order = !(ended_ && end_.reset);
  if (in_order) {
    deliver_held();
    if (paused_ && (!rx_.empty() || (read_end_ && !read_end_told_ && !closing_))) return;
    if (read_end_ && rx_.empty()) tell_read_end();
  }
  if (!ended_ || told_) return;
  told_ = true;
  rx_.clear();
  if (events_) events_->on_closed(end_);
}

// RST_STREAM. NO_ERROR and CANCEL are how peers end a stream that they are through with.
void HboneStream::on_reset(uint32_t code) {
  if (ended_) return;
  const bool quiet = code == static_cast<uint32_t>(codec::H2Code::kNoError) ||
                     code == static_cast<uint32_t>(codec::H2Code::kCancel);
  if (quiet) {
    read_end_ = true;
    end(Reason::kOk, true, false);
  } else {
    const bool connection = code == static_cast<uint32_t>(codec::H2Code::kConnectError);
    end(connection ? Reason::kConnectReset : Reason::kUpstreamReset, true, true);
  }
}

void HboneStream::on_tunnel_lost(const Error& error) {
  if (ended_) return;
  end(error.reason == Reason::kOk ? Reason::kConnectReset : error.reason, true, true);
}

}  // namespace meltemi::net
