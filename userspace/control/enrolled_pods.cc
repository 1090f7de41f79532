// See enrolled_pods.h.
#include "userspace/control/enrolled_pods.h"

#include <nlohmann/json.hpp>

#include "userspace/base/log.h"
#include "userspace/sys/files.h"

namespace meltemi::control {
namespace {

log::Scope scope("enrolled");

constexpr uint32_t kFileMode = 0644;

}  // namespace

EnrolledPods::EnrolledPods(std::string file) : file_(std::move(file)) {
  const auto bytes = sys::read_file(file_);
  if (!bytes) return;
  const auto root = nlohmann::json::parse(*bytes, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) {
    scope.warn("{} is not what was written there; waiting for the agents' reports", file_);
    return;
  }
  for (const auto& [node, uids] : root.items()) {
    if (!uids.is_array()) continue;
    for (const auto& uid : uids) {
      if (uid.is_string()) by_node_[node].insert(uid.get<std::string>());
    }
  }
}

bool EnrolledPods::set(const std::string& node, std::set<std::string> pod_uids) {
  auto& known = by_node_[node];
  if (known == pod_uids) return false;
  known = std::move(pod_uids);
  dirty_ = true;
  return true;
}

Status EnrolledPods::save(const std::set<std::string>& alive) {
  if (!dirty_) return {};
  nlohmann::json root = nlohmann::json::object();
  for (const auto& [node, uids] : by_node_) {
    auto& list = root[node] = nlohmann::json::array();
    for (const std::string& uid : uids) {
      if (alive.contains(uid)) list.push_back(uid);
    }
  }
  MELTEMI_TRY(sys::write_file_atomically(
      file_, root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace), kFileMode));
  dirty_ = false;
  return {};
}

}  // namespace meltemi::control
