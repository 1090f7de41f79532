// The error type of the whole project and the closed set of reason codes.
//
// An error is a value that knows what happened (Reason), whose fault it was (Fault) and whether
// trying again is safe (Retry). The Reason set is closed and shared by access log, metrics, traces,
// CLI and UI: adding one means documenting it here. This header must never grow dependencies, and
// no exception is thrown on the data path: functions that can fail return Result<T>.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace meltemi {

// X(enumerator, text, meaning). `text` appears in logs and metric labels and never changes.
#define MELTEMI_REASONS(X)                                                                        \
  X(kOk, "ok", "the flow or request ended as its two ends wanted")                                \
  X(kPolicyDeny, "policy_deny", "a DENY policy matched")                                          \
  X(kPolicyNoAllowMatch, "policy_no_allow_match", "ALLOW policies apply and none matched")        \
  X(kPolicyUnknown, "policy_unknown", "a policy that applies is not known yet: fail closed")      \
  X(kPolicyChanged, "policy_changed", "a change of policy or identity no longer allows the flow") \
  X(kStrictPlaintext, "strict_plaintext", "plaintext to a workload that requires mTLS")           \
  X(kL7Unenforceable, "l7_unenforceable", "an L7 rule has no proxy that can enforce it")          \
  X(kWaypointUnknown, "waypoint_unknown", "the waypoint in config cannot be resolved")            \
  X(kWaypointUnready, "waypoint_unready", "the waypoint has no ready endpoint")                   \
  X(kWaypointBypassDenied, "waypoint_bypass_denied", "only the waypoint may call this workload")  \
  X(kNoService, "no_service", "the service is not known")                                         \
  X(kNoEndpoint, "no_endpoint", "the service has no endpoint")                                    \
  X(kNoHealthyEndpoint, "no_healthy_endpoint", "no endpoint of the service is healthy")           \
  X(kNoTargetPort, "no_target_port", "the service does not define the port")                      \
  X(kUnknownGateway, "unknown_gateway", "the network gateway is not known")                       \
  X(kUnknownSource, "unknown_source", "the calling workload is not known on this node")           \
  X(kUnknownDestination, "unknown_destination", "the destination is no workload of this node")    \
  X(kIdentityUnavailable, "identity_unavailable", "no certificate for the workload yet")          \
  X(kCertExpired, "cert_expired", "a certificate is past its notAfter")                           \
  X(kCertNotYetValid, "cert_not_yet_valid", "a certificate is before its notBefore")              \
  X(kPeerIdentityMismatch, "peer_identity_mismatch", "the peer's SPIFFE ID is not the expected")  \
  X(kPeerRevoked, "peer_revoked", "the peer's certificate is revoked")                            \
  X(kTlsHandshake, "tls_handshake", "the TLS handshake failed")                                   \
  X(kTlsRecord, "tls_record", "a TLS record is malformed or fails authentication")                \
  X(kConnectTimeout, "connect_timeout", "no answer in time; a NetworkPolicy may block the port")  \
  X(kConnectRefused, "connect_refused", "the destination refused the connection")                 \
  X(kConnectUnreachable, "connect_unreachable", "no route to the destination")                    \
  X(kConnectReset, "connect_reset", "the connection was reset")                                   \
  X(kTunnelH2Error, "tunnel_h2_error", "the HTTP/2 tunnel broke its protocol")                    \
  X(kTunnelHttpStatus, "tunnel_http_status", "the peer answered CONNECT with another status")     \
  X(kPoolDraining, "pool_draining", "the tunnel is going away (GOAWAY)")                          \
  X(kClientClosedEarly, "client_closed_early", "the client left before the flow was set up")      \
  X(kServerClosedEarly, "server_closed_early", "the server left before it answered")              \
  X(kIdleTimeout, "idle_timeout", "nothing moved for the configured time")                        \
  X(kRequestTimeout, "request_timeout", "the route's timeout passed")                             \
  X(kSelfCall, "self_call", "the proxy was asked to connect to itself")                           \
  X(kBadRequest, "bad_request", "the peer's bytes violate the protocol")                          \
  X(kNoRoute, "no_route", "no listener or route matches the request")                             \
  X(kDirectResponse, "direct_response", "the route answers by itself (redirect, fault, response)") \
  X(kUpstreamReset, "upstream_reset", "the upstream reset the request's stream")                  \
  X(kUpstreamProtocol, "upstream_protocol_error", "the upstream's answer violates the protocol")  \
  X(kLimitExceeded, "limit_exceeded", "a named limit was hit")                                    \
  X(kShutdown, "shutdown", "the process is going away")                                           \
  X(kCancelled, "cancelled", "the caller stopped the operation")                                  \
  X(kBadConfig, "bad_config", "an object is invalid; the last good one stays")                    \
  X(kNotFound, "not_found", "the named object does not exist")                                    \
  X(kUnsupported, "unsupported", "kernel, peer or configuration cannot do this")                  \
  X(kPermission, "permission", "the caller may not do this")                                      \
  X(kSystem, "system", "a system call failed")                                                    \
  X(kInternal, "internal", "a defect of ours")

enum class Reason : uint8_t {
#define MELTEMI_REASON_ENUM(id, text, meaning) id,
  MELTEMI_REASONS(MELTEMI_REASON_ENUM)
#undef MELTEMI_REASON_ENUM
};

inline constexpr size_t kReasonCount = 0
#define MELTEMI_REASON_ONE(id, text, meaning) +1
    MELTEMI_REASONS(MELTEMI_REASON_ONE)
#undef MELTEMI_REASON_ONE
    ;

// The text of a reason, e.g. "policy_deny". Never empty; static storage.
std::string_view reason_name(Reason reason);
// One sentence for people. Static storage.
std::string_view reason_meaning(Reason reason);

// Who has to change something for this not to happen again.
enum class Fault : uint8_t { kDownstream, kUpstream, kInternal, kConfig };

// kSafe only when no byte of the request can have been acted upon by the peer.
enum class Retry : uint8_t { kNo, kSafe };

struct [[nodiscard]] Error {
  Reason reason = Reason::kInternal;
  Fault fault = Fault::kInternal;
  Retry retry = Retry::kNo;
  std::string detail;  // object, field and fix; no secrets

  // "policy_deny: deny-all in namespace shop". For logs and people.
  std::string to_string() const;
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

// Shorthands, e.g. `return fail(Reason::kNoEndpoint, Fault::kConfig, "service catalog.shop")`.
inline std::unexpected<Error> fail(Reason reason, Fault fault, std::string detail,
                                   Retry retry = Retry::kNo) {
  return std::unexpected<Error>(Error{reason, fault, retry, std::move(detail)});
}
inline std::unexpected<Error> fail(Error error) { return std::unexpected<Error>(std::move(error)); }
// kSystem with errno's text: "open /x: No such file or directory (errno 2)". `err` as in errno, > 0.
std::unexpected<Error> fail_errno(int err, std::string_view what);
// The reason that a failed connect(2) has. `err` as in errno, > 0.
Reason reason_of_connect_errno(int err);

// Yields the value of a Result or returns its error from the enclosing function (TRY) or coroutine
// (CO_TRY). GNU statement expressions; Clang only, as is the whole project.
#define MELTEMI_TRY(...)                                            \
  ({                                                                \
    auto&& meltemi_r = (__VA_ARGS__);                               \
    if (!meltemi_r) [[unlikely]]                                    \
      return ::meltemi::fail(std::move(meltemi_r).error());         \
    ::meltemi::detail::take(std::move(meltemi_r));                  \
  })
#define MELTEMI_CO_TRY(...)                                         \
  ({                                                                \
    auto&& meltemi_r = (__VA_ARGS__);                               \
    if (!meltemi_r) [[unlikely]]                                    \
      co_return ::meltemi::fail(std::move(meltemi_r).error());      \
    ::meltemi::detail::take(std::move(meltemi_r));                  \
  })

namespace detail {
template <typename T>
T take(Result<T>&& r) {
  return std::move(*r);
}
inline void take(Result<void>&&) {}
}  // namespace detail

}  // namespace meltemi
