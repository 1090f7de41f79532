// Matchers of strings, header fields and query parameters, compiled once when a resource arrives and
// read by every worker at the same time. Regular expressions are RE2 (linear time) with capped size.
// Must never match on text that is not normalised, nor throw on a bad pattern: compiling reports it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/base/error.h"
#include "waypoint/http/arena.h"
#include "waypoint/http/field.h"

namespace re2 {
class RE2;
}
namespace envoy::type::matcher::v3 {
class StringMatcher;
class RegexMatcher;
class RegexMatchAndSubstitute;
}  // namespace envoy::type::matcher::v3
namespace envoy::config::route::v3 {
class HeaderMatcher;
class QueryParameterMatcher;
}  // namespace envoy::config::route::v3

namespace meltemi::waypoint {

class Regex {
 public:
  static constexpr size_t kMaxPattern = 1024;          // bytes (facts: the API's own limit)
  static constexpr int64_t kMaxMemory = 1 << 20;       // bytes of program and DFA cache
  static Result<Regex> compile(const std::string& pattern);

  bool full_match(std::string_view text) const;
  // Replaces every match by `substitution` (\1..\9, \0); the result lives in `arena`.
  std::string_view replace_all(std::string_view text, const std::string& substitution,
                               Arena& arena) const;
  const std::string& pattern() const;
  // Error: names a group that the pattern does not have.
  Status check_substitution(const std::string& substitution) const;

 private:
  std::shared_ptr<const re2::RE2> re_;
};

class StringMatcher {
 public:
  enum class Kind : uint8_t { kExact, kPrefix, kSuffix, kContains, kRegex, kPresent };

  static Result<StringMatcher> compile(const envoy::type::matcher::v3::StringMatcher& proto);
  static StringMatcher make(Kind kind, std::string text, bool ignore_case = false);
  static StringMatcher make(Regex regex);

  bool matches(std::string_view text) const;
  Kind kind() const { return kind_; }
  const std::string& text() const { return text_; }

 private:
  Kind kind_ = Kind::kPresent;
  bool ignore_case_ = false;
  std::string text_;  // lower case if ignore_case_
  std::optional<Regex> regex_;
};

// One condition on a header field or pseudo header. Several fields of the name are one value, joined
// by "," (RFC 9110 section 5.3), so that a repeated field cannot hide from a match.
class HeaderMatcher {
 public:
  static Result<HeaderMatcher> compile(const envoy::config::route::v3::HeaderMatcher& proto);
  bool matches(const RequestView& request, Arena& arena) const;
  // The same over bare fields (of a response); pseudo headers are then absent.
  bool matches(const Fields& fields, Arena& arena) const;

 private:
  enum class Kind : uint8_t { kString, kPresent, kRange };
  bool holds(std::optional<std::string_view> value) const;

  enum class Pseudo : uint8_t { kNone, kMethod, kAuthority, kScheme, kPath };
  std::string name_;  // lower case
  Pseudo pseudo_ = Pseudo::kNone;
  Kind kind_ = Kind::kPresent;
  bool present_ = true;
  bool invert_ = false;
  bool missing_is_empty_ = false;
  bool proxys_ = false;  // is_proxys()
  int64_t range_start_ = 0, range_end_ = 0;
  StringMatcher text_;
};

// The joined value of a field, or nullopt.
std::optional<std::string_view> field_value(const Fields& fields, std::string_view lower_name,
                                            Arena& arena);

class QueryMatcher {
 public:
  static Result<QueryMatcher> compile(const envoy::config::route::v3::QueryParameterMatcher& proto);
  // The first parameter of the name decides; names and values are compared percent-decoded.
  bool matches(std::string_view query, Arena& arena) const;

 private:
  std::string name_;
  bool present_only_ = true;
  bool present_ = true;
  StringMatcher text_;
};

}  // namespace meltemi::waypoint
