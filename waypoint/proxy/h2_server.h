// An HTTP/2 connection from a client: every stream is an exchange. Frames of one turn go out in one
// write. Must never give window back for bytes that nobody has taken.
#pragma once

#include "userspace/codec/h2.h"
#include "waypoint/proxy/connection.h"
#include "waypoint/proxy/h2_body.h"
#include "waypoint/proxy/stream_map.h"

namespace meltemi::waypoint {

class H2Server;

class H2ServerStream final : private ServerSide, private codec::H2Body {
 public:
  explicit H2ServerStream(H2Server& connection);

 private:
  friend class H2Server;
  // ServerSide
  void informational(const ResponseHead& head) override;
  void respond(const ResponseHead& head, bool end, bool tunnel) override;
  bool body(ByteView data) override;
  void finish(const Fields* trailers) override;
  void abort(Reason reason) override;
  void pause_request(bool pause) override;
  void answered();
  // H2Body
  Ready ready(size_t max) override;
  void take(size_t bytes, codec::H2Sink& sink) override;
  const Fields* trailers() override { return has_trailers_ ? &trailers_ : nullptr; }

  H2Server& connection_;
  Exchange exchange_;
  uint32_t id_ = 0;
  RequestHead head_;
  Fields fields_;  // of the request: views of head_
  BodyBuffer buffer_;
  Fields trailers_;
  size_t unread_ = 0;
  bool done_ = false, has_trailers_ = false, paused_ = false, waiting_room_ = false;
  bool request_ended_ = false;  // the client has sent everything
  bool gone_ = true;        // nothing may be sent any more
  bool extended_ = false;   // RFC 8441: 101 becomes 200
  bool whole_ = false;      // the head ended the stream
};

class H2Server final : public HttpConnection,
                       private codec::H2Handler,
                       private net::StreamEvents,
                       private rt::TurnHook,
                       private LazyTimer::Owner {
 public:
  H2Server(ProxyWorker& worker, ConnectionOwner& owner, ClientInfo client,
           const HttpOptions& options, net::StreamPtr stream, ByteView early);
  ~H2Server() override;

  const ClientInfo& client() const override { return client_; }
  void leave() override { drain(); }
  void drain() override;

 private:
  friend class H2ServerStream;
  // H2Handler
  void on_head(uint32_t stream, Fields& headers, bool end) override;
  void on_data(uint32_t stream, ByteView data) override;
  void on_end(uint32_t stream, const Fields& trailers) override;
  void on_closed(uint32_t stream, uint32_t code, bool unprocessed) override;
  // StreamEvents
  void on_data(const net::Slices& data) override;
  void on_read_end() override { close(Reason::kClientClosedEarly); }
  void on_writable() override;
  void on_closed(const net::StreamEnd& end) override;
  void on_turn_end() override;
  void on_deadline() override;

  H2ServerStream* find(uint32_t id) { return streams_.find(id); }
  void receive(ByteView bytes);
  void take_early();
  void recycle(uint32_t id);
  void flush();
  void want_flush() { worker_.loop().at_turn_end(*this); }
  void close(Reason reason);

  ProxyWorker& worker_;
  ConnectionOwner& owner_;
  ClientInfo client_;
  HttpOptions options_;
  net::StreamPtr stream_;
  codec::H2Session session_;
  LazyTimer idle_timer_;
  std::string early_;
  Fields out_fields_;
  StreamMap<H2ServerStream> streams_;
  std::vector<std::unique_ptr<H2ServerStream>> spare_;
  std::vector<std::unique_ptr<H2ServerStream>> ended_;  // may be on the stack; reused next turn
  uint32_t requests_ = 0;
  bool blocked_ = false;
  bool draining_ = false;
  bool dead_ = false;
};

}  // namespace meltemi::waypoint
