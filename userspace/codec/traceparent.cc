#include "userspace/codec/traceparent.h"

#include <algorithm>

namespace meltemi::codec {
namespace {

constexpr char kHex[] = "0123456789abcdef";

void put_hex(std::string& out, std::span<const uint8_t> bytes) {
  for (uint8_t b : bytes) {
    out += kHex[b >> 4];
    out += kHex[b & 15];
  }
}

// Lower case only (W3C: "vendors MUST ignore the traceparent" with upper case).
int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool take_hex(std::string_view text, std::span<uint8_t> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const int hi = digit(text[2 * i]), lo = digit(text[2 * i + 1]);
    if (hi < 0 || lo < 0) return false;
    out[i] = static_cast<uint8_t>(hi << 4 | lo);
  }
  return true;
}

bool all_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}

}  // namespace

Traceparent Traceparent::from_random(std::span<const uint8_t, 24> random) {
  Traceparent t;
  std::copy_n(random.begin(), 16, t.trace_id.begin());
  std::copy_n(random.begin() + 16, 8, t.parent_id.begin());
  if (all_zero(t.trace_id)) t.trace_id.back() = 1;
  if (all_zero(t.parent_id)) t.parent_id.back() = 1;
  return t;
}

std::optional<Traceparent> Traceparent::parse(std::string_view h) {
  if (h.size() < 55 || h[2] != '-' || h[35] != '-' || h[52] != '-') return std::nullopt;
  uint8_t version, flags;
  Traceparent t;
  if (!take_hex(h, {&version, 1}) || !take_hex(h.substr(3), t.trace_id) ||
      !take_hex(h.substr(36), t.parent_id) || !take_hex(h.substr(53), {&flags, 1}))
    return std::nullopt;
  if (version == 0xff || (version == 0 && h.size() != 55)) return std::nullopt;
  if (h.size() > 55 && h[55] != '-') return std::nullopt;
  if (all_zero(t.trace_id) || all_zero(t.parent_id)) return std::nullopt;
  t.flags = flags;
  return t;
}

std::string Traceparent::to_string() const {
  std::string out = "00-";
  put_hex(out, trace_id);
  out += '-';
  put_hex(out, parent_id);
  out += '-';
  put_hex(out, {&flags, 1});
  return out;
}

std::string Traceparent::trace_id_hex() const {
  std::string out;
  put_hex(out, trace_id);
  return out;
}
std::string Traceparent::parent_id_hex() const {
  std::string out;
  put_hex(out, parent_id);
  return out;
}

}  // namespace meltemi::codec
