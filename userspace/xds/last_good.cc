// See last_good.h. The file, integers big endian:
//
//   8 bytes  "MELTEMI\n"
//   4 bytes  format, kFormat
//   4 bytes  CRC-32C of the payload
//   8 bytes  length of the payload
//   payload  subscriber, node, cluster, trust domain; number of types; for each its URL, the number of
//            its resources, and for each name, version, body. Numbers take 4 bytes, strings are their
//            length (4 bytes) and their bytes.
#include "userspace/xds/last_good.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "userspace/base/config.h"
#include "userspace/base/crc32c.h"
#include "userspace/base/log.h"
#include "userspace/sys/files.h"
#include "userspace/sys/own_file.h"

namespace meltemi::xds {
namespace {

log::Scope scope("state");

constexpr std::string_view kMagic = "MELTEMI\n";
constexpr uint32_t kFormat = 1;
constexpr size_t kHeader = 24;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kInternal, std::move(detail));
}

template <typename T>
void put(std::string& out, T value) {
  uint8_t bytes[sizeof value];
  store_be(bytes, value);
  out.append(reinterpret_cast<const char*>(bytes), sizeof bytes);
}

void put(std::string& out, std::string_view text) {
  put(out, static_cast<uint32_t>(text.size()));
  out += text;
}

// Reads forward; the first read past the end makes all that follow fail.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  uint32_t number() {
    if (rest_.size() < 4) return broken();
    const uint32_t value = load_be<uint32_t>(as_bytes(rest_).data());
    rest_.remove_prefix(4);
    return value;
  }
  std::string_view text(size_t limit) {
    const uint32_t size = number();
    if (size > limit || size > rest_.size()) return broken(), std::string_view();
    const std::string_view out = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return out;
  }
  bool good() const { return good_; }
  bool done() const { return good_ && rest_.empty(); }

 private:
  uint32_t broken() {
    good_ = false;
    rest_ = {};
    return 0;
  }
  std::string_view rest_;
  bool good_ = true;
};

constexpr std::pair<std::string_view, std::string StateOwner::*> kOwnerFields[] = {
    {"subscriber", &StateOwner::subscriber},
    {"node", &StateOwner::node},
    {"cluster", &StateOwner::cluster},
    {"trust domain", &StateOwner::trust_domain}};

Status read_owner(Reader& in, const StateOwner& owner) {
  for (const auto& [label, field] : kOwnerFields) {
    const std::string_view found = in.text(kMaxStateName);
    if (!in.good()) break;
    if (found != owner.*field) {
      return bad(fmt::format("it is of {} \"{}\", not \"{}\"", label, log::escape(found),
                             owner.*field));
    }
  }
  return {};
}

Result<std::string_view> payload_of(std::string_view bytes) {
  if (bytes.empty()) return bad("it is empty");
  if (bytes.size() < kHeader || !bytes.starts_with(kMagic)) return bad("it is no state file");
  const uint8_t* p = as_bytes(bytes).data();
  const auto format = load_be<uint32_t>(p + 8);
  if (format != kFormat) {
    return bad(fmt::format("its format is {}, this binary reads {}", format, kFormat));
  }
  const std::string_view payload = bytes.substr(kHeader);
  const auto length = load_be<uint64_t>(p + 16);
  if (length != payload.size()) {
    return bad(fmt::format("it is cut short or too long: {} bytes of {}", payload.size(), length));
  }
  if (load_be<uint32_t>(p + 12) != crc32c(payload)) return bad("its checksum does not fit");
  return payload;
}

}  // namespace

std::string encode_state(const StateOwner& owner, const SavedTypes& types) {
  size_t size = 1024;
  for (const auto& [url, resources] : types) {
    for (const auto& [name, r] : resources) {
      size += 12 + name.size() + r->version.size() + r->body.size();
    }
  }
  std::string out;
  out.reserve(size);
  for (const auto& [label, field] : kOwnerFields) put(out, std::string_view(owner.*field));
  put(out, static_cast<uint32_t>(types.size()));
  for (const auto& [url, resources] : types) {
    put(out, std::string_view(url));
    put(out, static_cast<uint32_t>(resources.size()));
    for (const auto& [name, r] : resources) {
      put(out, std::string_view(name));
      put(out, std::string_view(r->version));
      put(out, std::string_view(r->body));
    }
  }
  return seal_state(out);
}

std::string seal_state(std::string_view payload) {
  std::string out;
  out.reserve(kHeader + payload.size());
  out += kMagic;
  put(out, kFormat);
  put(out, crc32c(payload));
  put(out, static_cast<uint64_t>(payload.size()));
  out += payload;
  return out;
}

Result<SavedTypes> decode_state(std::string_view bytes, const StateOwner& owner) {
  if (bytes.size() > kMaxStateBytes) return bad("it is too large");
  Reader in(MELTEMI_TRY(payload_of(bytes)));
  MELTEMI_TRY(read_owner(in, owner));
  SavedTypes out;
  const uint32_t types = in.number();
  if (types > kMaxStateTypes) return bad(fmt::format("it names {} types", types));
  for (uint32_t t = 0; t < types && in.good(); ++t) {
    SavedResources& resources = out[std::string(in.text(kMaxStateName))];
    const uint32_t count = in.number();
    for (uint32_t i = 0; i < count && in.good(); ++i) {
      const std::string name(in.text(kMaxStateName));
      std::string version(in.text(kMaxStateName));
      const std::string_view body = in.text(kMaxStateBytes);
      resources[name] = std::make_shared<SavedResource>(std::move(version), std::string(body));
    }
  }
  if (!in.done()) return bad("its fields do not fill it");
  return out;
}

LastGood::LastGood(LastGoodOptions options) : options_(std::move(options)) {}

LastGood::~LastGood() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

Result<LastGood::Loaded> LastGood::read() const {
  sys::OwnFile file = MELTEMI_TRY(sys::read_own_file(options_.path, kMaxStateBytes));
  Loaded out{.types = {}, .last_word = file.changed};
  const Duration age = options_.now() - out.last_word;
  if (options_.max_age > Duration::zero() && age > options_.max_age) {
    return fail(Reason::kLimitExceeded, Fault::kConfig,
                fmt::format("the control plane's last word in it is {} old, max-stale-age is {}: "
                            "it is not used, and nothing is served until the control plane answers",
                            format_duration(std::chrono::floor<std::chrono::seconds>(age)),
                            format_duration(options_.max_age)));
  }
  out.types = MELTEMI_TRY(decode_state(file.content, options_.owner));
  return out;
}

Result<LastGood::Loaded> LastGood::load() {
  auto loaded = read();
  const std::lock_guard lock(mutex_);
  settle(loaded);
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  return loaded;
}

// What an attempt to read means for the file and for what is known.
void LastGood::settle(Result<Loaded>& loaded) {
  if (loaded) {
    std::erase_if(loaded->types, [&](const auto& type) { return types_.contains(type.first); });
    types_.insert(loaded->types.begin(), loaded->types.end());
    if (last_word_ == WallTime()) last_word_ = loaded->last_word;
    if (std::exchange(unread_since_, std::nullopt)) scope.info("{} is read now", options_.path);
    return;
  }
  const Error& why = loaded.error();
  if (why.reason == Reason::kSystem) {
    const MonoTime now = MonoClock::now();
    if (!unread_since_) {
      unread_since_ = now;
      scope.error("{} cannot be read now: {}; it is tried again, and not written over", options_.path,
                  why.detail);
    }
    if (now - *unread_since_ < kUnreadPatience) return;
  }
  unread_since_.reset();
  if (why.reason == Reason::kNotFound) {
    scope.info("{}: {} yet", options_.path, why.detail);
  } else if (why.reason == Reason::kLimitExceeded) {
    scope.error("{}: {}", options_.path, why.detail);
  } else {
    const auto aside = sys::set_aside(options_.path);
    scope.error("{} is refused: {}; {}", options_.path, why.detail,
                aside ? "moved to " + *aside : aside.error().detail);
  }
}

bool LastGood::unread() const {
  const std::lock_guard lock(mutex_);
  return unread_since_.has_value();
}

void LastGood::set(std::string_view type_url, std::string_view name,
                   std::shared_ptr<const SavedResource> resource) {
  const std::lock_guard lock(mutex_);
  SavedResources& resources = types_[std::string(type_url)];
  if (resource != nullptr) {
    resources[std::string(name)] = std::move(resource);
  } else if (const auto it = resources.find(name); it != resources.end()) {
    resources.erase(it);
  }
  changed();
}

void LastGood::answered(std::string_view type_url) {
  const std::lock_guard lock(mutex_);
  if (types_.try_emplace(std::string(type_url)).second) changed();
  last_word_ = options_.now();
}

void LastGood::retain(std::string_view type_url,
                      const std::function<bool(const std::string&)>& keep) {
  const std::lock_guard lock(mutex_);
  const auto type = types_.find(type_url);
  if (type == types_.end()) return;
  if (std::erase_if(type->second, [&](const auto& entry) { return !keep(entry.first); }) > 0) {
    changed();
  }
}

void LastGood::changed() {
  if (!std::exchange(dirty_, true)) wake_.notify_one();
}

void LastGood::set_connected(bool connected) {
  const std::lock_guard lock(mutex_);
  if (connected || connected_) last_word_ = options_.now();
  connected_ = connected;
}

void LastGood::flush() {
  std::unique_lock lock(mutex_);
  urgent_ = true;
  wake_.notify_one();
  // What is being saved now may lack the newest change.
  const uint64_t enough = attempts_ + (saving_ ? 2 : 1);
  saved_.wait(lock, [&] { return (!dirty_ && !saving_) || attempts_ >= enough; });
}

uint64_t LastGood::saves() const {
  const std::lock_guard lock(mutex_);
  return saves_;
}

Status LastGood::save(const SavedTypes& types, WallTime last_word) const {
  MELTEMI_TRY(
      sys::write_file_atomically(options_.path, encode_state(options_.owner, types), 0600));
  stamp(last_word);
  return {};
}

void LastGood::stamp(WallTime last_word) const {
  const auto since = last_word.time_since_epoch();
  const auto whole = std::chrono::floor<std::chrono::seconds>(since);
  const timespec at{.tv_sec = whole.count(),
                    .tv_nsec = std::chrono::nanoseconds(since - whole).count()};
  const timespec times[] = {at, at};
  ::utimensat(AT_FDCWD, options_.path.c_str(), times, AT_SYMLINK_NOFOLLOW);
}

void LastGood::run() {
  std::unique_lock lock(mutex_);
  std::string last_error;
  Duration pause = kFirstSave;
  while (!stopping_ || dirty_) {
    if (!dirty_) {
      wake_.wait_for(lock, kHeardEvery, [&] { return dirty_ || stopping_; });
      if (dirty_ || stopping_ || !connected_ || unread_since_) continue;
      last_word_ = options_.now();
      stamp(last_word_);
      continue;
    }
    wake_.wait_for(lock, pause, [&] { return urgent_ || stopping_; });
    if (unread_since_) {
      lock.unlock();
      auto again = read();
      lock.lock();
      settle(again);
    }
    if (unread_since_) {  // what is known may be less than what lies there
      urgent_ = false;
      ++attempts_;
      saved_.notify_all();
      if (stopping_) break;
      pause = kHeardEvery;
      continue;
    }
    const SavedTypes types = types_;
    const WallTime last_word = last_word_;
    dirty_ = urgent_ = false;
    saving_ = true;
    lock.unlock();
    const MonoTime began = MonoClock::now();
    const Status saved = save(types, last_word);
    pause = std::max(kFirstSave, kSaveShare * (MonoClock::now() - began));
    const std::string error = saved ? std::string() : saved.error().detail;
    // Once for a cause: a full disk would fill the log as well.
    if (!error.empty() && error != last_error) {
      scope.error("the last good state is not kept: {}", error);
    }
    last_error = error;
    lock.lock();
    saving_ = false;
    ++attempts_;
    if (saved) {
      ++saves_;
    } else if (!stopping_) {  // tried again: the cause may end
      dirty_ = true;
      pause = kHeardEvery;
    }
    saved_.notify_all();
  }
  saved_.notify_all();
}

}  // namespace meltemi::xds
