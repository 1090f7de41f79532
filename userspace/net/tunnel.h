// One HBONE connection, either end: socket, TLS and HTTP/2 session joined, with its streams. Internal
// to net; hbone_server and tunnel_pool build on it.
//
// Sending: small frames of all streams are gathered in a staging buffer and leave as one record with
// one send at the end of the loop's turn; large ones are sealed straight from the caller's memory
// into the send slot. Receiving: records are decrypted in place, DATA is handed up as a gather list
// of what one read brought for a stream. Between turns an idle tunnel holds neither buffer.
// It must never hold more for a stream than the window that the peer was granted.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "userspace/codec/h2_tunnel.h"
#include "userspace/codec/tls_record.h"
#include "userspace/net/hbone.h"
#include "userspace/net/stream.h"
#include "userspace/net/tls_handshake.h"
#include "userspace/rt/socket.h"

namespace meltemi::net {

class Tunnel;

// What a session's stream points to.
struct StreamUser {
  enum class Kind : uint8_t { kStream, kCall, kRequest };
  explicit StreamUser(Kind kind) : kind(kind) {}
  Kind kind;
};

// Counters have one writer, the worker's thread.
inline void bump(std::atomic<uint64_t>& counter, uint64_t by = 1) {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

// Bytes that are taken from the front of a gather.
class SliceCursor {
 public:
  explicit SliceCursor(const Slices& data)
      : piece_(data.pieces), left_(data.bytes) {}
  size_t left() const { return left_; }
  // The next contiguous bytes, at most `max` >= 1. REQUIRES: left() > 0.
  ByteView next(size_t max) {
    while (offset_ == piece_->iov_len) {
      ++piece_;
      offset_ = 0;
    }
    const size_t n = std::min(max, piece_->iov_len - offset_);
    const ByteView out(static_cast<const uint8_t*>(piece_->iov_base) + offset_, n);
    offset_ += n;
    left_ -= n;
    return out;
  }

 private:
  const iovec* piece_;
  size_t offset_ = 0;
  size_t left_;
};

// One CONNECT stream that was accepted.
class HboneStream final : public ByteStream, public StreamUser, private rt::TurnHook {
 public:
  HboneStream(Tunnel& tunnel, uint32_t id);
  ~HboneStream() override;

  rt::Loop& loop() override { return loop_; }
  bool write(const Slices& data) override;
  size_t write_room() const override;
  void shutdown_write() override;
  void close() override;
  void abort(Reason reason) override;
  void pause_read() override { paused_ = true; }
  void resume_read() override;
  void limit_read(size_t) override {}
  void detach() override;

 private:
  friend class Tunnel;
  friend class ServerTunnel;
  friend class ClientTunnel;
  bool ended() const { return ended_; }
  // --- from the tunnel ---
  void receive(const Slices& data, bool end);
  void on_reset(uint32_t code);
  void on_tunnel_lost(const Error& error);
  void flush();  // sends what is held, as far as it goes
  // --- own ---
  void on_turn_end() override;
  void deliver_held();
  void tell_read_end();
  void credit(size_t bytes);
  bool over_budget(size_t more);
  void send_end();
  void end(Reason reason, bool by_peer, bool reset);
  void leave();  // the tunnel forgets this stream
  void hold(SliceCursor& rest);

  rt::Loop& loop_;
  Tunnel* tunnel_;  // null once the stream is over for the session
  HboneStream* prev_stream_ = nullptr;  // all streams of the tunnel
  HboneStream* next_stream_ = nullptr;
  HboneStream* next_waiting_ = nullptr;  // those that wait for room in the socket
  rt::ByteQueue tx_, rx_;
  uint32_t id_;
  uint32_t uncredited_ = 0;    // delivered, but the user paused
  uint64_t extra_window_ = 0;  // taken from the windows budget
  StreamEnd end_;
  bool paused_ = true;
  bool waiting_ = false;
  bool blocked_ = false;       // write() said false
  bool end_wanted_ = false;    // shutdown_write()
  bool end_sent_ = false;
  bool closing_ = false;       // close()
  bool read_end_ = false;      // the peer sends no more
  bool read_end_told_ = false;
  bool ended_ = false;         // on_closed() is owed or told
  bool told_ = false;
};

class Tunnel : public rt::Retirable, private rt::SocketHandler, private rt::TurnHook {
 public:
  Tunnel(rt::Loop& loop, const HboneOptions& options, HboneStats& stats, codec::TunnelRole role);
  ~Tunnel() override;

  // What the handshake will show and trust; before start(), and before the dial that leads to it, so that
  // check_root() finds it.
  void rest_on(std::shared_ptr<const TlsContext> tls) { context_ = std::move(tls); }
  void start(UniqueFd fd, std::vector<model::Identity> expected);
  bool ready() const { return session_.has_value() && !dead_; }
  bool dead() const { return dead_; }
  bool draining() const { return session_ && session_->draining(); }
  const TunnelPeer& peer() const { return peer_; }
  // Has what the tunnel rests on ended? Then it takes no new stream.
  bool credential_over() const { return credential_.end <= options_.wall_clock(); }
  // Does what is due at `now`: drains, or ends. Returns when to look again; max: never.
  WallTime check_credential(WallTime now);
  // Ends the tunnel if `renewed` is of its own identity and its roots no longer hold the peer's. One whose
  // handshake is under way is asked at its end, one that has not begun uses `renewed`.
  void check_root(const std::shared_ptr<const TlsContext>& renewed);
  size_t stream_count() const { return session_ ? session_->stream_count() : 0; }
  void drain();
  // Ends it now; streams are told. on_dead() has run when this returns.
  void die(const Error& error);

 protected:
  // Server: the first byte of the handshake is here; false ends the tunnel.
  virtual bool on_first_byte() { return true; }
  virtual void on_ready() = 0;                              // the handshake is done
  virtual void on_room_changed() {}                         // session().granted_streams() is new
  virtual void on_event(const codec::TunnelEvent& e) = 0;   // requests, responses, GOAWAY, and
                                                            // what concerns calls and requests
  virtual void on_dead(const Error& error) = 0;             // last call; the tunnel is retired
  virtual MonoTime idle_deadline() const { return MonoTime::max(); }
  virtual void on_idle() {}
  virtual void on_stream_gone() {}                          // a stream left the session
  codec::TunnelSession& session() { return *session_; }
  void want_flush() { loop_.at_turn_end(*this); }
  void arm_timer();

  const Credential& credential() const { return credential_; }

  rt::Loop& loop_;
  const HboneOptions& options_;
  HboneStats& stats_;
  TunnelPeer peer_;

 private:
  friend class HboneStream;
  static constexpr size_t kGather = 64;
  // Frames at most this long are gathered; larger ones are sealed without a copy.
  static constexpr size_t kStagePayload = 4096;
  // Payload of one frame: with its header exactly four full records.
  static constexpr size_t kFramePayload = 4 * codec::kTlsMaxPlaintext - 9;
  // What a held stream may send before the next one gets its turn.
  static constexpr size_t kTurnQuota = 64 * 1024;

  void on_socket_data(ByteSpan data) override;
  void on_socket_eof() override;
  void on_socket_error(int err) override;
  void on_socket_writable() override;
  void on_turn_end() override;

  ByteSpan prepend_carry(ByteSpan data);
  void keep_carry(ByteSpan rest);
  Error root_lost() const;
  bool begin_handshake();
  bool handshake_step(ByteSpan& in);
  bool open_record(ByteSpan record);
  void on_plaintext(ByteView in);
  void dispatch(const codec::TunnelEvent& e);
  void gather(HboneStream& stream, ByteView data, bool end);
  void flush_gathered();

  // Sends from `data` what goes out now; with `end` END_STREAM rides on the last byte. Returns false
  // if it must wait: for the window (kWritable comes) or for the socket (the stream is queued).
  bool send_data(HboneStream& stream, SliceCursor& data, bool end);
  bool send_end(HboneStream& stream);
  // Can nothing more be sent for the stream now? Then its flush() is called when that changes.
  bool owe_writable(HboneStream& stream);
  void stage_frame(const uint8_t* header, SliceCursor& data, size_t n);
  void seal_frame(const uint8_t* header, SliceCursor& data, size_t n);
  void take_pending();
  void stage_control(ByteView frames);
  void flush_staged();
  void send_slot();
  void flush_all();
  void release_buffers();
  uint8_t* staging();
  ByteSpan slot_room();
  void wait_for_room(HboneStream& stream);
  void serve_waiting();
  void close_gracefully();
  void last_words();

  void add(HboneStream& stream);
  void remove(HboneStream& stream);

  struct TunnelTimer final : rt::Timer {
    explicit TunnelTimer(Tunnel& t) : tunnel(t) {}
    void on_timer() override { tunnel.on_timer(); }
    Tunnel& tunnel;
  };
  void on_timer();

  codec::TunnelRole role_;
  rt::Socket socket_;
  std::shared_ptr<const TlsContext> context_;  // until the handshake begins
  std::vector<model::Identity> expected_;
  std::unique_ptr<TlsHandshake> handshake_;
  std::shared_ptr<const TlsContext> renewed_;  // came during the handshake
  std::optional<codec::RecordLayer> tls_;
  std::optional<codec::TunnelSession> session_;
  TunnelTimer timer_;
  MonoTime handshake_deadline_ = MonoTime::max();
  Credential credential_;
  model::Identity own_;     // as shown to the peer
  bool outlived_ = false;   // its credential has ended

  // Receiving.
  uint8_t* carry_ = nullptr;  // a record that is not complete yet
  uint32_t carry_size_ = 0;
  HboneStream* gathered_for_ = nullptr;
  uint32_t gathered_ = 0;
  bool gathered_end_ = false;
  size_t gathered_bytes_ = 0;
  iovec gather_[kGather];

  // Sending.
  uint8_t* staging_ = nullptr;  // plaintext of small frames
  uint32_t staged_ = 0;
  uint8_t* slot_ = nullptr;     // sealed records
  uint32_t slot_used_ = 0;
  uint32_t slot_sent_ = 0;
  std::string backlog_;         // control frames that were taken but not staged
  bool blocked_ = false;        // the kernel takes no more: slot_ waits
  int io_error_ = 0;
  bool closing_ = false;        // session is finished: close when all is sent
  bool dead_ = false;
  bool eof_ = false;
  uint32_t granted_ = 0;        // streams, as told to on_room_changed()

  HboneStream* streams_ = nullptr;
  HboneStream* waiting_head_ = nullptr;
  HboneStream* waiting_tail_ = nullptr;
};

}  // namespace meltemi::net
