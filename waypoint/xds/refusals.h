// What of the configuration was taken and what was not, for readiness: a waypoint that refused all that
// it was told serves nothing and must not say that it is ready. Thread-safe, and apart from the
// store's lock, so that a probe never waits for an update.
#pragma once

#include <map>
#include <mutex>
#include <set>
#include <string>

#include "waypoint/xds/store.h"

namespace meltemi::waypoint {

class Refusals {
 public:
  // `why` "": it was accepted. A refused newer form leaves the accepted one in force.
  void note(XdsType type, const std::string& name, const std::string& why);
  void forget(XdsType type, const std::string& name);  // the control plane removed it
  // "" unless there are listeners, or clusters, and all of them were refused.
  std::string nothing_accepted() const;

 private:
  struct Kind {
    std::map<std::string, std::string> refused;  // name and why
    std::set<std::string> accepted;
  };
  mutable std::mutex mutex_;
  std::map<XdsType, Kind> kinds_;
};

}  // namespace meltemi::waypoint
