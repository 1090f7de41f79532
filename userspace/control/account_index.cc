// See account_index.h.
#include "userspace/control/account_index.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "userspace/base/log.h"
#include "userspace/sys/files.h"

namespace meltemi::control {
namespace {

log::Scope scope("accounts");

constexpr uint32_t kFileMode = 0644;

std::string key_of(std::string_view ns, std::string_view name) { return fmt::format("{}/{}", ns, name); }

}  // namespace

AccountIndex::AccountIndex(std::string file) : file_(std::move(file)) {
  if (::access(file_.c_str(), F_OK) != 0 && errno == ENOENT) return;
  const auto bytes = sys::read_file(file_);
  const auto root = bytes ? nlohmann::json::parse(*bytes, nullptr, /*allow_exceptions=*/false)
                          : nlohmann::json();
  if (!root.is_object()) {
    scope.error("{}: {}; service accounts that were deleted before this start are not known", file_,
                bytes ? "not what was written there" : bytes.error().to_string());
    return;
  }
  if (const auto there = root.find("there"); there != root.end() && there->is_object()) {
    for (const auto& [account, uid] : there->items()) {
      if (uid.is_string()) unseen_[account] = uid.get<std::string>();
    }
  }
  if (const auto gone = root.find("gone"); gone != root.end() && gone->is_array()) {
    for (const auto& account : *gone) {
      if (account.is_string()) bury(account.get<std::string>());
    }
  }
  dirty_ = false;
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
