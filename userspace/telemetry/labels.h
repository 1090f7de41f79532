// How a flow's two ends become label values and log fields; shared by the L4 and the L7 report.
#pragma once

#include <string>
#include <string_view>

#include "userspace/telemetry/connection_report.h"

namespace meltemi::telemetry {

// The labels that describe one end, in Istio's order (workload, canonical_service,
// canonical_revision, workload_namespace, principal, app, version, cluster).
struct PeerLabels {
  model::Symbol workload, canonical_service, canonical_revision, ns, principal, app, version, cluster;
};
PeerLabels peer_labels(const Peer& peer, Security security);
std::string_view security_name(Security security);  // connection_security_policy

// Appends ` key="value"` with the value escaped; nothing if it is empty.
void add_field(std::string& line, std::string_view key, std::string_view value);
// Appends ` key=value` verbatim.
void add_raw(std::string& line, std::string_view key, std::string_view value);
// workload, namespace, identity and cluster of one end under `prefix` ("src" or "dst").
void add_peer_fields(std::string& line, std::string_view prefix, const Peer& peer,
                     Security security);
std::string log_duration(Duration duration);  // "3ms", "1.250s", "840us"

}  // namespace meltemi::telemetry
