// An HTTP/1.1 connection to an endpoint: one request at a time, kept for the next one when both sides
// agree. Must never carry a second request before the first response has ended.
#pragma once

#include "userspace/codec/h1.h"
#include "waypoint/proxy/upstream.h"

namespace meltemi::waypoint {

class H1Client final : public rt::Retirable,
                       public ClientSide,
                       private net::StreamEvents,
                       private rt::TurnHook,
                       private LazyTimer::Owner {
 public:
  H1Client(Host& host, net::StreamPtr stream);
  ~H1Client() override;

  // REQUIRES: idle. Error: the head cannot be expressed in HTTP/1.
  Status start(AttemptPlan& plan);
  bool idle() const { return plan_ == nullptr; }
  bool dead() const { return dead_; }
  // Ends the connection; in order when no request is under way.
  void close();

  // ClientSide
  bool body(ByteView data) override;
  void finish(const Fields* trailers) override;
  void cancel() override;
  void pause_response(bool pause) override;

 private:
  // StreamEvents
  void on_data(const net::Slices& data) override;
  void on_read_end() override;
  void on_writable() override;
  void on_closed(const net::StreamEnd& end) override;
  void on_turn_end() override { flush({}); }
  void on_deadline() override { close(); }

  bool feed(ByteView in);
  bool on_event(const codec::H1Event& event, bool more_input);
  bool response_head();
  void response_end(bool more_input);
  void fail_attempt(Reason reason, std::string_view detail);
  bool flush(ByteView tail);
  void wait_idle();

  Host& host_;
  net::StreamPtr stream_;
  codec::H1Parser parser_;
  LazyTimer idle_timer_;
  AttemptPlan* plan_ = nullptr;
  Fields fields_;
  std::string out_;
  ResponseHead head_;
  uint64_t requests_ = 0;
  uint32_t certificate_epoch_;  // when it was made
  bool chunked_ = false;        // the request's body
  bool request_done_ = false;
  bool response_begun_ = false; // a byte of the response came
  bool informational_ = false;  // the head at hand is a 1xx
  bool head_seen_ = false;      // the final head of the response
  bool discarding_ = false;     // nobody wants the rest of the response; it is short
  bool tunnel_ = false;
  bool blocked_ = false;
  bool paused_ = false;
  bool in_order_ = true;        // close() need not cut
  bool dead_ = false;
};

}  // namespace meltemi::waypoint
