// Takes xDS resources one by one, compiles each at once (so that a bad one is refused by itself and
// the last good one stays), and builds snapshots. One thread. Must never let one bad resource keep
// others back.
#pragma once

#include <map>
#include <set>
#include <string>

#include "userspace/base/error.h"
#include "waypoint/xds/snapshot.h"

namespace envoy::config::listener::v3 {
class Listener;
}

namespace meltemi::waypoint {

enum class XdsType : uint8_t { kListener, kRoute, kCluster, kEndpoints };
std::string_view type_url(XdsType type);
std::optional<XdsType> xds_type(std::string_view type_url);

// Compiles a Listener resource. Errors: kBadConfig, kUnsupported.
Result<ListenerPtr> compile_listener(const envoy::config::listener::v3::Listener& proto);

class ConfigStore {
 public:
  // `body` is the encoded resource. The error (for the NACK) names resource, place and field; the
  // resource of that name that was there before stays.
  Status put(XdsType type, const std::string& name, std::string_view body);
  // It goes on, a virtual listener marked as one that leaves, until remove() or another put().
  void leave(XdsType type, const std::string& name);
  void remove(XdsType type, const std::string& name);

  // Everything that is there now, linked. Cheap parts are shared with the snapshot before.
  SnapshotPtr build();

  // What is referenced and not there: RDS and EDS names. Empty when the configuration is complete.
  std::vector<std::string> missing() const;
  // Names to subscribe for on a stream that does not send RDS and EDS by wildcard.
  std::set<std::string> wanted_routes() const;
  std::set<std::string> wanted_endpoints() const;

  // For /config_dump: Envoy's JSON shape, resources as received.
  std::string dump_json() const;

 private:
  struct Stored {
    std::string body;
  };
  std::map<std::string, ListenerPtr> listeners_;
  std::map<std::string, RouteTablePtr> routes_;
  std::map<std::string, ClusterPtr> clusters_;
  std::map<std::string, EndpointSetPtr> endpoints_;
  std::map<std::pair<XdsType, std::string>, Stored> bodies_;
  std::set<std::string> leaving_;  // names of listeners_
  uint64_t version_ = 0;
};

}  // namespace meltemi::waypoint
