// What protocol a client speaks, by its first bytes. Pure. Must never need more bytes than a client
// that waits for an answer would send.
#pragma once

#include <optional>

#include "userspace/base/bytes.h"
#include "waypoint/xds/snapshot.h"

namespace meltemi::waypoint {

// Longest method that is looked at, and longest request line that is waited for, bytes. A longer line
// is HTTP/1's, whose own limit then answers it.
inline constexpr size_t kDetectMethodMax = 32;
inline constexpr size_t kDetectLineMax = 16 * 1024;

// nullopt: more bytes are needed. HTTP/2 is told by its preface (RFC 9113 section 3.4), HTTP/1 by a
// whole request line (RFC 9112 section 3): a word and a space begin many another line protocol.
std::optional<Detected> detect_protocol(ByteView first);

// The same where only HTTP is spoken: kHttp1 or kH2.
std::optional<Detected> detect_http(ByteView first);

}  // namespace meltemi::waypoint
