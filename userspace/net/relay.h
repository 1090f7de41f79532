// Two byte streams joined: what arrives on one goes out on the other, at the speed of the slower.
// Half-close and reset are carried through in both directions. The flow of every proxied connection
// is one of these; its hot path allocates nothing and holds no bytes of its own.
#pragma once

#include <atomic>
#include <cstdint>

#include "userspace/base/clock.h"
#include "userspace/net/stream.h"

namespace meltemi::net {

// Client side is where the connection came from, server side where it was dialled to.
enum class RelaySide : uint8_t { kNone, kClient, kServer };

struct RelayReport {
  Reason reason = Reason::kOk;  // kOk: both sides were done
  RelaySide closed_by = RelaySide::kNone;  // whose end was first; kNone: we ended it
  bool reset = false;
  uint64_t bytes_up = 0;        // from client to server
  uint64_t bytes_down = 0;      // from server to client
};

class Relay;

class RelayOwner {
 public:
  // The last word of a relay; both streams are closed. The relay may be destroyed inside.
  virtual void on_relay_end(Relay& relay, const RelayReport& report) = 0;

 protected:
  ~RelayOwner() = default;
};

class Relay final : public rt::Retirable {
 public:
  // Streams are paused; start() lets them go, and tells it if the client's reading side has ended
  // before. `idle_timeout` 0: none (TCP keepalive finds the dead).
  Relay(StreamPtr client, StreamPtr server, RelayOwner& owner, Duration idle_timeout = {});
  ~Relay() override;
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  void start(bool client_ended = false);
  // Ends the flow: both sides see a reset, and the report has this reason. No effect after the end.
  void abort(Reason reason);
  bool ended() const { return ended_; }
  // Live counters, for access logs of long flows and for metrics.
  uint64_t bytes_up() const { return client_side_.stream ? client_side_.stream->bytes_read() : report_.bytes_up; }
  uint64_t bytes_down() const { return server_side_.stream ? server_side_.stream->bytes_read() : report_.bytes_down; }
  ByteStream* client() { return client_side_.stream.get(); }
  ByteStream* server() { return server_side_.stream.get(); }

 private:
  struct Side final : StreamEvents {
    void on_data(const Slices& data) override;
    void on_read_end() override;
    void on_writable() override;
    void on_closed(const StreamEnd& end) override;
    Relay* relay = nullptr;
    Side* other = nullptr;
    StreamPtr stream;
    bool closed = false;
    bool read_ended = false;
  };
  struct IdleTimer final : rt::Timer {
    void on_timer() override;
    Relay* relay = nullptr;
    uint64_t seen = 0;
  };
  void side_closed(Side& side, const StreamEnd& end);
  void note_end(RelaySide side, Reason reason, bool reset);

  Side client_side_, server_side_;
  RelayOwner& owner_;
  RelayReport report_;
  Duration idle_timeout_;
  std::unique_ptr<IdleTimer> idle_;
  bool ended_ = false;
  bool noted_ = false;
};

}  // namespace meltemi::net
