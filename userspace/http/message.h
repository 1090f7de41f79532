// One HTTP request and its response as pages see them, whichever version of HTTP carried them. Must
// never hold a connection: a response that goes on for long is pulled from its source, piece by
// piece, as the client reads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/codec/header_list.h"
#include "userspace/net/stream.h"
#include "userspace/rt/admission.h"

namespace meltemi::http {

using Pairs = std::vector<std::pair<std::string, std::string>>;

struct Request {
  std::string method;          // "GET"
  std::string path;            // before '?', percent-decoded
  Pairs query;                 // percent-decoded, in order
  codec::HeaderList headers;   // without pseudo-headers
  std::string body;
  SocketAddress peer;          // the client's

  const std::string* param(std::string_view name) const;  // the last of that name, or null
  std::string_view accept() const { return headers.value("accept"); }
};

// A body that is made while it is sent. Asked only when the client has room, on the server's thread.
class BodySource {
 public:
  virtual ~BodySource() = default;
  // Appends the next piece (some tens of KB) to `out`. False: that was the last. Must not block.
  virtual bool more(std::string& out) = 0;
};

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "text/plain; charset=utf-8";
  Pairs headers = {};                             // besides content-type and framing
  std::shared_ptr<BodySource> source = nullptr;   // instead of `body`
  // With status 101, to a request that asked for an upgrade (RFC 9110 section 7.8; HTTP/1.1 only):
  // gets the connection, paused, what the client sent behind its request, and its place, to be given back
  // after the connection is closed.
  std::function<void(net::StreamPtr, std::string early, rt::Lease)> upgrade = nullptr;
};

}  // namespace meltemi::http
