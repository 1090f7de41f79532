// A YAML or JSON document as a tree whose every node knows its line. Sits between bytes and typed
// objects, and between typed objects and what `get -o yaml|json` prints. Never does I/O, never
// knows what the fields mean.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/config/problem.h"

namespace meltemi::config {

struct MapKey {
  std::string text;
  int line = 0;
};

struct Value {
  enum class Kind : uint8_t { kNull, kBool, kNumber, kString, kList, kMap };

  Kind kind = Kind::kNull;
  int line = 0;              // 1-based; 0 when not from a file
  bool boolean = false;      // kBool
  std::string text;          // kString: the string; kNumber and kBool: as written
  std::vector<Value> items;  // kList and kMap, in file order
  std::vector<MapKey> keys;  // kMap: keys[i] names items[i]; unique

  static Value null() { return {}; }
  static Value of(Kind kind) {
    Value value;
    value.kind = kind;
    return value;
  }
  static Value of_bool(bool value);
  static Value of_string(std::string_view text);
  static Value of_number(std::string text);
  static Value list() { return of(Kind::kList); }
  static Value map() { return of(Kind::kMap); }

  bool is_null() const { return kind == Kind::kNull; }
  bool is_map() const { return kind == Kind::kMap; }
  bool is_list() const { return kind == Kind::kList; }
  bool is_string() const { return kind == Kind::kString; }
  // Member by key; nullptr if absent or not a map. Pointers live until the map is changed.
  const Value* find(std::string_view key) const;
  Value* find(std::string_view key);
  // Sets or replaces a member. REQUIRES: is_map().
  Value& set(std::string_view key, Value value);
  bool erase(std::string_view key);
  // "a string", "a list", ... for messages.
  std::string_view kind_name() const;
};

// Limits of one parse; exceeding one is a Problem that names it.
struct ParseLimits {
  size_t max_bytes = 8u << 20;   // of a file
  size_t max_nodes = 1'000'000;  // after aliases are expanded
  size_t max_depth = 100;
};

struct ParsedDocuments {
  std::vector<Value> documents;  // empty documents are left out
  Problems problems;             // at most one: the parser stops at the first syntax error
};
// Multi-document YAML 1.2 (of which JSON is a part), scalars resolved as kubectl does: plain
// yes/no/on/off are booleans too. Duplicate keys are errors. Never throws.
ParsedDocuments parse_documents(std::string_view bytes, std::string_view file,
                                const ParseLimits& limits = {});

// Block style, two spaces, strings quoted where a plain one would read back as something else.
std::string to_yaml(const Value& value);
// Two-space indented JSON with a trailing newline; `compact` gives one line without.
std::string to_json(const Value& value, bool compact = false);

}  // namespace meltemi::config
