// What protocol a client speaks, by its first bytes. Pure. Must never need more bytes than a client
// that waits for an answer would send.
#pragma once

#include <optional>

#include "userspace/base/bytes.h"
#include "waypoint/xds/snapshot.h"

namespace meltemi::waypoint {

// Longest prefix that is looked at, bytes.
inline constexpr size_t kDetectMax = 32;

// nullopt: more bytes are needed. HTTP/2 is told by its preface (RFC 9113 section 3.4), HTTP/1 by a
// method token followed by a space.
std::optional<Detected> detect_protocol(ByteView first);

}  // namespace meltemi::waypoint
