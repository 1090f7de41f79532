#include "userspace/telemetry/labels.h"

#include <fmt/format.h>

#include "userspace/base/log.h"

namespace meltemi::telemetry {

PeerLabels peer_labels(const Peer& peer, Security security) {
  PeerLabels out;
  if (const auto& w = peer.workload) {
    out.workload = w->workload_name.empty() ? w->name : w->workload_name;
    out.canonical_service = w->canonical_name;
    out.canonical_revision = w->canonical_revision;
    out.ns = w->ns;
    out.cluster = w->cluster;
  } else {
    out.workload = peer.name;
    out.canonical_service = peer.canonical_name;
    out.canonical_revision = peer.canonical_revision;
    out.ns = peer.ns.empty() ? model::Symbol(peer.identity.ns()) : peer.ns;
    out.cluster = peer.cluster;
  }
  out.app = out.canonical_service;
  out.version = out.canonical_revision;
  if (security == Security::kMutualTls) out.principal = peer.identity.symbol();
  return out;
}

std::string_view security_name(Security security) {
  switch (security) {
    case Security::kUnknown: return "unknown";
    case Security::kMutualTls: return "mutual_tls";
    case Security::kKernel: return "kernel";
  }
  return "unknown";
}

void add_raw(std::string& line, std::string_view key, std::string_view value) {
  line += ' ';
  line += key;
  line += '=';
  line += value;
}

void add_field(std::string& line, std::string_view key, std::string_view value) {
  if (value.empty()) return;
  line += ' ';
  line += key;
  line += "=\"";
  line += log::escape(value);
  line += '"';
}

void add_peer_fields(std::string& line, std::string_view prefix, const Peer& peer,
                     Security security) {
  const auto key = [&](std::string_view name) { return fmt::format("{}.{}", prefix, name); };
  const auto& w = peer.workload;
  add_field(line, key("workload"),
            w ? (w->name.empty() ? w->canonical_name : w->name).view() : peer.name.view());
  add_field(line, key("namespace"), w ? w->ns.view() : peer.ns.view());
  if (security == Security::kMutualTls) add_field(line, key("identity"), peer.identity.uri());
  add_field(line, key("cluster"), w ? w->cluster.view() : peer.cluster.view());
}

std::string log_duration(Duration duration) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
  if (us < 1000) return fmt::format("{}us", us);
  if (us < 1'000'000) return fmt::format("{}ms", us / 1000);
  return fmt::format("{}.{:03}s", us / 1'000'000, us / 1000 % 1000);
}

}  // namespace meltemi::telemetry
