// An HTTP/1.x connection from a client: requests one after another (pipelined ones wait), each handed to
// the exchange. All that is written in one turn goes out in one send. Must never start a request
// before the response to the one before is complete.
#pragma once

#include "userspace/codec/h1.h"
#include "waypoint/proxy/connection.h"

namespace meltemi::waypoint {

class H1Server final : public HttpConnection,
                       private ServerSide,
                       private net::StreamEvents,
                       private rt::TurnHook,
                       private LazyTimer::Owner {
 public:
  // `early` are bytes that were read to find out the protocol.
  H1Server(ProxyWorker& worker, ConnectionOwner& owner, ClientInfo client,
           const HttpOptions& options, net::StreamPtr stream, ByteView early);
  ~H1Server() override;

  const ClientInfo& client() const override { return client_; }
  void leave() override { draining_ = true; }
  void drain() override;

 private:
  // ServerSide
  void informational(const ResponseHead& head) override;
  void respond(const ResponseHead& head, bool end, bool tunnel) override;
  bool body(ByteView data) override;
  void finish(const Fields* trailers) override;
  void abort(Reason reason) override;
  void pause_request(bool pause) override;
  // StreamEvents
  void on_data(const net::Slices& data) override;
  void on_read_end() override;
  void on_writable() override;
  void on_closed(const net::StreamEnd& end) override;
  void on_turn_end() override;
  void on_deadline() override;

  void feed(ByteView in);
  void pump();
  bool request_event(const codec::H1Event& event);
  void request_head();
  void refuse(uint16_t status, const Error& error);
  void response_done();
  void next_request();
  void hold(ByteView rest);
  bool flush(ByteView tail);
  void close();
  void part();  // ends in order: what is written goes out, what still comes is dropped
  // Never, if there is no limit. Of a request that has begun, and of a connection without one.
  MonoTime head_deadline() const;
  MonoTime idle_deadline() const;
  // The client has closed its side, and what is under way lacks a part that will never come.
  bool cut_off() const { return request_open_ || parser_.in_message(); }
  void end_cut_off();
  bool waiting() const { return exchange_.active() || !response_done_; }

  ProxyWorker& worker_;
  ConnectionOwner& owner_;
  ClientInfo client_;
  HttpOptions options_;
  net::StreamPtr stream_;
  codec::H1Parser parser_;
  LazyTimer timer_;
  Exchange exchange_;
  RequestHead head_;
  Fields fields_;
  std::string out_;
  std::string held_;   // received, belongs to later requests (or to a tunnel that is not open yet)
  uint32_t requests_ = 0;
  bool request_open_ = false;    // a head came, its end did not
  bool expecting_ = false;       // the client may wait for our 100 (Continue) with its body
  bool response_done_ = true;
  bool keep_alive_ = true;
  bool chunked_ = false;         // the response's body
  bool until_close_ = false;
  bool tunnel_ = false;
  bool upgrade_pending_ = false; // kUpgrade was parsed, the endpoint has not answered
  bool blocked_ = false;
  bool paused_ = false;          // by the exchange
  bool read_ended_ = false;
  bool refused_ = false;         // the parser gave up: nothing more is read
  bool draining_ = false;
  bool closing_ = false;         // write side shut, waiting for the client
  bool lingered_ = false;
  bool dead_ = false;
};

}  // namespace meltemi::waypoint
