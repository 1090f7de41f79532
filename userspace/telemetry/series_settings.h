// The limits of metrics' label sets as rows of a binary's options. Must never hold a default of its
// own: those stand where the limits are, with their reasons.
#pragma once

#include "userspace/base/config.h"
#include "userspace/telemetry/request_report.h"

namespace meltemi::telemetry {

struct SeriesSettings {
  int64_t tcp_total = SeriesLimits().total, tcp_per_source = SeriesLimits().per_source;
  int64_t http_total = HttpMetrics::kLimits.total;
  int64_t http_per_source = HttpMetrics::kLimits.per_source;
  Duration idle = SeriesLimits().idle;

  // The rows; `this` must outlive the table. `http`: of a process that has requests.
  void describe(ConfigTable& table, bool http);
  SeriesLimits tcp() const { return limits(tcp_total, tcp_per_source); }
  SeriesLimits http() const { return limits(http_total, http_per_source); }

 private:
  SeriesLimits limits(int64_t total, int64_t per_source) const {
    return {static_cast<size_t>(total), static_cast<size_t>(per_source), idle};
  }
};

}  // namespace meltemi::telemetry
