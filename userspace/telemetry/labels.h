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
