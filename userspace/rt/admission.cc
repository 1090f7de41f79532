// See admission.h.
#include "userspace/rt/admission.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "userspace/base/log.h"
#include "userspace/rt/loop.h"

namespace meltemi::rt {
namespace {

log::Scope scope("admission");

constexpr Duration kLogPause = std::chrono::seconds(1);  // between two lines about one limit
constexpr int kMaxVictims = 8;    // that one newcomer may cost
constexpr int kMaxLookedAt = 64;  // established connections that are asked whether they are idle
constexpr uint64_t kLeavingPart = 16;  // of all descriptors, for those that were told to go
constexpr uint64_t kMaxDescriptors = 1 << 24;

// IPv4 as it is; of IPv6 the /64, which is the least that one host may be given.
IpAddress source_key(const IpAddress& ip) {
  if (ip.is_v4()) return ip;
  std::array<uint8_t, 16> bytes = ip.bytes();
  std::fill(bytes.begin() + 8, bytes.end(), 0);
  return *IpAddress::from_bytes(bytes);
}

enum Phase : uint8_t { kSilent, kHandshaking, kEstablished, kPhases };
// The four groups that a connection is counted in.
enum GroupKind : uint8_t { kAll, kOfClass, kOfPod, kOfSource, kGroups };

}  // namespace

uint64_t raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 1024;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) getrlimit(RLIMIT_NOFILE, &limit);
  return std::min<rlim_t>(limit.rlim_cur, kMaxDescriptors);
}

std::string_view to_string(GiveWay why) {
  switch (why) {
    case GiveWay::kRoom: return "idle or silent, and others need the room";
    case GiveWay::kFirstByte: return "nothing was sent in time";
    case GiveWay::kHandshake: return "the handshake took too long";
  }
  return "";
}

Reason reason_of(GiveWay why) {
  return why == GiveWay::kRoom ? Reason::kLimitExceeded : Reason::kIdleTimeout;
}

std::string_view to_string(Outcome outcome) {
  static constexpr std::array<std::string_view, kOutcomes> kNames = {
      "admitted", "class_limit",    "pod_share", "source_share",       "pending_handshakes",
      "total",    "handshake_rate", "gave_way",  "first_byte_timeout", "handshake_timeout"};
  return kNames[static_cast<size_t>(outcome)];
}

AdmissionOptions AdmissionOptions::for_limit(uint64_t limit) {
  AdmissionOptions o;
  // A sixteenth, but not less than a small process has open by itself and not more than a large
  // one.
  const uint64_t own = std::clamp<uint64_t>(limit / 16, 64, 512);
  o.descriptors = limit > own + 64 ? limit - own : 64;
  o.reserved = std::min<uint64_t>(o.reserved, o.descriptors / 4);
  o.pending = std::clamp<uint64_t>(o.descriptors / 4, 32, o.pending);
  return o;
}

uint64_t AdmissionOptions::with_room_for(uint64_t wanted) {
  return (wanted + AdmissionOptions().reserved) * kLeavingPart / (kLeavingPart - 1) + 1;
}

Post post_to(Loop& loop) {
  return [&loop](std::move_only_function<void()> fn) { loop.post(std::move(fn)); };
}

// --- what is counted ------------------------------------------------------------------------

struct Admission::Entry : std::enable_shared_from_this<Entry> {
  struct Hook {
    Entry* prev = nullptr;
    Entry* next = nullptr;
  };
  std::array<Group*, kGroups> groups{};
  std::array<Hook, kGroups> hooks;
  uint32_t class_index = 0;
  uint32_t descriptors = 1;
  Phase phase = kSilent;
  bool ended = false;  // told to go: counted as leaving
  MonoTime since{};    // when it entered its phase
  std::atomic<int64_t> idle_since{0};  // ns; 0: active
  std::atomic<bool> released{false};
  std::optional<GiveWay> untold;  // it has to go, and nobody is there yet to be told
  Post post;
  std::function<void(GiveWay)> fn;
};

// The connections of one class, pod or source, or all, by phase; the oldest first.
struct Admission::Group {
  Group(GroupKind kind, std::string name) : kind(kind), name(std::move(name)) {}

  struct List {
    Entry* head = nullptr;
    Entry* tail = nullptr;
  };
  void append(Entry& e) {
    List& list = lists[e.phase];
    Entry::Hook& hook = e.hooks[kind];
    hook = {list.tail, nullptr};
    (list.tail ? list.tail->hooks[kind].next : list.head) = &e;
    list.tail = &e;
  }
  void remove(Entry& e) {
    List& list = lists[e.phase];
    Entry::Hook& hook = e.hooks[kind];
    (hook.prev ? hook.prev->hooks[kind].next : list.head) = hook.next;
    (hook.next ? hook.next->hooks[kind].prev : list.tail) = hook.prev;
    hook = {};
  }
  // The established one that is idle longest among those in front; who was looked at goes to the
  // end, so that the next one is asked of others. nullptr: all work.
  Entry* idlest() {
    Entry* best = nullptr;
    int64_t best_since = 0;
    Entry* const last = lists[kEstablished].tail;
    for (int i = 0; i < kMaxLookedAt && last; ++i) {
      Entry* e = lists[kEstablished].head;
      const int64_t since = e->idle_since.load(std::memory_order_relaxed);
      if (since != 0 && (!best || since < best_since)) {
        best = e;
        best_since = since;
      }
      remove(*e);
      append(*e);
      if (e == last) break;
    }
    return best;
  }

  const GroupKind kind;
  const std::string name;
  std::array<List, kPhases> lists;
  uint64_t held = 0;     // descriptors
  uint64_t count = 0;    // connections
  uint64_t pending = 0;  // of them silent or in their handshake
  uint32_t deciding = 0;  // newcomers that hold a pointer to it and are not counted yet
};

struct Admission::Source : Group {
  explicit Source(const IpAddress& ip) : Group(kOfSource, ip.to_string()), ip(ip) {}
  const IpAddress ip;
  double tokens = 0;  // handshakes it may begin
  MonoTime refilled{};  // long ago: the bucket of a new source fills at its first handshake
  MonoTime left{};  // when its last connection went
  std::optional<std::list<IpAddress>::iterator> absent;
};

struct Admission::Class {
  explicit Class(ConnectionClass d)
      : description(std::move(d)), group(kOfClass, description.name) {}
  ConnectionClass description;
  Group group;
  std::array<uint64_t, kOutcomes> outcomes{};
};

// What is to be done once the lock is free.
struct Admission::Decision {
  MonoTime now{};
  std::vector<std::move_only_function<void()>> calls;
  std::vector<std::string> lines;
  int victims = 0;
};

Admission::Admission(const AdmissionOptions& options)
    : options_(options),
      all_(std::make_unique<Group>(kAll, "all")),
      own_(std::make_unique<Group>(kAll, "own")) {}

Admission::~Admission() { assert(all_->count == 0 && own_->count == 0); }

Admission::ClassId Admission::add_class(ConnectionClass description) {
  const std::lock_guard lock(mutex_);
  classes_.emplace_back(std::move(description));
  return ClassId(classes_.size() - 1);
}

void Admission::set_own_addresses(const std::vector<IpAddress>& addresses) {
  const std::lock_guard lock(mutex_);
  own_addresses_ = {addresses.begin(), addresses.end()};
}

// Room for those that were told to go and have not yet: their successors are in already.
uint64_t Admission::leaving_room() const { return options_.descriptors / kLeavingPart; }

uint64_t Admission::general() const {
  const uint64_t kept = options_.reserved + leaving_room();
  return options_.descriptors > kept ? options_.descriptors - kept : 0;
}

uint64_t Admission::free() const {
  const uint64_t used = all_->held + (leaving_ > leaving_room() ? leaving_ - leaving_room() : 0);
  return used < general() ? general() - used : 0;
}

uint64_t Admission::held() const {
  const std::lock_guard lock(mutex_);
  return all_->held + own_->held + leaving_;
}

uint64_t Admission::pending() const {
  const std::lock_guard lock(mutex_);
  return all_->pending + own_->pending;
}

std::vector<Admission::Row> Admission::rows() const {
  const std::lock_guard lock(mutex_);
  std::vector<Row> out;
  out.reserve(classes_.size());
  for (const Class& c : classes_) {
    out.push_back({c.description.name, c.group.count, c.outcomes});
  }
  return out;
}

bool Admission::is_own(const Class& cls, const Visitor& visitor) const {
  return cls.description.probes && visitor.source &&
         (visitor.source->is_loopback() || own_addresses_.contains(*visitor.source));
}

Admission::Group* Admission::pod_group(std::string_view pod) {
  if (pod.empty()) return nullptr;
  if (const auto it = pods_.find(pod); it != pods_.end()) return it->second.get();
  auto group = std::make_unique<Group>(kOfPod, std::string(pod));
  return pods_.emplace(group->name, std::move(group)).first->second.get();
}

Admission::Source* Admission::source_group(const std::optional<IpAddress>& ip) {
  if (!ip) return nullptr;
  const IpAddress key = source_key(*ip);
  std::unique_ptr<Source>& source = sources_[key];
  if (!source) source = std::make_unique<Source>(key);
  if (source->absent) absent_.erase(*source->absent);
  source->absent.reset();
  return source.get();
}

void Admission::enter(Entry& e) {
  const bool pending = e.phase != kEstablished;
  for (Group* g : e.groups) {
    if (!g) continue;
    g->append(e);
    g->held += e.descriptors;
    g->count += 1;
    g->pending += pending;
  }
}

void Admission::leave(Entry& e) {
  const bool pending = e.phase != kEstablished;
  for (Group* g : e.groups) {
    if (!g) continue;
    g->remove(e);
    g->held -= e.descriptors;
    g->count -= 1;
    g->pending -= pending;
  }
}

// Groups that are empty now are not kept; a source is, for a while, since its rate must not begin
// anew.
void Admission::forget(Entry& e, MonoTime now) {
  const auto empty = [](const Group* g) { return g && g->count == 0 && g->deciding == 0; };
  if (Group* pod = std::exchange(e.groups[kOfPod], nullptr); empty(pod)) {
    pods_.erase(pods_.find(pod->name));
  }
  Group* group = std::exchange(e.groups[kOfSource], nullptr);
  if (!empty(group)) return;
  auto& source = static_cast<Source&>(*group);
  source.left = now;
  source.absent = absent_.insert(absent_.end(), source.ip);
  if (sources_.size() <= options_.remembered_sources) return;
  sources_.erase(absent_.front());
  absent_.pop_front();
}

// --- in -------------------------------------------------------------------------------------

Result<Lease> Admission::admit(ClassId id, const Visitor& visitor, MonoTime now) {
  auto entry = std::make_shared<Entry>();
  Decision decision{.now = now};
  std::optional<Outcome> refused;
  std::string detail;
  {
    const std::lock_guard lock(mutex_);
    now_ = std::max(now_, now);
    introduce(*entry, id, visitor, now);
    refused = make_room(*entry, decision);
    for (Group* g : entry->groups) {
      if (g) --g->deciding;
    }
    if (refused) {
      note(*refused, *entry, now, decision);
      detail = whom(*refused, *entry);
      forget(*entry, now);
    } else {
      count(*entry, Outcome::kAdmitted);
      enter(*entry);
    }
  }
  act(decision);
  if (refused) {
    return fail(Reason::kLimitExceeded, Fault::kDownstream, std::move(detail), Retry::kSafe);
  }
  const bool established = entry->phase == kEstablished;
  return Lease(*this, std::move(entry), established);
}

// Finds the groups of a newcomer, which is not counted in them yet.
void Admission::introduce(Entry& e, ClassId id, const Visitor& visitor, MonoTime now) {
  Class& cls = classes_[static_cast<size_t>(id)];
  e.class_index = static_cast<uint32_t>(id);
  e.descriptors = cls.description.descriptors;
  e.phase = cls.description.starts_silent ? kSilent : kEstablished;
  e.since = now;
  if (is_own(cls, visitor)) {
    e.groups = {own_.get(), &cls.group, nullptr, nullptr};
  } else {
    e.groups = {all_.get(), &cls.group, pod_group(visitor.pod), source_group(visitor.source)};
  }
  for (Group* g : e.groups) {
    if (g) ++g->deciding;
  }
}

template <typename Fits>
std::optional<Outcome> Admission::make_room_in(Group& group, Fits&& fits, Outcome outcome,
                                               bool pending_only, Decision& d) {
  while (!fits()) {
    if (!give_way(group, pending_only, d)) return outcome;
  }
  return std::nullopt;
}

// Asks each limit in turn. The first that cannot be kept by sending somebody away is the answer.
std::optional<Outcome> Admission::make_room(Entry& e, Decision& d) {
  const uint64_t need = e.descriptors;
  if (e.groups[kAll] == own_.get()) {
    return make_room_in(
        *own_, [&] { return own_->held + need <= options_.reserved; }, Outcome::kTotal, false, d);
  }
  const uint64_t class_limit = classes_[e.class_index].description.limit;
  Group& cls = *e.groups[kOfClass];
  if (class_limit > 0) {
    const auto fits = [&] { return cls.count < class_limit; };
    if (auto no = make_room_in(cls, fits, Outcome::kClassLimit, false, d)) return no;
  }
  const auto share = [&](uint64_t left) { return std::max(options_.small_share, left); };
  for (const GroupKind kind : {kOfPod, kOfSource}) {
    Group* g = e.groups[kind];
    if (!g) continue;
    const auto fits = [&] { return g->held + need <= share(free()); };
    const Outcome outcome = kind == kOfPod ? Outcome::kPodShare : Outcome::kSourceShare;
    if (auto no = make_room_in(*g, fits, outcome, false, d)) return no;
  }
  if (e.phase != kEstablished) {
    const auto left = [&] {
      return all_->pending < options_.pending ? options_.pending - all_->pending : 0;
    };
    for (const GroupKind kind : {kOfPod, kOfSource}) {
      Group* g = e.groups[kind];
      if (!g) continue;
      const auto fits = [&] { return g->pending < share(left()); };
      if (auto no = make_room_in(*g, fits, Outcome::kPending, true, d)) return no;
    }
    const auto fits = [&] { return left() > 0; };
    if (auto no = make_room_in(*all_, fits, Outcome::kPending, true, d)) return no;
  }
  return make_room_in(*all_, [&] { return free() >= need; }, Outcome::kTotal, false, d);
}

bool Admission::give_way(Group& group, bool pending_only, Decision& d) {
  if (d.victims >= kMaxVictims) return false;
  Entry* victim = group.lists[kSilent].head;
  if (!victim) victim = group.lists[kHandshaking].head;
  if (!victim && !pending_only) victim = group.idlest();
  if (!victim) return false;
  ++d.victims;
  end(*victim, GiveWay::kRoom, Outcome::kGaveWay, d);
  return true;
}

// --- out ------------------------------------------------------------------------------------

// REQUIRES: not ended. It is out of all groups from now on; its owner closes it.
void Admission::end(Entry& e, GiveWay why, Outcome outcome, Decision& d) {
  note(outcome, e, d.now, d);
  leave(e);
  forget(e, d.now);
  e.ended = true;
  leaving_ += e.descriptors;
  if (!e.fn) {
    e.untold = why;
    return;
  }
  // The function stays with the entry, which the closure keeps: its owner may be gone by then.
  d.calls.push_back([post = e.post, entry = e.shared_from_this(), why]() mutable {
    post([entry = std::move(entry), why] {
      if (!entry->released.load(std::memory_order_acquire)) entry->fn(why);
    });
  });
}

void Admission::sweep(MonoTime now) {
  Decision d{.now = now};
  {
    const std::lock_guard lock(mutex_);
    now_ = std::max(now_, now);
    for (Group* g : {all_.get(), own_.get()}) {
      for (Entry* e; (e = g->lists[kSilent].head) && e->since + options_.first_byte <= now;) {
        end(*e, GiveWay::kFirstByte, Outcome::kFirstByte, d);
      }
      for (Entry* e; (e = g->lists[kHandshaking].head) && e->since + options_.handshake <= now;) {
        end(*e, GiveWay::kHandshake, Outcome::kHandshake, d);
      }
    }
    const Duration full = std::chrono::duration_cast<Duration>(
        std::chrono::duration<double>(options_.handshake_burst / options_.handshake_rate));
    while (!absent_.empty() && sources_.at(absent_.front())->left + full <= now) {
      sources_.erase(absent_.front());
      absent_.pop_front();
    }
  }
  act(d);
}

void Admission::act(Decision& d) {
  for (const std::string& line : d.lines) scope.warn("{}", line);
  for (auto& call : d.calls) call();
}

void Admission::count(const Entry& e, Outcome outcome) {
  classes_[e.class_index].outcomes[static_cast<size_t>(outcome)] += 1;
}

// Counts, and says it once a second for each kind.
void Admission::note(Outcome outcome, const Entry& e, MonoTime now, Decision& d) {
  count(e, outcome);
  LogState& state = logged_[static_cast<size_t>(outcome)];
  if (now < state.next) {
    ++state.unsaid;
    return;
  }
  state.next = now + kLogPause;
  d.lines.push_back(whom(outcome, e));
  if (const uint64_t unsaid = std::exchange(state.unsaid, 0)) {
    d.lines.back() += fmt::format("; {} more since the last line", unsaid);
  }
}

std::string Admission::whom(Outcome outcome, const Entry& e) const {
  const Group* source = e.groups[kOfSource];
  const Group* pod = e.groups[kOfPod];
  std::string out = fmt::format("{}: {} connection", to_string(outcome),
                                classes_[e.class_index].description.name);
  if (e.groups[kAll] == own_.get()) out += " of the node itself";
  if (source) out += fmt::format(" from {} (holds {})", source->name, source->held);
  if (pod) out += fmt::format(" of pod {} (holds {})", pod->name, pod->held);
  return out + fmt::format("; {} of {} descriptors are in use", all_->held, general());
}

// --- leases ---------------------------------------------------------------------------------

// A token bucket.
bool Admission::take_handshake(Source* source, MonoTime now) {
  if (!source) return true;
  const double elapsed =
      std::max(0.0, std::chrono::duration<double>(now - source->refilled).count());
  source->tokens = std::min(options_.handshake_burst,
                            source->tokens + elapsed * options_.handshake_rate);
  source->refilled = now;
  if (source->tokens < 1) return false;
  source->tokens -= 1;
  return true;
}

bool Admission::handshaking(Entry& e, MonoTime now) {
  Decision d{.now = now};
  bool allowed = true;
  {
    const std::lock_guard lock(mutex_);
    if (e.ended || e.phase != kSilent) return true;
    allowed = take_handshake(static_cast<Source*>(e.groups[kOfSource]), now);
    if (allowed) {
      leave(e);
      e.phase = kHandshaking;
      e.since = now;
      enter(e);
    } else {
      note(Outcome::kHandshakeRate, e, now, d);
    }
  }
  act(d);
  return allowed;
}

void Admission::established(Entry& e) {
  const std::lock_guard lock(mutex_);
  if (e.ended || e.phase == kEstablished) return;
  leave(e);
  e.phase = kEstablished;
  enter(e);
}

void Admission::on_give_way(Entry& e, Post post, std::function<void(GiveWay)> fn) {
  std::optional<GiveWay> why;
  {
    const std::lock_guard lock(mutex_);
    e.post = std::move(post);
    e.fn = std::move(fn);
    why = std::exchange(e.untold, std::nullopt);
  }
  if (!why) return;
  e.post([entry = e.shared_from_this(), why = *why] {
    if (!entry->released.load(std::memory_order_acquire)) entry->fn(why);
  });
}

void Admission::release(Entry& e) {
  e.released.store(true, std::memory_order_release);
  const std::lock_guard lock(mutex_);
  if (e.ended) {
    leaving_ -= e.descriptors;
    return;
  }
  leave(e);
  forget(e, now_);
}

Lease::Lease(Admission& admission, std::shared_ptr<Admission::Entry> entry, bool established)
    : admission_(&admission), entry_(std::move(entry)), established_(established) {}

Lease::Lease(Lease&& other) noexcept
    : admission_(other.admission_),
      entry_(std::move(other.entry_)),
      established_(other.established_) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    release();
    admission_ = other.admission_;
    entry_ = std::move(other.entry_);
    established_ = other.established_;
  }
  return *this;
}

void Lease::release() {
  if (const auto entry = std::exchange(entry_, nullptr)) admission_->release(*entry);
}

void Lease::on_give_way(Post post, std::function<void(GiveWay)> fn) {
  if (entry_) admission_->on_give_way(*entry_, std::move(post), std::move(fn));
}

bool Lease::handshaking(MonoTime now) {
  return !entry_ || established_ || admission_->handshaking(*entry_, now);
}

void Lease::establish() {
  if (std::exchange(established_, true)) return;
  admission_->established(*entry_);
}

void Lease::active() {
  if (!entry_) return;
  entry_->idle_since.store(0, std::memory_order_relaxed);
  establish();
}

void Lease::idle(MonoTime now) {
  if (!entry_) return;
  entry_->idle_since.store(std::max<int64_t>(1, now.time_since_epoch().count()),
                           std::memory_order_relaxed);
  establish();
}

}  // namespace meltemi::rt
