#include "userspace/telemetry/request_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/telemetry/labels.h"

namespace meltemi::telemetry {
namespace {

log::Scope access_log("access");

constexpr std::string_view kLabelNames[kHttpLabels] = {
    "reporter",
    "source_workload", "source_canonical_service", "source_canonical_revision",
    "source_workload_namespace", "source_principal", "source_app", "source_version",
    "source_cluster",
    "destination_service", "destination_service_namespace", "destination_service_name",
    "destination_workload", "destination_canonical_service", "destination_canonical_revision",
    "destination_workload_namespace", "destination_principal", "destination_app",
    "destination_version", "destination_cluster",
    "request_protocol", "response_flags", "connection_security_policy",
    "response_code", "grpc_response_status"};

struct HistogramText {
  std::string_view name, help;
  size_t first_cell;
  double sum_scale;  // sums are kept as integers: microseconds, bytes
};
constexpr HistogramText kHistograms[] = {
    {"istio_request_duration_milliseconds", "Time from request to end of response", 1, 1e-3},
    {"istio_request_bytes", "Size of request bodies", 1 + HttpMetrics::kHistogram, 1},
    {"istio_response_bytes", "Size of response bodies", 1 + 2 * HttpMetrics::kHistogram, 1}};

void observe(HttpMetrics::Table::Series& series, const HistogramText& h, double value,
             uint64_t sum) {
  const size_t bucket = std::lower_bound(kIstioBuckets.begin(), kIstioBuckets.end(), value) -
                        kIstioBuckets.begin();
  series.cells[h.first_cell + bucket].add(1);  // the last one is +Inf
  series.cells[h.first_cell + kIstioBuckets.size() + 1].add(sum);
}

HttpMetrics::Table::LabelSet label_set(const RequestInfo& r, const model::Symbol& reporter,
                                       Reason reason, int status, std::string_view grpc_status) {
  const PeerLabels s = peer_labels(r.source, r.security);
  const PeerLabels d = peer_labels(r.destination, r.security);
  model::Symbol service, service_ns, service_name;
  if (r.service) {
    service = r.service->hostname;
    service_ns = r.service->ns;
    service_name = r.service->name;
  }
  return {reporter,
          s.workload, s.canonical_service, s.canonical_revision, s.ns, s.principal, s.app,
          s.version, s.cluster,
          service, service_ns, service_name,
          d.workload, d.canonical_service, d.canonical_revision, d.ns, d.principal, d.app,
          d.version, d.cluster,
          model::Symbol(r.grpc ? "grpc" : "http"), model::Symbol(http_response_flags(reason)),
          model::Symbol(security_name(r.security)), model::Symbol(response_code_label(status)),
          model::Symbol(grpc_status)};
}

using Values = std::array<std::string_view, kHttpLabels>;

Values values_of(const HttpMetrics::Table::LabelSet& labels) {
  Values values;
  for (size_t i = 0; i < kHttpLabels; ++i) values[i] = labels[i];
  return values;
}

void write_histogram(Exposition& out, const HistogramText& h, const Values& values,
                     const std::array<uint64_t, HttpMetrics::kCells>& cells) {
  std::array<std::string_view, kHttpLabels + 1> names, with_le;
  std::copy_n(kLabelNames, kHttpLabels, names.begin());
  std::copy_n(values.begin(), kHttpLabels, with_le.begin());
  names.back() = "le";
  uint64_t count = 0;
  for (size_t i = 0; i <= kIstioBuckets.size(); ++i) {
    count += cells[h.first_cell + i];
    const std::string le = i < kIstioBuckets.size() ? fmt::format("{}", kIstioBuckets[i]) : "+Inf";
    with_le.back() = le;
    out.sample(fmt::format("{}_bucket", h.name), names, with_le, count);
  }
  out.sample(fmt::format("{}_sum", h.name), kLabelNames, values,
             static_cast<double>(cells[h.first_cell + kIstioBuckets.size() + 1]) * h.sum_scale);
  out.sample(fmt::format("{}_count", h.name), kLabelNames, values, count);
}

}  // namespace

std::string_view http_response_flags(Reason reason) {
  switch (reason) {
    case Reason::kOk:
    case Reason::kDirectResponse: return "-";
    case Reason::kNoRoute: return "NR";
    case Reason::kNoService:
    case Reason::kNotFound: return "NC";
    case Reason::kNoEndpoint:
    case Reason::kNoHealthyEndpoint:
    case Reason::kNoTargetPort: return "UH";
    case Reason::kRequestTimeout: return "UT";
    case Reason::kIdleTimeout: return "SI";
    case Reason::kConnectReset:
    case Reason::kServerClosedEarly: return "UC";
    case Reason::kUpstreamReset: return "UR";
    case Reason::kUpstreamProtocol: return "UPE";
    case Reason::kClientClosedEarly:
    case Reason::kCancelled: return "DC";
    case Reason::kBadRequest: return "DPE";
    case Reason::kLimitExceeded: return "UO";
    case Reason::kPolicyDeny:
    case Reason::kPolicyNoAllowMatch:
    case Reason::kPolicyUnknown:
    case Reason::kPolicyChanged:
    case Reason::kStrictPlaintext: return "-";  // Envoy says it in the details only
    case Reason::kShutdown: return "DC";
    default: return "UF";
  }
}

std::string_view grpc_status_label(std::string_view status) {
  static constexpr std::string_view kCodes[] = {"0", "1", "2",  "3",  "4",  "5",  "6",  "7", "8",
                                                "9", "10", "11", "12", "13", "14", "15", "16"};
  if (status.empty()) return {};
  const auto* it = std::find(std::begin(kCodes), std::end(kCodes), status);
  return it == std::end(kCodes) ? "other" : *it;
}

std::string response_code_label(int status) {
  if (status == 0) return {};  // none was sent
  return status >= 100 && status <= 599 ? fmt::to_string(status) : "other";
}

// One scrape: the counter over all series, then each histogram.
class HttpMetrics::Pass {
 public:
  explicit Pass(const HttpMetrics& metrics) : metrics_(metrics), walk_(metrics.table_) {}

  bool operator()(Exposition& out) {
    if (walk_.empty() || family_ > std::size(kHistograms)) {
      folded_series(out, "http", metrics_.table_);
      return false;
    }
    if (!std::exchange(headed_, true)) head(out);
    // A series has some twenty samples in a histogram.
    const size_t count = family_ == 0 ? kSeriesPerPiece : kSeriesPerPiece / 16;
    const bool more = walk_.next(count, [&](const auto& labels, const auto& cells) {
      if (family_ == 0) {
        out.sample("istio_requests_total", kLabelNames, values_of(labels), cells[0]);
      } else {
        write_histogram(out, kHistograms[family_ - 1], values_of(labels), cells);
      }
    });
    if (!more) {
      walk_.rewind();
      headed_ = false;
      ++family_;
    }
    return true;
  }

 private:
  void head(Exposition& out) const {
    if (family_ == 0) {
      out.family("istio_requests_total", MetricType::kCounter, "HTTP and gRPC requests");
    } else {
      const HistogramText& h = kHistograms[family_ - 1];
      out.family(h.name, MetricType::kHistogram, h.help);
    }
  }

  const HttpMetrics& metrics_;
  Table::Walk walk_;
  size_t family_ = 0;
  bool headed_ = false;
};

HttpMetrics::HttpMetrics(Registry& registry, size_t workers, std::string reporter,
                         SeriesLimits limits)
    : table_(workers, limits), reporter_(reporter) {
  registry.add_pieces([this] {
    expire(MonoClock::now());
    return Registry::Pieces(Pass(*this));
  });
}

RequestReport::RequestReport(HttpMetrics& metrics, size_t shard, RequestInfo info, MonoTime now)
    : metrics_(&metrics), shard_(shard), info_(std::move(info)), start_(now) {}

RequestReport::~RequestReport() {
  if (!finished_) finish(Reason::kInternal, "the request was dropped without a verdict", start_);
}

bool access_log_wanted(Reason reason) {
  const bool failed = reason != Reason::kOk && reason != Reason::kDirectResponse;
  return access_log.get().should_log(failed ? spdlog::level::warn : spdlog::level::info);
}

namespace {

bool same_peer(const Peer& a, const Peer& b) {
  return a.workload == b.workload && a.identity == b.identity && a.name == b.name && a.ns == b.ns &&
         a.canonical_name == b.canonical_name && a.canonical_revision == b.canonical_revision &&
         a.cluster == b.cluster;
}

}  // namespace

HttpMetrics::Table::Series* RequestReport::series(Reason reason, HttpSeriesCache* cache) {
  const auto look_up = [&]() -> const HttpMetrics::Table::SeriesPtr& {
    return metrics_->table_.series(
        shard_, label_set(info_, metrics_->reporter_, reason, status_, grpc_status_));
  };
  if (!cache) return look_up().get();
  const auto mix = [](const void* p) { return reinterpret_cast<uintptr_t>(p) >> 4; };
  const size_t hash = mix(info_.source.workload.get()) * 31 +
                      mix(info_.destination.workload.get()) * 7 + mix(info_.service.get()) +
                      static_cast<size_t>(status_) * 5 + static_cast<size_t>(reason);
  HttpSeriesCache::Slot& slot = cache->slots_[hash % HttpSeriesCache::kSlots];
  if (slot.series && slot.status == status_ && slot.reason == reason && slot.grpc == info_.grpc &&
      slot.security == info_.security && slot.service == info_.service &&
      slot.grpc_status == grpc_status_ && same_peer(slot.source, info_.source) &&
      same_peer(slot.destination, info_.destination) && !slot.series->is_expired()) {
    return slot.series.get();
  }
  slot = {look_up(),     info_.source, info_.destination, info_.service, info_.security,
          reason,        status_,      info_.grpc,        grpc_status_};
  return slot.series.get();
}

void RequestReport::finish(Reason reason, std::string_view detail, MonoTime now,
                           HttpSeriesCache* cache) {
  if (std::exchange(finished_, true)) return;
  const Duration took = now - start_;
  const auto us = static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(took).count());
  auto* const series = this->series(reason, cache);
  series->cells[0].add(1);
  observe(*series, kHistograms[0], us / 1000.0, us);
  observe(*series, kHistograms[1], static_cast<double>(received_), received_);
  observe(*series, kHistograms[2], static_cast<double>(sent_), sent_);

  spdlog::logger& logger = access_log.get();
  const bool failed = reason != Reason::kOk && reason != Reason::kDirectResponse;
  const auto level = failed ? spdlog::level::warn : spdlog::level::info;
  if (!logger.should_log(level)) return;
  LogFields line;
  line.text("method", info_.method);
  line.text("path", info_.path);
  line.text("authority", info_.authority);
  line.text("protocol", info_.protocol);
  line.number("response_code", status_);
  line.word("response_flags", http_response_flags(reason));
  line.text("grpc_status", grpc_status_);
  line.number("bytes_received", received_);
  line.number("bytes_sent", sent_);
  line.text("duration", log_duration(took));
  if (upstream_time_ > Duration::zero()) {
    line.text("upstream_service_time", log_duration(upstream_time_));
  }
  if (attempts_ > 1) line.number("attempts", attempts_);
  line.text("route_name", info_.route);
  line.text("upstream_cluster", info_.cluster);
  if (info_.upstream) line.word("upstream_host", info_.upstream->to_string());
  line.word("src.addr", info_.downstream_remote.to_string());
  line.peer("src", info_.source, info_.security);
  line.word("dst.addr", info_.downstream_local.to_string());
  if (info_.service) line.text("dst.service", info_.service->hostname);
  line.peer("dst", info_.destination, info_.security);
  line.text("x_forwarded_for", info_.forwarded_for);
  line.text("user_agent", info_.user_agent);
  line.text("request_id", info_.request_id);
  line.word("reason", reason_name(reason));
  if (failed) line.text("error", detail.empty() ? reason_meaning(reason) : detail);
  log::write_with_fields(logger, level, "request complete", line.rendered());
}

}  // namespace meltemi::telemetry
