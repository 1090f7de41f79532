// See account_index.h.
#include "userspace/control/account_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "userspace/base/log.h"
#include "userspace/sys/files.h"
#include "userspace/sys/own_file.h"

namespace meltemi::control {
namespace {

log::Scope scope("accounts");

constexpr uint32_t kFileMode = 0644;
constexpr size_t kMaxFile = 64u << 20;  // 10,000 deleted accounts and as many living ones take 2 MB

std::string key_of(std::string_view ns, std::string_view name) { return fmt::format("{}/{}", ns, name); }

}  // namespace

Result<AccountIndex::File> AccountIndex::parse(const std::string& bytes) {
  const auto root = nlohmann::json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  const auto bad = [] { return fail(Reason::kBadConfig, Fault::kInternal, "not what was written there"); };
  File out;
  if (!root.is_object() || !root.contains("there") || !root["there"].is_object() ||
      !root.contains("gone") || !root["gone"].is_array())
    return bad();
  for (const auto& [account, uid] : root["there"].items()) {
    if (!uid.is_string()) return bad();
    out.there[account] = uid.get<std::string>();
  }
  for (const auto& account : root["gone"]) {
    if (!account.is_string()) return bad();
    out.gone.push_back(account.get<std::string>());
  }
  return out;
}

AccountIndex::AccountIndex(std::string file) : file_(std::move(file)) {
  load();
  if (problem_.empty()) dirty_ = false;
}

// Returns whether it is known now what the file says. REQUIRES the lock, or that nobody else is there.
bool AccountIndex::load() {
  const auto read = sys::read_own_file(file_, kMaxFile);
  auto kept = read ? parse(read->content) : Result<File>(fail(read.error()));
  unread_ = !kept && kept.error().reason == Reason::kSystem;
  std::string problem;
  if (kept) {
    for (const std::string& account : kept->gone) {
      if (!there_.contains(account)) bury(account);
    }
    for (const auto& [account, uid] : kept->there) {
      if (!complete_) {
        if (!there_.contains(account)) unseen_[account] = uid;
      } else if (!there_.contains(account)) {
        bury(account);
      }
    }
  } else if (unread_) {
    problem = fmt::format("{} cannot be read now: {}; service accounts that nobody declares are refused "
                          "until it is known which were deleted. Move it away to go on without it",
                          file_, kept.error().detail);
    dirty_ = true;  // so that it is looked at again
  } else if (kept.error().reason != Reason::kNotFound) {
    const auto aside = sys::keep_aside(file_);
    unread_ = !aside;
    problem = fmt::format("{}: {}; which service accounts were deleted before this start is not known ({})",
                          file_, kept.error().detail,
                          aside ? "it lies at " + *aside : aside.error().detail);
    dirty_ = true;
  }
  if (!problem.empty() && problem != problem_) scope.error("{}", problem);
  if (problem.empty() && !problem_.empty()) scope.info("{} is read now", file_);
  problem_ = problem;
  return !unread_;
}

bool AccountIndex::read_late() {
  const std::unique_lock lock(mutex_);
  return unread_ && load();
}

std::string AccountIndex::problem() const {
  const std::shared_lock lock(mutex_);
  return problem_;
}

void AccountIndex::forget(const std::string& account) { std::erase(gone_, account); }

void AccountIndex::bury(const std::string& account) {
  forget(account);
  gone_.push_back(account);
  if (gone_.size() > kMaxGoneAccounts) {
    scope.warn("more than {} service accounts were deleted: {} is forgotten, and counts as one that was "
               "never declared", kMaxGoneAccounts, gone_.front());
    gone_.pop_front();
  }
  dirty_ = true;
}

bool AccountIndex::apply(const std::vector<config::ObjectChange>& changes) {
  bool any = false;
  const std::unique_lock lock(mutex_);
  for (const config::ObjectChange& change : changes) {
    if (change.key.kind != config::Kind::kServiceAccount) continue;
    const std::string account = key_of(change.key.ns, change.key.name);
    unseen_.erase(account);
    if (change.after == nullptr) {
      there_.erase(account);
      bury(account);
      scope.info("service account {} was deleted: what rests on it ends", account);
      any = true;
      continue;
    }
    const std::string& uid = change.after->meta().uid();
    const auto known = there_.find(account);
    if (known != there_.end() && known->second == uid) continue;
    there_[account] = uid;
    forget(account);
    dirty_ = any = true;
  }
  return any;
}

bool AccountIndex::complete() {
  const std::unique_lock lock(mutex_);
  if (std::exchange(complete_, true)) return false;
  for (const auto& [account, uid] : unseen_) {
    bury(account);
    scope.info("service account {} was deleted while this process did not run", account);
  }
  return !std::exchange(unseen_, {}).empty();
}

Status AccountIndex::still_there(std::string_view ns, std::string_view name,
                                 std::string_view uid) const {
  const std::string account = key_of(ns, name);
  const auto gone = [&](std::string_view how) {
    return fail(Reason::kPermission, Fault::kDownstream,
                fmt::format("service account {} {}", account, how));
  };
  const std::shared_lock lock(mutex_);
  if (const auto known = there_.find(account); known != there_.end()) {
    if (uid.empty() || known->second.empty() || known->second == uid) return {};
    return gone("is another one than the token was made for");
  }
  if (std::ranges::find(gone_, account) != gone_.end()) return gone("was deleted");
  if (unread_)
    return fail(Reason::kShutdown, Fault::kInternal,
                fmt::format("whether service account {} was deleted is not known now", account),
                Retry::kSafe);
  return {};
}

size_t AccountIndex::gone() const {
  const std::shared_lock lock(mutex_);
  return gone_.size();
}

bool AccountIndex::dirty() const {
  const std::shared_lock lock(mutex_);
  return dirty_;
}

Status AccountIndex::save() {
  nlohmann::json root;
  {
    const std::unique_lock lock(mutex_);
    if (unread_) return fail(Reason::kSystem, Fault::kInternal, problem_);
    if (!dirty_ || !complete_) return {};  // half of the configuration says nothing about the other
    root = {{"there", there_}, {"gone", gone_}};
    dirty_ = false;
  }
  const Status written = sys::write_file_atomically(
      file_, root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace), kFileMode);
  const std::string trouble = written ? "" : written.error().to_string();
  const std::unique_lock lock(mutex_);
  if (!written) dirty_ = true;
  if (trouble.empty() == trouble_.empty()) return written;
  trouble_ = trouble;
  if (!written) scope.error("deleted service accounts are not kept: {}", trouble);
  return written;
}

}  // namespace meltemi::control
