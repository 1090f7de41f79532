// The packets by which an agent keeps ztunnel's certificates (api meltemi/local/v1/keys.proto): bytes
// only; descriptors travel beside the packet and stay with the caller, who says how many came. Must
// never hold a key.
#pragma once

#include <string>
#include <variant>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::codec::keys {

inline constexpr size_t kMaxPacket = 4096;
inline constexpr size_t kMaxIdentity = 2048;  // RFC 3986 leaves it open; SPIFFE says 2048 bytes

struct Hello {
  bool operator==(const Hello&) const = default;
};
struct Kept {
  std::string identity;
  WallTime not_after{};
  bool operator==(const Kept&) const = default;
};
struct Forgotten {
  std::string identity;
  bool operator==(const Forgotten&) const = default;
};
struct Complete {
  bool operator==(const Complete&) const = default;
};
using Packet = std::variant<Hello, Kept, Forgotten, Complete>;

std::string encode(const Packet& packet);
// Errors (kBadRequest): malformed, another version, an identity that is no SPIFFE ID by its first
// bytes, too long or with control bytes, a time that no clock holds, descriptors other than one with
// Kept and none with the rest.
Result<Packet> decode(ByteView packet, size_t fds);

}  // namespace meltemi::codec::keys
