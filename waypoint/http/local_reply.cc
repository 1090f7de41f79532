#include "waypoint/http/local_reply.h"

#include <fmt/format.h>

#include <charconv>

namespace meltemi::waypoint {

uint16_t status_of(Reason reason) {
  switch (reason) {
    case Reason::kPolicyDeny:
    case Reason::kPolicyNoAllowMatch:
    case Reason::kPolicyUnknown:
    case Reason::kPolicyChanged:
    case Reason::kStrictPlaintext: return 403;
    case Reason::kNoRoute: return 404;
    case Reason::kBadRequest: return 400;
    case Reason::kRequestTimeout: return 504;
    case Reason::kIdleTimeout: return 408;
    case Reason::kInternal: return 500;
    case Reason::kUnsupported: return 501;
    case Reason::kUpstreamProtocol: return 502;  // RFC 9110 section 15.6.3
    case Reason::kSelfCall: return 508;  // RFC 5842 section 7.2
    default: return 503;
  }
}

int grpc_status_of_http(uint16_t status) {
  switch (status) {
    case 400: return 13;  // INTERNAL
    case 401: return 16;  // UNAUTHENTICATED
    case 403: return 7;   // PERMISSION_DENIED
    case 404: return 12;  // UNIMPLEMENTED
    case 429:
    case 502:
    case 503:
    case 504: return 14;  // UNAVAILABLE
    default: return 2;    // UNKNOWN
  }
}

int grpc_status_of(Reason reason, uint16_t http_status) {
  // A limit of ours (503) is UNAVAILABLE, as with Envoy: what may be tried again must look like it.
  if (reason == Reason::kRequestTimeout) return 4;  // DEADLINE_EXCEEDED
  return grpc_status_of_http(http_status);
}

std::string grpc_message(std::string_view text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  while (text.ends_with('\n')) text.remove_suffix(1);
  std::string out;
  for (const char c : text) {
    const auto u = static_cast<uint8_t>(c);
    if (u >= 0x20 && u <= 0x7e && c != '%') {
      out += c;
    } else {
      out += '%';
      out += kHex[u >> 4];
      out += kHex[u & 15];
    }
  }
  return out;
}

std::string reply_body(Reason reason, std::string_view detail) {
  switch (reason) {
    case Reason::kPolicyDeny:
    case Reason::kPolicyNoAllowMatch:
    case Reason::kPolicyUnknown: return "RBAC: access denied";
    default: break;
  }
  if (detail.empty()) return fmt::format("{}: {}\n", reason_name(reason), reason_meaning(reason));
  return fmt::format("{}: {}\n", reason_name(reason), detail);
}

std::optional<uint32_t> max_forwards(const RequestHead& head) {
  if (head.method != "OPTIONS" && head.method != "TRACE") return std::nullopt;
  const auto text = head.fields->get("max-forwards");
  if (!text || text->empty()) return std::nullopt;
  uint32_t hops = 0;
  const char* const end = text->data() + text->size();
  const auto [p, error] = std::from_chars(text->data(), end, hops);
  if (p != end) return std::nullopt;
  return error == std::errc::result_out_of_range ? UINT32_MAX : hops;
}

std::string traced(const RequestHead& head) {
  std::string out = fmt::format("{} {} {}\r\n", head.method, head.target, version_text(head.version));
  for (const Field f : *head.fields) {
    if (f.name.starts_with(':') || f.never_indexed || is_proxys(field_id(f.name))) continue;
    if (name_is(f.name, "authorization") || name_is(f.name, "proxy-authorization") ||
        name_is(f.name, "cookie")) {
      continue;
    }
    out += fmt::format("{}: {}\r\n", f.name, f.value);
  }
  return out + "\r\n";
}

}  // namespace meltemi::waypoint
