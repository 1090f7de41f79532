// CRC-32C (Castagnoli, RFC 3720 B.4): finds what a disk or a crash did to a file. Must never be taken for
// protection against somebody who writes on purpose.
#pragma once

#include <nmmintrin.h>

#include <cstdint>
#include <cstring>
#include <string_view>

namespace meltemi {

inline uint32_t crc32c(std::string_view bytes) {
  uint64_t crc = 0xffffffff;
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, sizeof word);
    crc = _mm_crc32_u64(crc, word);
  }
  auto rest = static_cast<uint32_t>(crc);
  for (; i < bytes.size(); ++i) rest = _mm_crc32_u8(rest, static_cast<uint8_t>(bytes[i]));
  return ~rest;
}

}  // namespace meltemi
