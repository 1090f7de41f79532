// Parsing and printing of addresses. Must never accept what inet_pton would not.
#include "userspace/base/address.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <charconv>
#include <cstring>

namespace meltemi {
namespace {

constexpr uint8_t kMappedPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

std::optional<uint16_t> parse_port(std::string_view text) {
  uint32_t port = 0;
  auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (text.empty() || ec != std::errc() || end != text.data() + text.size() || port > 65535)
    return std::nullopt;
  return static_cast<uint16_t>(port);
}

}  // namespace

IpAddress IpAddress::v4(uint32_t host_order) {
  IpAddress ip;
  std::memcpy(ip.bytes_.data(), kMappedPrefix, sizeof kMappedPrefix);
  store_be(ip.bytes_.data() + 12, host_order);
  return ip;
}

std::optional<IpAddress> IpAddress::from_bytes(ByteView bytes) {
  if (bytes.size() == 4) return v4(load_be<uint32_t>(bytes.data()));
  if (bytes.size() != 16) return std::nullopt;
  IpAddress ip;
  std::memcpy(ip.bytes_.data(), bytes.data(), 16);
  return ip;
}

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  char buffer[INET6_ADDRSTRLEN];
  if (text.size() >= sizeof buffer) return std::nullopt;
  std::memcpy(buffer, text.data(), text.size());
  buffer[text.size()] = 0;
  if (std::memchr(buffer, 0, text.size()) != nullptr) return std::nullopt;
  in_addr a4;
  if (inet_pton(AF_INET, buffer, &a4) == 1) return v4(ntohl(a4.s_addr));
  IpAddress ip;
  if (inet_pton(AF_INET6, buffer, ip.bytes_.data()) == 1) return ip;
  return std::nullopt;
}

bool IpAddress::is_v4() const {
  return std::memcmp(bytes_.data(), kMappedPrefix, sizeof kMappedPrefix) == 0;
}

bool IpAddress::is_unspecified() const {
  return *this == IpAddress() || *this == v4(0);
}

bool IpAddress::is_loopback() const {
  if (is_v4()) return bytes_[12] == 127;
  for (int i = 0; i < 15; ++i)
    if (bytes_[i] != 0) return false;
  return bytes_[15] == 1;
}

std::string IpAddress::wire() const {
  const char* p = reinterpret_cast<const char*>(bytes_.data());
  return is_v4() ? std::string(p + 12, 4) : std::string(p, 16);
}

uint32_t IpAddress::v4_network_order() const {
  uint32_t v;
  std::memcpy(&v, bytes_.data() + 12, 4);
  return v;
}

std::string IpAddress::to_string() const {
  char buffer[INET6_ADDRSTRLEN];
  if (is_v4())
    inet_ntop(AF_INET, bytes_.data() + 12, buffer, sizeof buffer);
  else
    inet_ntop(AF_INET6, bytes_.data(), buffer, sizeof buffer);
  return buffer;
}

std::optional<Cidr> Cidr::make(IpAddress address, uint32_t length) {
  const uint32_t family_bits = address.is_v4() ? 32 : 128;
  if (length > family_bits) return std::nullopt;
  std::array<uint8_t, 16> bytes = address.bytes();
  for (uint32_t bit = length + (128 - family_bits); bit < 128; ++bit)
    bytes[bit / 8] &= static_cast<uint8_t>(~(0x80u >> (bit % 8)));
  return Cidr{*IpAddress::from_bytes(bytes), static_cast<uint8_t>(length)};
}

std::optional<Cidr> Cidr::parse(std::string_view text) {
  const size_t slash = text.find('/');
  const auto ip = IpAddress::parse(text.substr(0, slash));
  if (!ip) return std::nullopt;
  if (slash == std::string_view::npos) return make(*ip, ip->is_v4() ? 32 : 128);
  const auto length = parse_port(text.substr(slash + 1));
  if (!length) return std::nullopt;
  return make(*ip, *length);
}

bool Cidr::contains(const IpAddress& ip) const {
  if (ip.is_v4() != address.is_v4()) return false;
  const auto masked = make(ip, length);
  return masked && masked->address == address;
}

std::string Cidr::to_string() const { return fmt::format("{}/{}", address.to_string(), length); }

std::optional<SocketAddress> SocketAddress::from_sockaddr(const sockaddr* sa, socklen_t length) {
  if (sa->sa_family == AF_INET && length >= sizeof(sockaddr_in)) {
    const auto* in = reinterpret_cast<const sockaddr_in*>(sa);
    return SocketAddress{IpAddress::v4(ntohl(in->sin_addr.s_addr)), ntohs(in->sin_port)};
  }
  if (sa->sa_family == AF_INET6 && length >= sizeof(sockaddr_in6)) {
    const auto* in6 = reinterpret_cast<const sockaddr_in6*>(sa);
    return SocketAddress{*IpAddress::from_bytes({in6->sin6_addr.s6_addr, 16}),
                         ntohs(in6->sin6_port)};
  }
  return std::nullopt;
}

std::optional<HostPort> split_host_port(std::string_view text) {
  HostPort result;
  std::string_view rest;
  if (text.starts_with('[')) {
    const size_t close = text.find(']');
    if (close == std::string_view::npos) return std::nullopt;
    result.host = text.substr(1, close - 1);
    rest = text.substr(close + 1);
  } else {
    const size_t colon = text.find(':');
    result.host = text.substr(0, colon);
    rest = colon == std::string_view::npos ? std::string_view() : text.substr(colon);
  }
  if (result.host.empty()) return std::nullopt;
  if (rest.empty()) return result;
  if (rest[0] != ':') return std::nullopt;
  const auto port = parse_port(rest.substr(1));
  if (!port) return std::nullopt;
  result.port = *port;
  return result;
}

std::optional<SocketAddress> SocketAddress::parse(std::string_view text) {
  const auto hp = split_host_port(text);
  if (!hp || text.ends_with(hp->host) || text.ends_with(']')) return std::nullopt;
  const auto ip = IpAddress::parse(hp->host);
  if (!ip || (text[0] == '[') == ip->is_v4()) return std::nullopt;
  return SocketAddress{*ip, hp->port};
}

socklen_t SocketAddress::to_sockaddr(sockaddr_storage& out, bool force_v6) const {
  std::memset(&out, 0, sizeof out);
  if (ip.is_v4() && !force_v6) {
    auto* in = reinterpret_cast<sockaddr_in*>(&out);
    in->sin_family = AF_INET;
    in->sin_port = htons(port);
    in->sin_addr.s_addr = ip.v4_network_order();
    return sizeof *in;
  }
  auto* in6 = reinterpret_cast<sockaddr_in6*>(&out);
  in6->sin6_family = AF_INET6;
  in6->sin6_port = htons(port);
  std::memcpy(in6->sin6_addr.s6_addr, ip.bytes().data(), 16);
  return sizeof *in6;
}

std::string SocketAddress::to_string() const {
  return ip.is_v4() ? fmt::format("{}:{}", ip.to_string(), port)
                    : fmt::format("[{}]:{}", ip.to_string(), port);
}

}  // namespace meltemi
