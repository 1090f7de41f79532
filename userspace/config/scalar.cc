#include "userspace/config/scalar.h"

#include <charconv>
#include <optional>

namespace meltemi::config {
namespace {

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
  for (std::string_view word : words) {
    if (text == word) return true;
  }
  return false;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// A whole number in `base`, as decimal text. nullopt if it is none or does not fit 64 bits.
std::optional<std::string> whole(std::string_view digits, int base) {
  uint64_t number = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number, base);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) return {};
  return std::to_string(number);
}

std::optional<std::string> prefixed_number(std::string_view s) {
  if (s.size() < 2 || s[0] != '0') return {};
  if (s[1] == 'x' || s[1] == 'X') return whole(s.substr(2), 16);
  if (s[1] == 'o') return whole(s.substr(2), 8);
  if (is_digit(s[1])) return whole(s.substr(1), 8);  // YAML 1.1, as in defaultMode: 0644
  return {};
}

// [-+]? (digits [. digits?] | . digits) ([eE] [-+]? digits)?  to JSON's spelling.
std::optional<std::string> decimal_number(std::string_view s) {
  std::string out;
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) {
    if (s[0] == '-') out = "-";
    s.remove_prefix(1);
  }
  size_t i = 0;
  auto digits = [&] {
    size_t from = i;
    while (i < s.size() && is_digit(s[i])) ++i;
    return s.substr(from, i - from);
  };
  std::string_view integer = digits();
  std::string_view fraction;
  if (i < s.size() && s[i] == '.') {
    ++i;
    fraction = digits();
    if (integer.empty() && fraction.empty()) return {};
  } else if (integer.empty()) {
    return {};
  }
  if (integer.size() > 1 && integer[0] == '0') return {};  // 007 with a sign or 00.5: a string
  out += integer.empty() ? "0" : integer;
  if (!fraction.empty()) (out += '.') += fraction;
  if (i < s.size() && (s[i] == 'e' || s[i] == 'E')) {
    out += s[i++];
    if (i < s.size() && (s[i] == '-' || s[i] == '+')) out += s[i++];
    std::string_view exponent = digits();
    if (exponent.empty()) return {};
    out += exponent;
  }
  if (i != s.size()) return {};
  return out;
}

}  // namespace

Value resolve_plain_scalar(std::string_view text) {
  if (is_one_of(text, {"", "~", "null", "Null", "NULL"})) return Value::null();
  if (is_one_of(text, {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})) {
    Value v = Value::of_bool(true);
    v.text = text;
    return v;
  }
  if (is_one_of(text, {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})) {
    Value v = Value::of_bool(false);
    v.text = text;
    return v;
  }
  if (auto number = prefixed_number(text)) return Value::of_number(*number);
  if (auto number = decimal_number(text)) return Value::of_number(*number);
  return Value::of_string(text);
}

}  // namespace meltemi::config
