// Reads YAML with yaml-cpp's event interface into Value trees. All of yaml-cpp's exceptions end
// here.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <utility>

#include "userspace/config/scalar.h"
#include "userspace/config/value.h"

namespace meltemi::config {
namespace {

struct ParseFailure {
  int line;
  std::string message;
  std::string fix;
};

// Line (1-based) of the first byte that is no valid UTF-8 or a control character; 0 if there is
// none.
int first_bad_text_line(std::string_view bytes) {
  int line = 1;
  for (size_t i = 0; i < bytes.size();) {
    unsigned char c = static_cast<unsigned char>(bytes[i]);
    if (c == '\n') ++line;
    if (c < 0x20 && c != '\n' && c != '\r' && c != '\t') return line;
    size_t length = c < 0x80 ? 1 : (c >> 5) == 6 ? 2 : (c >> 4) == 14 ? 3 : (c >> 3) == 30 ? 4 : 0;
    if (length == 0 || c == 0xc0 || c == 0xc1 || c > 0xf4 || i + length > bytes.size()) return line;
    for (size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(bytes[i + k]) & 0xc0) != 0x80) return line;
    }
    unsigned char second = length > 1 ? static_cast<unsigned char>(bytes[i + 1]) : 0x80;
    bool overlong = (c == 0xe0 && second < 0xa0) || (c == 0xf0 && second < 0x90);
    bool beyond = (c == 0xed && second > 0x9f) || (c == 0xf4 && second > 0x8f);
    if (overlong || beyond) return line;
    i += length;
  }
  return 0;
}

// YAML 1.2 section 5.2 allows a byte order mark before each document, as files that were put one behind
// the other have it; yaml-cpp knows it at the very beginning only. Lines stay what they were.
std::string without_byte_order_marks(std::string_view bytes) {
  constexpr std::string_view kMark = "\xef\xbb\xbf";
  std::string out;
  out.reserve(bytes.size());
  bool may_begin = true;  // of the file, or behind a "---" or "..." line
  while (!bytes.empty()) {
    if (may_begin && bytes.starts_with(kMark)) bytes.remove_prefix(kMark.size());
    const size_t end = std::min(bytes.find('\n'), bytes.size() - 1) + 1;
    const std::string_view line = bytes.substr(0, std::min(end, bytes.size()));
    may_begin = line.starts_with("---") || line.starts_with("...");
    out += line;
    bytes.remove_prefix(line.size());
  }
  return out;
}

bool is_indented_by_tab(std::string_view bytes, int line) {
  for (; line > 1 && !bytes.empty(); --line)
    bytes.remove_prefix(std::min(bytes.find('\n'), bytes.size() - 1) + 1);
  const size_t end = bytes.find_first_not_of(" \t");
  return bytes.substr(0, end).find('\t') != std::string_view::npos;
}

class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const ParseLimits& limits) : limits_(limits) {}

  bool take(Value* out) {
    if (!complete_ || root_.is_null()) return false;
    *out = std::move(root_);
    return true;
  }

  void OnDocumentStart(const YAML::Mark&) override {
    root_ = Value();
    complete_ = false;
    open_.clear();
    anchors_.clear();
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Value value;
    value.line = mark.line + 1;
    add(std::move(value), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto found = anchors_.find(anchor);
    if (found == anchors_.end())
      throw ParseFailure{mark.line + 1, "alias of an unfinished node", ""};
    count_nodes(found->second.nodes, mark.line + 1);
    check_depth(open_.size() + found->second.depth, mark.line + 1);
    add(found->second.value, 0);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    bool plain = tag == "?";
    Value value = plain ? resolve_plain_scalar(text) : Value::of_string(text);
    value.line = mark.line + 1;
    // A key stays text whatever it looks like: `on:` and `8080:` are fine as keys.
    if (plain && expecting_key()) {
      value = Value::of_string(text);
      value.line = mark.line + 1;
      merge_key_ = text == "<<";
    }
    add(std::move(value), anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    push(Value::list(), mark, anchor);
  }
  void OnSequenceEnd() override { pop(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    push(Value::map(), mark, anchor);
  }
  void OnMapEnd() override { pop(); }

 private:
  struct Open {
    Value value;
    YAML::anchor_t anchor = 0;
    size_t nodes_before = 0;
    size_t deepest = 0;
    bool key_pending = false;   // a key was read, its value comes next
    bool key_is_merge = false;  // that key is a plain <<
    std::string key;
    int key_line = 0;
    Value merges = Value::list();
  };
  struct Anchored {
    Value value;
    size_t nodes;
    size_t depth;
  };

  bool expecting_key() const {
    return !open_.empty() && open_.back().value.is_map() && !open_.back().key_pending;
  }
  void count_nodes(size_t more, int line) {
    nodes_ += more;
    if (nodes_ > limits_.max_nodes) {
      throw ParseFailure{line,
                         fmt::format("more than {} nodes (limit max_nodes)", limits_.max_nodes),
                         "Split the file"};
    }
  }
  void check_depth(size_t depth, int line) {
    if (depth > limits_.max_depth) {
      throw ParseFailure{line,
                         fmt::format("nested deeper than {} (limit max_depth)", limits_.max_depth),
                         "Flatten the document"};
    }
  }

  void push(Value value, const YAML::Mark& mark, YAML::anchor_t anchor) {
    value.line = mark.line + 1;
    if (expecting_key()) {
      throw ParseFailure{value.line, "a map key must be a plain value", "Quote the key"};
    }
    check_depth(open_.size() + 1, value.line);
    Open open;
    open.value = std::move(value);
    open.anchor = anchor;
    open.nodes_before = nodes_;
    open_.push_back(std::move(open));
  }

  void pop() {
    Open done = std::move(open_.back());
    open_.pop_back();
    merge_into(&done);
    if (!open_.empty()) open_.back().deepest = std::max(open_.back().deepest, done.deepest + 1);
    if (done.anchor != 0) {
      anchors_[done.anchor] = {done.value, nodes_ - done.nodes_before + 1, done.deepest + 1};
    }
    place(std::move(done.value));
  }

  void add(Value value, YAML::anchor_t anchor) {
    if (anchor != 0) anchors_[anchor] = {value, 1, 0};
    place(std::move(value));
  }

  void place(Value value) {
    count_nodes(1, value.line);
    if (open_.empty()) {
      root_ = std::move(value);
      complete_ = true;
      return;
    }
    Open& parent = open_.back();
    if (parent.value.is_list()) {
      parent.value.items.push_back(std::move(value));
    } else if (!parent.key_pending) {
      parent.key_is_merge = std::exchange(merge_key_, false);
      take_key(&parent, std::move(value));
    } else {
      parent.key_pending = false;
      if (parent.key_is_merge) {
        parent.merges.items.push_back(std::move(value));
        return;
      }
      parent.value.keys.push_back({std::move(parent.key), parent.key_line});
      parent.value.items.push_back(std::move(value));
    }
  }

  static void take_key(Open* parent, Value key) {
    if (key.is_map() || key.is_list() || key.is_null()) {
      throw ParseFailure{key.line,
                         fmt::format("a map key must be a string, not {}", key.kind_name()),
                         "Quote the key"};
    }
    if (!parent->key_is_merge) {
      for (const MapKey& existing : parent->value.keys) {
        if (existing.text != key.text) continue;
        throw ParseFailure{
            key.line,
            fmt::format("key \"{}\" appears twice (first on line {})", key.text, existing.line),
            "Remove one of the two"};
      }
    }
    parent->key = std::move(key.text);
    parent->key_line = key.line;
    parent->key_pending = true;
  }

  // YAML 1.1 merge keys: `<<: *base` or `<<: [*a, *b]`; what the map says itself wins.
  void merge_into(Open* open) {
    for (const Value& merge : open->merges.items) {
      const Value* single = &merge;
      size_t count = 1;
      if (merge.is_list()) {
        single = merge.items.data();
        count = merge.items.size();
      }
      for (size_t i = 0; i < count; ++i) {
        if (!single[i].is_map()) {
          throw ParseFailure{merge.line, "`<<` needs a map or a list of maps",
                             "Give it an alias of a map"};
        }
        for (size_t k = 0; k < single[i].keys.size(); ++k) {
          if (open->value.find(single[i].keys[k].text)) continue;
          open->value.keys.push_back(single[i].keys[k]);
          open->value.items.push_back(single[i].items[k]);
        }
      }
    }
  }

  const ParseLimits& limits_;
  Value root_;
  bool complete_ = false;
  size_t nodes_ = 0;
  bool merge_key_ = false;  // the scalar at hand is a plain <<
  std::vector<Open> open_;
  std::map<YAML::anchor_t, Anchored> anchors_;
};

Problem syntax_problem(std::string_view file, int line, std::string message, std::string fix) {
  Problem problem;
  problem.code = kCodeSyntax;
  problem.file = file;
  problem.line = line;
  problem.message = std::move(message);
  problem.fix = std::move(fix);
  return problem;
}

}  // namespace

ParsedDocuments parse_documents(std::string_view bytes, std::string_view file,
                                const ParseLimits& limits) {
  ParsedDocuments out;
  auto fail_at = [&](int line, std::string message, std::string fix) {
    out.documents.clear();
    out.problems.push_back(syntax_problem(file, line, std::move(message), std::move(fix)));
  };
  if (bytes.size() > limits.max_bytes) {
    fail_at(0, fmt::format("larger than {} bytes (limit max_bytes)", limits.max_bytes),
            "Split the file");
    return out;
  }
  if (int line = first_bad_text_line(bytes)) {
    fail_at(line, "not UTF-8 text, or a control character", "Save the file as UTF-8");
    return out;
  }
  std::istringstream stream(without_byte_order_marks(bytes));
  try {
    YAML::Parser parser(stream);
    TreeBuilder builder(limits);
    while (parser.HandleNextDocument(builder)) {
      Value document;
      if (builder.take(&document)) out.documents.push_back(std::move(document));
    }
  } catch (const ParseFailure& failure) {
    fail_at(failure.line, failure.message, failure.fix);
  } catch (const YAML::Exception& e) {
    const int line = e.mark.is_null() ? 0 : e.mark.line + 1;
    fail_at(line, fmt::format("not valid YAML: {}", e.msg),
            is_indented_by_tab(bytes, line) ? "Indent with spaces; YAML allows no tabs there" : "");
  } catch (const std::exception& e) {
    fail_at(0, fmt::format("not valid YAML: {}", e.what()), "");
  }
  return out;
}

}  // namespace meltemi::config
