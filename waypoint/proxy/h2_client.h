// An HTTP/2 connection to an endpoint, shared by many requests. Bodies wait in a bounded buffer of
// their stream; window is given back only for what went on to the client. Must never let one stalled
// stream hold the bytes of another.
#pragma once

#include "userspace/codec/h2.h"
#include "waypoint/proxy/h2_body.h"
#include "waypoint/proxy/stream_map.h"
#include "waypoint/proxy/upstream.h"

namespace meltemi::waypoint {

class H2Client;

class H2ClientStream final : public ClientSide, private codec::H2Body {
 public:
  bool body(ByteView data) override;
  void finish(const Fields* trailers) override;
  void cancel() override;
  void pause_response(bool pause) override;

 private:
  friend class H2Client;
  Ready ready(size_t max) override;
  void take(size_t bytes, codec::H2Sink& sink) override;
  const Fields* trailers() override { return has_trailers_ ? &trailers_ : nullptr; }

  H2Client* connection_ = nullptr;
  AttemptPlan* plan_ = nullptr;
  uint32_t id_ = 0;
  BodyBuffer buffer_;
  Fields trailers_;
  size_t unread_ = 0;  // received while paused: window not given back
  bool done_ = false, has_trailers_ = false, paused_ = false, waiting_room_ = false;
  bool response_begun_ = false;
  bool sent_all_ = false;  // the session has taken the body's end
};

class H2Client final : public rt::Retirable,
                       private codec::H2Handler,
                       private net::StreamEvents,
                       private rt::TurnHook,
                       private LazyTimer::Owner {
 public:
  H2Client(Host& host, net::StreamPtr stream);
  ~H2Client() override;

  bool can_request() const;
  // Its SETTINGS have not come: how much room it has is not known yet.
  bool settling() const { return settling_; }
  // The endpoint allows no streams at all for now.
  bool unwilling() const { return !settling_ && !draining_ && session_.peer_max_streams() == 0; }
  Result<ClientSide*> start(AttemptPlan& plan);
  size_t streams() const { return streams_.size(); }
  // No new requests; closes when the last one has ended.
  void drain();
  void close(Reason reason, std::string_view detail);

 private:
  friend class H2ClientStream;
  // H2Handler
  void on_head(uint32_t stream, Fields& headers, bool end) override;
  void on_informational(uint32_t stream, const Fields& headers) override;
  void on_data(uint32_t stream, ByteView data) override;
  void on_end(uint32_t stream, const Fields& trailers) override;
  void on_closed(uint32_t stream, uint32_t code, bool unprocessed) override;
  void on_settings() override;
  void on_goaway(uint32_t code) override;
  // StreamEvents
  void on_data(const net::Slices& data) override;
  void on_read_end() override;
  void on_writable() override;
  void on_closed(const net::StreamEnd& end) override;
  void on_turn_end() override { flush(); }
  void on_deadline() override;

  H2ClientStream* find(uint32_t id) { return streams_.find(id); }
  void forget(H2ClientStream& stream);
  void flush();
  void want_flush() { host_.worker().loop().at_turn_end(*this); }
  void when_idle();

  Host& host_;
  net::StreamPtr stream_;
  codec::H2Session session_;
  LazyTimer idle_timer_;
  Fields fields_;
  StreamMap<H2ClientStream> streams_;
  std::vector<std::unique_ptr<H2ClientStream>> spare_;
  uint64_t requests_ = 0;
  // Streams that the endpoint bears, by what it refused, whatever its SETTINGS say: grows with each one
  // that ends well.
  static constexpr size_t kAsSettingsSay = SIZE_MAX;
  size_t bearable_ = kAsSettingsSay;
  bool settling_ = true;
  bool blocked_ = false;
  bool draining_ = false;
  bool dead_ = false;
};

}  // namespace meltemi::waypoint
