// What a tunnel rests on: how long both ends' certificates hold, and which root vouched for the peer.
// A tunnel takes no new stream after the first of these ends, and has none left after the grace
// (hbone.h); a root that is no longer trusted ends it at once. Internal to net.
#pragma once

#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <functional>

#include "userspace/base/wall_clock.h"
#include "userspace/rt/loop.h"

namespace meltemi::net {

// SHA-256 of a root certificate's DER.
using RootPrint = std::array<uint8_t, SHA256_DIGEST_LENGTH>;

struct Credential {
  WallTime end = WallTime::max();  // the first notAfter in either end's chain, roots included
  RootPrint root{};                // that the peer's chain leads to
};

// The wall clock may be set, and machines sleep: the ends are looked at again at least this often.
inline constexpr Duration kCredentialLook = std::chrono::seconds(10);

// One timer for all tunnels of a server or a pool: looks after them when the next credential ends.
class CredentialWatch final : public rt::Timer {
 public:
  // `look` is told the time and returns when to look again (max: no tunnel needs it).
  CredentialWatch(rt::Loop& loop, const WallClock& clock, std::function<WallTime(WallTime)> look)
      : loop_(loop), clock_(clock), look_(std::move(look)) {}
  // Looks now, and goes on looking as long as there is something to look at.
  void look() {
    const WallTime now = clock_();
    const WallTime next = look_(now);
    if (next == WallTime::max()) return loop_.stop(*this);
    const Duration wait = std::clamp<Duration>(next - std::min(now, next), Duration(0), kCredentialLook);
    loop_.start(*this, loop_.now() + wait);
  }
  // A tunnel was made that ends at `end`.
  void add(WallTime end) {
    const Duration wait = std::clamp<Duration>(end - std::min(clock_(), end), Duration(0), kCredentialLook);
    const MonoTime at = loop_.now() + wait;
    if (!armed() || at < deadline()) loop_.start(*this, at);
  }
  void on_timer() override { look(); }

 private:
  rt::Loop& loop_;
  const WallClock& clock_;
  std::function<WallTime(WallTime)> look_;
};

}  // namespace meltemi::net
