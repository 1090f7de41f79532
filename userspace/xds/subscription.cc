// See subscription.h.
#include "userspace/xds/subscription.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace meltemi::xds {
namespace {

constexpr size_t kMaxNackKept = 2048;  // bytes of a client's message

}  // namespace

// Collects one response: shared slices for what is there, names for what is gone.
class Subscription::Builder {
 public:
  // `kept`, if not null, takes the names that the walk finds gone.
  explicit Builder(const Subscription& about, std::set<std::string>* kept = nullptr)
      : about_(about), kept_(kept) {}

  void add(const ResourceTable::Row& row) {
    out_.bytes += row.resource.wire.size();
    ++out_.resources;
    out_.slices.push_back(row.resource.wire);
  }
  void add(const ResourceTable::Row& row, const std::string& name) {
    out_.slices.push_back(renamed(row.resource, name));
    out_.bytes += out_.slices.back().size();
    ++out_.resources;
  }
  void remove(const std::string& name) {
    head_.add_removed_resources(name);
    ++out_.removed;
  }
  void gone(const std::string& name) {
    if (kept_) {
      kept_->insert(name);
    } else {
      remove(name);
    }
  }
  size_t bytes() const { return out_.bytes; }
  bool empty() const { return out_.resources == 0 && out_.removed == 0; }

  NextResponse take(uint64_t number, uint64_t version) {
    head_.set_type_url(about_.type_url_);
    head_.set_nonce(std::to_string(number));
    head_.set_system_version_info(std::to_string(version));
    const std::string head = head_.SerializeAsString();
    out_.bytes += head.size();
    out_.slices.insert(out_.slices.begin(), grpc::Slice(head));
    return std::move(out_);
  }

 private:
  const Subscription& about_;
  std::set<std::string>* const kept_;
  envoy::service::discovery::v3::DeltaDiscoveryResponse head_;
  NextResponse out_;
};

Subscription::Subscription(std::string type_url, std::string scope,
                           std::shared_ptr<ResourceTable> table)
    : type_url_(std::move(type_url)),
      scope_(std::move(scope)),
      table_(std::move(table)),
      position_(table_->add_cursor()) {}

void Subscription::subscribe(const std::string& name, bool first) {
  if (name == "*") {
    wildcard_ = true;
    return;
  }
  names_.insert(name);
  // What is asked for again is sent again, even if the client had it (it may have dropped it).
  if (!first) initial_.erase(name);
  unanswered_.insert(name);
}

void Subscription::follow(const std::string& alias) {
  names_.insert(alias);
  followed_.insert(alias);
  unanswered_.insert(alias);
}

Status Subscription::apply(const Request& request, bool first, size_t max_names) {
  if (!request.response_nonce().empty()) {
    if (request.has_error_detail()) {
      ++nacked_;
      last_nack_ = request.error_detail().message().substr(0, kMaxNackKept);
    } else {
      ++acked_;
    }
  }
  const bool legacy_wildcard = first && request.resource_names_subscribe().empty();
  if (first) {
    for (const auto& [name, version] : request.initial_resource_versions()) {
      initial_.emplace(name, version);
    }
  }
  if (legacy_wildcard) wildcard_ = true;
  for (const std::string& name : request.resource_names_subscribe()) subscribe(name, first);
  for (const std::string& name : request.resource_names_unsubscribe()) {
    if (name == "*") wildcard_ = false;
    names_.erase(name);
    unanswered_.erase(name);
  }
  if (first && wildcard_) owes_first_ = true;
  // On demand, as ztunnel opens it: "*" and at once not. What it had before it still wants.
  const auto& wanted = request.resource_names_subscribe();
  if (first && !wildcard_ && std::ranges::find(wanted, "*") != wanted.end()) {
    for (const auto& [name, version] : request.initial_resource_versions()) subscribe(name, true);
  }
  if (names_.size() + initial_.size() > max_names) {
    return fail(Reason::kLimitExceeded, Fault::kDownstream,
                fmt::format("more than {} names on one stream", max_names));
  }
  return {};
}

bool Subscription::wants(const std::string& name, const ResourceTable::Row& row) const {
  return wildcard_ || names_.contains(name) ||
         std::ranges::any_of(row.aliases, [&](const std::string& a) { return names_.contains(a); });
}

// True if the row is there.
bool Subscription::answer_name(const std::string& name, const ResourceTable::Row& row,
                               Builder& out) {
  const auto had = initial_.find(name);
  const bool known = had != initial_.end();
  if (row.live && (!known || had->second != row.resource.version)) out.add(row);
  if (known) initial_.erase(had);
  return row.live;
}

// What is called so or is part of it: told under its own name, which is subscribed from now on, and
// under the name that was asked for, since that is what the client waits to hear of.
void Subscription::answer_members(const std::string& alias, bool told, Builder& out) {
  bool found = told || followed_.contains(alias);
  for (const std::string& name : table_->named(alias)) {
    const ResourceTable::Row& row = *table_->find(name);
    if (!row.live) continue;
    if (!std::exchange(found, true)) out.add(row, alias);
    if (names_.insert(name).second) unanswered_.insert(name);
  }
  if (!found) out.remove(alias);
}

void Subscription::answer_names(Builder& out) {
  // Answers may ask for more: an address leads to a service, and that to its workloads.
  while (!unanswered_.empty()) {
    const std::string name = *unanswered_.begin();
    unanswered_.erase(unanswered_.begin());
    const ResourceTable::Row* row = table_->find(name);
    const bool there = row != nullptr && answer_name(name, *row, out);
    if (!there || !table_->named(name).empty()) answer_members(name, there, out);
    initial_.erase(name);
  }
}

void Subscription::walk(Builder& out, size_t target_bytes) {
  uint64_t position = position_->load();
  for (auto it = table_->after(position); it != table_->end(); ++it) {
    if (out.bytes() >= target_bytes) break;
    position = it->first;
    const auto& [name, row] = *it->second;
    if (!wants(name, row)) continue;
    if (!wildcard_) names_.insert(name);
    const auto had = initial_.find(name);
    const bool known = had != initial_.end();
    if (row.live) {
      if (!known || had->second != row.resource.version) out.add(row);
    } else if (known || initial_done_) {
      out.gone(name);
    }
    if (known) initial_.erase(had);
  }
  position_->store(position);
  if (!initial_done_ && position == table_->latest()) finish_initial(out);
}

// Whatever the client has that the table has never heard of is gone.
void Subscription::finish_initial(Builder& out) {
  initial_done_ = true;
  if (wildcard_) {
    for (const auto& [name, version] : initial_) out.gone(name);
  }
  initial_.clear();
}

std::optional<NextResponse> Subscription::next(size_t target_bytes, bool keep_removals) {
  Builder out(*this, keep_removals ? &gone_ : nullptr);
  if (wildcard_) {
    unanswered_.clear();
    walk(out, target_bytes);
  } else {
    // Names first: what they bring must not come a second time from the walk.
    const bool pending = !unanswered_.empty();
    if (pending) {
      answer_names(out);
      if (!initial_done_) {
        position_->store(table_->latest());
        initial_done_ = true;
        initial_.clear();
      }
    } else {
      if (!initial_done_) return std::nullopt;
      walk(out, target_bytes);
    }
  }
  if (out.empty() && !owes_first_) return std::nullopt;
  owes_first_ = false;
  return out.take(++sent_, table_->latest());
}

std::optional<NextResponse> Subscription::next_removals() {
  Builder out(*this);
  for (const std::string& name : std::exchange(gone_, {})) {
    const ResourceTable::Row* row = table_->find(name);
    const bool wanted = wildcard_ || names_.contains(name);
    if (wanted && (row == nullptr || !row->live)) out.remove(name);
  }
  if (out.empty()) return std::nullopt;
  return out.take(++sent_, table_->latest());
}

bool Subscription::current() const {
  return unanswered_.empty() && gone_.empty() && !owes_first_ && position_->load() == table_->latest() &&
         acked_ + nacked_ == sent_;
}

}  // namespace meltemi::xds
