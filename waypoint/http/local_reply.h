// The answers that this proxy gives by itself: which status, gRPC status and words a reason has. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "userspace/base/error.h"

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

}  // namespace meltemi::waypoint
