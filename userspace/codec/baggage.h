// The `baggage` header of HBONE (W3C Baggage): names the workload at the other end, for telemetry.
// It is the peer's own claim: it must never take part in authorization or routing.
#pragma once

#include <string>
#include <string_view>

namespace meltemi::codec {

// Longer headers are cut at the last whole member; longer values are dropped.
inline constexpr size_t kMaxBaggageBytes = 8192;
inline constexpr size_t kMaxBaggageValue = 256;

struct Baggage {
  std::string cluster;         // k8s.cluster.name
  std::string namespace_name;  // k8s.namespace.name
  std::string workload_type;   // deployment, cronjob, pod or job: the middle of k8s.<type>.name
  std::string workload_name;   // its value
  std::string service;         // service.name (canonical service)
  std::string version;         // service.version (canonical revision)
  std::string region;          // cloud.region
  std::string zone;            // cloud.availability_zone

  bool operator==(const Baggage&) const = default;
};

// Keys in the order of the struct, empty values left out. Bytes that would break a peer's parser
// (comma, semicolon, equals sign, percent sign, quotes, backslash, white space, control and
// non-ASCII bytes) are percent-encoded; ordinary names are unchanged. workload_name is left out
// when workload_type is not one of the four.
std::string format_baggage(const Baggage& baggage);

// Never fails: unknown keys, malformed members and over-long values are skipped, properties after
// ';' dropped, the last of two equal keys wins. Percent-encoding is undone; the results have no
// control bytes.
Baggage parse_baggage(std::string_view header);

}  // namespace meltemi::codec
