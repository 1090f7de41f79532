// The answers that this proxy gives by itself: which status, gRPC status and words a reason has. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "waypoint/http/forward.h"

namespace meltemi::waypoint {

// The HTTP status for a reason, e.g. kNoRoute 404, kPolicyDeny 403, kConnectRefused 503.
uint16_t status_of(Reason reason);
// gRPC status for the same: of the reason where that says more than the HTTP status.
int grpc_status_of(Reason reason, uint16_t http_status);
int grpc_status_of_http(uint16_t http_status);  // gRPC's own mapping table
// `text` as the value of grpc-message: percent-encoded (gRPC over HTTP/2, "Status-Message").
std::string grpc_message(std::string_view text);
// Body of a reply, one line. A denied request hears exactly what Istio's say.
std::string reply_body(Reason reason, std::string_view detail);

// A 405's Allow: all but CONNECT, as what else an endpoint takes is its own affair.
inline constexpr std::string_view kAllowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

// Of OPTIONS and TRACE, how many proxies the request may still pass; nullopt: it does not say, or is
// another method (RFC 9110 section 7.6.2).
std::optional<uint32_t> max_forwards(const RequestHead& head);
// The content of the answer to a TRACE that ends here (RFC 9110 section 9.3.8): the head as it was
// received, without what could tell a script the client's secrets, or where it came from.
std::string traced(const RequestHead& head);

}  // namespace meltemi::waypoint
