// Nothing that others wrote can end a line, move a cursor, or hide and reorder what stands beside it.
#include "userspace/base/text.h"

#include <gtest/gtest.h>

namespace meltemi {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  append_escaped(out, text);
  return out;
}

TEST(Text, ControlsOfBothSetsAreEscaped) {
  EXPECT_EQ(visible("a\x1b[31mb\x7f\r", Layout::kLines), "a\\u001b[31mb\\u007f\\r");
  EXPECT_EQ(visible("\xc2\x9b" "31m \xc2\x85", Layout::kLines), "\\u009b31m \\u0085") << "C1";
  EXPECT_EQ(visible(std::string_view("\0", 1), Layout::kLines), "\\u0000");
}

TEST(Text, BidiZeroWidthAndSeparatorsAreEscaped) {
  EXPECT_EQ(visible("\u202e\u2066\u2069\u200f\u061c", Layout::kOneLine),
            "\\u202e\\u2066\\u2069\\u200f\\u061c");
  EXPECT_EQ(visible("ad\u200bmin\ufeff\u2060\u00ad", Layout::kOneLine),
            "ad\\u200bmin\\ufeff\\u2060\\u00ad");
  EXPECT_EQ(visible("a\u2028b\u2029", Layout::kOneLine), "a\\u2028b\\u2029");
  EXPECT_EQ(visible("\U000e0041", Layout::kOneLine), "\\udb40\\udc41") << "a pair, as in JSON";
}

TEST(Text, WhatCanBeReadStays) {
  const std::string_view text = "grün, 日本語, пример, 🌬, \"quoted\" \\path";
  EXPECT_EQ(visible(text, Layout::kOneLine), text);
}

TEST(Text, BrokenUtf8IsReplacedByteByByte) {
  for (const char* broken : {"\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x80"}) {
    const std::string out = escaped(broken);
    EXPECT_EQ(out.find_first_not_of("\\ufd"), std::string::npos) << out;
  }
}

TEST(Text, LinesStayOnlyWhereTheyAreAskedFor) {
  EXPECT_EQ(visible("a\n\tb", Layout::kLines), "a\n\tb");
  EXPECT_EQ(visible("a\n\tb", Layout::kOneLine), "a\\n\\tb");
  EXPECT_EQ(escaped("say \"x\\y\"\n"), "say \\\"x\\\\y\\\"\\n");
}

}  // namespace
}  // namespace meltemi
