// The pages that ztunnel, waypoint, meltemid and agent share. Must never show a secret.
#pragma once

#include <functional>
#include <string>

#include "userspace/http/router.h"
#include "userspace/http/server.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/readiness.h"

namespace meltemi::telemetry {

// /metrics and /stats/prometheus: the exposition, made while it is sent.
void add_metrics_routes(http::Router& router, const Registry& registry);
// /healthz/ready: 200, or 500 with the reasons.
void add_readiness_route(http::Router& router, const Readiness& readiness);
// POST /logging?level=...|?reset, POST /quitquitquit (calls `quit` once, answers "shutdown now"). Only
// over loopback.
void add_admin_routes(http::Router& router, std::string default_levels,
                      std::function<void()> quit);
// meltemi_http_connections_cut_total{why}: connections that the server ended early.
void add_server_metrics(Registry& registry, const http::Server& server);

}  // namespace meltemi::telemetry
