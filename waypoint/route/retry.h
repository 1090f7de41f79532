// When a request may be sent again. Pure: outcome in, verdict out; time and randomness are arguments.
//
// Without a policy a request is repeated only when no byte of it can have been acted upon (connection
// refused, REFUSED_STREAM, GOAWAY above its stream): an application must never see it twice because a
// proxy guessed. A policy adds what its author asked for, and only that.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/model/types.h"
#include "waypoint/route/matcher.h"

namespace envoy::config::route::v3 {
class RetryPolicy;
}

namespace meltemi::waypoint {

// Envoy's retry_on conditions (x-envoy-retry-on and x-envoy-retry-grpc-on).
#define MELTEMI_RETRY_ON(X)                                                     \
  X(k5xx, "5xx")                                                                \
  X(kGatewayError, "gateway-error")                                             \
  X(kReset, "reset")                                                            \
  X(kResetBeforeRequest, "reset-before-request")                                \
  X(kConnectFailure, "connect-failure")                                         \
  X(kRetriable4xx, "retriable-4xx")                                             \
  X(kRefusedStream, "refused-stream")                                           \
  X(kRetriableStatusCodes, "retriable-status-codes")                            \
  X(kRetriableHeaders, "retriable-headers")                                     \
  X(kEnvoyRatelimited, "envoy-ratelimited")                                     \
  X(kHttp3PostConnectFailure, "http3-post-connect-failure")                     \
  X(kGrpcCancelled, "cancelled")                                                \
  X(kGrpcDeadlineExceeded, "deadline-exceeded")                                 \
  X(kGrpcInternal, "internal")                                                  \
  X(kGrpcResourceExhausted, "resource-exhausted")                               \
  X(kGrpcUnavailable, "unavailable")
enum class RetryOn : uint8_t {
#define MELTEMI_RETRY_ON_ENUM(id, text) id,
  MELTEMI_RETRY_ON(MELTEMI_RETRY_ON_ENUM)
#undef MELTEMI_RETRY_ON_ENUM
};

struct RetryPolicy {
  static constexpr uint32_t kMaxRetries = 10;  // what one request may cost the endpoints, at most
  static constexpr Duration kDefaultBackoff = std::chrono::milliseconds(25);

  uint32_t on = 0;  // bits of RetryOn
  uint32_t retries = 1;
  Duration per_try_timeout{};  // 0: none
  Duration backoff_base = kDefaultBackoff;
  Duration backoff_max = 10 * kDefaultBackoff;
  std::vector<uint16_t> status_codes;  // sorted
  std::vector<HeaderMatcher> headers;  // of the response, any of them
  bool avoid_previous_hosts = true;

  bool has(RetryOn condition) const { return on >> static_cast<unsigned>(condition) & 1; }
  // Error: kBadConfig, names the condition that is not known or the value out of range.
  static Result<RetryPolicy> compile(const envoy::config::route::v3::RetryPolicy& proto);
  // For routes without one: two more tries, only when provably unprocessed.
  static const RetryPolicy& safe_default();
};

// How an attempt ended (or would end: a response whose head has arrived may still be thrown away).
struct AttemptOutcome {
  enum class Kind : uint8_t {
    kConnectFailure,   // no connection: nothing was sent
    kUnprocessed,      // REFUSED_STREAM, GOAWAY above the stream, a pooled connection that had ended
    kReset,            // the stream or connection broke before a response
    kTimeout,          // per-try timeout
    kResponse,
  };
  Kind kind = Kind::kResponse;
  bool request_sent = true;  // at least one byte of the request was handed to the connection
  uint16_t status = 0;
  int grpc_status = -1;  // of a trailers-only response; -1: none
  const Fields* headers = nullptr;
};

struct RetryState {
  uint32_t tried = 1;          // attempts made
  bool body_replayable = true; // everything sent so far is still in the retry buffer
  bool response_started = false;  // the client has seen a byte of a response
};

enum class RetryVerdict : uint8_t {
  kNo,         // not a case for a retry
  kExhausted,  // it is, but the attempts are used up
  kBodyGone,   // it is, but the request body was larger than the retry buffer
  kYes,
};
RetryVerdict decide_retry(const RetryPolicy& policy, const AttemptOutcome& outcome,
                          const RetryState& state, Arena& arena);

// Full jitter: uniform in [0, min(max, base * 2^(retry-1))]. `retry` counts from 1.
Duration retry_backoff(const RetryPolicy& policy, uint32_t retry, model::Random& random);

// How many requests may be in a retry at once (per cluster and worker): `percent` of the active ones,
// never less than `minimum`.
struct RetryBudget {
  double percent = 20;
  uint32_t minimum = 3;
  bool allows(uint32_t active_requests, uint32_t active_retries) const;
};

}  // namespace meltemi::waypoint
