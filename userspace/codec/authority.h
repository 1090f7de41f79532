// The :authority of a CONNECT: where the client wants to go. Strict, because routing and
// authorization rest on it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "userspace/base/address.h"

namespace meltemi::codec {

struct Authority {
  std::optional<IpAddress> ip;  // set: an address
  std::string hostname;         // else: lower case, no trailing dot
  uint16_t port = 0;            // 1..65535

  // "1.2.3.4:80", "[::1]:80", "web.shop.svc.cluster.local:80". nullopt: no port, port 0, user info,
  // a scoped or malformed address, a host name of more than 253 bytes or with other than letters,
  // digits, '-', '_' and '.', an empty label or one of more than 63 bytes, or a name that is all
  // digits and dots without being an address.
  static std::optional<Authority> parse(std::string_view text);
  std::string to_string() const;
  bool operator==(const Authority&) const = default;
};

// "10.0.0.1:8080", "[fd00::1]:8080".
std::string format_authority(const SocketAddress& address);
std::string format_authority(std::string_view hostname, uint16_t port);

}  // namespace meltemi::codec
