#include "waypoint/route/retry.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "envoy/config/route/v3/route_components.pb.h"
#include "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.pb.h"
#include "waypoint/xds/convert.h"
#include "waypoint/xds/strict.h"

namespace meltemi::waypoint {
namespace {

constexpr std::string_view kNames[] = {
#define MELTEMI_RETRY_ON_NAME(id, text) text,
    MELTEMI_RETRY_ON(MELTEMI_RETRY_ON_NAME)
#undef MELTEMI_RETRY_ON_NAME
};

constexpr uint32_t bit(RetryOn c) { return 1u << static_cast<unsigned>(c); }

// A condition by name, or a status code by number (facts: Istio's form).
Status add_condition(RetryPolicy& policy, std::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (kNames[i] == name) {
      policy.on |= 1u << i;
      return {};
    }
  }
  unsigned code = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), code);
  if (error == std::errc() && end == name.data() + name.size() && code >= 100 && code <= 599) {
    policy.on |= bit(RetryOn::kRetriableStatusCodes);
    policy.status_codes.push_back(static_cast<uint16_t>(code));
    return {};
  }
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("retry_on: \"{}\" is no known condition", name));
}

bool grpc_retriable(const RetryPolicy& policy, int status) {
  switch (status) {
    case 1: return policy.has(RetryOn::kGrpcCancelled);
    case 4: return policy.has(RetryOn::kGrpcDeadlineExceeded);
    case 8: return policy.has(RetryOn::kGrpcResourceExhausted);
    case 13: return policy.has(RetryOn::kGrpcInternal);
    case 14: return policy.has(RetryOn::kGrpcUnavailable);
    default: return false;
  }
}

bool response_retriable(const RetryPolicy& policy, const AttemptOutcome& o, Arena& arena) {
  if (o.status >= 500 && policy.has(RetryOn::k5xx)) return true;
  if (o.status >= 502 && o.status <= 504 && policy.has(RetryOn::kGatewayError)) return true;
  if (o.status == 409 && policy.has(RetryOn::kRetriable4xx)) return true;
  if (policy.has(RetryOn::kRetriableStatusCodes) &&
      std::binary_search(policy.status_codes.begin(), policy.status_codes.end(), o.status)) {
    return true;
  }
  if (o.grpc_status >= 0 && grpc_retriable(policy, o.grpc_status)) return true;
  if (!o.headers) return false;
  if (policy.has(RetryOn::kEnvoyRatelimited) && o.headers->has("x-envoy-ratelimited")) return true;
  return policy.has(RetryOn::kRetriableHeaders) &&
         std::any_of(policy.headers.begin(), policy.headers.end(),
                     [&](const HeaderMatcher& m) { return m.matches(*o.headers, arena); });
}

bool retriable(const RetryPolicy& policy, const AttemptOutcome& o, Arena& arena) {
  const bool any_reset = policy.has(RetryOn::k5xx) || policy.has(RetryOn::kGatewayError) ||
                         policy.has(RetryOn::kReset);
  switch (o.kind) {
    case AttemptOutcome::Kind::kConnectFailure:
      return any_reset || policy.has(RetryOn::kConnectFailure) ||
             policy.has(RetryOn::kResetBeforeRequest);
    case AttemptOutcome::Kind::kUnprocessed:
      return any_reset || policy.has(RetryOn::kRefusedStream) ||
             (!o.request_sent && policy.has(RetryOn::kResetBeforeRequest));
    case AttemptOutcome::Kind::kReset:
      return any_reset || (!o.request_sent && policy.has(RetryOn::kResetBeforeRequest));
    case AttemptOutcome::Kind::kTimeout: return any_reset;
    case AttemptOutcome::Kind::kResponse: return response_retriable(policy, o, arena);
  }
  return false;
}

}  // namespace

Result<RetryPolicy> RetryPolicy::compile(const envoy::config::route::v3::RetryPolicy& proto) {
  RetryPolicy policy;
  Status conditions;
  each_token(proto.retry_on(), [&](std::string_view name) {
    conditions = add_condition(policy, name);
    return conditions.has_value();
  });
  if (!conditions) return fail(conditions.error());
  for (const uint32_t code : proto.retriable_status_codes()) {
    if (code < 100 || code > 599) {
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("retriable_status_codes: {} is not in 100..599", code));
    }
    policy.status_codes.push_back(static_cast<uint16_t>(code));
  }
  std::sort(policy.status_codes.begin(), policy.status_codes.end());
  if (proto.has_num_retries()) policy.retries = std::min(proto.num_retries().value(), kMaxRetries);
  if (proto.has_per_try_timeout()) {
    policy.per_try_timeout =
        MELTEMI_TRY(duration_of(proto.per_try_timeout(), "per_try_timeout"));
  }
  if (proto.has_retry_back_off()) {
    const auto& b = proto.retry_back_off();
    policy.backoff_base = MELTEMI_TRY(duration_of(b.base_interval(), "base_interval"));
    if (policy.backoff_base <= Duration::zero()) {
      return fail(Reason::kBadConfig, Fault::kConfig, "retry_back_off: base_interval must be > 0");
    }
    policy.backoff_max = b.has_max_interval()
                             ? MELTEMI_TRY(duration_of(b.max_interval(), "max_interval"))
                             : 10 * policy.backoff_base;
  }
  for (const auto& h : proto.retriable_headers()) {
    policy.headers.push_back(MELTEMI_TRY(HeaderMatcher::compile(h)));
  }
  for (const auto& p : proto.retry_host_predicate()) {
    if (p.name() != "envoy.retry_host_predicates.previous_hosts") {
      return fail(Reason::kUnsupported, Fault::kConfig,
                  fmt::format("retry_host_predicate \"{}\" is not supported", p.name()));
    }
    if (p.has_typed_config()) {
      envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate predicate;
      MELTEMI_TRY(unpack(p.typed_config(), predicate));
    }
  }
  // Repeating on the host that just failed helps nobody; without the predicate Envoy would, and so
  // would a policy that turned it off on purpose.
  policy.avoid_previous_hosts = proto.retry_host_predicate_size() > 0;
  return policy;
}

const RetryPolicy& RetryPolicy::safe_default() {
  static const RetryPolicy policy = [] {
    RetryPolicy p;
    p.on = bit(RetryOn::kConnectFailure) | bit(RetryOn::kRefusedStream) |
           bit(RetryOn::kResetBeforeRequest);
    p.retries = 2;
    return p;
  }();
  return policy;
}

RetryVerdict decide_retry(const RetryPolicy& policy, const AttemptOutcome& outcome,
                          const RetryState& state, Arena& arena) {
  if (state.response_started || !retriable(policy, outcome, arena)) return RetryVerdict::kNo;
  if (state.tried > policy.retries) return RetryVerdict::kExhausted;
  if (!state.body_replayable) return RetryVerdict::kBodyGone;
  return RetryVerdict::kYes;
}

Duration retry_backoff(const RetryPolicy& policy, uint32_t retry, model::Random& random) {
  const uint32_t doublings = std::min<uint32_t>(retry > 0 ? retry - 1 : 0, 20);
  const int64_t ceiling =
      std::min(policy.backoff_max.count(), policy.backoff_base.count() << doublings);
  return Duration(static_cast<int64_t>(random.below(static_cast<uint64_t>(ceiling) + 1)));
}

bool RetryBudget::allows(uint32_t active_requests, uint32_t active_retries) const {
  const auto share = static_cast<uint32_t>(percent / 100.0 * active_requests);
  return active_retries < std::max(minimum, share);
}

}  // namespace meltemi::waypoint
