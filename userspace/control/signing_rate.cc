// See signing_rate.h. A bucket is one number: the time at which it will be full again.
#include "userspace/control/signing_rate.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/base/config.h"

namespace meltemi::control {

void SigningRate::forget_rested(MonoTime now) {
  std::erase_if(full_at_, [&](const auto& entry) { return entry.second <= now; });
}

Status SigningRate::take(const std::string& who, MonoTime now) {
  if (limits_.interval <= Duration(0)) return {};
  const std::lock_guard lock(mutex_);
  if (full_at_.size() >= kMaxSigningKeys) forget_rested(now);
  const auto refuse = [this](std::string detail) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    return fail(Reason::kLimitExceeded, Fault::kDownstream, std::move(detail));
  };
  const auto known = full_at_.find(who);
  if (known == full_at_.end() && full_at_.size() >= kMaxSigningKeys) {
    return refuse(fmt::format("more than {} callers and identities at once", kMaxSigningKeys));
  }
  const MonoTime full = std::max(known == full_at_.end() ? now : known->second, now) + limits_.interval;
  if (full > now + limits_.burst * limits_.interval) {
    return refuse(fmt::format("{} asks for certificates more often than every {} (CA_SIGNING_INTERVAL)",
                              who, format_duration(limits_.interval)));
  }
  full_at_[who] = full;
  return {};
}

size_t SigningRate::size() const {
  const std::lock_guard lock(mutex_);
  return full_at_.size();
}

}  // namespace meltemi::control
