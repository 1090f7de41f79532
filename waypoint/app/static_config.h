// A file with listeners, clusters, routes and endpoints, by themselves or inside static_resources as in
// Envoy's bootstrap, for benchmarks and tests without a control plane. The resources go the same
// way as those of xDS. Must never accept a field that it would ignore.
#pragma once

#include <string>

#include "waypoint/xds/store.h"

namespace meltemi::waypoint {

// YAML (JSON is YAML). Errors: kBadConfig with file and place.
Status read_static_config(const std::string& path, ConfigStore& store);
// The same from text; `origin` names it in errors.
Status load_static_config(const std::string& text, const std::string& origin, ConfigStore& store);

}  // namespace meltemi::waypoint
