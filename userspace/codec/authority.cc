#include "userspace/codec/authority.h"

namespace meltemi::codec {
namespace {

std::optional<uint16_t> parse_port(std::string_view text) {
  if (text.empty() || text.size() > 5) return std::nullopt;
  uint32_t port = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    port = port * 10 + static_cast<uint32_t>(c - '0');
  }
  if (port == 0 || port > 65535) return std::nullopt;
  return static_cast<uint16_t>(port);
}

// Lower case, without the trailing dot. nullopt if it is no host name.
std::optional<std::string> parse_hostname(std::string_view text) {
  if (text.ends_with('.')) text.remove_suffix(1);
  if (text.empty() || text.size() > 253) return std::nullopt;
  std::string out;
  out.reserve(text.size());
  size_t label = 0;
  bool numeric = true;  // digits and dots only: a malformed address, never a name
  for (char c : text) {
    if (c == '.') {
      if (label == 0) return std::nullopt;
      label = 0;
      out += c;
      continue;
    }
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
    const bool digit = c >= '0' && c <= '9';
    if (!digit && !(c >= 'a' && c <= 'z') && c != '-' && c != '_') return std::nullopt;
    if (++label > 63) return std::nullopt;
    numeric &= digit;
    out += c;
  }
  if (label == 0 || numeric) return std::nullopt;
  return out;
}

}  // namespace

std::optional<Authority> Authority::parse(std::string_view text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const auto port = parse_port(text.substr(colon + 1));
  if (!port) return std::nullopt;
  std::string_view host = text.substr(0, colon);
  Authority out;
  out.port = *port;
  if (host.starts_with('[')) {
    if (!host.ends_with(']')) return std::nullopt;
    host = host.substr(1, host.size() - 2);
    out.ip = IpAddress::parse(host);
    if (!out.ip || host.find(':') == std::string_view::npos) return std::nullopt;
    return out;
  }
  if (host.find(':') != std::string_view::npos) return std::nullopt;  // v6 without brackets
  out.ip = IpAddress::parse(host);
  if (out.ip) return out;
  auto name = parse_hostname(host);
  if (!name) return std::nullopt;
  out.hostname = std::move(*name);
  return out;
}

std::string Authority::to_string() const {
  return ip ? format_authority(SocketAddress{*ip, port}) : format_authority(hostname, port);
}

std::string format_authority(const SocketAddress& address) {
  return address.to_string();
}

std::string format_authority(std::string_view hostname, uint16_t port) {
  return std::string(hostname) + ":" + std::to_string(port);
}

}  // namespace meltemi::codec
