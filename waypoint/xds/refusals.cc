#include "waypoint/xds/refusals.h"

#include <fmt/format.h>

namespace meltemi::waypoint {

void Refusals::note(XdsType type, const std::string& name, const std::string& why) {
  std::lock_guard lock(mutex_);
  Kind& kind = kinds_[type];
  if (why.empty()) {
    kind.refused.erase(name);
    kind.accepted.insert(name);
  } else {
    kind.refused[name] = why;
  }
}

void Refusals::forget(XdsType type, const std::string& name) {
  std::lock_guard lock(mutex_);
  Kind& kind = kinds_[type];
  kind.refused.erase(name);
  kind.accepted.erase(name);
}

std::string Refusals::nothing_accepted() const {
  std::lock_guard lock(mutex_);
  for (const auto& [type, kind] : kinds_) {
    if (type != XdsType::kListener && type != XdsType::kCluster) continue;
    if (kind.refused.empty() || !kind.accepted.empty()) continue;
    const auto& [name, why] = *kind.refused.begin();
    return fmt::format("all {} of {} were refused, first {}: {}", kind.refused.size(),
                       type_url(type), name, why);
  }
  return {};
}

}  // namespace meltemi::waypoint
