#include "waypoint/proxy/forwarders.h"

#include <fmt/format.h>

#include <algorithm>

#include "waypoint/http/field.h"

namespace meltemi::waypoint {

Result<std::vector<model::Identity>> Forwarders::parse(std::string_view named) {
  std::vector<model::Identity> out;
  std::string wrong;
  each_token(named, [&](std::string_view uri) {
    const auto identity = model::Identity::parse(uri);
    if (identity) {
      out.push_back(*identity);
    } else {
      wrong = uri;
    }
    return wrong.empty();
  });
  if (wrong.empty()) return out;
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("\"{}\" is no SPIFFE ID: use spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
                          wrong));
}

bool Forwarders::believes(const model::Snapshot& mesh, const model::Identity& client,
                          const model::NetworkAddress& address) {
  if (!client.present()) return false;
  if (std::find(named_.begin(), named_.end(), client) != named_.end()) return true;
  // Nearly every client is told apart here: the control plane says of few that they speak HBONE
  // themselves.
  const model::WorkloadPtr workload = mesh.workload_by_ip(address);
  if (!workload || !workload->native_tunnel || workload->identity != client) return false;
  if (version_ != mesh.version()) learn(mesh);
  return std::any_of(workload->services.begin(), workload->services.end(),
                     [this](const model::ServiceMembership& m) {
                       return waypoints_.contains(m.service.str());
                     });
}

void Forwarders::learn(const model::Snapshot& mesh) {
  waypoints_.clear();
  version_ = mesh.version();
  const auto add = [&](const model::GatewayAddress& gateway) {
    if (!gateway.address) {
      waypoints_.insert(gateway.hostname.str());
    } else if (const model::ServiceEntry* entry = mesh.service_by_vip(*gateway.address, "")) {
      waypoints_.insert(entry->service->key.str());
    }
  };
  mesh.each_workload([&](const model::Workload& w) {
    if (w.waypoint) add(*w.waypoint);
  });
  mesh.each_service([&](const model::ServiceEntry& entry) {
    if (entry.service->waypoint) add(*entry.service->waypoint);
    for (const model::WeightedWaypoint& w : entry.service->weighted_waypoints) add(w.destination);
  });
}

}  // namespace meltemi::waypoint
