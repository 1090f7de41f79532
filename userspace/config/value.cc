// The tree itself and how it is written out as YAML or JSON; yaml_parser.cc reads it.
#include "userspace/config/value.h"

#include <fmt/format.h>

#include "userspace/config/scalar.h"

namespace meltemi::config {

Value Value::of_bool(bool value) {
  Value v = of(Kind::kBool);
  v.boolean = value;
  v.text = value ? "true" : "false";
  return v;
}

Value Value::of_string(std::string_view text) {
  Value v = of(Kind::kString);
  v.text = text;
  return v;
}

Value Value::of_number(std::string text) {
  Value v = of(Kind::kNumber);
  v.text = std::move(text);
  return v;
}

const Value* Value::find(std::string_view key) const {
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].text == key) return &items[i];
  }
  return nullptr;
}

Value* Value::find(std::string_view key) {
  return const_cast<Value*>(static_cast<const Value*>(this)->find(key));
}

Value& Value::set(std::string_view key, Value value) {
  if (Value* existing = find(key)) return *existing = std::move(value);
  keys.push_back({std::string(key), 0});
  items.push_back(std::move(value));
  return items.back();
}

bool Value::erase(std::string_view key) {
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].text != key) continue;
    keys.erase(keys.begin() + static_cast<ptrdiff_t>(i));
    items.erase(items.begin() + static_cast<ptrdiff_t>(i));
    return true;
  }
  return false;
}

std::string_view Value::kind_name() const {
  switch (kind) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return "a boolean";
    case Kind::kNumber:
      return "a number";
    case Kind::kString:
      return "a string";
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a map";
  }
  return "nothing";
}

namespace {

void append_json_string(std::string_view text, std::string* out) {
  *out += '"';
  for (char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          *out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
        } else {
          *out += c;
        }
    }
  }
  *out += '"';
}

// A string that a YAML reader gives back as the same string when it is written plain.
bool is_plain_safe(std::string_view s) {
  if (s.empty() || resolve_plain_scalar(s).kind != Value::Kind::kString) return false;
  auto word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  };
  if (!word(s[0]) && s[0] != '/' && s[0] != '.') return false;
  for (size_t i = 0; i < s.size(); ++i) {
    char c = s[i];
    if (word(c) || c == '.' || c == '/' || c == '-' || c == '=' || c == '+' || c == '@' ||
        c == '*' || c == '(' || c == ')' || c == ';' || c == '~' || c == '%') {
      continue;
    }
    bool inner = i + 1 < s.size() && s[i + 1] != ' ';
    if ((c == ' ' || c == ':' || c == ',') && inner) continue;
    if (c == ',' && i + 1 < s.size()) continue;
    return false;
  }
  return true;
}

// Text that a literal block keeps as it is: printable lines, no leading space, one final newline.
bool is_block_safe(std::string_view s) {
  if (s.size() < 2 || s.back() != '\n' || s[s.size() - 2] == '\n') return false;
  if (s[0] == ' ' || s[0] == '\n' || s[0] == '\t') return false;
  for (char c : s) {
    unsigned char u = static_cast<unsigned char>(c);
    if ((u < 0x20 && c != '\n' && c != '\t') || u >= 0x7f) return false;
  }
  return true;
}

class YamlWriter {
 public:
  explicit YamlWriter(std::string* out) : out_(*out) {}

  // Writes `value` after "key:" or "- ", or at the start of a document. `indent` is for lines
  // below.
  void inline_or_below(const Value& value, size_t indent, bool after_dash) {
    switch (value.kind) {
      case Value::Kind::kMap:
        if (value.items.empty()) break;
        if (!after_dash) newline();
        map(value, indent, after_dash);
        return;
      case Value::Kind::kList:
        if (value.items.empty()) break;
        newline();
        // kubectl's habit: a list stands at its key's own indentation.
        list(value, after_dash ? indent : indent - 2);
        return;
      default:
        break;
    }
    if (!after_dash) out_ += ' ';
    scalar(value, indent);
    newline();
  }

  void map(const Value& value, size_t indent, bool first_inline) {
    for (size_t i = 0; i < value.items.size(); ++i) {
      if (i > 0 || !first_inline) out_.append(indent, ' ');
      text(value.keys[i].text);
      out_ += ':';
      inline_or_below(value.items[i], indent + 2, false);
    }
  }

  void list(const Value& value, size_t indent) {
    for (const Value& item : value.items) {
      out_.append(indent, ' ');
      out_ += "- ";
      inline_or_below(item, indent + 2, true);
    }
  }

  void scalar(const Value& value, size_t indent) {
    switch (value.kind) {
      case Value::Kind::kNull:
        out_ += "null";
        return;
      case Value::Kind::kBool:
      case Value::Kind::kNumber:
        out_ += value.text;
        return;
      case Value::Kind::kList:
        out_ += "[]";
        return;
      case Value::Kind::kMap:
        out_ += "{}";
        return;
      case Value::Kind::kString:
        break;
    }
    if (is_block_safe(value.text)) {
      block(value.text, indent);
    } else {
      text(value.text);
    }
  }

 private:
  void newline() {
    if (out_.empty() || out_.back() != '\n') out_ += '\n';
  }
  void text(std::string_view s) {
    if (is_plain_safe(s)) {
      out_ += s;
    } else {
      append_json_string(s, &out_);
    }
  }
  void block(std::string_view s, size_t indent) {
    out_ += '|';
    s.remove_suffix(1);
    while (true) {
      size_t end = s.find('\n');
      std::string_view line = s.substr(0, end);
      out_ += '\n';
      if (!line.empty()) out_.append(indent, ' ');
      out_ += line;
      if (end == std::string_view::npos) return;
      s.remove_prefix(end + 1);
    }
  }

  std::string& out_;
};

void append_json(const Value& value, size_t indent, bool compact, std::string* out) {
  auto newline = [&](size_t by) {
    if (compact) return;
    *out += '\n';
    out->append(by, ' ');
  };
  switch (value.kind) {
    case Value::Kind::kNull:
      *out += "null";
      return;
    case Value::Kind::kBool:
      *out += value.boolean ? "true" : "false";
      return;
    case Value::Kind::kNumber:
      *out += value.text;
      return;
    case Value::Kind::kString:
      append_json_string(value.text, out);
      return;
    case Value::Kind::kList:
    case Value::Kind::kMap:
      break;
  }
  bool is_map = value.is_map();
  *out += is_map ? '{' : '[';
  for (size_t i = 0; i < value.items.size(); ++i) {
    if (i > 0) *out += ',';
    newline(indent + 2);
    if (is_map) {
      append_json_string(value.keys[i].text, out);
      *out += compact ? ":" : ": ";
    }
    append_json(value.items[i], indent + 2, compact, out);
  }
  if (!value.items.empty()) newline(indent);
  *out += is_map ? '}' : ']';
}

}  // namespace

std::string to_yaml(const Value& value) {
  std::string out;
  YamlWriter writer(&out);
  if (value.items.empty()) {
    writer.scalar(value, 0);
    out += '\n';
  } else if (value.is_map()) {
    writer.map(value, 0, false);
  } else {
    writer.list(value, 0);
  }
  return out;
}

std::string to_json(const Value& value, bool compact) {
  std::string out;
  append_json(value, 0, compact, &out);
  if (!compact) out += '\n';
  return out;
}

}  // namespace meltemi::config
