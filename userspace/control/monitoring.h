// What operators read of meltemid: /metrics, /ready, /debug. Must never show secrets.
#pragma once

#include "userspace/telemetry/http_server.h"

namespace meltemi::control {

class ControlPlane;

// `control` must outlive the server's thread.
void add_monitoring_routes(telemetry::HttpServer& http, const ControlPlane& control);

}  // namespace meltemi::control
