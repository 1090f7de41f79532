#include "userspace/cli/table.h"

#include <fmt/format.h>

#include <time.h>

#include <algorithm>
#include <optional>

#include "userspace/base/text.h"

namespace meltemi::cli {
namespace {

constexpr size_t kGap = 3;

// Columns a terminal needs for UTF-8 text, one for each code point.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

std::string Table::text(bool no_header) const {
  std::vector<size_t> widths;
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) {
      if (widths.size() <= i) widths.push_back(0);
      widths[i] = std::max(widths[i], width(visible(row[i], Layout::kOneLine)));
    }
  std::string out;
  for (size_t r = no_header ? 1 : 0; r < rows_.size(); ++r) {
    std::string line;
    for (size_t i = 0; i < rows_[r].size(); ++i) {
      const std::string cell = visible(rows_[r][i], Layout::kOneLine);
      line += cell;
      if (i + 1 < rows_[r].size()) line.append(widths[i] - width(cell) + kGap, ' ');
    }
    while (line.ends_with(' ')) line.pop_back();
    out += line + "\n";
  }
  return out;
}

namespace {

// nullopt: no RFC 3339 time.
std::optional<int64_t> seconds_since(const std::string& timestamp) {
  tm parts{};
  const char* end = ::strptime(timestamp.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (end == nullptr) return std::nullopt;
  return ::time(nullptr) - ::timegm(&parts);
}

std::string short_duration(int64_t seconds) {
  const int64_t s = std::max<int64_t>(0, seconds);
  if (s < 120) return fmt::format("{}s", s);
  if (s < 600) return fmt::format("{}m{}s", s / 60, s % 60);
  if (s < 3 * 3600) return fmt::format("{}m", s / 60);
  if (s < 48 * 3600) return fmt::format("{}h{}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{}h", s / 86400, s / 3600 % 24);
}

}  // namespace

std::string age_of(const std::string& timestamp) {
  const auto seconds = seconds_since(timestamp);
  return seconds ? short_duration(*seconds) : "<unknown>";
}

std::string time_until(const std::string& timestamp) {
  const auto seconds = seconds_since(timestamp);
  return seconds ? short_duration(-*seconds) : "<unknown>";
}

}  // namespace meltemi::cli
