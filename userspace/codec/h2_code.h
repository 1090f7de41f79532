// HTTP/2 error codes (RFC 9113 section 7).
#pragma once

#include <cstdint>
#include <string_view>

namespace meltemi::codec {

enum class H2Code : uint32_t {
  kNoError = 0,
  kProtocolError = 1,
  kInternalError = 2,
  kFlowControlError = 3,
  kSettingsTimeout = 4,
  kStreamClosed = 5,
  kFrameSizeError = 6,
  kRefusedStream = 7,
  kCancel = 8,
  kCompressionError = 9,
  kConnectError = 10,
  kEnhanceYourCalm = 11,
  kInadequateSecurity = 12,
  kHttp11Required = 13,
};
// "CANCEL"; "UNKNOWN" for numbers that RFC 9113 does not have. Static storage.
std::string_view h2_code_name(uint32_t code);

}  // namespace meltemi::codec
