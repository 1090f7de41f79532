#include "userspace/telemetry/connection_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/telemetry/labels.h"

namespace meltemi::telemetry {
namespace {

log::Scope access_log("access");

constexpr std::string_view kLabelNames[kTcpLabels] = {
    "reporter",
    "source_workload", "source_canonical_service", "source_canonical_revision",
    "source_workload_namespace", "source_principal", "source_app", "source_version",
    "source_cluster",
    "destination_service", "destination_service_namespace", "destination_service_name",
    "destination_workload", "destination_canonical_service", "destination_canonical_revision",
    "destination_workload_namespace", "destination_principal", "destination_app",
    "destination_version", "destination_cluster",
    "request_protocol", "response_flags", "connection_security_policy",
    "source_region", "source_zone", "destination_region", "destination_zone"};
constexpr size_t kFlagsLabel = 21;
constexpr size_t kFirstLocality = 23;

struct FamilyText {
  std::string_view name, help;
};
constexpr FamilyText kFamilies[] = {
    {"istio_tcp_connections_opened_total", "TCP connections opened"},
    {"istio_tcp_connections_closed_total", "TCP connections closed"},
    {"istio_tcp_received_bytes_total", "Bytes from clients to servers"},
    {"istio_tcp_sent_bytes_total", "Bytes from servers to clients"},
    {"istio_tcp_connections_failed_total", "TCP connections that failed"}};

// Fixed label values, interned once.
struct Words {
  model::Symbol source{"source"}, destination{"destination"}, tcp{"tcp"}, dash{"-"};
  model::Symbol security[3] = {model::Symbol("unknown"), model::Symbol("mutual_tls"),
                               model::Symbol("kernel")};
};
const Words& words() {
  static const Words w;
  return w;
}

TcpMetrics::Table::LabelSet label_set(const FlowInfo& f) {
  const PeerLabels s = peer_labels(f.source, f.security);
  const PeerLabels d = peer_labels(f.destination, f.security);
  const model::Workload* from = f.source.workload.get();
  const model::Workload* to = f.destination.workload.get();
  model::Symbol service, service_ns, service_name;
  if (f.service) {
    service = f.service->hostname;
    service_ns = f.service->ns;
    service_name = f.service->name;
  }
  const model::Symbol none;
  return {f.direction == Direction::kOutbound ? words().source : words().destination,
          s.workload, s.canonical_service, s.canonical_revision, s.ns, s.principal, s.app,
          s.version, s.cluster,
          service, service_ns, service_name,
          d.workload, d.canonical_service, d.canonical_revision, d.ns, d.principal, d.app,
          d.version, d.cluster,
          words().tcp, words().dash, words().security[static_cast<size_t>(f.security)],
          from ? from->locality.region : none, from ? from->locality.zone : none,
          to ? to->locality.region : none, to ? to->locality.zone : none};
}

// Failures and policy verdicts; what merely ended is "-".
bool is_failure(Reason reason) {
  switch (reason) {
    case Reason::kOk:
    case Reason::kShutdown:
    case Reason::kClientClosedEarly:
    case Reason::kIdleTimeout: return false;
    default: return true;
  }
}

LogFields fields_of(const FlowInfo& f) {
  LogFields out;
  out.word("src.addr", f.src.to_string());
  out.peer("src", f.source, f.security);
  out.word("dst.addr", f.dst.to_string());
  if (f.hbone) {
    out.word("dst.hbone_addr", f.hbone->to_string());
  } else {
    out.text("dst.hbone_addr", f.hbone_host);
  }
  if (f.service) out.text("dst.service", f.service->hostname);
  out.peer("dst", f.destination, f.security);
  out.text("direction", f.direction == Direction::kOutbound ? "outbound" : "inbound");
  return out;
}

void count_failure(TcpMetrics::Table& table, size_t shard, const FlowInfo& info, Reason reason,
                   bool was_open) {
  auto labels = label_set(info);
  labels[kFlagsLabel] = model::Symbol(response_flags(reason));
  const auto& series = table.series(shard, labels);
  if (was_open) series->cells[TcpMetrics::kClosed].add(1);
  if (is_failure(reason)) series->cells[TcpMetrics::kFailed].add(1);
}

}  // namespace

std::string_view response_flags(Reason reason) {
  switch (reason) {
    case Reason::kOk:
    case Reason::kShutdown:
    case Reason::kClientClosedEarly:
    case Reason::kIdleTimeout: return "-";
    case Reason::kPolicyDeny:
    case Reason::kPolicyNoAllowMatch:
    case Reason::kPolicyUnknown:
    case Reason::kPolicyChanged:
    case Reason::kStrictPlaintext:
    case Reason::kWaypointBypassDenied: return "DENY";
    case Reason::kTlsHandshake:
    case Reason::kTlsRecord: return "TLS_FAILURE";
    case Reason::kTunnelH2Error: return "H2_HANDSHAKE_FAILURE";
    case Reason::kConnectTimeout: return "NETWORK_POLICY";
    case Reason::kIdentityUnavailable:
    case Reason::kPeerIdentityMismatch:
    case Reason::kCertExpired:
    case Reason::kCertNotYetValid: return "IDENTITY_ERROR";
    case Reason::kPeerRevoked: return "CERT_REVOKED";
    default: return "CONNECT";
  }
}

// One scrape: family after family, each over all series.
class TcpMetrics::Pass {
 public:
  explicit Pass(const TcpMetrics& metrics) : metrics_(metrics), walk_(metrics.table_) {}

  bool operator()(Exposition& out) {
    if (family_ == std::size(kFamilies)) {
      write_open(out);
      folded_series(out, "tcp", metrics_.table_);
      return false;
    }
    const bool more = walk_.next(kSeriesPerPiece, [&](const auto& labels, const auto& sums) {
      if (sums[family_] > 0) write(out, labels, sums[family_]);
    });
    if (!more) {
      walk_.rewind();
      headed_ = false;
      ++family_;
    }
    return true;
  }

 private:
  void write_open(Exposition& out) const {
    static constexpr std::string_view kReporter[] = {"reporter"};
    out.family("istio_tcp_sockets_open", MetricType::kGauge, "TCP connections that are proxied now");
    const std::string_view source[] = {"source"}, destination[] = {"destination"};
    const auto count = [this](Direction side) {
      uint64_t open = 0;
      for (const Open& worker : metrics_.open_) open += worker.flows[static_cast<size_t>(side)].get();
      return open;
    };
    out.sample("istio_tcp_sockets_open", kReporter, source, count(Direction::kOutbound));
    out.sample("istio_tcp_sockets_open", kReporter, destination, count(Direction::kInbound));
  }

  void write(Exposition& out, const Table::LabelSet& labels, uint64_t sum) {
    const FamilyText& family = kFamilies[family_];
    if (!std::exchange(headed_, true)) out.family(family.name, MetricType::kCounter, family.help);
    std::array<std::string_view, kTcpLabels> values;
    bool located = false;
    for (size_t i = 0; i < kTcpLabels; ++i) {
      values[i] = labels[i];
      located |= i >= kFirstLocality && !labels[i].empty();
    }
    const size_t n = located ? kTcpLabels : kFirstLocality;
    out.sample(family.name, std::span(kLabelNames).first(n), std::span(values).first(n), sum);
  }

  const TcpMetrics& metrics_;
  Table::Walk walk_;
  size_t family_ = 0;
  bool headed_ = false;
};

TcpMetrics::TcpMetrics(Registry& registry, size_t workers, SeriesLimits limits)
    : table_(workers, limits), open_(workers) {
  registry.add_pieces([this] {
    expire(MonoClock::now());
    return Registry::Pieces(Pass(*this));
  });
}

ConnectionReport::ConnectionReport(TcpMetrics& metrics, size_t shard, FlowInfo info, MonoTime now)
    : metrics_(&metrics),
      shard_(shard),
      info_(std::move(info)),
      series_(metrics.table_.series(shard, label_set(info_)).get()),
      start_(now) {
  series_->holders.add(1);
  metrics.open_[shard].flows[static_cast<size_t>(info_.direction)].add(1);
  series_->cells[TcpMetrics::kOpened].add(1);
  if (access_log.get().should_log(spdlog::level::debug)) {
    log::write_with_fields(access_log.get(), spdlog::level::debug, "connection opened",
                           fields_of(info_).rendered());
  }
}

ConnectionReport::~ConnectionReport() {
  if (!finished_) finish(Reason::kInternal, "the flow was dropped without a verdict", start_);
}

void ConnectionReport::finish(Reason reason, std::string_view detail, MonoTime now) {
  if (std::exchange(finished_, true)) return;
  const bool failed = is_failure(reason);
  if (response_flags(reason) == "-") {
    series_->cells[TcpMetrics::kClosed].add(1);
  } else {
    count_failure(metrics_->table_, shard_, info_, reason, true);
  }
  series_->holders.subtract(1);
  metrics_->open_[shard_].flows[static_cast<size_t>(info_.direction)].subtract(1);
  const auto level = failed ? spdlog::level::err : spdlog::level::info;
  spdlog::logger& logger = access_log.get();
  if (!logger.should_log(level)) return;
  const bool outbound = info_.direction == Direction::kOutbound;
  LogFields line = fields_of(info_);
  line.number("bytes_sent", outbound ? to_server_ : to_client_);
  line.number("bytes_recv", outbound ? to_client_ : to_server_);
  line.text("duration", log_duration(now - start_));
  line.word("reason", reason_name(reason));
  line.text("policy", policy_);
  if (failed) line.text("error", detail.empty() ? reason_meaning(reason) : detail);
  log::write_with_fields(logger, level, "connection complete", line.rendered());
}

void report_early_failure(TcpMetrics& metrics, size_t shard, const FlowInfo& info, Reason reason,
                          std::string_view detail) {
  count_failure(metrics.table_, shard, info, reason, false);
  spdlog::logger& logger = access_log.get();
  if (!logger.should_log(spdlog::level::warn)) return;
  LogFields line = fields_of(info);
  line.word("reason", reason_name(reason));
  line.text("error", detail.empty() ? reason_meaning(reason) : detail);
  log::write_with_fields(logger, spdlog::level::warn, "connection failed", line.rendered());
}

}  // namespace meltemi::telemetry
