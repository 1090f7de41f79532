// Text of others made fit to be shown: in a log line, on a terminal. What could end a line, move the
// cursor, reorder or hide what stands beside it is written as an escape: C0, DEL and C1 controls,
// line and paragraph separators, bidirectional and zero-width format characters, tags, and bytes
// that are no UTF-8 (RFC 3629). The escapes are JSON's (RFC 8259 section 7), so that what is inside
// of a JSON string stays the same text to who parses it. It must never drop a character unseen.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace meltemi {

enum class Layout : uint8_t {
  kOneLine,  // nothing may end the line
  kLines,    // '\n' and '\t' stay: text of our own with others' words in it
};

// `text` with escapes for what must not be shown raw; quotes and backslashes stay as they are.
std::string visible(std::string_view text, Layout layout);
// The content of a JSON string, or of a quoted value in a log line: visible() on one line, with
// quotes and backslashes escaped as well. Appends to `out`.
void append_escaped(std::string& out, std::string_view text);

}  // namespace meltemi
