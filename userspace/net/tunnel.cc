// The connection of a tunnel: handshake, records in and out, the flush at the end of a turn.
#include "userspace/net/tunnel.h"

#include <cstring>

#include "userspace/rt/socket_options.h"

namespace meltemi::net {
namespace {

// Turns a tunnel's end by the peer into the error that its streams and calls get.
Error lost(Reason reason, codec::TunnelRole role, std::string detail) {
  return {reason, role == codec::TunnelRole::kClient ? Fault::kUpstream : Fault::kDownstream,
          Retry::kNo, std::move(detail)};
}

}  // namespace

Tunnel::Tunnel(rt::Loop& loop, const HboneOptions& options, HboneStats& stats,
               codec::TunnelRole role)
    : loop_(loop), options_(options), stats_(stats), role_(role), timer_(*this) {}

Tunnel::~Tunnel() {
  while (streams_) streams_->leave();
  blocked_ = false;
  slot_used_ = slot_sent_ = staged_ = 0;
  release_buffers();
  if (carry_) loop_.buffers().give_small(carry_);
}

void Tunnel::start(UniqueFd fd, std::vector<model::Identity> expected) {
  if (auto a = rt::peer_address(fd.get())) peer_.address = *a;
  if (auto a = rt::local_address(fd.get())) peer_.local = *a;
  socket_.open(loop_, std::move(fd), *this);
  expected_ = std::move(expected);
  handshake_deadline_ = loop_.now() + options_.handshake_timeout;
  loop_.start(timer_, handshake_deadline_);
  socket_.resume();
  if (role_ == codec::TunnelRole::kServer) return;
  ByteSpan nothing;
  if (begin_handshake()) handshake_step(nothing);
}

// libssl's state (some tens of KB) is made when the peer has shown that it wants it. False: the
// tunnel has died.
bool Tunnel::begin_handshake() {
  const bool client = role_ == codec::TunnelRole::kClient;
  if (!client && !on_first_byte()) {
    bump(stats_.handshake_failures);
    die(lost(Reason::kLimitExceeded, role_, "handshake_rate"));
    return false;
  }
  handshake_ = std::make_unique<TlsHandshake>(
      client ? codec::TlsRole::kClient : codec::TlsRole::kServer, std::move(context_),
      std::move(expected_));
  return true;
}

// --- receiving -----------------------------------------------------------------------------------

void Tunnel::on_socket_data(ByteSpan data) {
  ByteSpan in = prepend_carry(data);
  while (!in.empty() && !dead_) {
    if (!tls_) {
      if (!handshake_ && !begin_handshake()) return;
      if (!handshake_step(in)) break;
      continue;
    }
    auto extent = codec::record_extent(in);
    if (!extent) return die(extent.error());
    if (*extent > in.size()) break;
    if (!open_record(in.first(*extent))) return;
    in = in.subspan(*extent);
  }
  if (dead_) return;
  flush_gathered();
  if (!dead_ && !in.empty()) keep_carry(in);
}

// Joins the record that the last piece cut: its head goes right in front of the new bytes.
ByteSpan Tunnel::prepend_carry(ByteSpan data) {
  if (!carry_) return data;
  uint8_t* start = data.data() - carry_size_;
  std::memcpy(start, carry_, carry_size_);
  loop_.buffers().give_small(std::exchange(carry_, nullptr));
  return {start, data.size() + carry_size_};
}

void Tunnel::keep_carry(ByteSpan rest) {
  static_assert(rt::BufferPool::kSmall >= codec::kTlsMaxRecord);
  static_assert(rt::kRecvHeadroom >= codec::kTlsMaxRecord);
  carry_ = loop_.buffers().take_small();
  carry_size_ = static_cast<uint32_t>(rest.size());
  std::memcpy(carry_, rest.data(), rest.size());
}

// False: more bytes are needed, or the tunnel has died.
bool Tunnel::handshake_step(ByteSpan& in) {
  std::string out;
  auto done = handshake_->feed(in, out);
  // A handshake's flight is a few KB on an empty socket: it always fits, or the peer is not well.
  if (!out.empty() && socket_.send(as_bytes(out)) != static_cast<ssize_t>(out.size()) && done) {
    die(lost(Reason::kTlsHandshake, role_, "the peer does not take the handshake"));
    return false;
  }
  if (!done) {
    bump(stats_.handshake_failures);
    die(done.error());
    return false;
  }
  if (!*done) return false;
  peer_.identity = handshake_->peer();
  credential_ = handshake_->credential();
  own_ = handshake_->context().identity();
  // The peer checked ours by its clock, and may not have said so yet: a tunnel that could take no stream
  // is a failure of the dial, not one to wait for.
  if (credential_over()) {
    bump(stats_.handshake_failures);
    die(lost(Reason::kCertExpired, role_,
             "certificates of the tunnel ended at " + format_rfc3339(credential_.end)));
    return false;
  }
  const auto renewed = std::move(renewed_);
  if (renewed && !renewed->trusts(credential_.root)) {
    bump(stats_.handshake_failures);
    die(root_lost());
    return false;
  }
  auto layer = handshake_->take();
  handshake_.reset();
  if (!layer) {
    die(layer.error());
    return false;
  }
  tls_.emplace(std::move(*layer));
  session_.emplace(role_, options_.h2, loop_.now());
  handshake_deadline_ = MonoTime::max();
  bump(stats_.tunnels_opened);
  arm_timer();
  want_flush();
  on_ready();
  return !dead_;
}

// False: the tunnel has died.
bool Tunnel::open_record(ByteSpan record) {
  auto opened = tls_->open(record);
  if (!opened) {
    last_words();
    die(opened.error());
    return false;
  }
  switch (opened->kind) {
    case codec::RecordLayer::Opened::kData:
      on_plaintext(opened->data);
      break;
    case codec::RecordLayer::Opened::kControl:
      if (tls_->wants_write()) want_flush();
      break;
    case codec::RecordLayer::Opened::kClosed:
      flush_gathered();
      if (!dead_) die(lost(Reason::kConnectReset, role_, "the peer closed the tunnel"));
      break;
  }
  return !dead_;
}

void Tunnel::on_plaintext(ByteView in) {
  while (!dead_) {
    const codec::TunnelEvent e = session_->next(in, loop_.now());
    if (e.kind == codec::TunnelEventKind::kNone) break;
    dispatch(e);
  }
  if (dead_) return;
  if (const uint32_t granted = session_->granted_streams(); granted != granted_) {
    granted_ = granted;
    on_room_changed();
  }
  if (!dead_ && (!session_->pending().empty() || session_->finished())) want_flush();
}

void Tunnel::dispatch(const codec::TunnelEvent& e) {
  auto* user = static_cast<StreamUser*>(e.user);
  HboneStream* stream = user && user->kind == StreamUser::Kind::kStream
                            ? static_cast<HboneStream*>(user) : nullptr;
  using Kind = codec::TunnelEventKind;
  if (e.kind == Kind::kData && stream) return gather(*stream, e.data, e.end_stream);
  // Streams and calls die no sooner than the turn ends, so `stream` outlives what this runs.
  flush_gathered();
  if (dead_) return;
  const bool here = stream && stream->tunnel_ == this;
  switch (e.kind) {
    case Kind::kEnd:
      if (here) stream->receive({}, true);
      if (!stream) on_event(e);
      break;
    case Kind::kReset:
      if (here) stream->on_reset(e.code);
      if (!stream) on_event(e);
      break;
    case Kind::kWritable:
      if (here) stream->flush();
      break;
    case Kind::kFailed:
      last_words();
      return die(session_->failure());
    case Kind::kPong:
    case Kind::kNone:
      break;
    default:
      on_event(e);
  }
}

// DATA of one stream is handed up as one gather per read.
void Tunnel::gather(HboneStream& stream, ByteView data, bool end) {
  if (stream.tunnel_ != this) return;
  if (gathered_for_ != &stream || gathered_ == kGather) {
    flush_gathered();
    if (dead_ || stream.tunnel_ != this) return;
    gathered_for_ = &stream;
  }
  gather_[gathered_++] = {const_cast<uint8_t*>(data.data()), data.size()};
  gathered_bytes_ += data.size();
  if (end) {
    gathered_end_ = true;
    flush_gathered();
  }
}

void Tunnel::flush_gathered() {
  if (!gathered_for_) return;
  HboneStream& stream = *std::exchange(gathered_for_, nullptr);
  const Slices data{gather_, std::exchange(gathered_, 0u), std::exchange(gathered_bytes_, 0u)};
  const bool end = std::exchange(gathered_end_, false);
  stream.receive(data, end);
}

void Tunnel::on_socket_eof() {
  eof_ = true;
  if (handshake_) {
    return die(lost(Reason::kTlsHandshake, role_, "the peer left during the TLS handshake"));
  }
  die(lost(Reason::kConnectReset, role_, "the peer closed the connection"));
}

void Tunnel::on_socket_error(int err) {
  die(lost(handshake_ ? Reason::kTlsHandshake : reason_of_connect_errno(err), role_,
           std::string("tunnel: ") + strerror(err)));
}

// --- sending -------------------------------------------------------------------------------------

uint8_t* Tunnel::staging() {
  if (!staging_) staging_ = loop_.buffers().take_small();
  return staging_ + staged_;
}

ByteSpan Tunnel::slot_room() {
  if (!slot_) slot_ = loop_.buffers().take_large();
  return {slot_ + slot_used_, rt::BufferPool::kLarge - slot_used_};
}

void Tunnel::wait_for_room(HboneStream& stream) {
  if (stream.waiting_) return;
  stream.waiting_ = true;
  stream.next_waiting_ = nullptr;
  (waiting_tail_ ? waiting_tail_->next_waiting_ : waiting_head_) = &stream;
  waiting_tail_ = &stream;
  if (!blocked_) want_flush();
}

bool Tunnel::send_data(HboneStream& stream, SliceCursor& data, bool end) {
  if (dead_ || !session_) return false;
  if (!blocked_) take_pending();
  want_flush();  // also of what goes in before the window or the kernel is full
  while (data.left() > 0) {
    if (blocked_) {
      wait_for_room(stream);
      return false;
    }
    size_t n = std::min<size_t>({session_->sendable(stream.id_), data.left(), kFramePayload});
    if (n == 0) return false;
    const bool stage = n <= kStagePayload;
    if (stage ? staged_ + 9 + n > codec::kTlsMaxPlaintext : staged_ > 0) flush_staged();
    if (!stage && !blocked_) {
      // Room for at least this frame or for one full record, else the slot goes out first.
      const size_t least = std::min(n + 9, codec::kTlsMaxPlaintext);
      if (tls_->plaintext_room(slot_room().size()) < least) send_slot();
      if (!blocked_) n = std::min(n, tls_->plaintext_room(slot_room().size()) - 9);
    }
    if (blocked_) continue;
    uint8_t header[9];
    if (!session_->write_data_header(stream.id_, static_cast<uint32_t>(n),
                                     end && n == data.left(), header))
      return false;
    stage ? stage_frame(header, data, n) : seal_frame(header, data, n);
    // A full slot goes out while it is in the cache.
    if (slot_used_ >= 2 * 65536) send_slot();
  }
  return true;
}

bool Tunnel::owe_writable(HboneStream& stream) {
  if (blocked_) {
    wait_for_room(stream);
    return true;
  }
  return session_->send_room(stream.id_) == 0 && session_->sendable(stream.id_) == 0;
}

void Tunnel::stage_frame(const uint8_t* header, SliceCursor& data, size_t n) {
  uint8_t* p = staging();
  std::memcpy(p, header, 9);
  p += 9;
  staged_ += static_cast<uint32_t>(9 + n);
  while (n > 0) {
    const ByteView piece = data.next(n);
    std::memcpy(p, piece.data(), piece.size());
    p += piece.size();
    n -= piece.size();
  }
}

void Tunnel::seal_frame(const uint8_t* header, SliceCursor& data, size_t n) {
  tls_->begin(slot_room(), 9 + n);
  tls_->append({header, 9});
  while (n > 0) {
    const ByteView piece = data.next(n);
    tls_->append(piece);
    n -= piece.size();
  }
  slot_used_ += static_cast<uint32_t>(tls_->finish());
}

bool Tunnel::send_end(HboneStream& stream) {
  if (dead_) return true;
  if (!blocked_) take_pending();
  if (staged_ + 9 > codec::kTlsMaxPlaintext && !blocked_) flush_staged();
  if (blocked_) {
    wait_for_room(stream);
    return false;
  }
  uint8_t header[9];
  if (session_->write_data_header(stream.id_, 0, true, header)) {
    std::memcpy(staging(), header, 9);
    staged_ += 9;
    want_flush();
  }
  return true;
}

// Moves the session's control frames and HEADERS behind what is staged. REQUIRES: !blocked_.
void Tunnel::take_pending() {
  if (!backlog_.empty()) {
    const std::string rest = std::exchange(backlog_, {});
    stage_control(as_bytes(rest));
  }
  const ByteView frames = session_->pending();
  if (frames.empty() || blocked_) return;
  stage_control(frames);
  session_->clear_pending();
}

void Tunnel::stage_control(ByteView frames) {
  while (!frames.empty()) {
    if (staged_ == codec::kTlsMaxPlaintext) flush_staged();
    if (blocked_) {  // the kernel is full in the middle of them
      backlog_.append(as_text(frames));
      return;
    }
    const size_t n = std::min(frames.size(), codec::kTlsMaxPlaintext - staged_);
    std::memcpy(staging(), frames.data(), n);
    staged_ += static_cast<uint32_t>(n);
    frames = frames.subspan(n);
  }
}

void Tunnel::flush_staged() {
  if (blocked_) return;
  if (tls_->sealed_size(staged_) > slot_room().size()) send_slot();
  if (blocked_) return;
  if (staged_ == 0 && !tls_->wants_write()) return;
  if (staged_ > 0 && tls_->write_closed()) return;
  tls_->begin(slot_room(), staged_);
  if (staged_ > 0) tls_->append({staging_, staged_});
  slot_used_ += static_cast<uint32_t>(tls_->finish());
  staged_ = 0;
}

void Tunnel::send_slot() {
  while (slot_sent_ < slot_used_) {
    const ssize_t n = socket_.send(ByteView(slot_ + slot_sent_, slot_used_ - slot_sent_));
    if (n <= 0) {
      blocked_ = true;
      if (n < 0) {
        io_error_ = static_cast<int>(-n);
        want_flush();
      } else {
        socket_.want_writable();
      }
      return;
    }
    bump(stats_.sends);
    slot_sent_ += static_cast<uint32_t>(n);
  }
  slot_used_ = slot_sent_ = 0;
  blocked_ = false;
}

void Tunnel::flush_all() {
  if (!session_ || blocked_) return;
  take_pending();
  flush_staged();
  if (!blocked_) send_slot();
}

void Tunnel::release_buffers() {
  if (staging_ && staged_ == 0) loop_.buffers().give_small(std::exchange(staging_, nullptr));
  if (slot_ && slot_used_ == 0) loop_.buffers().give_large(std::exchange(slot_, nullptr));
}

void Tunnel::on_turn_end() {
  if (dead_) return;
  if (!blocked_) serve_waiting();
  flush_all();
  release_buffers();
  if (io_error_ != 0) {
    return die(lost(reason_of_connect_errno(io_error_), role_,
                    std::string("tunnel: ") + strerror(io_error_)));
  }
  if (!session_) return;
  if (session_->failed()) return die(session_->failure());
  if (session_->finished() && !closing_) close_gracefully();
}

void Tunnel::on_socket_writable() {
  blocked_ = false;
  send_slot();
  if (io_error_ || !blocked_) want_flush();
  if (closing_ && !blocked_) die({Reason::kOk, Fault::kInternal, Retry::kNo, "closed"});
}

// Streams with held bytes, each its quota, in the order they came.
void Tunnel::serve_waiting() {
  HboneStream* last = waiting_tail_;
  while (waiting_head_ && !blocked_ && !dead_) {
    HboneStream* stream = waiting_head_;
    waiting_head_ = stream->next_waiting_;
    if (!waiting_head_) waiting_tail_ = nullptr;
    stream->waiting_ = false;
    stream->next_waiting_ = nullptr;
    stream->flush();
    if (stream == last) break;  // those who came back are served next
  }
  if (waiting_head_ && !blocked_) want_flush();
}

// --- life ----------------------------------------------------------------------------------------

void Tunnel::add(HboneStream& stream) {
  stream.next_stream_ = streams_;
  if (streams_) streams_->prev_stream_ = &stream;
  streams_ = &stream;
  bump(stats_.streams_opened);
}

void Tunnel::remove(HboneStream& stream) {
  (stream.prev_stream_ ? stream.prev_stream_->next_stream_ : streams_) = stream.next_stream_;
  if (stream.next_stream_) stream.next_stream_->prev_stream_ = stream.prev_stream_;
  stream.prev_stream_ = stream.next_stream_ = nullptr;
  if (stream.waiting_) {
    HboneStream** link = &waiting_head_;
    HboneStream* before = nullptr;
    while (*link != &stream) {
      before = *link;
      link = &before->next_waiting_;
    }
    *link = stream.next_waiting_;
    if (waiting_tail_ == &stream) waiting_tail_ = before;
    stream.waiting_ = false;
  }
  if (gathered_for_ == &stream) {
    gathered_for_ = nullptr;
    gathered_ = 0;
    gathered_bytes_ = 0;
    gathered_end_ = false;
  }
  if (session_ && session_->user(stream.id_) == static_cast<StreamUser*>(&stream))
    session_->set_user(stream.id_, nullptr);
  bump(stats_.streams_closed);
  if (!dead_ && session_) {
    if (session_->draining()) want_flush();
    on_stream_gone();
  }
}

void Tunnel::drain() {
  if (!session_ || dead_) return;
  session_->drain();
  want_flush();
}

WallTime Tunnel::check_credential(WallTime now) {
  if (!ready() || credential_.end == WallTime::max()) return WallTime::max();
  if (now < credential_.end) return credential_.end;
  if (!std::exchange(outlived_, true)) {
    bump(stats_.credential_ends);
    drain();
  }
  const WallTime last = credential_.end + options_.credential_grace;
  if (now < last) return last;
  die(lost(Reason::kCertExpired, role_,
           "the tunnel of " + std::string(peer_.identity.uri()) + " rests on certificates that ended at " +
               format_rfc3339(credential_.end)));
  return WallTime::max();
}

void Tunnel::check_root(const std::shared_ptr<const TlsContext>& renewed) {
  if (dead_) return;
  if (context_) {
    if (context_->identity() == renewed->identity()) context_ = renewed;
  } else if (handshake_) {
    if (handshake_->context().identity() == renewed->identity()) renewed_ = renewed;
  } else if (own_ == renewed->identity() && !renewed->trusts(credential_.root)) {
    bump(stats_.credential_ends);
    die(root_lost());
  }
}

Error Tunnel::root_lost() const {
  return lost(Reason::kPeerRevoked, role_,
              "the root that vouched for " + std::string(peer_.identity.uri()) +
                  " is trusted no more");
}

// The goodbye of a tunnel without streams.
void Tunnel::close_gracefully() {
  closing_ = true;
  tls_->close();
  flush_all();
  release_buffers();
  if (!blocked_) die({Reason::kOk, Fault::kInternal, Retry::kNo, "closed"});
}

// GOAWAY or alert of a failing tunnel, as far as the kernel takes it.
void Tunnel::last_words() {
  if (!tls_ || blocked_ || io_error_) return;
  if (tls_->write_closed()) staged_ = 0;  // only the alert may follow
  else if (session_) take_pending();
  if (!blocked_) flush_staged();
  if (!blocked_) send_slot();
}

void Tunnel::die(const Error& error) {
  if (dead_) return;
  dead_ = true;
  // Ours to end: say why. A reader that is behind gets what it gets.
  if (session_ && !session_->failed() && !eof_ && !closing_) {
    session_->close(codec::H2Code::kNoError, {});
    last_words();
  }
  socket_.close();
  loop_.stop(timer_);
  if (session_) bump(stats_.tunnels_closed);
  if (error.reason == Reason::kLimitExceeded) bump(stats_.limit_hits);
  while (HboneStream* stream = streams_) stream->on_tunnel_lost(error);
  on_dead(error);
}

void Tunnel::arm_timer() {
  const MonoTime at = std::min(session_->deadline(), idle_deadline());
  if (at != MonoTime::max() && (!timer_.armed() || at != timer_.deadline())) loop_.start(timer_, at);
}

void Tunnel::on_timer() {
  if (!session_) {
    bump(stats_.handshake_failures);
    return die(lost(Reason::kTlsHandshake, role_, "TLS handshake timed out"));
  }
  if (!session_->on_time(loop_.now())) {
    last_words();
    return die(session_->failure());
  }
  if (loop_.now() >= idle_deadline()) on_idle();
  if (dead_) return;
  want_flush();
  arm_timer();
}

}  // namespace meltemi::net
