// IP addresses, socket addresses and prefixes. One representation for both families: 16 bytes with
// IPv4 as ::ffff:a.b.c.d, so that every table has one key type and a v4-mapped peer equals the v4
// one. Scoped addresses (fe80::1%eth0) are refused: nothing in the mesh is link-local.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"

namespace meltemi {

class IpAddress {
 public:
  IpAddress() = default;  // ::

  static IpAddress v4(uint32_t host_order);
  // 4 or 16 bytes, network order; anything else is nullopt. v4-mapped v6 becomes v4.
  static std::optional<IpAddress> from_bytes(ByteView bytes);
  // Dotted quad or RFC 4291 text, no brackets, no scope. nullopt if malformed.
  static std::optional<IpAddress> parse(std::string_view text);

  bool is_v4() const;
  bool is_unspecified() const;  // 0.0.0.0 or ::
  bool is_loopback() const;     // 127.0.0.0/8 or ::1
  const std::array<uint8_t, 16>& bytes() const { return bytes_; }
  // 4 bytes for IPv4, 16 for IPv6, network order: the wire form of workload.proto.
  std::string wire() const;
  // Network order, as in_addr.s_addr. REQUIRES: is_v4().
  uint32_t v4_network_order() const;
  std::string to_string() const;

  auto operator<=>(const IpAddress&) const = default;

 private:
  std::array<uint8_t, 16> bytes_{};
};

// A prefix. For IPv4 `length` is 0..32, for IPv6 0..128; host bits are zero.
struct Cidr {
  IpAddress address;
  uint8_t length = 0;

  // "10.0.0.0/8", or a bare address (full length).
  static std::optional<Cidr> parse(std::string_view text);
  // Clears host bits. nullopt if `length` is too large for the family.
  static std::optional<Cidr> make(IpAddress address, uint32_t length);
  bool contains(const IpAddress& ip) const;  // false across families
  std::string to_string() const;
  auto operator<=>(const Cidr&) const = default;
};

struct SocketAddress {
  IpAddress ip;
  uint16_t port = 0;  // host order

  static std::optional<SocketAddress> from_sockaddr(const sockaddr* sa, socklen_t length);
  // "1.2.3.4:80" or "[::1]:80". nullopt if malformed or without a port.
  static std::optional<SocketAddress> parse(std::string_view text);
  // Fills `out`, returns its length. With `force_v6` IPv4 is written v4-mapped as AF_INET6.
  socklen_t to_sockaddr(sockaddr_storage& out, bool force_v6 = false) const;
  std::string to_string() const;  // "1.2.3.4:80", "[::1]:80"
  auto operator<=>(const SocketAddress&) const = default;
};

// "host:port" as in :authority or Host. IPv6 in brackets. Views into `text`; port 0 if absent.
struct HostPort {
  std::string_view host;
  uint16_t port = 0;
};
std::optional<HostPort> split_host_port(std::string_view text);

}  // namespace meltemi

template <>
struct std::hash<meltemi::IpAddress> {
  size_t operator()(const meltemi::IpAddress& ip) const noexcept {
    uint64_t a, b;
    std::memcpy(&a, ip.bytes().data(), 8);
    std::memcpy(&b, ip.bytes().data() + 8, 8);
    uint64_t h = (a ^ 0x9E3779B97F4A7C15ull) * 0xBF58476D1CE4E5B9ull;
    h ^= b + 0x94D049BB133111EBull + (h << 6) + (h >> 2);
    h *= 0xBF58476D1CE4E5B9ull;
    return static_cast<size_t>(h ^ (h >> 31));
  }
};
template <>
struct std::hash<meltemi::SocketAddress> {
  size_t operator()(const meltemi::SocketAddress& a) const noexcept {
    return std::hash<meltemi::IpAddress>()(a.ip) * 31 + a.port;
  }
};
