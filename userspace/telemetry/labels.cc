#include "userspace/telemetry/labels.h"

#include <fmt/format.h>

#include "userspace/base/text.h"
#include "userspace/telemetry/refusal.h"

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

std::optional<Reason> refusal_of(std::string_view name) {
  for (size_t i = 0; i < kReasonCount; ++i) {
    const auto reason = static_cast<Reason>(i);
    if (reason != Reason::kOk && reason_name(reason) == name) return reason;
  }
  return std::nullopt;
}

std::string_view security_name(Security security) {
  switch (security) {
    case Security::kUnknown: return "unknown";
    case Security::kMutualTls: return "mutual_tls";
    case Security::kKernel: return "kernel";
  }
  return "unknown";
}

void LogFields::key(std::string_view prefix, std::string_view name) {
  out_ += json_ ? ",\"" : " ";
  if (!prefix.empty()) (out_ += prefix) += '.';
  out_ += name;
  out_ += json_ ? "\":" : "=";
}

void LogFields::value(std::string_view text, bool quoted) {
  if (quoted) out_ += '"';
  append_escaped(out_, text);
  if (quoted) out_ += '"';
}

void LogFields::text(std::string_view name, std::string_view text) {
  if (text.empty()) return;
  key({}, name);
  value(text, true);
}

void LogFields::word(std::string_view name, std::string_view text) {
  key({}, name);
  value(text, json_);
}

void LogFields::number(std::string_view name, uint64_t n) {
  key({}, name);
  out_ += fmt::to_string(n);
}

void LogFields::peer(std::string_view prefix, const Peer& peer, Security security) {
  const auto part = [&](std::string_view name, std::string_view text) {
    if (text.empty()) return;
    key(prefix, name);
    value(text, true);
  };
  const auto& w = peer.workload;
  part("workload", w ? (w->name.empty() ? w->canonical_name : w->name).view() : peer.name.view());
  part("namespace", w ? w->ns.view() : peer.ns.view());
  if (security == Security::kMutualTls) part("identity", peer.identity.uri());
  part("cluster", w ? w->cluster.view() : peer.cluster.view());
}

std::string log_duration(Duration duration) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
  if (us < 1000) return fmt::format("{}us", us);
  if (us < 1'000'000) return fmt::format("{}ms", us / 1000);
  return fmt::format("{}.{:03}s", us / 1'000'000, us / 1000 % 1000);
}

}  // namespace meltemi::telemetry
