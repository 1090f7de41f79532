// The server's side of one HTTP connection, sans-io: the client's bytes go in, requests come out
// whole, and the bytes of the responses are pulled as the client reads. HTTP/1.1 and HTTP/2 (prior
// knowledge) behind one face. It must never know a socket, hold more of a response than was asked
// for, or of a request than its limits allow.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/http/message.h"

namespace meltemi::http {

struct Limits {
  uint32_t head_bytes = 16 * 1024;   // request line and fields, or the decoded list
  uint32_t header_count = 64;        // fields
  uint32_t body_bytes = 64 * 1024;   // of a request
  uint32_t streams = 16;             // requests at once on one HTTP/2 connection
};

class Session {
 public:
  // Makes the answer to a whole request.
  using Answer = std::function<Response(const Request&)>;

  virtual ~Session() = default;
  // Takes all of `in`. Bytes of the peer's that break the protocol end the session: see done().
  virtual void receive(ByteView in, MonoTime now) = 0;
  // Appends what is due to `out` until that has about `max` bytes or nothing is due.
  virtual void produce(std::string& out, size_t max) = 0;
  // False while the next request has to wait for the end of a response (HTTP/1.1).
  virtual bool wants_input() const = 0;
  // Part of a request has come, the rest has not.
  virtual bool reading() const = 0;
  // A response is under way: produce() has more.
  virtual bool responding() const = 0;
  // Nothing comes after what was produced: send it, then close.
  virtual bool done() const = 0;
  // No more requests after those that are under way.
  virtual void drain() = 0;
  // Set when an upgrade was accepted and its head produced: what to do with the connection.
  struct Upgrade {
    std::function<void(net::StreamPtr, std::string early, rt::Lease)> take;
    std::string early;
  };
  virtual std::unique_ptr<Upgrade> take_upgrade() { return nullptr; }
};

// The answer to a head that is no request for any page.
inline Response refusal(int status, std::string why) {
  Response out{status, std::move(why) + "\n"};
  if (status == 405) out.headers.emplace_back("allow", "GET, HEAD");  // RFC 9110 section 15.5.6
  return out;
}

// The version shows in the first bytes: HTTP/2 begins with its preface (RFC 9113 section 3.4).
enum class Version : uint8_t { kUnknown, kHttp1, kHttp2 };
Version version_of(ByteView first);

// `peer` goes into the requests; `answer` must outlive the session.
std::unique_ptr<Session> make_h1_session(const Limits& limits, const SocketAddress& peer,
                                         const Session::Answer& answer);
std::unique_ptr<Session> make_h2_session(const Limits& limits, const SocketAddress& peer,
                                         const Session::Answer& answer);

}  // namespace meltemi::http
