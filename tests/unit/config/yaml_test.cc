// YAML in, YAML and JSON out: scalar resolution, positions, limits, and that what is written reads
// back.
#include <gtest/gtest.h>

#include "userspace/config/scalar.h"
#include "userspace/config/value.h"

namespace meltemi::config {
namespace {

Value parse_one(std::string_view text) {
  ParsedDocuments parsed = parse_documents(text, "t.yaml");
  EXPECT_TRUE(parsed.problems.empty()) << parsed.problems[0].to_string();
  EXPECT_EQ(parsed.documents.size(), 1u);
  return parsed.documents.empty() ? Value() : parsed.documents[0];
}

std::string error_of(std::string_view text, const ParseLimits& limits = {}) {
  ParsedDocuments parsed = parse_documents(text, "t.yaml", limits);
  EXPECT_TRUE(parsed.documents.empty());
  if (parsed.problems.empty()) return "no problem";
  return parsed.problems[0].to_string();
}

TEST(Yaml, ResolvesPlainScalarsAsKubectlDoes) {
  using Kind = Value::Kind;
  struct Case {
    const char* text;
    Kind kind;
    const char* as;
  };
  for (const Case& c : std::initializer_list<Case>{{"true", Kind::kBool, "true"},
                                                   {"no", Kind::kBool, "no"},
                                                   {"ON", Kind::kBool, "ON"},
                                                   {"~", Kind::kNull, ""},
                                                   {"null", Kind::kNull, ""},
                                                   {"0644", Kind::kNumber, "420"},
                                                   {"0x1f", Kind::kNumber, "31"},
                                                   {"-5", Kind::kNumber, "-5"},
                                                   {"+5", Kind::kNumber, "5"},
                                                   {".5", Kind::kNumber, "0.5"},
                                                   {"1.", Kind::kNumber, "1"},
                                                   {"1.50", Kind::kNumber, "1.50"},
                                                   {"1e3", Kind::kNumber, "1e3"},
                                                   {"1.2.3", Kind::kString, "1.2.3"},
                                                   {"1s", Kind::kString, "1s"},
                                                   {"089", Kind::kString, "089"},
                                                   {"-", Kind::kString, "-"},
                                                   {"1e", Kind::kString, "1e"},
                                                   {"2026-01-01", Kind::kString, "2026-01-01"},
                                                   {"yes!", Kind::kString, "yes!"}}) {
    Value value = resolve_plain_scalar(c.text);
    EXPECT_EQ(value.kind, c.kind) << c.text;
    if (c.kind != Kind::kNull) EXPECT_EQ(value.text, c.as) << c.text;
  }
}

TEST(Yaml, KnowsTheLineOfEveryNode) {
  Value root = parse_one("a: 1\nb:\n  - x\n  - y: {z: 'q'}\n");
  EXPECT_EQ(root.keys[1].line, 2);
  EXPECT_EQ(root.find("b")->items[1].line, 4);
  EXPECT_EQ(root.find("b")->items[1].find("y")->find("z")->text, "q");
}

TEST(Yaml, ReadsManyDocumentsAndJson) {
  ParsedDocuments parsed =
      parse_documents("---\na: 1\n---\n---\n{\"b\": [true, \"x\\n\"]}\n...\n", "f");
  ASSERT_TRUE(parsed.problems.empty());
  ASSERT_EQ(parsed.documents.size(), 2u);
  EXPECT_EQ(parsed.documents[1].find("b")->items[1].text, "x\n");
}

TEST(Yaml, KeysStayTextAndMergeKeysMerge) {
  Value root = parse_one("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\non: 1\n8080: web\n");
  EXPECT_EQ(root.find("use")->find("x")->text, "1");
  EXPECT_EQ(root.find("use")->find("y")->text, "3");
  EXPECT_NE(root.find("on"), nullptr);
  EXPECT_NE(root.find("8080"), nullptr);
}

TEST(Yaml, RefusesWithFileAndLine) {
  EXPECT_EQ(error_of("a: 1\nb: 2\na: 3\n"),
            "error: t.yaml:3: key \"a\" appears twice (first on line 1). Remove one of the two. "
            "[MLT0001]");
  EXPECT_NE(error_of("a: [1\nb: 2").find("not valid YAML"), std::string::npos);
  EXPECT_NE(error_of("a: *nobody").find("t.yaml:1"), std::string::npos);
  EXPECT_NE(error_of(std::string("a: x\nb: \x01\n")).find("t.yaml:2"), std::string::npos);
  EXPECT_NE(error_of("a: \xff\xfe\n").find("not UTF-8"), std::string::npos);
  EXPECT_NE(error_of("a:\n\tb: 1\n").find("YAML allows no tabs"), std::string::npos);
  EXPECT_EQ(error_of("a: [1\nb: 2").find("tabs"), std::string::npos);
  EXPECT_NE(error_of("? [1, 2]\n: x\n").find("map key"), std::string::npos);
}

TEST(Yaml, LimitsHaveNames) {
  EXPECT_NE(error_of(std::string(200, '[') + std::string(200, ']')).find("max_depth"),
            std::string::npos);
  EXPECT_NE(error_of("aaaa", {.max_bytes = 3}).find("max_bytes"), std::string::npos);
  // The classic: ten levels of nine aliases each.
  std::string bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n";
  for (char c = 'b'; c < 'k'; ++c) {
    char p = static_cast<char>(c - 1);
    bomb += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 9; ++i) bomb += std::string(i ? ",*" : "*") + p;
    bomb += "]\n";
  }
  EXPECT_NE(error_of(bomb).find("max_nodes"), std::string::npos);
}

bool equal(const Value& a, const Value& b) {
  if (a.kind != b.kind || a.items.size() != b.items.size()) return false;
  if ((a.kind == Value::Kind::kString || a.kind == Value::Kind::kNumber) && a.text != b.text)
    return false;
  if (a.boolean != b.boolean) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    if (a.is_map() && a.keys[i].text != b.keys[i].text) return false;
    if (!equal(a.items[i], b.items[i])) return false;
  }
  return true;
}

// Strings that a careless writer gets wrong, in every position.
TEST(Yaml, WhatIsWrittenReadsBack) {
  const char* awkward[] = {"",
                           " ",
                           "a",
                           "true",
                           "no",
                           "null",
                           "~",
                           "0644",
                           "1.5",
                           "1e9",
                           "- x",
                           "a: b",
                           "a #b",
                           "#x",
                           "*x",
                           "&x",
                           "!x",
                           "%x",
                           "@x",
                           "`x`",
                           "{x",
                           "[x",
                           "x]",
                           "'x",
                           "\"x\"",
                           "a\nb",
                           "a\n",
                           "a\n\n",
                           "\na",
                           "  a\nb\n",
                           "tab\there",
                           "x:",
                           ":x",
                           "a,b",
                           "a, b",
                           "x ",
                           "-",
                           "--- ",
                           "...",
                           "caf\xc3\xa9",
                           "\xc3\xa9\n",
                           "line\n  indented\nend\n",
                           "\\n",
                           "a: b\nc\n",
                           "10.0.0.1:80",
                           "spiffe://a/b",
                           "==",
                           "<<",
                           "?x",
                           "|",
                           ">",
                           "\x7f",
                           "a\r\nb"};
  Value root = Value::map();
  Value list = Value::list();
  Value nested = Value::list();
  for (const char* text : awkward) {
    root.set(text[0] ? text : "empty", Value::of_string(text));
    list.items.push_back(Value::of_string(text));
    Value inner = Value::map();
    inner.set("k", Value::of_string(text));
    inner.set("l", list);
    nested.items.push_back(inner);
  }
  Value lists = Value::list();
  lists.items.push_back(list);
  lists.items.push_back(Value::list());
  lists.items.push_back(Value::map());
  root.set("list", list);
  root.set("nested", nested);
  root.set("lists", lists);
  root.set("number", Value::of_number("12"));
  root.set("flag", Value::of_bool(true));
  root.set("nothing", Value::null());
  std::string yaml = to_yaml(root);
  EXPECT_TRUE(equal(parse_one(yaml), root)) << yaml;
  EXPECT_TRUE(equal(parse_one(to_json(root)), root));
  EXPECT_TRUE(equal(parse_one(to_json(root, true)), root));
}

}  // namespace
}  // namespace meltemi::config
