#include "userspace/codec/forwarded.h"

#include "userspace/codec/header_list.h"

namespace meltemi::codec {
namespace {

// Reads one token or quoted-string (RFC 9110) off the front of `in`. nullopt if malformed.
std::optional<std::string> take_value(std::string_view& in) {
  std::string out;
  if (in.empty() || in[0] != '"') {
    size_t n = 0;
    while (n < in.size() && in[n] != ';' && in[n] != ',' && in[n] != ' ' && in[n] != '\t') ++n;
    out = in.substr(0, n);
    in.remove_prefix(n);
    return out;
  }
  for (size_t i = 1; i < in.size(); ++i) {
    if (in[i] == '"') {
      in.remove_prefix(i + 1);
      return out;
    }
    if (in[i] == '\\' && ++i == in.size()) return std::nullopt;
    out += in[i];
  }
  return std::nullopt;  // no closing quote
}

void skip_white(std::string_view& in) {
  while (!in.empty() && (in[0] == ' ' || in[0] == '\t')) in.remove_prefix(1);
}

std::optional<SocketAddress> parse_node(std::string_view text) {
  if (auto address = SocketAddress::parse(text)) return address;
  if (text.starts_with('[') && text.ends_with(']')) text = text.substr(1, text.size() - 2);
  if (auto ip = IpAddress::parse(text)) return SocketAddress{*ip, 0};
  return std::nullopt;  // "unknown" or obfuscated
}

// A host that we can show: lower case, without anything that could break a log or a label.
std::string clean_host(std::string_view host) {
  std::string out;
  if (host.size() > 260) return out;
  for (char c : host) {
    const auto u = static_cast<uint8_t>(c);
    if (u <= 0x20 || u >= 0x7f || c == '"' || c == '\\' || c == ',' || c == ';') return {};
    out += c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  }
  return out;
}

}  // namespace

std::string format_forwarded(const SocketAddress& source, std::string_view host) {
  std::string out = "for=\"" + source.to_string() + "\"";
  if (host.empty()) return out;
  out += ";host=";
  if (valid_header_name(host)) return out.append(host);  // a token
  out += '"';
  for (char c : host) {
    const auto u = static_cast<uint8_t>(c);
    if (u < 0x20 || u >= 0x7f) continue;
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out += '"';
}

Forwarded parse_forwarded(std::string_view in) {
  Forwarded out;
  if (in.size() > kMaxForwardedBytes) return out;
  bool for_seen = false, host_seen = false;
  while (true) {
    skip_white(in);
    const size_t equals = in.find_first_of("=;,");
    if (equals == std::string_view::npos || in[equals] == ',') return out;
    if (in[equals] == ';') {
      in.remove_prefix(equals + 1);
      continue;
    }
    const std::string_view name = in.substr(0, equals);
    in.remove_prefix(equals + 1);
    const auto value = take_value(in);
    if (!value) return out;
    if (equal_ignoring_case(name, "for") && !for_seen) {
      for_seen = true;
      out.source = parse_node(*value);
    } else if (equal_ignoring_case(name, "host") && !host_seen) {
      host_seen = true;
      out.host = clean_host(*value);
    }
    skip_white(in);
    if (in.empty() || in[0] != ';') return out;  // the end, the next element, or garbage
    in.remove_prefix(1);
  }
}

}  // namespace meltemi::codec
