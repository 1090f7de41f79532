// How an L7 request ended: one object per request moves Istio's standard HTTP metrics and writes the
// one access-log line (facts: istiod §9.1; waypoints report with reporter="waypoint").
// Must never be shared between workers.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/telemetry/connection_report.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/series.h"

namespace meltemi::telemetry {

struct RequestInfo {
  std::string method, path, authority, protocol = "HTTP/1.1";  // log only; escaped when written
  std::string request_id, user_agent, forwarded_for, route, cluster;
  SocketAddress downstream_remote, downstream_local;
  std::optional<SocketAddress> upstream;  // the endpoint that answered
  Security security = Security::kUnknown;
  bool grpc = false;
  Peer source, destination;
  model::ServicePtr service;
};

// reporter, 19 peer labels, request_protocol, response_flags, connection_security_policy,
// response_code, grpc_response_status
inline constexpr size_t kHttpLabels = 25;
// Upper bounds of Istio's default histogram, in milliseconds (durations) or bytes (sizes).
inline constexpr std::array<double, 19> kIstioBuckets = {
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000,
    1800000, 3600000};

class HttpMetrics {
 public:
  // A series has three histograms, 63 samples of some 700 bytes: fewer of them fit into a scrape.
  static constexpr SeriesLimits kLimits = {.total = 2000, .per_source = 500};
  HttpMetrics(Registry& registry, size_t workers, std::string reporter,
              SeriesLimits limits = kLimits);
  // count, then three histograms of buckets + (+Inf) and a sum (durations in microseconds).
  static constexpr size_t kHistogram = kIstioBuckets.size() + 2;
  static constexpr size_t kCells = 1 + 3 * kHistogram;
  using Table = SeriesTable<kHttpLabels, kCells>;
  void expire(MonoTime now) { table_.expire(now); }  // done by each scrape

 private:
  friend class RequestReport;
  class Pass;
  Table table_;
  model::Symbol reporter_;
};

// Remembers the series of label sets that one worker meets again and again, so that a request does not
// hash 25 labels. Holds what its keys point at. One thread.
class HttpSeriesCache {
 public:
  static constexpr size_t kSlots = 256;  // direct mapped: a collision costs one look-up in the table

 private:
  friend class RequestReport;
  struct Slot {
    HttpMetrics::Table::SeriesPtr series;
    Peer source, destination;
    model::ServicePtr service;
    Security security = Security::kUnknown;
    Reason reason = Reason::kOk;
    int status = 0;
    bool grpc = false;
    std::string_view grpc_status;
  };
  std::vector<Slot> slots_{kSlots};
};

// Whether a request that ends so is logged: if not, RequestInfo needs no text.
bool access_log_wanted(Reason reason);

// What a peer says, as a value of a closed set: "0" to "16", "100" to "599", else "other"; "" stays.
// Static storage.
std::string_view grpc_status_label(std::string_view status);
std::string response_code_label(int status);

class RequestReport {
 public:
  RequestReport(HttpMetrics& metrics, size_t shard, RequestInfo info, MonoTime now);
  RequestReport(const RequestReport&) = delete;
  RequestReport& operator=(const RequestReport&) = delete;
  ~RequestReport();

  RequestInfo& info() { return info_; }  // to be completed as the request goes on
  void received(uint64_t bytes) { received_ += bytes; }  // request body
  void sent(uint64_t bytes) { sent_ += bytes; }          // response body
  void set_response(int status) { status_ = status; }
  void set_grpc_status(std::string_view status) { grpc_status_ = grpc_status_label(status); }
  void set_attempts(int attempts) { attempts_ = attempts; }
  void upstream_time(Duration d) { upstream_time_ = d; }
  // Ends the request, once. `detail` goes to the log. `cache`: of the calling worker, or null.
  void finish(Reason reason, std::string_view detail, MonoTime now,
              HttpSeriesCache* cache = nullptr);
  bool finished() const { return finished_; }

 private:
  HttpMetrics::Table::Series* series(Reason reason, HttpSeriesCache* cache);
  HttpMetrics* metrics_;
  size_t shard_;
  RequestInfo info_;
  MonoTime start_;
  uint64_t received_ = 0, sent_ = 0;
  int status_ = 0, attempts_ = 0;
  Duration upstream_time_{};
  std::string_view grpc_status_;  // static storage
  bool finished_ = false;
};

// Envoy's RESPONSE_FLAGS for a request: "-", "UF", "UH", "NR", "UT", "UC", "DC", "UAEX", ...
std::string_view http_response_flags(Reason reason);

}  // namespace meltemi::telemetry
