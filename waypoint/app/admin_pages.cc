// See admin_pages.h. Shapes: envoy.admin.v3 in proto3 JSON with the proto's field names.
#include "waypoint/app/admin_pages.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "userspace/base/clock.h"

namespace meltemi::waypoint {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kTypePrefix = "type.googleapis.com/envoy.admin.v3.";

std::string text_of(const Json& json) {
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

http::Response json_page(std::string body) { return {200, std::move(body), "application/json"}; }

std::string base64(std::string_view in) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < in.size(); i += 3) {
    const size_t n = std::min<size_t>(3, in.size() - i);
    uint32_t v = 0;
    for (size_t k = 0; k < 3; ++k) v = v << 8 | (k < n ? static_cast<uint8_t>(in[i + k]) : 0);
    for (size_t k = 0; k < 4; ++k) out += k <= n ? kDigits[v >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

Json socket_address(const SocketAddress& a) {
  return {{"socket_address", {{"address", a.ip.to_string()}, {"port_value", a.port}}}};
}

const char* health_name(Health health) {
  switch (health) {
    case Health::kHealthy: return "HEALTHY";
    case Health::kDegraded: return "DEGRADED";
    case Health::kUnhealthy: return "UNHEALTHY";
  }
  return "UNKNOWN";
}

// Clusters by name, so that two dumps can be compared.
std::map<std::string, const ClusterEntry*> sorted(const Snapshot& snapshot) {
  std::map<std::string, const ClusterEntry*> out;
  for (const auto& [name, entry] : snapshot.clusters) out[name.str()] = &entry;
  return out;
}

const EndpointSet* endpoints_of(const ClusterEntry& entry) {
  return entry.endpoints ? entry.endpoints.get() : entry.cluster->inline_endpoints.get();
}

std::map<std::string, std::vector<SocketAddress>> listeners_of(const Snapshot& snapshot) {
  std::map<std::string, std::vector<SocketAddress>> out;
  for (const auto& [address, listener] : snapshot.virtual_listeners) {
    out[listener->name].push_back(address);
  }
  for (const ListenerPtr& listener : snapshot.bound_listeners) {
    out[listener->name] = listener->addresses;
  }
  for (auto& [name, addresses] : out) std::sort(addresses.begin(), addresses.end());
  return out;
}

std::string listeners_page(const Snapshot& snapshot, bool json) {
  std::string text;
  Json list = Json::array();
  for (const auto& [name, addresses] : listeners_of(snapshot)) {
    for (const SocketAddress& address : addresses) {
      text += fmt::format("{}::{}\n", name, address.to_string());
      list.push_back({{"name", name}, {"local_address", socket_address(address)}});
    }
  }
  return json ? text_of({{"listener_statuses", std::move(list)}}) : text;
}

// --- certificates -----------------------------------------------------------------------------

std::string chain_pem(const std::vector<pki::Certificate>& chain) {
  std::string out;
  for (const auto& c : chain) out += c.to_pem();
  return out;
}

Json secrets(const std::vector<pki::CertificateEntry>& entries) {
  Json active = Json::array(), warming = Json::array();
  for (const auto& e : entries) {
    if (!e.certificate) {
      warming.push_back({{"name", "default"}, {"secret", {{"name", "default"}}}});
      continue;
    }
    const std::string updated =
        e.certificate->chain.empty() ? "" : format_rfc3339(e.certificate->chain[0].not_before());
    const Json key = {{"inline_bytes", base64("[redacted]")}};
    active.push_back(
        {{"name", "default"},
         {"last_updated", updated},
         {"secret",
          {{"@type", "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"},
           {"name", "default"},
           {"tls_certificate",
            {{"certificate_chain", {{"inline_bytes", base64(chain_pem(e.certificate->chain))}}},
             {"private_key", key}}}}}});
    active.push_back(
        {{"name", "ROOTCA"},
         {"last_updated", updated},
         {"secret",
          {{"@type", "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"},
           {"name", "ROOTCA"},
           {"validation_context",
            {{"trusted_ca", {{"inline_bytes", base64(chain_pem(e.certificate->roots))}}}}}}}});
  }
  Json out = {{"@type", fmt::format("{}SecretsConfigDump", kTypePrefix)},
              {"dynamic_active_secrets", std::move(active)}};
  if (!warming.empty()) out["dynamic_warming_secrets"] = std::move(warming);
  return out;
}

Json certificate_details(const pki::Certificate& c, std::string_view uri, WallTime now) {
  const auto left = std::chrono::duration_cast<std::chrono::hours>(c.not_after() - now).count();
  Json out = {{"serial_number", c.serial()},
              {"days_until_expiration", std::to_string(std::max<int64_t>(left / 24, 0))},
              {"valid_from", format_rfc3339(c.not_before())},
              {"expiration_time", format_rfc3339(c.not_after())}};
  if (!uri.empty()) out["subject_alt_names"] = Json::array({{{"uri", uri}}});
  return out;
}

std::string certs_page(const std::vector<pki::CertificateEntry>& entries, WallTime now) {
  Json list = Json::array();
  for (const auto& e : entries) {
    if (!e.certificate) continue;
    Json roots = Json::array(), chain = Json::array();
    for (const auto& c : e.certificate->roots) roots.push_back(certificate_details(c, "", now));
    for (const auto& c : e.certificate->chain) {
      chain.push_back(certificate_details(c, chain.empty() ? e.identity.uri() : "", now));
    }
    list.push_back({{"ca_cert", std::move(roots)}, {"cert_chain", std::move(chain)}});
  }
  return text_of({{"certificates", std::move(list)}});
}

// --- server -----------------------------------------------------------------------------------

Json node(const AdminSources& s) {
  return {{"id", s.node_id},
          {"cluster", s.cluster},
          {"user_agent_name", "meltemi"},
          {"metadata", {{"ISTIO_VERSION", MELTEMI_VERSION}}}};
}

Json bootstrap(const AdminSources& s) {
  Json admin = Json::object();
  if (const auto at = SocketAddress::parse(s.admin_listen)) admin["address"] = socket_address(*at);
  return {{"@type", fmt::format("{}BootstrapConfigDump", kTypePrefix)},
          {"bootstrap", {{"node", node(s)}, {"admin", std::move(admin)}}}};
}

std::string server_info(const AdminSources& s, MonoTime started) {
  const auto up = std::chrono::duration_cast<std::chrono::seconds>(MonoClock::now() - started);
  return text_of({{"version", MELTEMI_VERSION},
                  {"state", s.readiness->ready() ? "LIVE" : "PRE_INITIALIZING"},
                  {"uptime_current_epoch", fmt::format("{}s", up.count())},
                  {"uptime_all_epochs", fmt::format("{}s", up.count())},
                  {"node", node(s)}});
}

// The kernel's account; what an allocator says of itself depends on the allocator.
std::string memory_page() {
  unsigned long long size = 0, resident = 0, shared = 0, code = 0, library = 0, data = 0;
  if (FILE* f = std::fopen("/proc/self/statm", "re")) {
    if (std::fscanf(f, "%llu %llu %llu %llu %llu %llu", &size, &resident, &shared, &code, &library,
                    &data) != 6) {
      resident = data = 0;
    }
    std::fclose(f);
  }
  const auto page = static_cast<unsigned long long>(::sysconf(_SC_PAGESIZE));
  return text_of({{"allocated", std::to_string(resident * page)},
                  {"heap_size", std::to_string(data * page)}});
}

// Calls line(name, value) for each sample of the exposition: `name{labels}` and its number.
template <typename F>
void each_stat(const telemetry::Registry& registry, std::string_view filter, bool used_only,
               F&& line) {
  telemetry::Registry::Reading reading = registry.read();
  std::string piece;
  for (bool more = true; more;) {
    piece.clear();
    more = reading.more(piece);
    std::string_view rest = piece;
    while (!rest.empty()) {
      const std::string_view one = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(one.size() + 1, rest.size()));
      const size_t space = one.rfind(' ');
      if (one.starts_with('#') || space == std::string_view::npos) continue;
      const std::string_view name = one.substr(0, space), value = one.substr(space + 1);
      if (used_only && value == "0") continue;
      if (name.find(filter) != std::string_view::npos) line(name, value);
    }
  }
}

bool wants_json(const http::Request& request) {
  const std::string* format = request.param("format");
  return format && *format == "json";
}

http::Response stats_page(const telemetry::Registry& registry, const http::Request& request) {
  const std::string* filter = request.param("filter");
  const std::string_view wanted = filter ? std::string_view(*filter) : std::string_view();
  const bool used = request.param("usedonly") != nullptr;
  if (wants_json(request)) return json_page(stats_json(registry, wanted, used));
  return {200, stats_text(registry, wanted, used)};
}

}  // namespace

std::string clusters_text(const Snapshot& snapshot) {
  std::string out;
  for (const auto& [name, entry] : sorted(snapshot)) {
    out += fmt::format("{}::added_via_api::true\n", name);
    const EndpointSet* set = endpoints_of(*entry);
    if (!set) continue;
    for (const Endpoint& e : set->endpoints()) {
      const std::string at = fmt::format("{}::{}", name, e.address.to_string());
      out += fmt::format("{}::health_flags::{}\n{}::weight::{}\n{}::priority::{}\n", at,
                         e.health == Health::kUnhealthy ? "/failed_eds_health" : "healthy", at,
                         e.weight, at, e.priority);
    }
  }
  return out;
}

std::string clusters_json(const Snapshot& snapshot) {
  Json list = Json::array();
  for (const auto& [name, entry] : sorted(snapshot)) {
    Json hosts = Json::array();
    if (const EndpointSet* set = endpoints_of(*entry)) {
      for (const Endpoint& e : set->endpoints()) {
        hosts.push_back({{"address", socket_address(e.address)},
                         {"health_status", {{"eds_health_status", health_name(e.health)}}},
                         {"weight", e.weight},
                         {"priority", e.priority},
                         {"locality", {{"region", e.region.str()}, {"zone", e.zone.str()}}}});
      }
    }
    list.push_back({{"name", name}, {"added_via_api", true}, {"host_statuses", std::move(hosts)}});
  }
  return text_of({{"cluster_statuses", std::move(list)}});
}

std::string stats_text(const telemetry::Registry& registry, std::string_view filter,
                       bool used_only) {
  std::string out;
  each_stat(registry, filter, used_only, [&](std::string_view name, std::string_view value) {
    out.append(name).append(": ").append(value).append("\n");
  });
  return out;
}

std::string stats_json(const telemetry::Registry& registry, std::string_view filter,
                       bool used_only) {
  Json list = Json::array();
  each_stat(registry, filter, used_only, [&](std::string_view name, std::string_view value) {
    Json number = Json::parse(value, nullptr, false);
    list.push_back({{"name", name}, {"value", number.is_number() ? number : Json(value)}});
  });
  return text_of({{"stats", std::move(list)}});
}

std::string config_dump(const AdminSources& sources, bool include_eds) {
  Json configs = Json::array({bootstrap(sources)});
  const Json xds = Json::parse(sources.xds_dump(), nullptr, false);
  if (xds.is_object() && xds.contains("configs")) {
    for (const Json& part : xds["configs"]) {
      const std::string type = part.value("@type", "");
      if (include_eds || !type.ends_with(".EndpointsConfigDump")) configs.push_back(part);
    }
  }
  configs.push_back(secrets(sources.certificates()));
  configs.push_back({{"@type", fmt::format("{}EcdsConfigDump", kTypePrefix)}});
  return text_of({{"configs", std::move(configs)}});
}

void add_admin_pages(http::Router& router, const AdminSources& s) {
  const auto page = [&router](std::string path, http::Handler handler) {
    router.route(std::move(path), "GET", std::move(handler), http::Access::kLoopback);
  };
  const auto of_snapshot = [s](const http::Request& request, auto&& as_text, auto&& as_json) {
    const SnapshotPtr snapshot = s.snapshot();
    const Snapshot none;
    const Snapshot& shown = snapshot ? *snapshot : none;
    return wants_json(request) ? json_page(as_json(shown)) : http::Response{200, as_text(shown)};
  };
  page("/config_dump", [s](const http::Request& request) {
    return json_page(config_dump(s, request.param("include_eds") != nullptr));
  });
  page("/clusters", [of_snapshot](const http::Request& request) {
    return of_snapshot(request, clusters_text, clusters_json);
  });
  page("/listeners", [of_snapshot](const http::Request& request) {
    return of_snapshot(
        request, [](const Snapshot& shown) { return listeners_page(shown, false); },
        [](const Snapshot& shown) { return listeners_page(shown, true); });
  });
  page("/certs", [s](const http::Request&) {
    return json_page(certs_page(s.certificates(), std::chrono::system_clock::now()));
  });
  page("/server_info", [s, started = MonoClock::now()](const http::Request&) {
    return json_page(server_info(s, started));
  });
  page("/ready", [s](const http::Request&) {
    const bool ready = s.readiness->ready();
    return http::Response{ready ? 200 : 503, ready ? "LIVE\n" : "PRE_INITIALIZING\n"};
  });
  page("/status", [s](const http::Request&) {
    return json_page(xds::status_page(s.status(), std::chrono::system_clock::now()));
  });
  page("/memory", [](const http::Request&) { return json_page(memory_page()); });
  page("/stats", [s](const http::Request& request) { return stats_page(*s.registry, request); });
  const auto help = [&router](const http::Request&) {
    std::string out = "admin commands are:\n";
    for (const std::string& path : router.paths()) out += "  " + path + "\n";
    return http::Response{200, std::move(out)};
  };
  page("/", help);
  page("/help", help);
}

}  // namespace meltemi::waypoint
