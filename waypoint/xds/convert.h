// Small conversions from protobuf values, with errors that name the field. Must never clamp silently.
#pragma once

#include <string_view>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace google::protobuf {
class Duration;
}
namespace envoy::config::core::v3 {
class CidrRange;
class SocketAddress;
}  // namespace envoy::config::core::v3

namespace meltemi::waypoint {

// 0 up to 100 years. Error: kBadConfig with `field`.
Result<Duration> duration_of(const google::protobuf::Duration& proto, std::string_view field);
Result<Cidr> cidr_of(const envoy::config::core::v3::CidrRange& proto, std::string_view field);
// TCP, a literal IP address, a port 0..65535.
Result<SocketAddress> address_of(const envoy::config::core::v3::SocketAddress& proto,
                                 std::string_view field);

}  // namespace meltemi::waypoint
