#include "userspace/model/selector.h"

#include <fmt/format.h>

#include <algorithm>

namespace meltemi::model {
namespace {

bool holds(const LabelRequirement& r, const Labels& labels) {
  using Op = LabelRequirement::Operator;
  const auto it = labels.find(r.key);
  const bool there = it != labels.end();
  const bool listed =
      there && std::find(r.values.begin(), r.values.end(), it->second) != r.values.end();
  switch (r.op) {
    case Op::kIn: return listed;
    case Op::kNotIn: return !listed;  // holds for an absent label, as in Kubernetes
    case Op::kExists: return there;
    case Op::kDoesNotExist: return !there;
  }
  return false;
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  while (!s.empty() && s.back() == ' ') s.remove_suffix(1);
  return s;
}

std::vector<std::string> split_values(std::string_view text) {
  std::vector<std::string> out;
  for (;;) {
    const size_t comma = text.find(',');
    out.emplace_back(trim(text.substr(0, comma)));
    if (comma == std::string_view::npos) return out;
    text.remove_prefix(comma + 1);
  }
}

auto refuse(std::string_view part) {
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("label selector: cannot read \"{}\"", part));
}

bool is_key(std::string_view key) {
  return !key.empty() && key.find_first_of(" =!(),") == std::string_view::npos;
}

// "key in (a,b)" and "key notin (a,b)".
bool parse_set(std::string_view term, std::string_view word, LabelRequirement& out) {
  const size_t at = term.find(word);
  if (at == std::string_view::npos || !term.ends_with(')')) return false;
  out.key = trim(term.substr(0, at));
  out.values = split_values(term.substr(at + word.size(), term.size() - at - word.size() - 1));
  return is_key(out.key);
}

Result<LabelRequirement> parse_term(std::string_view term) {
  using Op = LabelRequirement::Operator;
  LabelRequirement r;
  if (parse_set(term, " notin (", r)) return r.op = Op::kNotIn, r;
  if (parse_set(term, " in (", r)) return r.op = Op::kIn, r;
  r = {};
  if (const size_t at = term.find("!="); at != std::string_view::npos && at > 0) {
    r = {std::string(trim(term.substr(0, at))), Op::kNotIn, {std::string(trim(term.substr(at + 2)))}};
  } else if (const size_t eq = term.find('='); eq != std::string_view::npos) {
    const size_t skip = term.substr(eq).starts_with("==") ? 2 : 1;
    r = {std::string(trim(term.substr(0, eq))), Op::kIn, {std::string(trim(term.substr(eq + skip)))}};
  } else if (term.starts_with('!')) {
    r = {std::string(trim(term.substr(1))), Op::kDoesNotExist, {}};
  } else {
    r = {std::string(term), Op::kExists, {}};
  }
  if (!is_key(r.key)) return refuse(term);
  return r;
}

}  // namespace

bool LabelSelector::matches(const Labels& labels) const {
  for (const auto& [key, value] : match_labels) {
    const auto it = labels.find(key);
    if (it == labels.end() || it->second != value) return false;
  }
  return std::all_of(match_expressions.begin(), match_expressions.end(),
                     [&](const LabelRequirement& r) { return holds(r, labels); });
}

Result<LabelSelector> LabelSelector::parse(std::string_view text) {
  LabelSelector selector;
  while (!trim(text).empty()) {
    // A comma inside parentheses belongs to a set.
    size_t end = 0;
    for (int depth = 0; end < text.size() && (depth > 0 || text[end] != ','); ++end) {
      depth += text[end] == '(' ? 1 : text[end] == ')' ? -1 : 0;
    }
    const std::string_view term = trim(text.substr(0, end));
    if (term.empty()) return refuse(text);
    selector.match_expressions.push_back(MELTEMI_TRY(parse_term(term)));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return selector;
}

}  // namespace meltemi::model
