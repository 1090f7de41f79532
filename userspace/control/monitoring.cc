// See monitoring.h. Metric names are istiod's where it has one for the same thing.
#include "userspace/control/monitoring.h"

#include <fmt/format.h>

#include <array>
#include <memory>
#include <nlohmann/json.hpp>

#include "userspace/control/control_plane.h"
#include "userspace/telemetry/admission_metrics.h"
#include "userspace/telemetry/exposition.h"

namespace meltemi::control {
namespace {

using nlohmann::json;
using telemetry::Exposition;
using telemetry::MetricType;

void one(Exposition& out, std::string_view name, MetricType type, std::string_view help,
         uint64_t value) {
  out.family(name, type, help);
  out.sample(name, value);
}

void collect_xds(Exposition& out, const ControlPlane& control) {
  const xds::ServerStats s = control.server().stats();
  one(out, "pilot_xds", MetricType::kGauge, "Streams connected to this control plane.", s.streams);
  one(out, "pilot_xds_pushes_total", MetricType::kCounter, "Responses sent.", s.responses);
  one(out, "pilot_xds_push_bytes_total", MetricType::kCounter, "Bytes of responses.",
      s.response_bytes);
  one(out, "pilot_xds_resources_total", MetricType::kCounter, "Resources sent.", s.resources);
  one(out, "pilot_total_xds_rejects", MetricType::kCounter, "Responses that a client refused.",
      s.nacks);
  one(out, "pilot_xds_refused_total", MetricType::kCounter, "Streams refused or ended by us.",
      s.refused);
  constexpr std::array<std::string_view, 1> kReason = {"reason"}, kExpired = {"token_expired"},
                                            kUnwelcome = {"no_longer_allowed"};
  out.family("meltemi_xds_streams_ended_total", MetricType::kCounter,
             "Streams that ended with what they rested on: the token, or its pod, service account or right.");
  out.sample("meltemi_xds_streams_ended_total", kReason, kExpired, s.ended_expired);
  out.sample("meltemi_xds_streams_ended_total", kReason, kUnwelcome, s.ended_unwelcome);
  one(out, "meltemi_xds_accept_errors_total", MetricType::kCounter,
      "Connections that could not be accepted (descriptors, memory).", s.accept_errors);
  one(out, "meltemi_xds_overdrawn_total", MetricType::kCounter,
      "Connections ended for bytes that no call has taken.", s.overdrawn);
  one(out, "citadel_server_success_cert_issuance_count", MetricType::kCounter,
      "Certificates issued.", s.certificates);
  one(out, "citadel_server_csr_count", MetricType::kCounter, "Certificate requests received.",
      s.certificates + s.certificates_refused);
  one(out, "citadel_server_authentication_failure_count", MetricType::kCounter,
      "Certificate requests refused.", s.certificates_refused);
  one(out, "meltemi_node_reports_total", MetricType::kCounter, "Reports of agents.", s.reports);
}

void collect_config(Exposition& out, const ControlPlane& control) {
  const ControlStats s = control.stats();
  one(out, "pilot_k8s_cfg_events", MetricType::kCounter, "Files that changed.", s.events);
  one(out, "meltemi_config_batches_total", MetricType::kCounter, "Batches of changes.", s.batches);
  one(out, "meltemi_config_object_changes_total", MetricType::kCounter, "Objects that changed.",
      s.changes);
  one(out, "meltemi_config_resource_changes_total", MetricType::kCounter,
      "Resources that changed.", s.resource_changes);
  one(out, "meltemi_config_recomputed_units_total", MetricType::kCounter,
      "Units of translation that were computed.", s.recomputed_units);
  one(out, "galley_validation_failed", MetricType::kCounter, "Files refused.", s.rejected_files);
  one(out, "meltemi_config_held_removals_total", MetricType::kCounter,
      "Removals that were looked at a second time.", s.held_removals);
  out.family("meltemi_config_last_batch_seconds", MetricType::kGauge,
             "From seeing the last change to handing it to the streams.");
  out.sample("meltemi_config_last_batch_seconds", {}, {},
             std::chrono::duration<double>(s.last_batch).count());
  out.family("meltemi_config_last_analysis_seconds", MetricType::kGauge,
             "Time that the last look at all objects together took.");
  out.sample("meltemi_config_last_analysis_seconds", {}, {},
             std::chrono::duration<double>(s.last_analysis).count());
  one(out, "pilot_services", MetricType::kGauge, "Services known.",
      control.objects(config::Kind::kService));
  constexpr std::array<std::string_view, 1> kKind = {"kind"};
  out.family("meltemi_config_objects", MetricType::kGauge, "Objects known, by kind.");
  for (const config::KindInfo& info : config::all_kinds()) {
    const std::array<std::string_view, 1> value = {info.name};
    out.sample("meltemi_config_objects", kKind, value, uint64_t{control.objects(info.kind)});
  }
}

void collect_ca(Exposition& out, const ControlPlane& control) {
  one(out, "meltemi_ca_rate_limited_total", MetricType::kCounter,
      "Certificate requests refused because their caller asked too often.",
      control.signing_rate().refused());
  one(out, "meltemi_deleted_service_accounts", MetricType::kGauge,
      "Service accounts that were deleted and have not been declared again.",
      control.accounts().gone());
  WallTime first = WallTime::max();
  for (const auto& root : control.ca().roots()) first = std::min(first, root.not_after());
  out.family("citadel_server_root_cert_expiry_timestamp", MetricType::kGauge,
             "Unix time at which the first trusted root ends.");
  out.sample("citadel_server_root_cert_expiry_timestamp",
             static_cast<uint64_t>(std::chrono::system_clock::to_time_t(first)));
}

http::Response as_json(std::string body) {
  return {.status = 200, .body = std::move(body), .content_type = "application/json"};
}

}  // namespace

void add_monitoring_routes(http::Router& pages, telemetry::Registry& registry,
                           const ControlPlane& control) {
  registry.add([&control](Exposition& out) {
    collect_xds(out, control);
    collect_config(out, control);
    collect_ca(out, control);
  });
  telemetry::add_process_metrics(registry, "meltemid");
  telemetry::add_admission_metrics(registry, control.door());
  telemetry::add_metrics_routes(pages, registry);
  pages.route("/ready", "GET", [&control](const http::Request&) {
    const auto verdict = control.readiness().verdict();
    return http::Response{verdict.ready ? 200 : 503, verdict.text};
  });
  pages.route("/version", "GET",
              [](const http::Request&) { return http::Response{200, MELTEMI_VERSION "\n"}; });
  const auto debug = [&](std::string name, http::Handler handler) {
    pages.route("/debug/" + std::move(name), "GET", std::move(handler), http::Access::kLoopback);
  };
  debug("config_dump",
        [&control](const http::Request&) { return as_json(control.config_dump()); });
  debug("syncz", [&control](const http::Request&) { return as_json(control.syncz()); });
  pages.route(
      "/status", "GET",
      [&control](const http::Request&) {
        return as_json(xds::status_page(control.status(), std::chrono::system_clock::now()));
      },
      http::Access::kLoopback);
  debug("problems",
        [&control](const http::Request&) { return http::Response{200, control.problems_text()}; });
}

std::string ControlPlane::config_dump() const {
  const std::lock_guard lock(mutex_);
  json root;
  std::set<config::Scope> scopes = {config::kEveryone};
  for (const auto& gateway : store_.list(config::Kind::kGateway)) {
    scopes.insert(config::waypoint_scope(gateway->ns(), gateway->name()));
  }
  for (const auto& pod : store_.list(config::Kind::kPod)) {
    scopes.insert(config::node_scope(pod->as<config::kube::Pod>().spec().node_name()));
  }
  for (size_t i = 0; i < config::kResourceTypeCount; ++i) {
    const auto type = static_cast<config::ResourceType>(i);
    auto& of_type = root["resources"][std::string(config::type_url(type))] = json::object();
    for (const config::Scope& scope : scopes) {
      for (const auto& resource : translator_.list(type, scope)) {
        of_type[scope][resource->name] = resource->version;
      }
    }
  }
  for (const config::KindInfo& info : config::all_kinds()) {
    auto& list = root["objects"][std::string(info.name)] = json::array();
    for (const auto& object : store_.list(info.kind)) {
      list.push_back(object->ns().empty() ? object->name() : object->ns() + "/" + object->name());
    }
  }
  root["enrolled"] = enrolled_.by_node();
  return root.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

xds::ProcessStatus ControlPlane::status() const {
  const auto verdict = readiness_.verdict();
  xds::ProcessStatus out{.component = "meltemid",
                         .version = MELTEMI_VERSION,
                         .ready = verdict.ready,
                         .trouble = verdict.ready ? "" : verdict.text,
                         .control_plane = {},
                         .configuration = {},
                         .certificates = xds::ProcessStatus::Certificates(),
                         .counts = {{"streams", server_.stats().streams}},
                         .problems = {}};
  for (const auto& root : ca_->roots()) out.certificates->add(root.not_after());
  const std::lock_guard lock(mutex_);
  out.configuration = fmt::to_string(stats_.batches);
  for (const auto& [what, kind] :
       {std::pair{"pods", config::Kind::kPod}, {"services", config::Kind::kService},
        {"policies", config::Kind::kAuthorizationPolicy}, {"gateways", config::Kind::kGateway}}) {
    out.counts.emplace_back(what, store_.size(kind));
  }
  size_t enrolled = 0;
  for (const auto& [node, uids] : enrolled_.by_node()) enrolled += uids.size();
  out.counts.emplace_back("enrolled", enrolled);
  for (const std::string& problem : {accounts_.problem(), enrolled_.problem()}) {
    if (!problem.empty()) out.problems.push_back(problem);
  }
  for (const auto& [node, problems] : node_problems_) {
    for (const std::string& problem : problems)
      out.problems.push_back(fmt::format("node {}: {}", node, problem));
  }
  return out;
}

std::string ControlPlane::syncz() const {
  json root = json::array();
  for (const xds::StreamInfo& stream : server_.streams()) {
    json types = json::array();
    for (const auto& type : stream.types) {
      types.push_back({{"type", type.type_url}, {"scope", type.scope}, {"names", type.names},
                       {"wildcard", type.wildcard}, {"sent", type.sent}, {"acked", type.acked},
                       {"nacked", type.nacked}, {"synced", type.current},
                       {"lastNack", type.last_nack}});
    }
    root.push_back({{"proxy", stream.node_id}, {"peer", stream.peer}, {"account", stream.caller},
                    {"types", std::move(types)}, {"refused", stream.refused}});
  }
  return root.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string ControlPlane::problems_text() const {
  const std::lock_guard lock(mutex_);
  std::string out;
  for (const auto* list : {&board_.file_problems(), &board_.findings()}) {
    for (const config::Problem& problem : *list) out += problem.to_string() + "\n";
  }
  return out;
}

}  // namespace meltemi::control
