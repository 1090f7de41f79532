#include "userspace/cli/jsonpath.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <vector>

namespace meltemi::cli {
namespace {

using config::Value;
using Nodes = std::vector<const Value*>;

std::unexpected<Error> refuse(std::string_view text, std::string_view why) {
  return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("jsonpath \"{}\": {}", text, why));
}

std::string text_of(const Value& value) {
  if (value.is_map() || value.is_list()) return config::to_json(value, true);
  return value.text;
}

void add_member(const Nodes& from, std::string_view key, Nodes* out) {
  for (const Value* node : from)
    if (const Value* member = node->find(key)) out->push_back(member);
}

void add_items(const Nodes& from, Nodes* out) {
  for (const Value* node : from)
    for (const Value& item : node->items) out->push_back(&item);
}

// A node and all below it, in the order of the document. Documents have a limited depth.
void add_descendants(const Value* node, Nodes* out) {
  out->push_back(node);
  for (const Value& item : node->items) add_descendants(&item, out);
}

// Python's and so kubectl's index: negative ones count from the end.
void add_item(const Nodes& from, int64_t index, Nodes* out) {
  for (const Value* node : from) {
    const auto size = static_cast<int64_t>(node->items.size());
    const int64_t at = index < 0 ? size + index : index;
    if (node->is_list() && at >= 0 && at < size)
      out->push_back(&node->items[static_cast<size_t>(at)]);
  }
}

// ".metadata.labels['app'][0]" applied to nodes.
class Path {
 public:
  Path(std::string_view text, std::string_view all) : rest_(text), all_(all) {}

  Result<Nodes> apply(Nodes nodes) {
    if (rest_.starts_with('$') || rest_.starts_with('@')) rest_.remove_prefix(1);
    while (!rest_.empty()) {
      Nodes next;
      if (rest_[0] == '[')
        MELTEMI_TRY(bracket(nodes, &next));
      else if (rest_[0] == '.')
        MELTEMI_TRY(field(nodes, &next));
      else
        return refuse(all_, fmt::format("\"{}\" must begin with a dot", rest_));
      nodes = std::move(next);
    }
    return nodes;
  }

 private:
  Status field(const Nodes& nodes, Nodes* out) {
    rest_.remove_prefix(1);
    if (rest_.starts_with('.')) return descend(nodes, out);
    std::string key;
    while (!rest_.empty() && rest_[0] != '.' && rest_[0] != '[') {
      if (rest_[0] == '\\' && rest_.size() > 1) rest_.remove_prefix(1);
      key += rest_[0];
      rest_.remove_prefix(1);
    }
    if (key == "*") {
      add_items(nodes, out);
    } else if (key.empty()) {
      *out = nodes;  // "{.}" and ".[0]"
    } else {
      add_member(nodes, key, out);
    }
    return {};
  }

  // "..name": the field of that name of everything below; what follows is read as after one dot.
  Status descend(const Nodes& nodes, Nodes* out) {
    if (rest_.size() == 1) return refuse(all_, "\"..\" needs the name of a field");
    Nodes all;
    for (const Value* node : nodes) add_descendants(node, &all);
    if (rest_[1] == '[') {
      rest_.remove_prefix(1);
      return bracket(all, out);
    }
    return field(all, out);
  }

  Status bracket(const Nodes& nodes, Nodes* out) {
    const size_t end = closing();
    if (end == std::string_view::npos) return refuse(all_, "a bracket is not closed");
    const std::string_view inner = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    if (inner == "*") {
      add_items(nodes, out);
    } else if (inner.starts_with("?(") && inner.ends_with(')')) {
      return filter(nodes, inner.substr(2, inner.size() - 3), out);
    } else if (inner.size() >= 2 && is_quote(inner[0]) && inner.back() == inner[0]) {
      add_member(nodes, inner.substr(1, inner.size() - 2), out);
    } else {
      int64_t index = 0;
      const auto [stop, error] = std::from_chars(inner.data(), inner.data() + inner.size(), index);
      if (error != std::errc() || stop != inner.data() + inner.size())
        return refuse(all_, fmt::format("[{}] is not supported", inner));
      add_item(nodes, index, out);
    }
    return {};
  }

  static bool is_quote(char c) { return c == '\'' || c == '"'; }

  // Of the bracket that rest_ opens with; brackets inside of quotes do not count.
  size_t closing() const {
    int depth = 0;
    char quote = 0;
    for (size_t i = 0; i < rest_.size(); ++i) {
      const char c = rest_[i];
      if (quote != 0) {
        if (c == quote) quote = 0;
      } else if (is_quote(c)) {
        quote = c;
      } else if (c == '[') {
        ++depth;
      } else if (c == ']' && --depth == 0) {
        return i;
      }
    }
    return std::string_view::npos;
  }

  // @.type=="Ready"
  Status filter(const Nodes& nodes, std::string_view condition, Nodes* out) {
    const bool negative = condition.find("!=") != std::string_view::npos;
    const size_t at = condition.find(negative ? "!=" : "==");
    std::string_view left = condition.substr(0, at), right;
    if (at != std::string_view::npos) right = condition.substr(at + 2);
    while (left.ends_with(' ')) left.remove_suffix(1);
    while (right.starts_with(' ')) right.remove_prefix(1);
    if (!left.starts_with('@') || right.empty())
      return refuse(all_, fmt::format("filter ({}) is not of the form @.field==\"value\"", condition));
    if (right.size() >= 2 && is_quote(right[0]) && right.back() == right[0])
      right = right.substr(1, right.size() - 2);
    Nodes items;
    add_items(nodes, &items);
    for (const Value* item : items) {
      const Nodes found = MELTEMI_TRY(Path(left, all_).apply({item}));
      const bool same = !found.empty() && text_of(*found[0]) == right;
      if (same != negative) out->push_back(item);
    }
    return {};
  }

  std::string_view rest_, all_;
};

class Template {
 public:
  explicit Template(std::string_view text) : all_(text), rest_(text) {}

  Result<std::string> run(const Value& root) {
    MELTEMI_TRY(block(&root, false, true));
    return std::move(out_);
  }

 private:
  // Up to the end, or in a range to its {end}. Without `print` it is only stepped over.
  Status block(const Value* node, bool in_range, bool print) {
    while (!rest_.empty()) {
      if (rest_[0] != '{') {
        if (print) out_ += rest_[0];
        rest_.remove_prefix(1);
        continue;
      }
      const std::string_view expression = MELTEMI_TRY(take_expression());
      if (expression == "end") {
        if (in_range) return {};
        return refuse(all_, "{end} without {range}");
      }
      if (expression.starts_with("range ")) {
        MELTEMI_TRY(range(node, expression.substr(6), print));
      } else if (print) {
        MELTEMI_TRY(show(node, expression));
      }
    }
    return in_range ? Status(refuse(all_, "{range} without {end}")) : Status();
  }

  Result<std::string_view> take_expression() {
    char quote = 0;
    for (size_t i = 1; i < rest_.size(); ++i) {
      const char c = rest_[i];
      if (quote != 0) {
        if (c == quote && rest_[i - 1] != '\\') quote = 0;
      } else if (c == '"' || c == '\'') {
        quote = c;
      } else if (c == '}') {
        const std::string_view expression = rest_.substr(1, i - 1);
        rest_.remove_prefix(i + 1);
        return expression;
      }
    }
    return refuse(all_, "a brace is not closed");
  }

  Status range(const Value* node, std::string_view path, bool print) {
    const Nodes nodes = MELTEMI_TRY(Path(path, all_).apply({node}));
    const std::string_view body = rest_;
    for (const Value* item : print ? nodes : Nodes()) {
      rest_ = body;
      MELTEMI_TRY(block(item, true, true));
    }
    if (print && !nodes.empty()) return {};
    return block(node, true, false);
  }

  Status show(const Value* node, std::string_view expression) {
    if (expression.size() >= 2 && (expression[0] == '"' || expression[0] == '\'') &&
        expression.back() == expression[0]) {
      literal(expression.substr(1, expression.size() - 2));
      return {};
    }
    bool first = true;
    for (const Value* found : MELTEMI_TRY(Path(expression, all_).apply({node}))) {
      if (!first) out_ += ' ';
      first = false;
      out_ += text_of(*found);
    }
    return {};
  }

  void literal(std::string_view text) {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 == text.size()) {
        out_ += text[i];
        continue;
      }
      const char c = text[++i];
      out_ += c == 'n' ? '\n' : c == 't' ? '\t' : c;
    }
  }

  std::string_view all_, rest_;
  std::string out_;
};

}  // namespace

Result<std::string> evaluate_jsonpath(std::string_view text, const Value& root) {
  if (text.find('{') != std::string_view::npos) return Template(text).run(root);
  // kubectl takes a path without braces, too.
  const std::string braced =
      fmt::format("{{{}{}}}", text.starts_with('.') || text.starts_with('[') ? "" : ".", text);
  return Template(braced).run(root);
}

}  // namespace meltemi::cli
