// What operators read of meltemid: /metrics and /ready from anywhere; /debug, which names objects,
// accounts and nodes, only over loopback. Must never show secrets.
#pragma once

#include "userspace/telemetry/pages.h"

namespace meltemi::control {

class ControlPlane;

// All arguments must outlive the server's thread.
void add_monitoring_routes(http::Router& pages, telemetry::Registry& registry,
                           const ControlPlane& control);

}  // namespace meltemi::control
