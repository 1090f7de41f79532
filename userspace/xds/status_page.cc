// See status_page.h.
#include "userspace/xds/status_page.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace meltemi::xds {
namespace {

using Json = nlohmann::ordered_json;

Json control_plane(const ClientStatus& status, WallTime now) {
  const bool connected = status.state == StreamState::kConnected;
  Json types = Json::array();
  for (const ClientStatus::Type& type : status.types) {
    types.push_back({{"type", type.type_url},
                     {"synced", type.synced},
                     {"resources", type.resources},
                     {"responses", type.responses},
                     {"nacks", type.nacks},
                     {"refused", type.refused}});
  }
  return {{"state", sync_state(status)},
          {"connected", connected},
          {"lastWord", format_rfc3339(connected ? now : status.last_word)},
          {"staleSeconds",
           std::chrono::floor<std::chrono::seconds>(staleness(status, now)).count()},
          {"servingSavedState", status.serving_saved},
          {"savedStateRefused", status.saved_refusal},
          {"lastError", status.last_error},
          {"types", std::move(types)}};
}

}  // namespace

std::string_view sync_state(const ClientStatus& status) {
  if (status.state != StreamState::kConnected) return "STALE";
  const auto any = [&](auto&& of) { return std::ranges::any_of(status.types, of); };
  if (any([](const auto& type) { return !type.refused.empty(); })) return "NACK";
  // A type of which only names are asked for may have none.
  return any([](const auto& type) { return !type.synced && !type.named; }) ? "SYNCING" : "SYNCED";
}

std::string status_page(const ProcessStatus& status, WallTime now) {
  Json out{{"component", status.component},
           {"version", status.version},
           {"ready", status.ready},
           {"trouble", status.trouble}};
  if (status.control_plane) out["controlPlane"] = control_plane(*status.control_plane, now);
  if (!status.configuration.empty()) out["configuration"] = status.configuration;
  if (const auto& of = status.certificates) {
    out["certificates"] = {{"available", of->available}, {"missing", of->missing}};
    if (of->first_end != WallTime::max())
      out["certificates"]["firstEnd"] = format_rfc3339(of->first_end);
  }
  out["counts"] = Json::object();
  for (const auto& [what, count] : status.counts) out["counts"][what] = count;
  out["problems"] = status.problems;
  return out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace meltemi::xds
