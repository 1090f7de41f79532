#include "waypoint/app/static_config.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "envoy/config/cluster/v3/cluster.pb.h"
#include "envoy/config/endpoint/v3/endpoint.pb.h"
#include "envoy/config/listener/v3/listener.pb.h"
#include "envoy/config/route/v3/route.pb.h"

namespace meltemi::waypoint {
namespace {

using nlohmann::json;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

// A plain scalar is a bool, null or number where it reads as one; a quoted one is text.
json scalar(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return text;
  if (text == "true") return true;
  if (text == "false") return false;
  if (text == "null" || text == "~" || text.empty()) return nullptr;
  int64_t integer = 0;
  const char* const end = text.data() + text.size();
  if (const auto [p, e] = std::from_chars(text.data(), end, integer); p == end && e == std::errc()) {
    return integer;
  }
  double number = 0;
  if (const auto [p, e] = std::from_chars(text.data(), end, number); p == end && e == std::errc()) {
    return number;
  }
  return text;
}

json to_json(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Map: {
      json object = json::object();
      for (const auto& item : node) object[item.first.Scalar()] = to_json(item.second);
      return object;
    }
    case YAML::NodeType::Sequence: {
      json array = json::array();
      for (const auto& item : node) array.push_back(to_json(item));
      return array;
    }
    case YAML::NodeType::Scalar: return scalar(node);
    default: return nullptr;
  }
}

template <typename Proto>
Status put(ConfigStore& store, XdsType type, const json& item, const std::string& place,
           const char* name_field) {
  Proto proto;
  const auto status = google::protobuf::util::JsonStringToMessage(item.dump(), &proto);
  if (!status.ok()) return bad(fmt::format("{}: {}", place, status.message().ToString()));
  const std::string name = item.value(name_field, "");
  if (const Status ok = store.put(type, name, proto.SerializeAsString()); !ok) {
    return bad(fmt::format("{}: {}", place, ok.error().detail));
  }
  return {};
}

Status put_item(ConfigStore& store, const std::string& kind, const json& item,
                const std::string& place) {
  if (!item.is_object()) return bad(fmt::format("{}: not an object", place));
  if (kind == "listeners") {
    return put<envoy::config::listener::v3::Listener>(store, XdsType::kListener, item, place,
                                                      "name");
  }
  if (kind == "clusters") {
    return put<envoy::config::cluster::v3::Cluster>(store, XdsType::kCluster, item, place, "name");
  }
  if (kind == "routes") {
    return put<envoy::config::route::v3::RouteConfiguration>(store, XdsType::kRoute, item, place,
                                                             "name");
  }
  if (kind == "endpoints") {
    return put<envoy::config::endpoint::v3::ClusterLoadAssignment>(store, XdsType::kEndpoints,
                                                                   item, place, "cluster_name");
  }
  return bad(fmt::format("{}: unknown section; use listeners, clusters, routes, endpoints", place));
}

}  // namespace

Status load_static_config(const std::string& text, const std::string& origin,
                          ConfigStore& store) {
  json root;
  try {
    root = to_json(YAML::Load(text));
  } catch (const YAML::Exception& e) {
    return bad(fmt::format("{}:{}: {}", origin, e.mark.line + 1, e.msg));
  }
  if (root.is_object() && root.size() == 1 && root.contains("static_resources")) {
    root = json(root["static_resources"]);
  }
  if (!root.is_object()) return bad(fmt::format("{}: no resources", origin));
  for (const auto& [kind, items] : root.items()) {
    for (size_t i = 0; i < items.size(); ++i) {
      const std::string place = fmt::format("{}: {}[{}]", origin, kind, i);
      MELTEMI_TRY(put_item(store, kind, items[i], place));
    }
  }
  return {};
}

Status read_static_config(const std::string& path, ConfigStore& store) {
  std::ifstream file(path);
  if (!file) return fail_errno(errno, path);
  std::stringstream text;
  text << file.rdbuf();
  return load_static_config(text.str(), path, store);
}

}  // namespace meltemi::waypoint
