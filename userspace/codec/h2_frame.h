// Internal to codec: numbers and layout of HTTP/2 frames (RFC 9113 section 6) and the rate limit
// that both HTTP/2 codecs apply to floods.
#pragma once

#include <cstdint>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"

namespace meltemi::codec::h2 {

inline constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
inline constexpr size_t kFrameHeader = 9;
inline constexpr uint32_t kMaxWindow = 0x7fffffff;
inline constexpr uint32_t kMaxStreamId = 0x7fffffff;
inline constexpr uint32_t kDefaultWindow = 65535;
inline constexpr uint32_t kDefaultFrameSize = 16384;

enum FrameType : uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kRstStream = 3,
  kSettings = 4,
  kPushPromise = 5,
  kPing = 6,
  kGoaway = 7,
  kWindowUpdate = 8,
  kContinuation = 9,
};

inline constexpr uint8_t kFlagAck = 0x1;
inline constexpr uint8_t kFlagEndStream = 0x1;
inline constexpr uint8_t kFlagEndHeaders = 0x4;
inline constexpr uint8_t kFlagPadded = 0x8;
inline constexpr uint8_t kFlagPriority = 0x20;

enum Setting : uint16_t {
  kHeaderTableSize = 1,
  kEnablePush = 2,
  kMaxConcurrentStreams = 3,
  kInitialWindowSize = 4,
  kMaxFrameSize = 5,
  kMaxHeaderListSize = 6,
};

inline void write_frame_header(uint8_t* out, uint32_t length, uint8_t type, uint8_t flags,
                               uint32_t stream) {
  store_be24(out, length);
  out[3] = type;
  out[4] = flags;
  store_be(out + 5, stream);
}

// A rate with a burst (generic cell rate algorithm): one time stamp of state.
class RateLimit {
 public:
  // False when this event is beyond `burst` events at once and `per_second` in the long run.
  bool take(MonoTime now, uint32_t burst, uint32_t per_second) {
    const Duration interval = std::chrono::nanoseconds(1'000'000'000 / per_second);
    if (next_ < now) next_ = now;
    next_ += interval;
    return next_ - now <= interval * burst;
  }

 private:
  MonoTime next_{};
};

}  // namespace meltemi::codec::h2
