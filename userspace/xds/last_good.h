// The last good state of a delta xDS subscriber on disk: the resources that it accepted, with their
// versions, so that a process that starts while the control plane is away serves what it served before,
// and one that starts beside a healthy one is sent only what changed.
//
// One file, replaced atomically, mode 0600. Its modification time is the control plane's last word: it
// moves while the stream lives, without rewriting the file. Changes are gathered: the file is written
// by a thread of its own, kFirstSave after a change, and then so seldom that writing takes at most a
// twentieth of the time, however fast pushes come.
//
// What cannot be believed is refused by name and moved aside to PATH.refused: cut short, changed,
// of a newer format, owned or writable by others, or of another node. What cannot be read at a moment (no
// descriptors, no memory, the disk) is read again, and not written over meanwhile. Must never hold a
// private key, nor let a bad file end the process.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::xds {

// Limits of the file. 10,000 workloads take about 4 MB.
inline constexpr size_t kMaxStateBytes = 256u << 20;
inline constexpr size_t kMaxStateTypes = 16;
inline constexpr size_t kMaxStateName = 4096;  // bytes of a name, a version, a type, an owner's field

inline constexpr Duration kFirstSave = std::chrono::milliseconds(200);  // after a change
inline constexpr int kSaveShare = 20;  // a save that took T is followed by none for 20 T
inline constexpr Duration kHeardEvery = std::chrono::seconds(30);  // how often the file's time moves
// A file that cannot be read for this long is moved aside unread, so that a new one is kept.
inline constexpr Duration kUnreadPatience = std::chrono::minutes(5);

// Whose state it is. Every field must be the same when it is read back.
struct StateOwner {
  std::string subscriber;  // "ztunnel", "waypoint/NAMESPACE/GATEWAY", "meltemi-agent"
  std::string node, cluster, trust_domain;
  bool operator==(const StateOwner&) const = default;
};

struct SavedResource {
  std::string version, body;
};
// By name.
using SavedResources = std::map<std::string, std::shared_ptr<const SavedResource>, std::less<>>;
// By type URL. A type that is there was answered in full at least once, even if it has no resource.
using SavedTypes = std::map<std::string, SavedResources, std::less<>>;

// The file's bytes. Pure; the decoder meets bytes of whoever wrote the file.
std::string encode_state(const StateOwner& owner, const SavedTypes& types);
// `payload` with the header that belongs to it.
std::string seal_state(std::string_view payload);
// Errors (kBadConfig): no state file, a newer format, cut short, checksum, limits, another owner (the
// field is named).
Result<SavedTypes> decode_state(std::string_view bytes, const StateOwner& owner);

struct LastGoodOptions {
  std::string path;  // its directory must be there
  StateOwner owner;
  Duration max_age{};  // since the control plane's last word; 0: any
  std::function<WallTime()> now = [] { return std::chrono::system_clock::now(); };
};

class LastGood {
 public:
  explicit LastGood(LastGoodOptions options);
  ~LastGood();  // writes what is pending
  LastGood(const LastGood&) = delete;
  LastGood& operator=(const LastGood&) = delete;

  struct Loaded {
    SavedTypes types;
    WallTime last_word;
  };
  // Before anything else is called; again while unread(). Error kNotFound: no file. kLimitExceeded: older
  // than max_age; it stays where it is. kSystem: it cannot be read now, and unread() holds. Other errors:
  // refused and moved aside. All are logged. Types of which something was told meanwhile are left out.
  Result<Loaded> load();

  // The rest: the subscriber's thread. `resource` null: removed.
  void set(std::string_view type_url, std::string_view name,
           std::shared_ptr<const SavedResource> resource);
  void answered(std::string_view type_url);  // in full, maybe with nothing
  // Forgets the names that `keep` does not want.
  void retain(std::string_view type_url, const std::function<bool(const std::string&)>& keep);
  // While true the file's time follows the clock.
  void set_connected(bool connected);

  // Waits until what was pending is on disk, or failed to get there. For tests and shutdown.
  void flush();
  uint64_t saves() const;
  bool unread() const;  // the file may be there, and nobody knows what is in it

 private:
  void run();
  void changed();  // REQUIRES: the lock
  Result<Loaded> read() const;
  void settle(Result<Loaded>& loaded);  // REQUIRES: the lock
  Status save(const SavedTypes& types, WallTime last_word) const;
  void stamp(WallTime last_word) const;

  const LastGoodOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_, saved_;
  SavedTypes types_;
  WallTime last_word_{};
  bool dirty_ = false, connected_ = false, stopping_ = false, urgent_ = false, saving_ = false;
  std::optional<MonoTime> unread_since_;
  uint64_t saves_ = 0, attempts_ = 0;
  std::thread thread_;
};

}  // namespace meltemi::xds
