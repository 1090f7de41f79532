#include "waypoint/xds/convert.h"

#include <fmt/format.h>
#include <google/protobuf/duration.pb.h>

#include "envoy/config/core/v3/address.pb.h"

namespace meltemi::waypoint {
namespace {

constexpr int64_t kMaxSeconds = 100LL * 365 * 24 * 3600;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

}  // namespace

Result<Duration> duration_of(const google::protobuf::Duration& proto, std::string_view field) {
  if (proto.seconds() < 0 || proto.seconds() > kMaxSeconds || proto.nanos() < 0 ||
      proto.nanos() > 999'999'999) {
    return bad(fmt::format("{}: not a duration of 0 to 100 years", field));
  }
  return Duration(proto.seconds() * 1'000'000'000 + proto.nanos());
}

Result<Cidr> cidr_of(const envoy::config::core::v3::CidrRange& proto, std::string_view field) {
  const auto ip = IpAddress::parse(proto.address_prefix());
  if (!ip) return bad(fmt::format("{}: \"{}\" is no IP address", field, proto.address_prefix()));
  const auto cidr = Cidr::make(*ip, proto.prefix_len().value());
  if (!cidr) {
    return bad(fmt::format("{}: prefix length {} does not fit {}", field,
                           proto.prefix_len().value(), proto.address_prefix()));
  }
  return *cidr;
}

Result<SocketAddress> address_of(const envoy::config::core::v3::SocketAddress& proto,
                                 std::string_view field) {
  if (proto.protocol() != envoy::config::core::v3::SocketAddress::TCP) {
    return bad(fmt::format("{}: only TCP is supported", field));
  }
  const auto ip = IpAddress::parse(proto.address());
  if (!ip) return bad(fmt::format("{}: \"{}\" is no IP address", field, proto.address()));
  if (proto.port_value() > 65535) {
    return bad(fmt::format("{}: port {} is not in 0..65535", field, proto.port_value()));
  }
  return SocketAddress{*ip, static_cast<uint16_t>(proto.port_value())};
}

}  // namespace meltemi::waypoint
