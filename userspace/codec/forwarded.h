// The `forwarded` header of HBONE (RFC 7239, of which two parameters are used): the client's
// address and the service that was asked for. A peer's claim: for telemetry only, unless the peer
// is trusted.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "userspace/base/address.h"

namespace meltemi::codec {

inline constexpr size_t kMaxForwardedBytes = 2048;  // longer: as if it were not there

struct Forwarded {
  std::optional<SocketAddress> source;  // for=; port 0 if it has none; absent if obfuscated
  std::string host;                     // host=, lower case; empty if absent

  bool operator==(const Forwarded&) const = default;
};

// `for="10.0.0.1:1234";host=web.shop.svc.cluster.local`. The host is quoted only if it must be.
std::string format_forwarded(const SocketAddress& source, std::string_view host);
// First element of the list. Never fails: what is malformed is absent.
Forwarded parse_forwarded(std::string_view header);

}  // namespace meltemi::codec
