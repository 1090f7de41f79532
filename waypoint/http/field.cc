#include "waypoint/http/field.h"

namespace meltemi::waypoint {

bool name_is(std::string_view name, std::string_view lower) {
  if (name.size() != lower.size()) return false;
  for (size_t i = 0; i < name.size(); ++i) {
    if (ascii_lower(name[i]) != lower[i]) return false;
  }
  return true;
}

namespace {
bool has_prefix(std::string_view name, std::string_view lower_prefix) {
  return name.size() > lower_prefix.size() &&
         name_is(name.substr(0, lower_prefix.size()), lower_prefix);
}
FieldId one(std::string_view name, std::string_view lower, FieldId id) {
  return name_is(name, lower) ? id : FieldId::kOther;
}
}  // namespace

// By first letter and length: nearly every field is decided by one comparison or none.
FieldId field_id(std::string_view n) {
  if (n.empty()) return FieldId::kOther;
  switch (ascii_lower(n[0])) {
    case 'h':
      if (n.size() == 4) return one(n, "host", FieldId::kHost);
      if (n.size() == 14) return one(n, "http2-settings", FieldId::kHttp2Settings);
      break;
    case 'c':
      if (n.size() == 10) return one(n, "connection", FieldId::kConnection);
      if (n.size() == 14) return one(n, "content-length", FieldId::kContentLength);
      if (n.size() == 12) return one(n, "content-type", FieldId::kContentType);
      break;
    case 't':
      if (n.size() == 2) return one(n, "te", FieldId::kTe);
      if (n.size() == 7) return one(n, "trailer", FieldId::kTrailer);
      if (n.size() == 11) return one(n, "traceparent", FieldId::kTraceparent);
      if (n.size() == 17) return one(n, "transfer-encoding", FieldId::kTransferEncoding);
      break;
    case 'u':
      if (n.size() == 7) return one(n, "upgrade", FieldId::kUpgrade);
      if (n.size() == 10) return one(n, "user-agent", FieldId::kUserAgent);
      break;
    case 'k':
      if (n.size() == 10) return one(n, "keep-alive", FieldId::kKeepAlive);
      break;
    case 'm':
      if (n.size() == 12) return one(n, "max-forwards", FieldId::kMaxForwards);
      break;
    case 'p':
      if (n.size() == 16) return one(n, "proxy-connection", FieldId::kProxyConnection);
      if (n.size() == 18) return one(n, "proxy-authenticate", FieldId::kProxyAuthenticate);
      if (n.size() == 19) return one(n, "proxy-authorization", FieldId::kProxyAuthorization);
      break;
    case 'e':
      if (n.size() == 6) return one(n, "expect", FieldId::kExpect);
      break;
    case 'd':
      if (n.size() == 4) return one(n, "date", FieldId::kDate);
      break;
    case 'f':
      if (n.size() == 9) return one(n, "forwarded", FieldId::kForwarded);
      break;
    case 'g':
      if (n.size() == 11) return one(n, "grpc-status", FieldId::kGrpcStatus);
      if (n.size() == 12) {
        if (name_is(n, "grpc-message")) return FieldId::kGrpcMessage;
        return one(n, "grpc-timeout", FieldId::kGrpcTimeout);
      }
      break;
    case 'x':
      if (has_prefix(n, "x-envoy-")) return FieldId::kXEnvoy;
      if (has_prefix(n, "x-meltemi-")) return FieldId::kXMeltemi;
      if (has_prefix(n, "x-istio-")) return FieldId::kXIstio;
      if (n.size() == 12) return one(n, "x-request-id", FieldId::kXRequestId);
      if (n.size() == 15) return one(n, "x-forwarded-for", FieldId::kXForwardedFor);
      if (n.size() == 17) return one(n, "x-forwarded-proto", FieldId::kXForwardedProto);
      if (n.size() == 16) {
        if (name_is(n, "x-forwarded-host")) return FieldId::kXForwardedHost;
        return one(n, "x-forwarded-port", FieldId::kXForwardedPort);
      }
      if (n.size() == 23) return one(n, "x-forwarded-client-cert", FieldId::kXForwardedClientCert);
      break;
    default: break;
  }
  return FieldId::kOther;
}

bool is_proxys(FieldId id) {
  switch (id) {
    case FieldId::kXForwardedFor:
    case FieldId::kXForwardedProto:
    case FieldId::kXForwardedHost:
    case FieldId::kXForwardedPort:
    case FieldId::kForwarded:
    case FieldId::kXForwardedClientCert:
    case FieldId::kXEnvoy:
    case FieldId::kXIstio:
    case FieldId::kXMeltemi: return true;
    default: return false;
  }
}

bool is_grpc(const Fields& fields) {
  constexpr std::string_view kType = "application/grpc";
  const std::string_view type = fields.value("content-type");
  if (type.size() < kType.size() || !name_is(type.substr(0, kType.size()), kType)) return false;
  if (type.size() == kType.size()) return true;
  const char next = type[kType.size()];
  return next == '+' || next == ';' || next == ' ';
}

}  // namespace meltemi::waypoint
