#include "userspace/codec/hpack_write.h"

#include <iterator>

namespace meltemi::codec::hpack {
namespace {

// Indices of the static table (RFC 7541 appendix A).
constexpr uint8_t kAuthority = 1;
constexpr uint8_t kMethod = 2;
constexpr uint8_t kStatus = 8;

// RFC 7541 section 5.1 with a prefix of 7 bits; strings are never Huffman-coded (top bit 0).
void write_length(std::string& out, size_t n) {
  if (n < 127) {
    out.push_back(static_cast<char>(n));
    return;
  }
  out.push_back(127);
  for (n -= 127; n >= 128; n >>= 7) out.push_back(static_cast<char>(n | 0x80));
  out.push_back(static_cast<char>(n));
}

void write_string(std::string& out, std::string_view s) {
  write_length(out, s.size());
  out.append(s);
}

}  // namespace

void write_status(std::string& out, uint16_t status) {
  constexpr uint16_t kIndexed[] = {200, 204, 206, 304, 400, 404, 500};  // entries 8 to 14
  for (size_t i = 0; i < std::size(kIndexed); ++i) {
    if (kIndexed[i] != status) continue;
    out.push_back(static_cast<char>(0x80 | (kStatus + i)));
    return;
  }
  const char digits[] = {static_cast<char>('0' + status / 100 % 10),
                         static_cast<char>('0' + status / 10 % 10),
                         static_cast<char>('0' + status % 10)};
  out.push_back(kStatus);
  write_string(out, {digits, sizeof digits});
}

void write_method_connect(std::string& out) {
  out.push_back(kMethod);
  write_string(out, "CONNECT");
}

void write_authority(std::string& out, std::string_view authority) {
  out.push_back(kAuthority);
  write_string(out, authority);
}

void write_field(std::string& out, std::string_view name, std::string_view value) {
  out.push_back(0);
  write_length(out, name.size());
  for (char c : name) out.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c);
  write_string(out, value);
}

}  // namespace meltemi::codec::hpack
