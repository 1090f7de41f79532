// W3C Trace Context, `traceparent` version 00. Random bytes come from the caller (sans-io).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace meltemi::codec {

struct Traceparent {
  std::array<uint8_t, 16> trace_id{};
  std::array<uint8_t, 8> parent_id{};
  uint8_t flags = 0;  // bit 0: sampled

  // 16 bytes trace id, 8 bytes parent id. An all-zero id is invalid and gets its last bit set.
  static Traceparent from_random(std::span<const uint8_t, 24> random);
  // nullopt unless version 00 with 55 characters, or a higher version with at least those, lower
  // case hexadecimal, and neither id all zero.
  static std::optional<Traceparent> parse(std::string_view header);
  // "00-<32 hex>-<16 hex>-<2 hex>", 55 characters.
  std::string to_string() const;
  std::string trace_id_hex() const;
  std::string parent_id_hex() const;

  bool operator==(const Traceparent&) const = default;
};

}  // namespace meltemi::codec
