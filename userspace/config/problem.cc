#include "userspace/config/problem.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace meltemi::config {

std::string_view severity_name(Severity severity) {
  switch (severity) {
    case Severity::kError:
      return "error";
    case Severity::kWarning:
      return "warning";
    case Severity::kInfo:
      return "info";
  }
  return "error";
}

std::string Problem::to_string() const {
  std::string out(severity_name(severity));
  out += ": ";
  if (!object.empty()) out += object;
  if (!file.empty()) {
    std::string where = line > 0 ? fmt::format("{}:{}", file, line) : file;
    out += object.empty() ? where : fmt::format(" ({})", where);
  }
  if (out.size() > 2 && out.back() != ' ') out += ": ";
  if (!field.empty()) out += fmt::format("{}: ", field);
  out += message;
  if (!fix.empty()) {
    if (out.back() != '.') out += '.';
    out += fmt::format(" {}", fix);
    if (out.back() != '.' && fix.find('`') == std::string::npos) out += '.';
  }
  return fmt::format("{} [{}]", out, code);
}

bool has_errors(const Problems& problems) {
  return std::any_of(problems.begin(), problems.end(),
                     [](const Problem& p) { return p.severity == Severity::kError; });
}

Error to_error(const Problems& problems) {
  std::string detail;
  for (const Problem& problem : problems) {
    if (problem.severity != Severity::kError) continue;
    if (!detail.empty()) detail += '\n';
    detail += problem.to_string();
  }
  return Error{Reason::kBadConfig, Fault::kConfig, Retry::kNo, std::move(detail)};
}

namespace {

// Levenshtein distance with an early way out; words are field names, so short.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t above = row[j];
      bool same = std::tolower(static_cast<unsigned char>(a[i - 1])) ==
                  std::tolower(static_cast<unsigned char>(b[j - 1]));
      row[j] = std::min({above + 1, row[j - 1] + 1, diagonal + (same ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

constexpr size_t kLongestWord = 64;  // longer ones are not typos, and the search is quadratic

}  // namespace

std::string_view did_you_mean(std::string_view word,
                              const std::vector<std::string_view>& candidates) {
  if (word.size() > kLongestWord) return {};
  size_t best = std::max<size_t>(2, word.size() / 3) + 1;
  std::string_view found;
  for (std::string_view candidate : candidates) {
    size_t d = distance(word, candidate);
    if (d < best && d < candidate.size()) {
      best = d;
      found = candidate;
    }
  }
  return found;
}

}  // namespace meltemi::config
