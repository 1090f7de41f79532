// `waypoint apply|generate|list|status|delete`: istioctl's commands and words for Gateways of a
// waypoint class. Must never touch a Gateway of another class.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/cli/context.h"
#include "userspace/config/object.h"

namespace meltemi::cli {

struct WaypointOptions {
  std::string name = "waypoint";
  std::string traffic;          // "", "service", "workload", "all", "none"
  std::string service_account;  // attach to this service account instead of by label
  bool enroll_namespace = false;
  bool overwrite = false;
  bool wait = false;
  Duration timeout = std::chrono::seconds(90);
  bool all_namespaces = false;
  bool all = false;
  std::vector<std::string> names;
};
int waypoint_apply(const Context& context, const WaypointOptions& options);
int waypoint_generate(const Context& context, const WaypointOptions& options);
int waypoint_list(const Context& context, const WaypointOptions& options);
int waypoint_status(const Context& context, const WaypointOptions& options);
int waypoint_delete(const Context& context, const WaypointOptions& options);

// The Gateway that apply writes and generate prints. Error: a reserved name, an unknown traffic
// type.
Result<config::Object> waypoint_gateway(const std::string& ns, const WaypointOptions& options);

}  // namespace meltemi::cli
