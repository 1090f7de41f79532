// How a flow's two ends become label values and log fields; shared by the L4 and the L7 report.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/log.h"
#include "userspace/telemetry/connection_report.h"

namespace meltemi::telemetry {

// The labels that describe one end, in Istio's order (workload, canonical_service,
// canonical_revision, workload_namespace, principal, app, version, cluster).
struct PeerLabels {
  model::Symbol workload, canonical_service, canonical_revision, ns, principal, app, version, cluster;
};
PeerLabels peer_labels(const Peer& peer, Security security);
std::string_view security_name(Security security);  // connection_security_policy

// Series that one piece of a scrape is made of: some tens of KB with 25 labels each.
inline constexpr size_t kSeriesPerPiece = 64;

// meltemi_series_folded_total{metrics,limit}: what a table counted under `other`.
template <typename Table>
void folded_series(Exposition& out, std::string_view metrics, const Table& table) {
  static constexpr std::string_view kLabels[] = {"metrics", "limit"};
  if (table.expired() > 0) {
    static constexpr std::string_view kMetrics[] = {"metrics"};
    const std::string_view value[] = {metrics};
    out.family("meltemi_series_expired_total", MetricType::kCounter,
               "Label sets that were left out because nobody counted them for long");
    out.sample("meltemi_series_expired_total", kMetrics, value, table.expired());
  }
  if (table.folded_by_source() + table.folded_by_total() == 0) return;
  const std::string_view source[] = {metrics, "source"}, total[] = {metrics, "total"};
  out.family("meltemi_series_folded_total", MetricType::kCounter,
             "Label sets counted under other, because their source or the table has its most");
  out.sample("meltemi_series_folded_total", kLabels, source, table.folded_by_source());
  out.sample("meltemi_series_folded_total", kLabels, total, table.folded_by_total());
}

// The fields of one log line, rendered for the log's format as they are added.
class LogFields {
 public:
  void text(std::string_view key, std::string_view value);  // nothing if the value is empty
  void word(std::string_view key, std::string_view value);  // not quoted in plain lines: addresses
  void number(std::string_view key, uint64_t value);
  // workload, namespace, identity and cluster of one end under `prefix` ("src" or "dst").
  void peer(std::string_view prefix, const Peer& peer, Security security);
  const std::string& rendered() const { return out_; }

 private:
  void key(std::string_view prefix, std::string_view name);
  void value(std::string_view text, bool quoted);
  const bool json_ = log::format() == log::Format::kJson;
  std::string out_;
};
std::string log_duration(Duration duration);  // "3ms", "1.250s", "840us"

}  // namespace meltemi::telemetry
