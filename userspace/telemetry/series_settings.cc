#include "userspace/telemetry/series_settings.h"

namespace meltemi::telemetry {

void SeriesSettings::describe(ConfigTable& t, bool http) {
  constexpr int64_t kMost = 1'000'000;
  t.number(&tcp_total, "tcp-series-limit", "TCP_SERIES_LIMIT", "label sets", 1, kMost,
           "TCP metrics of one worker; what is over it is counted as other.");
  t.number(&tcp_per_source, "tcp-series-per-source", "TCP_SERIES_PER_SOURCE", "label sets", 1,
           kMost, "Of them for one source.");
  if (http) {
    t.number(&http_total, "http-series-limit", "HTTP_SERIES_LIMIT", "label sets", 1, kMost,
             "HTTP metrics of one worker; a set has some 60 samples.");
    t.number(&http_per_source, "http-series-per-source", "HTTP_SERIES_PER_SOURCE", "label sets", 1,
             kMost, "Of them for one source.");
  }
  t.duration(&idle, "series-idle", "SERIES_IDLE", Duration(0), std::chrono::hours(24 * 30),
             "A label set that nobody counted for this long is left out of scrapes and makes room; "
             "0s: never.");
}

}  // namespace meltemi::telemetry
