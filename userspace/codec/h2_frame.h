// Internal to codec: the frame layer that both HTTP/2 codecs share (RFC 9113 sections 4 and 6):
// numbers, layout, what is wrong with a frame by its header alone, writing, and the rate limit for
// floods. It must never know about streams or their state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "userspace/base/bytes.h"
#include "userspace/base/clock.h"
#include "userspace/codec/h2_code.h"

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
  kEnableConnectProtocol = 8,  // RFC 8441
};

inline constexpr uint32_t kMaxSettings = 64;  // entries that we read of one SETTINGS frame

struct FrameHeader {
  uint32_t length = 0;  // of the payload
  uint8_t type = 0, flags = 0;
  uint32_t stream = 0;
  bool has(uint8_t flag) const { return (flags & flag) != 0; }
};
inline FrameHeader read_frame_header(const uint8_t* p) {
  return {load_be24(p), p[3], p[4], load_be<uint32_t>(p + 5) & kMaxStreamId};
}

// A connection error; `why` is nullptr if there is none.
struct FrameFault {
  H2Code code = H2Code::kNoError;
  const char* why = nullptr;
};
// What the header alone shows: a wrong size, a stream where there must be none, PUSH_PROMISE
// (nobody here allows it). Unknown types pass.
FrameFault check_frame(const FrameHeader& frame, uint32_t max_frame_size);

inline void write_frame_header(uint8_t* out, uint32_t length, uint8_t type, uint8_t flags,
                               uint32_t stream) {
  store_be24(out, length);
  out[3] = type;
  out[4] = flags;
  store_be(out + 5, stream);
}

// Writing, at the end of `out`.
uint8_t* put_frame(std::string& out, uint32_t length, uint8_t type, uint8_t flags, uint32_t stream);
void put_setting(std::string& out, uint16_t id, uint32_t value);  // inside of a SETTINGS frame
void put_window_update(std::string& out, uint32_t stream, uint32_t increment);
void put_rst(std::string& out, uint32_t stream, H2Code code);
void put_ping(std::string& out, const uint8_t* payload, uint8_t flags);
void put_goaway(std::string& out, uint32_t last, H2Code code, std::string_view debug);
// `block` as HEADERS and as many CONTINUATIONs as `max_frame_size` asks for.
void put_headers(std::string& out, uint32_t stream, std::string_view block, bool end_stream,
                 uint32_t max_frame_size);

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
