// The two seams of an exchange. A codec towards the client implements ServerSide and feeds the
// Exchange; a codec towards an endpoint implements ClientSide and reports to UpstreamEvents. Any pair of
// protocols meets here, so that no pair needs code of its own.
//
// Rules for both: calls never call back from inside; body views live for the call; a body call that
// returns false was taken all the same, but the caller must stop until it hears that there is room.
#pragma once

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"
#include "waypoint/http/forward.h"

namespace meltemi::waypoint {

// The response's way to the client. One per request.
class ServerSide {
 public:
  virtual void informational(const ResponseHead& head) = 0;
  // The final head, once. `end`: nothing follows. `tunnel`: a 101, bytes follow (see body).
  virtual void respond(const ResponseHead& head, bool end, bool tunnel) = 0;
  virtual bool body(ByteView data) = 0;
  virtual void finish(const Fields* trailers) = 0;
  // The response that began cannot be completed: the client must not take it for whole.
  virtual void abort(Reason reason) = 0;
  // Stop or go on delivering the request's body.
  virtual void pause_request(bool pause) = 0;

 protected:
  ~ServerSide() = default;
};

// The request's way to an endpoint: one attempt, its head already sent.
class ClientSide {
 public:
  virtual bool body(ByteView data) = 0;
  virtual void finish(const Fields* trailers) = 0;
  // The exchange has lost interest: no event follows, the object is gone after the call.
  virtual void cancel() = 0;
  virtual void pause_response(bool pause) = 0;

 protected:
  ~ClientSide() = default;
};

// How an attempt ended before its response was complete.
struct AttemptFailure {
  Reason reason = Reason::kUpstreamReset;
  std::string_view detail;
  bool connected = false;     // a connection was there
  bool request_sent = false;  // bytes of the request were handed to it
  bool unprocessed = false;   // provably not acted upon
  bool reused = false;        // the connection had carried requests before
};

// What an attempt tells. After on_response_end() and on_attempt_failed() the ClientSide is gone.
class UpstreamEvents {
 public:
  // The connection took the request's head; `side` is valid until the attempt ends.
  virtual void on_attempt_started(ClientSide& side, const SocketAddress& endpoint) = 0;
  virtual void on_informational(const ResponseHead& head) = 0;
  virtual void on_response(const ResponseHead& head, bool end) = 0;
  virtual void on_response_body(ByteView data) = 0;
  virtual void on_response_end(const Fields* trailers) = 0;
  virtual void on_attempt_failed(const AttemptFailure& failure) = 0;
  virtual void on_upstream_room() = 0;

 protected:
  ~UpstreamEvents() = default;
};

}  // namespace meltemi::waypoint
