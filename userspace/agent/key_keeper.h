// Keeps ztunnel's certificates and keys while ztunnel restarts, in sealed memory files that it never
// reads: a ztunnel that comes back gets them, one that lives gives them back to an agent that restarted
// (codec/key_packet.h). When both are gone the keys are gone, and the control plane must sign new
// ones. Lives on the loop's thread. Must never write a key anywhere, nor give one to another user.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>

#include "userspace/agent/loop.h"
#include "userspace/agent/packet_listener.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/base/fd.h"
#include "userspace/codec/key_packet.h"

namespace meltemi::agent {

// Identities; one descriptor and about 8 KiB of memory each. A node runs some hundred pods, so this many
// service accounts at most.
inline constexpr size_t kMaxKeptKeys = 1024;
inline constexpr size_t kMaxKeptKeyBytes = 256 * 1024;
inline constexpr size_t kMaxKeyConnections = 4;
inline constexpr Duration kKeyHelloTimeout = std::chrono::seconds(5);

class KeyKeeper {
 public:
  explicit KeyKeeper(Loop& loop);
  ~KeyKeeper();

  // Mode 0600: ztunnel runs as the same user.
  Status listen(const std::string& path);
  size_t kept() const { return keys_.size(); }
  uint64_t refused() const { return refused_; }  // packets or keys that were not taken

 private:
  struct Connection;
  struct Key {
    UniqueFd file;
    WallTime not_after;
  };

  void accept(UniqueFd fd);
  void on_event(Connection& c, uint32_t events);
  void on_packet(Connection& c, const std::string& bytes, std::vector<UniqueFd> fds);
  void take(const codec::keys::Kept& kept, UniqueFd file);
  void send_queued(Connection& c);
  void drop_expired();
  void refuse(std::string_view what);
  void close(Connection& c, std::string_view why);

  Loop& loop_;
  PacketListener listener_{loop_, [this](UniqueFd fd) { accept(std::move(fd)); }};
  std::map<int, std::unique_ptr<Connection>> connections_;  // by descriptor
  uint64_t next_serial_ = 1, refused_ = 0;
  std::map<std::string, Key> keys_;  // by identity
};

}  // namespace meltemi::agent
