// See enrolled_pods.h.
#include "userspace/control/enrolled_pods.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

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
      if (uid.is_string()) nodes_[node].enrolled.insert(uid.get<std::string>());
    }
  }
}

bool EnrolledPods::set(const std::string& node, ReportedPods report) {
  Node& known = nodes_[node];
  const bool plain_differs = known.reported.plain != report.plain;
  const size_t before = known.enrolled.size();
  known.enrolled.insert(report.enrolled.begin(), report.enrolled.end());
  known.reported = std::move(report);
  const bool grew = known.enrolled.size() != before;
  dirty_ |= grew;
  return grew || plain_differs;
}

std::set<std::string> EnrolledPods::count(
    const std::string& node, const std::function<bool(const std::string& uid)>& wanted) {
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return {};
  Node& known = found->second;
  const size_t left = std::erase_if(known.enrolled, [&](const std::string& uid) {
    if (!known.reported.plain.contains(uid)) return false;
    if (!wanted(uid)) return true;
    scope.debug("node {} calls pod {} plain; it was enrolled and is to be: peers keep to HBONE", node,
                uid);
    return false;
  });
  dirty_ |= left > 0;
  return known.enrolled;
}

std::set<std::string> EnrolledPods::disputed() const {
  std::set<std::string> out;
  for (const auto& [node, known] : nodes_) {
    const auto& plain = known.reported.plain;
    if (std::ranges::any_of(known.enrolled, [&](const auto& uid) { return plain.contains(uid); }))
      out.insert(node);
  }
  return out;
}

std::set<std::string> EnrolledPods::nodes() const {
  std::set<std::string> out;
  for (const auto& [node, known] : nodes_) out.insert(node);
  return out;
}

std::map<std::string, std::set<std::string>> EnrolledPods::by_node() const {
  std::map<std::string, std::set<std::string>> out;
  for (const auto& [node, known] : nodes_) out[node] = known.enrolled;
  return out;
}

Status EnrolledPods::save(const std::set<std::string>& alive) {
  if (!dirty_) return {};
  nlohmann::json root = nlohmann::json::object();
  for (auto& [node, known] : nodes_) {
    std::erase_if(known.enrolled, [&](const std::string& uid) {
      return !alive.contains(uid) && !known.reported.enrolled.contains(uid);
    });
    auto& list = root[node] = nlohmann::json::array();
    for (const std::string& uid : known.enrolled) {
      if (alive.contains(uid)) list.push_back(uid);
    }
  }
  MELTEMI_TRY(sys::write_file_atomically(
      file_, root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace), kFileMode));
  dirty_ = false;
  return {};
}

}  // namespace meltemi::control
