// The three ports at which operators look into a proxy: admin (loopback by default), metrics and
// readiness, with Istio's numbers. Must never serve users' traffic.
#pragma once

#include <functional>
#include <string>

#include "userspace/base/config.h"
#include "userspace/base/error.h"
#include "userspace/telemetry/http_server.h"

namespace meltemi::telemetry {

struct OperatorSettings {
  std::string admin_listen = "127.0.0.1:15000";
  std::string metrics_listen = "[::]:15020";
  std::string readiness_listen = "[::]:15021";

  void describe(ConfigTable& table);  // the rows; `this` must outlive the table
  Status check() const;               // error: kBadConfig, naming the row
};

class OperatorPorts {
 public:
  // For routes of the process's own; before start().
  HttpServer& admin() { return admin_; }
  // Adds the routes that all processes share, and listens. `default_levels`: what POST /logging?reset goes
  // back to. `quit` is called at most once. Error: a port in use, naming the row.
  Status start(const OperatorSettings& settings, const Registry& registry,
               const Readiness& readiness, std::string default_levels, std::function<void()> quit);
  void stop();  // idempotent

 private:
  HttpServer admin_, metrics_, readiness_;
};

}  // namespace meltemi::telemetry
