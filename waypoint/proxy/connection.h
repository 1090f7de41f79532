// What the acceptor knows of a connection that speaks HTTP, whichever version: how to let it go. Must
// never know of a protocol.
#pragma once

#include "waypoint/proxy/exchange.h"

namespace meltemi::waypoint {

// Told when a client connection is gone; it is destroyed by the owner.
class ConnectionOwner {
 public:
  virtual void connection_gone(rt::Retirable& connection) = 0;

 protected:
  ~ConnectionOwner() = default;
};

class HttpConnection : public rt::Retirable {
 public:
  virtual const ClientInfo& client() const = 0;
  // The client is asked to come no more, with the next answer or GOAWAY; what it still asks is served.
  virtual void leave() = 0;
  // The same, and ends at once when nothing is under way.
  virtual void drain() = 0;
};

}  // namespace meltemi::waypoint
