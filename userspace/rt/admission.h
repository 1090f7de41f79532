// Who may come in: every accepted connection of a process asks here first, and holds a lease while
// it lives. Nobody takes all there is, the silent and the idle give way to those who come with
// work, and what the process can hold fits its descriptors.
//
//   Admission door(AdmissionOptions::for_limit(raise_descriptor_limit()));
//   const auto tunnels = door.add_class({.name = "hbone"});           // before the first admit()
//   auto lease = door.admit(tunnels, {.source = peer.ip, .pod = "shop/web"}, now);  // no: close it
//   lease->on_give_way(post_to(loop), [this](GiveWay why) { close(why); });
//   if (!lease->handshaking(now)) return close();  // at the first byte; then active(), idle(now)
//
// and door.sweep(MonoClock::now()) some times a second from one thread, for the deadlines. Callers
// without a loop give a Post of their own: `[](auto fn) { fn(); }` runs on the thread that decided,
// so what it touches must be safe for that (shutdown(2) on a descriptor that the caller keeps open
// is).
//
// The rules, in the order in which they are asked; each can only hit the one whom it names:
//   class limit     a class may have a number of its own
//   pod share       a pod holds at most as many descriptors as are still free (the dynamic
//   source share    threshold of Choudhury and Hahne): one greedy takes half, two a third each, n
//                   leave 1/(n+1); a source is an IPv4 address or an IPv6 /64
//   pending share   the same within the connections that have not finished their handshake
//   total           what the descriptors allow
// Who is over gives way to himself first: his oldest silent connection, then his oldest unfinished
// handshake, then the one that is idle longest. Only where there is none the newcomer is refused.
// An active connection is never ended.
//
// Sans-io: time is passed in. Thread safe; active() and idle() of an established connection are one
// store each. Must never call its owner while it holds its lock, nor end a connection that works.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::rt {

class Loop;
class Lease;

// Raises RLIMIT_NOFILE to its hard limit, at the start of every daemon; returns what holds now.
uint64_t raise_descriptor_limit();

// Why a connection has to go.
enum class GiveWay : uint8_t {
  kRoom,        // for one that comes with work, since it was silent or idle
  kFirstByte,   // it sent nothing in time
  kHandshake,   // its handshake, or the head of its first request, took too long
};
std::string_view to_string(GiveWay why);
// The reason that logs and metrics show for it.
Reason reason_of(GiveWay why);

// What happened to connections, for counters and log lines.
enum class Outcome : uint8_t {
  kAdmitted,
  kClassLimit,     // refused: the class is full of active ones
  kPodShare,       // refused
  kSourceShare,    // refused
  kPending,        // refused: too many unfinished handshakes, none of them evictable
  kTotal,          // refused
  kHandshakeRate,  // refused at its first byte
  kGaveWay,        // ended for another
  kFirstByte,      // ended by deadline
  kHandshake,      // ended by deadline
};
inline constexpr size_t kOutcomes = 10;
std::string_view to_string(Outcome outcome);  // "admitted", "pod_share", …

struct AdmissionOptions {
  // What all connections together may hold, descriptors.
  uint64_t descriptors = 1024;
  // Part of it that only the node's own probes may use, in classes that say `probes`: whatever
  // others do, a readiness check gets in. 32 are eight times what a kubelet has open at once.
  uint64_t reserved = 32;
  // What a pod or a source may hold even if less than that is free, as long as there is room at
  // all: a share of nearly nothing would refuse the small for the greed of the many.
  uint64_t small_share = 16;
  // Connections that have not finished their handshake. They cost the most (a TLS state is some
  // tens of KB) and are worth the least. With a first byte within 2 s, 2,000 strangers come in a
  // second.
  uint64_t pending = 4096;
  // A peer that wants something says so at once; two lost SYNs or segments fit in.
  Duration first_byte = std::chrono::seconds(2);
  Duration handshake = std::chrono::seconds(10);
  // New handshakes of one source: 100 a second are 5 % of a core; the burst is a peer that
  // restarts.
  double handshake_rate = 100;
  double handshake_burst = 200;
  // Sources that are remembered after their last connection, for their rate.
  size_t remembered_sources = 16'384;

  // Fits a process that may open `limit` descriptors: keeps some for what it opens by itself
  // (files, rings, listeners, dials) and for connections that are being closed.
  static AdmissionOptions for_limit(uint64_t limit);
  // How many descriptors it takes so that strangers can hold `wanted`.
  static uint64_t with_room_for(uint64_t wanted);
};

// One kind of listener.
struct ConnectionClass {
  std::string name;          // label of metrics and log lines: "hbone", "captured", "pages"
  uint32_t descriptors = 1;  // most that one of its connections holds at a time
  uint64_t limit = 0;        // most open ones; 0: no limit of its own
  bool starts_silent = true;  // false: active at once (the server may speak first, or is the peer)
  bool probes = false;        // own addresses may use the reserved part
};

struct Visitor {
  std::optional<IpAddress> source;  // none: not counted by source
  std::string_view pod;             // whom it is counted to, as people know it; empty: nobody
};

// How to run something on the thread that owns a connection.
using Post = std::function<void(std::move_only_function<void()>)>;
Post post_to(Loop& loop);

class Admission {
 public:
  explicit Admission(const AdmissionOptions& options);
  // REQUIRES: no lease is left.
  ~Admission();
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  enum class ClassId : uint32_t {};
  // Before the first admit().
  ClassId add_class(ConnectionClass description);
  // Addresses whose connections are the node's own, besides loopback (the kubelet's).
  void set_own_addresses(const std::vector<IpAddress>& addresses);

  // Error kLimitExceeded: the limit by name, whom it hit, and what he holds.
  Result<Lease> admit(ClassId id, const Visitor& visitor, MonoTime now);
  // Ends what is past its deadline. Call some times a second.
  void sweep(MonoTime now);

  const AdmissionOptions& options() const { return options_; }
  uint64_t held() const;     // descriptors
  uint64_t pending() const;  // connections

  struct Row {
    std::string_view name;  // of the class
    uint64_t open = 0;
    std::array<uint64_t, kOutcomes> outcomes{};
  };
  std::vector<Row> rows() const;  // any thread

 private:
  friend class Lease;
  struct Entry;
  struct Group;
  struct Source;
  struct Class;
  struct Decision;

  bool is_own(const Class& cls, const Visitor& visitor) const;
  Group* pod_group(std::string_view pod);
  Source* source_group(const std::optional<IpAddress>& ip);
  std::optional<Outcome> make_room(Entry& entry, Decision& decision);
  template <typename Fits>
  std::optional<Outcome> make_room_in(Group& group, Fits&& fits, Outcome outcome, bool pending_only,
                                      Decision& decision);
  bool give_way(Group& group, bool pending_only, Decision& decision);
  void end(Entry& entry, GiveWay why, Outcome outcome, Decision& decision);
  void enter(Entry& entry);
  void leave(Entry& entry);
  void forget(Entry& entry, MonoTime now);
  void introduce(Entry& entry, ClassId id, const Visitor& visitor, MonoTime now);
  bool take_handshake(Source* source, MonoTime now);
  void count(const Entry& entry, Outcome outcome);
  void note(Outcome outcome, const Entry& entry, MonoTime now, Decision& decision);
  std::string whom(Outcome outcome, const Entry& entry) const;
  void act(Decision& decision);
  uint64_t leaving_room() const;
  uint64_t general() const;
  uint64_t free() const;

  // --- for leases ---
  bool handshaking(Entry& entry, MonoTime now);
  void established(Entry& entry);
  void on_give_way(Entry& entry, Post post, std::function<void(GiveWay)> fn);
  void release(Entry& entry);

  const AdmissionOptions options_;
  mutable std::mutex mutex_;
  std::deque<Class> classes_;
  std::unique_ptr<Group> all_, own_;
  struct TextHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::unordered_map<std::string, std::unique_ptr<Group>, TextHash, std::equal_to<>> pods_;
  std::unordered_map<IpAddress, std::unique_ptr<Source>> sources_;
  std::list<IpAddress> absent_;  // sources without a connection, the one that left first in front
  std::unordered_set<IpAddress> own_addresses_;
  uint64_t leaving_ = 0;  // descriptors of those that were told to go and have not yet
  MonoTime now_{};      // the latest time that was passed in
  struct LogState {
    MonoTime next{};
    uint64_t unsaid = 0;
  };
  std::array<LogState, kOutcomes> logged_;
};

// The place of one connection. Movable; gives everything back when it is destroyed, which is done
// on the thread that closes the connection, after its descriptors are closed.
class Lease {
 public:
  Lease() = default;
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;
  ~Lease() { release(); }
  explicit operator bool() const { return entry_ != nullptr; }

  // `fn` runs at most once, by `post`, when the connection has to go, and not after the lease was
  // destroyed (if that is done on the thread that `post` leads to).
  void on_give_way(Post post, std::function<void(GiveWay)> fn);
  // Its first byte has come. False: its source begins too many handshakes; close it.
  [[nodiscard]] bool handshaking(MonoTime now);
  // It works: a handshake is done and a stream, request or relay is open. Never ended for others.
  void active();
  // It is established and nothing is under way.
  void idle(MonoTime now);
  void release();

 private:
  friend class Admission;
  Lease(Admission& admission, std::shared_ptr<Admission::Entry> entry, bool established);
  void establish();
  Admission* admission_ = nullptr;
  std::shared_ptr<Admission::Entry> entry_;
  bool established_ = false;
};

}  // namespace meltemi::rt
