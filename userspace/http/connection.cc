// See connection.h.
#include "userspace/http/connection.h"

namespace meltemi::http {
namespace {

constexpr size_t kReadPiece = 16 * 1024;
constexpr size_t kWritePiece = 64 * 1024;
// Written in one go before others have their turn.
constexpr size_t kTurnBytes = 512 * 1024;

}  // namespace

Connection::Connection(const Shared& shared, net::StreamPtr stream, const SocketAddress& peer,
                       rt::Lease lease, std::function<void(Connection*)> ended)
    : shared_(shared),
      stream_(std::move(stream)),
      peer_(peer),
      lease_(std::move(lease)),
      ended_(std::move(ended)),
      deadline_([this] { cut(why_); }),
      again_([this] { pump(); }) {
  if (!shared_.tls) return;
  const MonoTime now = stream_->loop().now();
  // What a handshake costs is asked for before it is spent.
  stream_ = net::make_tls_server_stream(std::move(stream_), shared_.tls(now), [this] {
    return lease_.handshaking(stream_->loop().now());
  });
}

Connection::~Connection() {
  stream_.reset();  // closes the descriptor before the lease is given back
}

void Connection::start() {
  lease_.on_give_way(rt::post_to(stream_->loop()), [this](rt::GiveWay why) { give_way(why); });
  stream_->set_events(this);
  stream_->limit_read(kReadPiece);
  stream_->resume_read();
}

void Connection::on_data(const net::Slices& data) {
  if (closing_) return;
  const MonoTime now = stream_->loop().now();
  if (!session_ && first_.empty() && !shared_.tls && !lease_.handshaking(now)) {
    return cut("handshake_rate");
  }
  for (size_t i = 0; i < data.count; ++i) {
    const ByteView piece(static_cast<const uint8_t*>(data.pieces[i].iov_base),
                         data.pieces[i].iov_len);
    if (session_) {
      session_->receive(piece, now);
    } else {
      first_.append(reinterpret_cast<const char*>(piece.data()), piece.size());
      if (choose_version()) {
        const std::string first = std::exchange(first_, {});
        session_->receive({reinterpret_cast<const uint8_t*>(first.data()), first.size()}, now);
      }
    }
  }
  pump();
}

bool Connection::choose_version() {
  switch (version_of({reinterpret_cast<const uint8_t*>(first_.data()), first_.size()})) {
    case Version::kUnknown: return false;
    case Version::kHttp1:
      session_ = make_h1_session(shared_.limits, peer_, shared_.answer);
      return true;
    case Version::kHttp2:
      session_ = make_h2_session(shared_.limits, peer_, shared_.answer);
      return true;
  }
  return false;
}

void Connection::pump() {
  size_t written = 0;
  std::string piece;
  while (session_ && !blocked_ && !closing_) {
    if (written >= kTurnBytes) {
      stream_->loop().start(again_, stream_->loop().now());
      break;
    }
    piece.clear();
    session_->produce(piece, kWritePiece);
    if (piece.empty()) break;
    written += piece.size();
    blocked_ = !stream_->write(
        ByteView(reinterpret_cast<const uint8_t*>(piece.data()), piece.size()));
  }
  settle();
}

void Connection::settle() {
  if (closing_ || !session_) return;
  if (!blocked_) {
    if (auto upgrade = session_->take_upgrade()) {
      stream_->pause_read();
      auto stream = std::exchange(stream_, nullptr);
      upgrade->take(std::move(stream), std::move(upgrade->early), std::move(lease_));
      return end();
    }
    if (session_->done() || (read_end_ && !session_->responding())) {
      closing_ = true;
      lease_.idle(stream_->loop().now());
      return stream_->close();
    }
  }
  const MonoTime now = stream_->loop().now();
  const auto follow = [now](std::optional<MonoTime>& since, bool under_way) {
    if (!under_way) {
      since.reset();
    } else if (!since) {
      since = now;
    }
  };
  follow(request_since_, session_->reading());
  follow(response_since_, session_->responding() || blocked_);
  const bool working = session_->responding() && !blocked_;
  // A client that does not take its response does nothing that others could not do better.
  if (working) {
    lease_.active();
  } else if (!session_->reading()) {
    lease_.idle(now);
  }
  if (blocked_) {
    arm(std::min(*response_since_ + shared_.deadlines.response, now + shared_.deadlines.stall),
        "slow_reader");
  } else if (session_->reading()) {
    arm(*request_since_ + shared_.deadlines.request, "request_deadline");
  } else {
    arm(now + shared_.deadlines.idle, "idle");
  }
  if (session_->wants_input() && !blocked_) {
    stream_->resume_read();
  } else {
    stream_->pause_read();
  }
}

void Connection::arm(MonoTime deadline, std::string_view why) {
  why_ = why;
  stream_->loop().start(deadline_, deadline);
}

void Connection::on_read_end() {
  read_end_ = true;
  // Half a request is none; a whole one still gets its answer.
  if (!session_ || session_->reading()) return end();
  pump();
}

void Connection::on_writable() {
  blocked_ = false;
  pump();
}

void Connection::on_closed(const net::StreamEnd& end) {
  if (end.reason == Reason::kTlsHandshake && shared_.cut) shared_.cut("tls_handshake");
  this->end();
}

void Connection::give_way(rt::GiveWay why) {
  // A request that came after this one was chosen gets its answer, as the last one.
  const bool asked = session_ && (session_->reading() || session_->responding());
  if (why != rt::GiveWay::kRoom || !asked) return cut(rt::to_string(why));
  if (shared_.cut) shared_.cut(rt::to_string(why));
  session_->drain();
  pump();
}

void Connection::cut(std::string_view why) {
  if (shared_.cut) shared_.cut(why);
  if (stream_) stream_->abort(Reason::kIdleTimeout);
  end();
}

void Connection::end() {
  closing_ = true;
  if (auto ended = std::exchange(ended_, nullptr)) ended(this);
}

}  // namespace meltemi::http
