// The three ports at which operators look into a proxy: admin (loopback by default), metrics and
// readiness, with Istio's numbers, all served by one thread. Must never serve users' traffic.
#pragma once

#include <functional>
#include <string>

#include "userspace/base/config.h"
#include "userspace/base/error.h"
#include "userspace/telemetry/pages.h"

namespace meltemi::telemetry {

struct OperatorSettings {
  std::string admin_listen = "127.0.0.1:15000";
  std::string metrics_listen = "[::]:15020";
  std::string readiness_listen = "[::]:15021";
  http::CertificatePaths metrics_tls;  // empty: in the clear, as Istio's

  void describe(ConfigTable& table);  // the rows; `this` must outlive the table
  Status check() const;               // error: kBadConfig, naming the row
};

class OperatorPorts {
 public:
  // `admission`: of the process, swept and reported by its owner; null: the pages have their own.
  explicit OperatorPorts(rt::Admission* admission = nullptr)
      : own_admission_(!admission), server_(admission) {}
  // For routes of the process's own; before start().
  http::Router& admin() { return admin_; }
  // Adds the routes that all processes share, and listens. `default_levels`: what POST /logging?reset goes
  // back to. `quit` is called at most once. Error: a port in use, naming the row.
  Status start(const OperatorSettings& settings, Registry& registry, const Readiness& readiness,
               std::string default_levels, std::function<void()> quit);
  void stop();  // idempotent

 private:
  http::Router admin_, metrics_, readiness_;
  const bool own_admission_;
  http::Server server_;
};

}  // namespace meltemi::telemetry
