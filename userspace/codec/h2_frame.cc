#include "userspace/codec/h2_frame.h"

#include <algorithm>
#include <cstring>

namespace meltemi::codec::h2 {

FrameFault check_frame(const FrameHeader& frame, uint32_t max_frame_size) {
  constexpr auto kSize = H2Code::kFrameSizeError;
  constexpr auto kProtocol = H2Code::kProtocolError;
  if (frame.length > max_frame_size) return {kSize, "frame above SETTINGS_MAX_FRAME_SIZE"};
  const bool on_stream = frame.stream != 0;
  switch (frame.type) {
    case kData:
      if (!on_stream) return {kProtocol, "DATA without a stream"};
      if (frame.has(kFlagPadded) && frame.length == 0)
        return {kSize, "padded DATA without a pad length"};
      return {};
    case kHeaders:
      // Streams that servers open are for PUSH_PROMISE only.
      if (frame.stream % 2 == 0) return {kProtocol, "HEADERS on a stream that no client opens"};
      if (frame.length < (frame.has(kFlagPadded) ? 1u : 0u) + (frame.has(kFlagPriority) ? 5u : 0u))
        return {kSize, "HEADERS of a wrong size"};
      return {};
    case kPriority:
      if (frame.length != 5) return {kSize, "PRIORITY of a wrong size"};
      if (!on_stream) return {kProtocol, "PRIORITY without a stream"};
      return {};
    case kRstStream:
      if (frame.length != 4) return {kSize, "RST_STREAM of a wrong size"};
      if (!on_stream) return {kProtocol, "RST_STREAM without a stream"};
      return {};
    case kSettings:
      if (on_stream) return {kProtocol, "SETTINGS on a stream"};
      if (frame.has(kFlagAck) ? frame.length != 0 : frame.length % 6 != 0)
        return {kSize, "SETTINGS of a wrong size"};
      return {};
    case kPushPromise:
      return {kProtocol, "PUSH_PROMISE"};
    case kPing:
      if (frame.length != 8) return {kSize, "PING of a wrong size"};
      if (on_stream) return {kProtocol, "PING on a stream"};
      return {};
    case kGoaway:
      if (frame.length < 8) return {kSize, "GOAWAY of a wrong size"};
      if (on_stream) return {kProtocol, "GOAWAY on a stream"};
      return {};
    case kWindowUpdate:
      if (frame.length != 4) return {kSize, "WINDOW_UPDATE of a wrong size"};
      return {};
    case kContinuation:
      if (!on_stream) return {kProtocol, "CONTINUATION without a stream"};
      return {};
    default:
      return {};
  }
}

uint8_t* put_frame(std::string& out, uint32_t length, uint8_t type, uint8_t flags,
                   uint32_t stream) {
  const size_t at = out.size();
  out.resize(at + kFrameHeader + length);
  auto* p = reinterpret_cast<uint8_t*>(out.data()) + at;
  write_frame_header(p, length, type, flags, stream);
  return p + kFrameHeader;
}

void put_setting(std::string& out, uint16_t id, uint32_t value) {
  const size_t at = out.size();
  out.resize(at + 6);
  auto* p = reinterpret_cast<uint8_t*>(out.data()) + at;
  store_be(p, id);
  store_be(p + 2, value);
}

void put_window_update(std::string& out, uint32_t stream, uint32_t increment) {
  store_be(put_frame(out, 4, kWindowUpdate, 0, stream), increment);
}

void put_rst(std::string& out, uint32_t stream, H2Code code) {
  store_be(put_frame(out, 4, kRstStream, 0, stream), static_cast<uint32_t>(code));
}

void put_ping(std::string& out, const uint8_t* payload, uint8_t flags) {
  std::memcpy(put_frame(out, 8, kPing, flags, 0), payload, 8);
}

void put_goaway(std::string& out, uint32_t last, H2Code code, std::string_view debug) {
  uint8_t* p = put_frame(out, static_cast<uint32_t>(8 + debug.size()), kGoaway, 0, 0);
  store_be(p, last);
  store_be(p + 4, static_cast<uint32_t>(code));
  if (!debug.empty()) std::memcpy(p + 8, debug.data(), debug.size());
}

void put_headers(std::string& out, uint32_t stream, std::string_view block, bool end_stream,
                 uint32_t max_frame_size) {
  uint8_t type = kHeaders;
  do {
    const size_t n = std::min<size_t>(block.size(), max_frame_size);
    uint8_t flags = type == kHeaders && end_stream ? kFlagEndStream : 0;
    if (n == block.size()) flags |= kFlagEndHeaders;
    uint8_t* p = put_frame(out, static_cast<uint32_t>(n), type, flags, stream);
    if (n != 0) std::memcpy(p, block.data(), n);
    block.remove_prefix(n);
    type = kContinuation;
  } while (!block.empty());
}

}  // namespace meltemi::codec::h2
