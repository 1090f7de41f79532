// The admin pages of a waypoint in the shapes of Envoy's, so that istioctl's proxy-config and what
// people know by heart work unchanged: /, /help, /config_dump, /clusters, /listeners, /certs, /ready,
// /server_info, /stats, /memory; and /status, which is ours. Loopback by default. Must never show a private key.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "userspace/http/router.h"
#include "userspace/pki/certificate_manager.h"
#include "userspace/telemetry/exposition.h"
#include "userspace/telemetry/readiness.h"
#include "userspace/xds/status_page.h"
#include "waypoint/xds/snapshot.h"

namespace meltemi::waypoint {

// Where the pages look. All functions are called on the server's thread.
struct AdminSources {
  std::string node_id;  // "waypoint~IP~NAME.NS~NS.svc.cluster.local"
  std::string cluster, admin_listen;
  std::function<SnapshotPtr()> snapshot;  // null before the first configuration
  std::function<std::vector<pki::CertificateEntry>()> certificates;
  std::function<std::string()> xds_dump;  // {"configs":[...]} of listeners, routes, clusters, endpoints
  std::function<xds::ProcessStatus()> status;
  const telemetry::Registry* registry = nullptr;
  const telemetry::Readiness* readiness = nullptr;
};

// Adds the routes; `router` keeps a copy of `sources`.
void add_admin_pages(http::Router& router, const AdminSources& sources);

// --- the bodies, for tests -------------------------------------------------------------------
std::string clusters_text(const Snapshot& snapshot);
std::string clusters_json(const Snapshot& snapshot);
// `filter`: lines whose name contains it. `used_only`: without zeros.
std::string stats_text(const telemetry::Registry& registry, std::string_view filter,
                       bool used_only);
std::string stats_json(const telemetry::Registry& registry, std::string_view filter,
                       bool used_only);
// include_eds=false leaves the endpoints out, as Envoy does by default.
std::string config_dump(const AdminSources& sources, bool include_eds);

}  // namespace meltemi::waypoint
