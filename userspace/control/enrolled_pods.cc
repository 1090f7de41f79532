// See enrolled_pods.h.
#include "userspace/control/enrolled_pods.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "userspace/base/log.h"
#include "userspace/sys/files.h"
#include "userspace/sys/own_file.h"

namespace meltemi::control {
namespace {

log::Scope scope("enrolled");

constexpr uint32_t kFileMode = 0644;
constexpr size_t kMaxFile = 64u << 20;  // 40 bytes a pod

}  // namespace

EnrolledPods::EnrolledPods(std::string file) : file_(std::move(file)) {
  const Status loaded = load();
  if (loaded) return;
  lost_ = true;
  unread_ = loaded.error().reason == Reason::kSystem;
  problem_ = fmt::format("{}: {}; pods that are to be enrolled count as enrolled until their agents report",
                         file_, loaded.error().detail);
  if (!unread_) {
    const auto aside = sys::keep_aside(file_);
    unread_ = !aside;
    problem_ += aside ? "; it lies at " + *aside : "; " + aside.error().detail;
  }
  scope.error("{}", problem_);
}

// Adds what the file says. None: nothing. Errors: kBadConfig: damaged; kSystem: it cannot be read now.
Status EnrolledPods::load() {
  const auto read = sys::read_own_file(file_, kMaxFile);
  if (!read && read.error().reason == Reason::kNotFound) return {};
  if (!read) return fail(read.error());
  const auto root = nlohmann::json::parse(read->content, nullptr, /*allow_exceptions=*/false);
  const auto is_list = [](const auto& uids) {
    return uids.is_array() &&
           std::ranges::all_of(uids, [](const auto& uid) { return uid.is_string(); });
  };
  if (!root.is_object() || !std::ranges::all_of(root, is_list))
    return fail(Reason::kBadConfig, Fault::kInternal, "not what was written there");
  for (const auto& [node, uids] : root.items()) {
    for (const auto& uid : uids) nodes_[node].enrolled.insert(uid.template get<std::string>());
  }
  return {};
}

bool EnrolledPods::lost(const std::string& node) const {
  if (!lost_) return false;
  const auto found = nodes_.find(node);
  return found == nodes_.end() || !found->second.spoken;
}

void EnrolledPods::presume(const std::string& node, std::set<std::string> uids) {
  if (lost(node)) nodes_[node].presumed = std::move(uids);
}

bool EnrolledPods::set(const std::string& node, ReportedPods report) {
  Node& known = nodes_[node];
  const bool first = !std::exchange(known.spoken, true) && !known.presumed.empty();
  for (const std::string& uid : std::exchange(known.presumed, {})) {
    if (!report.plain.contains(uid)) known.enrolled.insert(uid);
  }
  const bool plain_differs = known.reported.plain != report.plain;
  const size_t before = known.enrolled.size();
  known.enrolled.insert(report.enrolled.begin(), report.enrolled.end());
  known.reported = std::move(report);
  const bool grew = known.enrolled.size() != before;
  dirty_ |= grew;
  return grew || plain_differs || first;
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
  std::set<std::string> out = known.enrolled;
  out.insert(known.presumed.begin(), known.presumed.end());
  return out;
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

std::map<std::string, std::set<std::string>> EnrolledPods::by_node() const {
  std::map<std::string, std::set<std::string>> out;
  for (const auto& [node, known] : nodes_) out[node] = known.enrolled;
  return out;
}

Status EnrolledPods::save(const std::set<std::string>& alive) {
  if (!dirty_) return {};
  const Status written = write(alive);
  const std::string trouble = written ? "" : written.error().to_string();
  if (trouble.empty() == trouble_.empty()) return written;
  trouble_ = trouble;
  if (written)
    scope.info("{} is written again", file_);
  else
    scope.error("enrolled pods are not kept: {}; tried again while this process runs", trouble);
  return written;
}

Status EnrolledPods::write(const std::set<std::string>& alive) {
  if (unread_) {  // what is known without it may be less
    MELTEMI_TRY(load());
    unread_ = false;
    problem_.clear();
    scope.info("{} is read now", file_);
  }
  nlohmann::json root = nlohmann::json::object();
  for (auto& [node, known] : nodes_) {
    std::erase_if(known.enrolled, [&](const std::string& uid) {
      return !alive.contains(uid) && !known.reported.enrolled.contains(uid);
    });
    auto& list = root[node] = nlohmann::json::array();
    for (const std::string& uid : known.enrolled) {
      if (alive.contains(uid)) list.push_back(uid);
    }
    for (const std::string& uid : known.presumed) list.push_back(uid);
  }
  MELTEMI_TRY(sys::write_file_atomically(
      file_, root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace), kFileMode));
  dirty_ = false;
  return {};
}

}  // namespace meltemi::control
