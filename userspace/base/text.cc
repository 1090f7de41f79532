// See text.h.
#include "userspace/base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

namespace meltemi {
namespace {

struct Decoded {
  char32_t code = 0;
  size_t length = 0;  // 0: malformed
};

// The well-formed UTF-8 sequence at the front (RFC 3629).
Decoded decode(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  const size_t n = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
  if (n == 0 || n > text.size()) return {};
  char32_t code = n == 1 ? lead : lead & (0x7f >> n);
  for (size_t i = 1; i < n; ++i) {
    if (at(i) >> 6 != 2) return {};
    code = code << 6 | (at(i) & 0x3f);
  }
  static constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  if (code < kSmallest[n] || surrogate || code > 0x10ffff) return {};
  return {code, n};
}

struct Range {
  char32_t first, last;
};
// What is not ASCII and must not be shown raw, sorted.
constexpr std::array<Range, 13> kHidden = {{
    {0x80, 0x9f},        // C1 controls
    {0xad, 0xad},        // soft hyphen
    {0x34f, 0x34f},      // combining grapheme joiner
    {0x61c, 0x61c},      // Arabic letter mark
    {0x115f, 0x1160},    // Hangul fillers
    {0x180b, 0x180f},    // Mongolian variation selectors and vowel separator
    {0x200b, 0x200f},    // zero width, marks of direction
    {0x2028, 0x202e},    // line and paragraph separator, embeddings, overrides
    {0x2060, 0x206f},    // word joiner, isolates, deprecated format characters
    {0x3164, 0x3164},    // Hangul filler
    {0xfeff, 0xfeff},    // byte order mark
    {0xfff9, 0xfffb},    // interlinear annotation
    {0xe0000, 0xe007f},  // tags
}};

bool hidden(char32_t code) {
  const auto* it = std::lower_bound(kHidden.begin(), kHidden.end(), code,
                                    [](const Range& r, char32_t c) { return r.last < c; });
  return it != kHidden.end() && it->first <= code;
}

void append_code(std::string& out, char32_t code) {
  if (code >= 0x10000) {  // JSON has UTF-16 in its escapes
    const char32_t offset = code - 0x10000;
    append_code(out, 0xd800 + (offset >> 10));
    code = 0xdc00 + (offset & 0x3ff);
  }
  fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<uint32_t>(code));
}

// Appends one character that is not plain; returns the bytes it had.
size_t append_special(std::string& out, std::string_view text) {
  const Decoded c = decode(text);
  if (c.length == 0) {
    out += "\\ufffd";
    return 1;
  }
  switch (c.code) {
    case '\n': out += "\\n"; break;
    case '\r': out += "\\r"; break;
    case '\t': out += "\\t"; break;
    default:
      if (c.code < 0x20 || c.code == 0x7f || hidden(c.code)) {
        append_code(out, c.code);
      } else {
        out += text.substr(0, c.length);
      }
  }
  return c.length;
}

bool plain(unsigned char c) { return c >= 0x20 && c < 0x7f; }

}  // namespace

std::string visible(std::string_view text, Layout layout) {
  std::string out;
  out.reserve(text.size());
  const bool lines = layout == Layout::kLines;
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (plain(c) || (lines && (c == '\n' || c == '\t'))) {
      out += c;
      ++i;
    } else {
      i += append_special(out, text.substr(i));
    }
  }
  return out;
}

void append_escaped(std::string& out, std::string_view text) {
  out.reserve(out.size() + text.size());
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
      ++i;
    } else if (plain(c)) {
      out += c;
      ++i;
    } else {
      i += append_special(out, text.substr(i));
    }
  }
}

}  // namespace meltemi
