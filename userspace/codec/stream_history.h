// Internal to codec: what became of the streams of an HTTP/2 connection that are no longer there. A frame
// for one of them is either still under way to a stream that we reset, and must be dropped in
// silence, or a fault of the peer (RFC 9113 sections 5.1 and 5.1.1). Fixed memory: it knows the last
// kSpan streams. It must never be asked about a stream that was not reached yet.
#pragma once

#include <array>
#include <cstdint>

namespace meltemi::codec {

class StreamHistory {
 public:
  // Streams that are remembered. In one round trip, which is how long frames may be under way, a peer
  // opens no more than twice as many as it may have at once.
  static constexpr uint32_t kSpan = 512;

  enum class Fate : uint8_t {
    kForgotten,    // too long ago
    kNeverOpened,  // passed over: closed by the first use of a higher id
    kEnded,        // by both sides, or reset by the peer
    kResetByUs,    // what comes was sent before the peer knew
  };

  // The stream is used for the first time. REQUIRES: `id` is higher than all before.
  void opened(uint32_t id) {
    const uint32_t n = id >> 1;
    const uint32_t skipped = last_ == kNone ? n : n - last_ - 1;
    if (skipped >= kSpan) {
      opened_.fill(0);
      reset_.fill(0);
    } else {
      for (uint32_t i = n - skipped; i <= n; ++i) {
        opened_[word(i)] &= ~bit(i);
        reset_[word(i)] &= ~bit(i);
      }
    }
    opened_[word(n)] |= bit(n);
    last_ = n;
  }
  // We have sent RST_STREAM for it, or drop what comes for another reason.
  void reset_by_us(uint32_t id) {
    const uint32_t n = id >> 1;
    if (known(n)) reset_[word(n)] |= bit(n);
  }
  Fate fate(uint32_t id) const {
    const uint32_t n = id >> 1;
    if (!known(n)) return Fate::kForgotten;
    if ((opened_[word(n)] & bit(n)) == 0) return Fate::kNeverOpened;
    return (reset_[word(n)] & bit(n)) != 0 ? Fate::kResetByUs : Fate::kEnded;
  }

 private:
  static constexpr uint32_t kNone = 0xffffffff;
  static uint32_t word(uint32_t n) { return n % kSpan / 64; }
  static uint64_t bit(uint32_t n) { return uint64_t{1} << (n % 64); }
  bool known(uint32_t n) const { return last_ != kNone && n <= last_ && last_ - n < kSpan; }

  uint32_t last_ = kNone;
  std::array<uint64_t, kSpan / 64> opened_{}, reset_{};
};

}  // namespace meltemi::codec
