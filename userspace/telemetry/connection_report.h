// How an L4 flow ended: one object per flow counts its bytes and, when it finishes, moves the metrics
// and writes the one access-log line, so that the two can never disagree. Names, labels and their
// order are those of Istio's ztunnel (facts: ztunnel §7), plus `reason`.
//
// Must never outlive its shard's worker, and every flow must finish: a report that is destroyed
// unfinished ends as `internal`.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/model/types.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/series.h"

namespace meltemi::telemetry {

enum class Direction : uint8_t { kOutbound, kInbound };
enum class Security : uint8_t { kUnknown, kMutualTls, kKernel };

// One end of a flow, as far as it is known.
struct Peer {
  model::WorkloadPtr workload;   // null: unknown
  model::Identity identity;      // proven or own; absent for plaintext
  // Fallbacks from the peer's baggage, used only when `workload` is null.
  model::Symbol name, ns, canonical_name, canonical_revision, cluster;
};

struct FlowInfo {
  Direction direction = Direction::kOutbound;
  Security security = Security::kUnknown;
  SocketAddress src, dst;                  // dst inbound: pod:15008 or the app's address
  std::optional<SocketAddress> hbone;      // outbound: CONNECT authority; inbound: likewise
  std::string hbone_host;                  // when the authority was a hostname:port
  Peer source, destination;
  model::ServicePtr service;               // that was addressed; may be null
};

inline constexpr size_t kTcpLabels = 27;

class TcpMetrics {
 public:
  // `workers` shards. Registers the istio_tcp_* families.
  TcpMetrics(Registry& registry, size_t workers, SeriesLimits limits = {});
  using Table = SeriesTable<kTcpLabels, 5>;
  void expire(MonoTime now) { table_.expire(now); }  // done by each scrape
  enum CellIndex : size_t { kOpened, kClosed, kReceived, kSent, kFailed };

 private:
  friend class ConnectionReport;
  friend void report_early_failure(TcpMetrics&, size_t, const FlowInfo&, Reason, std::string_view);
  class Pass;
  // Flows of one worker that are open, by the client's side and the server's. Not the difference of
  // opened and closed: these may stand in two label sets, of which one expires.
  struct alignas(64) Open {
    Cell flows[2];
  };
  Table table_;
  std::vector<Open> open_;
};

class ConnectionReport {
 public:
  // Counts the flow as opened. `shard` is the calling worker's; the duration counts from `start`.
  ConnectionReport(TcpMetrics& metrics, size_t shard, FlowInfo info, MonoTime start);
  ConnectionReport(const ConnectionReport&) = delete;
  ConnectionReport& operator=(const ConnectionReport&) = delete;
  ~ConnectionReport();

  // Payload moved since the start, in bytes; never less than told before. Call now and then for long
  // flows and once before finish(). Metrics call client->server "received" at both reporters.
  void progress(uint64_t to_server, uint64_t to_client) {
    series_->cells[TcpMetrics::kReceived].add(to_server - to_server_);
    series_->cells[TcpMetrics::kSent].add(to_client - to_client_);
    to_server_ = to_server;
    to_client_ = to_client;
  }
  // Ends the flow, once; later calls are ignored. `detail` is for the log's error field.
  void finish(Reason reason, std::string_view detail, MonoTime now);
  bool finished() const { return finished_; }
  const FlowInfo& info() const { return info_; }
  // The policy that decided, for the log line.
  void set_policy(std::string name) { policy_ = std::move(name); }

 private:
  TcpMetrics* metrics_;
  size_t shard_;
  FlowInfo info_;
  TcpMetrics::Table::Series* series_;  // held until finish()
  MonoTime start_;
  uint64_t to_server_ = 0, to_client_ = 0;
  std::string policy_;
  bool finished_ = false;
};

// For flows refused before a report could be made (unknown source, failed TLS handshake): the
// "connection failed" line and a failed count under what is known.
void report_early_failure(TcpMetrics& metrics, size_t shard, const FlowInfo& info, Reason reason,
                          std::string_view detail);

// Envoy's short form of a reason, as in response_flags: "-", "DENY", "CONNECT", "TLS_FAILURE", ...
std::string_view response_flags(Reason reason);

}  // namespace meltemi::telemetry
