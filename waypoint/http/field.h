// Header fields and the names that a proxy treats specially. Order and case of a field's name are the
// sender's and are kept; comparison ignores case. Must never change a value.
#pragma once

#include <cstdint>
#include <string_view>

#include "userspace/codec/header_list.h"

namespace meltemi::waypoint {

using Field = codec::HeaderField;
using Fields = codec::HeaderList;

enum class FieldId : uint8_t {
  kOther,
  kHost,
  kConnection,
  kContentLength,
  kTransferEncoding,
  kTe,
  kTrailer,
  kUpgrade,
  kKeepAlive,
  kProxyConnection,
  kProxyAuthenticate,
  kProxyAuthorization,
  kHttp2Settings,
  kExpect,
  kDate,
  kContentType,
  kUserAgent,
  kXForwardedFor,
  kXForwardedProto,
  kXForwardedHost,
  kXForwardedPort,
  kForwarded,
  kXForwardedClientCert,
  kXRequestId,
  kXEnvoy,  // x-envoy-*
  kXIstio,  // x-istio-*
  kXMeltemi,  // x-meltemi-*
  kTraceparent,
  kGrpcStatus,
  kGrpcMessage,
  kGrpcTimeout,
  kMaxForwards,
};

// The id of a field's name, any case.
FieldId field_id(std::string_view name);

// Whether a field of a request is a proxy's to write: where the request came from, who sent it, what
// proxies shall do with it. Of any other client it counts for nothing and goes nowhere.
bool is_proxys(FieldId id);

inline char ascii_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c; }
// Equal but for ASCII case. `lower` is in lower case already.
bool name_is(std::string_view name, std::string_view lower);

// Calls fn(token) for every comma separated element of a field's value, trimmed; stops when fn
// returns false.
template <typename F>
void each_token(std::string_view value, F&& fn) {
  while (!value.empty()) {
    const size_t comma = value.find(',');
    std::string_view token = value.substr(0, comma);
    while (!token.empty() && (token.front() == ' ' || token.front() == '\t')) token.remove_prefix(1);
    while (!token.empty() && (token.back() == ' ' || token.back() == '\t')) token.remove_suffix(1);
    if (!token.empty() && !fn(token)) return;
    if (comma == std::string_view::npos) return;
    value.remove_prefix(comma + 1);
  }
}

// A gRPC call, by its Content-Type: application/grpc, also "+proto" and with parameters. Not gRPC-Web,
// whose clients read HTTP's own status.
bool is_grpc(const Fields& fields);

// What routing and policies look at. Everything is normalised already (http/normalise.h).
struct RequestView {
  std::string_view method;
  std::string_view scheme;     // "http" or "https"
  std::string_view authority;  // as the client sent it
  std::string_view host;       // lower case, without port and trailing dot
  uint16_t port = 0;           // of the authority, 0 if it has none
  std::string_view path;       // without the query
  std::string_view query;      // without '?', may be empty
  const Fields* fields = nullptr;  // without pseudo fields; never null when it is matched
  // What only a proxy may say (is_proxys()) is there to be matched: one that we believe said it.
  bool believed = false;
};

}  // namespace meltemi::waypoint
