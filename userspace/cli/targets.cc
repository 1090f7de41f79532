#include "userspace/cli/targets.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "userspace/cli/context.h"

namespace meltemi::cli {
namespace {

using config::KindInfo;
using config::Object;
using Operator = Requirement::Operator;

constexpr const char* kAll[] = {"pods", "services", "deployments", "jobs"};

Result<const KindInfo*> kind_of(const std::string& word) {
  if (const KindInfo* kind = config::find_kind_word(word)) return kind;
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("the server doesn't have a resource type \"{}\". Known: pods, services, "
                          "deployments, namespaces, virtualservices, ... (meltemi api-resources)",
                          word));
}

Result<std::vector<Target>> by_slash(const std::vector<std::string>& words) {
  std::vector<Target> out;
  for (const std::string& word : words) {
    const size_t slash = word.find('/');
    if (slash == std::string::npos)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("\"{}\" stands beside KIND/NAME. Write all as KIND/NAME, or none",
                              word));
    const KindInfo* kind = MELTEMI_TRY(kind_of(word.substr(0, slash)));
    if (slash + 1 == word.size())
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("\"{}\" has no name behind the slash", word));
    if (out.empty() || out.back().kind != kind) out.push_back({kind, {}});
    out.back().names.push_back(word.substr(slash + 1));
  }
  return out;
}

std::string_view trim(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

// Splits at commas that stand outside of parentheses.
std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> out;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] == '(') ++depth;
    if (i < text.size() && text[i] == ')') --depth;
    if (i < text.size() && (text[i] != ',' || depth > 0)) continue;
    out.push_back(trim(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  return out;
}

std::unexpected<Error> bad_part(std::string_view part) {
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("\"{}\" is no label selector. Write key=value, key!=value, key, !key, "
                          "\"key in (a,b)\" or \"key notin (a,b)\"",
                          part));
}

bool is_key(std::string_view key) {
  return !key.empty() && key.find_first_of(" !=(),\t") == std::string_view::npos;
}

// "key in (a,b)"
Result<Requirement> set_based(std::string_view part, size_t parenthesis) {
  std::string_view head = trim(part.substr(0, parenthesis));
  Requirement out;
  if (head.ends_with(" notin")) {
    out.op = Operator::kNotIn;
    head.remove_suffix(6);
  } else if (head.ends_with(" in")) {
    out.op = Operator::kIn;
    head.remove_suffix(3);
  } else {
    return bad_part(part);
  }
  out.key = trim(head);
  if (!is_key(out.key) || !part.ends_with(')')) return bad_part(part);
  for (const std::string_view value :
       split(part.substr(parenthesis + 1, part.size() - parenthesis - 2)))
    out.values.emplace_back(value);
  return out;
}

Result<Requirement> parse_requirement(std::string_view part) {
  if (const size_t open = part.find('('); open != std::string_view::npos)
    return set_based(part, open);
  Requirement out;
  const size_t equals = part.find('=');
  if (equals == std::string_view::npos) {
    if (part.starts_with('!')) {
      out.op = Operator::kNotExists;
      part.remove_prefix(1);
    }
    out.key = part;
  } else {
    const bool negative = equals > 0 && part[equals - 1] == '!';
    out.op = negative ? Operator::kNotIn : Operator::kIn;
    out.key = trim(part.substr(0, negative ? equals - 1 : equals));
    std::string_view value = part.substr(equals + 1);
    if (!negative && value.starts_with('=')) value.remove_prefix(1);
    value = trim(value);
    if (value.find('=') != std::string_view::npos) return bad_part(part);
    out.values.emplace_back(value);
  }
  if (!is_key(out.key)) return bad_part(part);
  return out;
}

bool meets(const Object& object, const Requirement& wanted) {
  const auto label = object.meta().labels().find(wanted.key);
  const bool there = label != object.meta().labels().end();
  const bool among = there && std::find(wanted.values.begin(), wanted.values.end(),
                                        label->second) != wanted.values.end();
  switch (wanted.op) {
    case Operator::kIn:
      return among;
    case Operator::kNotIn:
      return !among;
    case Operator::kExists:
      return there;
    case Operator::kNotExists:
      return !there;
  }
  return false;
}

}  // namespace

Result<std::vector<Target>> parse_targets(const std::vector<std::string>& words) {
  if (words.empty())
    return fail(Reason::kBadConfig, Fault::kConfig, "name what to act on: KIND NAME, or KIND/NAME");
  if (words[0].find('/') != std::string::npos) return by_slash(words);
  const std::vector<std::string> names(words.begin() + 1, words.end());
  for (const std::string& name : names)
    if (name.find('/') != std::string::npos)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("\"{}\" stands beside a kind. Write all as KIND/NAME, or none", name));
  std::vector<Target> out;
  for (const std::string_view kind : split(words[0])) {
    if (kind == "all")
      for (const char* each : kAll) out.push_back({MELTEMI_TRY(kind_of(each)), names});
    else
      out.push_back({MELTEMI_TRY(kind_of(std::string(kind))), names});
  }
  return out;
}

Result<Target> parse_target(const std::string& word) {
  std::vector<Target> targets = MELTEMI_TRY(parse_targets({word}));
  if (targets.size() == 1 && targets[0].names.size() == 1) return std::move(targets[0]);
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("\"{}\" names no object. Write KIND/NAME", word));
}

Result<Selector> parse_selector(std::string_view text) {
  Selector out;
  if (trim(text).empty()) return out;
  for (const std::string_view part : split(text))
    out.push_back(MELTEMI_TRY(parse_requirement(part)));
  return out;
}

bool selected(const Object& object, const Selector& selector) {
  return std::all_of(selector.begin(), selector.end(),
                     [&](const Requirement& wanted) { return meets(object, wanted); });
}

std::vector<config::ObjectPtr> find_objects(const config::ObjectStore& store, const Target& target,
                                            const std::string& ns, const Selector& selector,
                                            std::vector<Error>* missing) {
  const std::string where = target.kind->namespaced ? ns : "";
  std::vector<config::ObjectPtr> out;
  for (const std::string& name : target.names) {
    if (config::ObjectPtr object = store.find(target.kind->kind, where, name))
      out.push_back(std::move(object));
    else
      missing->push_back(no_such_object(*target.kind, name).error());
  }
  if (!target.names.empty()) return out;
  for (const config::ObjectPtr& object : store.list(target.kind->kind, where))
    if (selected(*object, selector)) out.push_back(object);
  return out;
}

}  // namespace meltemi::cli
