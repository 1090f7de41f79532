#include "waypoint/route/matcher.h"

#include <fmt/format.h>
#include <re2/re2.h>

#include <charconv>

#include "envoy/config/route/v3/route_components.pb.h"
#include "envoy/type/matcher/v3/string.pb.h"

namespace meltemi::waypoint {
namespace {

namespace pb = envoy::config::route::v3;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

std::string lower(std::string_view text) {
  std::string s(text);
  for (char& c : s) c = ascii_lower(c);
  return s;
}

re2::StringPiece piece(std::string_view text) { return {text.data(), text.size()}; }

bool starts_with_ci(std::string_view text, std::string_view lower_prefix) {
  return text.size() >= lower_prefix.size() &&
         name_is(text.substr(0, lower_prefix.size()), lower_prefix);
}
bool ends_with_ci(std::string_view text, std::string_view lower_suffix) {
  return text.size() >= lower_suffix.size() &&
         name_is(text.substr(text.size() - lower_suffix.size()), lower_suffix);
}
bool contains_ci(std::string_view text, std::string_view lower_part) {
  if (lower_part.empty()) return true;
  for (size_t i = 0; i + lower_part.size() <= text.size(); ++i) {
    if (name_is(text.substr(i, lower_part.size()), lower_part)) return true;
  }
  return false;
}

}  // namespace

Result<Regex> Regex::compile(const std::string& pattern) {
  if (pattern.empty()) return bad("regex: empty pattern");
  if (pattern.size() > kMaxPattern) {
    return bad(fmt::format("regex: {} bytes, at most {} are accepted", pattern.size(), kMaxPattern));
  }
  RE2::Options options(RE2::Quiet);
  options.set_max_mem(kMaxMemory);
  auto re = std::make_shared<const RE2>(pattern, options);
  if (!re->ok()) return bad(fmt::format("regex \"{}\": {}", pattern, re->error()));
  Regex regex;
  regex.re_ = std::move(re);
  return regex;
}

bool Regex::full_match(std::string_view text) const { return RE2::FullMatch(piece(text), *re_); }

std::string_view Regex::replace_all(std::string_view text, const std::string& substitution,
                                    Arena& arena) const {
  std::string out(text);
  RE2::GlobalReplace(&out, *re_, substitution);
  return arena.copy(out);
}

const std::string& Regex::pattern() const { return re_->pattern(); }

Status Regex::check_substitution(const std::string& substitution) const {
  std::string error;
  if (!re_->CheckRewriteString(substitution, &error)) {
    return bad(fmt::format("substitution \"{}\": {}", substitution, error));
  }
  return {};
}

StringMatcher StringMatcher::make(Kind kind, std::string text, bool ignore_case) {
  StringMatcher m;
  m.kind_ = kind;
  m.ignore_case_ = ignore_case;
  m.text_ = ignore_case ? lower(text) : std::move(text);
  return m;
}

StringMatcher StringMatcher::make(Regex regex) {
  StringMatcher m;
  m.kind_ = Kind::kRegex;
  m.text_ = regex.pattern();
  m.regex_ = std::move(regex);
  return m;
}

Result<StringMatcher> StringMatcher::compile(
    const envoy::type::matcher::v3::StringMatcher& proto) {
  using P = envoy::type::matcher::v3::StringMatcher;
  switch (proto.match_pattern_case()) {
    case P::kExact: return make(Kind::kExact, proto.exact(), proto.ignore_case());
    case P::kPrefix: return make(Kind::kPrefix, proto.prefix(), proto.ignore_case());
    case P::kSuffix: return make(Kind::kSuffix, proto.suffix(), proto.ignore_case());
    case P::kContains: return make(Kind::kContains, proto.contains(), proto.ignore_case());
    case P::kSafeRegex: return make(MELTEMI_TRY(Regex::compile(proto.safe_regex().regex())));
    case P::MATCH_PATTERN_NOT_SET: break;
  }
  return bad("string match: no pattern set");
}

bool StringMatcher::matches(std::string_view text) const {
  switch (kind_) {
    case Kind::kExact: return ignore_case_ ? name_is(text, text_) : text == text_;
    case Kind::kPrefix:
      return ignore_case_ ? starts_with_ci(text, text_) : text.starts_with(text_);
    case Kind::kSuffix: return ignore_case_ ? ends_with_ci(text, text_) : text.ends_with(text_);
    case Kind::kContains:
      return ignore_case_ ? contains_ci(text, text_)
                          : text.find(text_) != std::string_view::npos;
    case Kind::kRegex: return regex_->full_match(text);
    case Kind::kPresent: return true;
  }
  return false;
}

Result<HeaderMatcher> HeaderMatcher::compile(const pb::HeaderMatcher& proto) {
  HeaderMatcher m;
  m.name_ = lower(proto.name());
  if (m.name_.empty()) return bad("header match: empty name");
  if (m.name_ == ":method") {
    m.pseudo_ = Pseudo::kMethod;
  } else if (m.name_ == ":authority" || m.name_ == "host") {
    m.pseudo_ = Pseudo::kAuthority;
  } else if (m.name_ == ":scheme") {
    m.pseudo_ = Pseudo::kScheme;
  } else if (m.name_ == ":path") {
    m.pseudo_ = Pseudo::kPath;
  } else if (m.name_[0] == ':') {
    return bad(fmt::format("header match: unknown pseudo header \"{}\"", m.name_));
  }
  m.proxys_ = is_proxys(field_id(m.name_));
  m.invert_ = proto.invert_match();
  m.missing_is_empty_ = proto.treat_missing_header_as_empty();
  m.kind_ = Kind::kString;
  using Kind_ = StringMatcher::Kind;
  switch (proto.header_match_specifier_case()) {
    case pb::HeaderMatcher::kExactMatch:
      m.text_ = StringMatcher::make(Kind_::kExact, proto.exact_match());
      break;
    case pb::HeaderMatcher::kPrefixMatch:
      m.text_ = StringMatcher::make(Kind_::kPrefix, proto.prefix_match());
      break;
    case pb::HeaderMatcher::kSuffixMatch:
      m.text_ = StringMatcher::make(Kind_::kSuffix, proto.suffix_match());
      break;
    case pb::HeaderMatcher::kContainsMatch:
      m.text_ = StringMatcher::make(Kind_::kContains, proto.contains_match());
      break;
    case pb::HeaderMatcher::kSafeRegexMatch:
      m.text_ =
          StringMatcher::make(MELTEMI_TRY(Regex::compile(proto.safe_regex_match().regex())));
      break;
    case pb::HeaderMatcher::kStringMatch:
      m.text_ = MELTEMI_TRY(StringMatcher::compile(proto.string_match()));
      break;
    case pb::HeaderMatcher::kRangeMatch:
      m.kind_ = Kind::kRange;
      m.range_start_ = proto.range_match().start();
      m.range_end_ = proto.range_match().end();
      break;
    case pb::HeaderMatcher::kPresentMatch:
      m.kind_ = Kind::kPresent;
      m.present_ = proto.present_match();
      break;
    case pb::HeaderMatcher::HEADER_MATCH_SPECIFIER_NOT_SET: m.kind_ = Kind::kPresent; break;
  }
  return m;
}

bool HeaderMatcher::holds(std::optional<std::string_view> value) const {
  if (kind_ == Kind::kPresent) {
    const bool present = value.has_value() || missing_is_empty_;
    return (present == present_) != invert_;
  }
  if (!value) {
    // An absent field satisfies no positive match; of an inverted one it is what is asked for.
    if (!missing_is_empty_) return invert_;
    value = std::string_view();
  }
  if (kind_ == Kind::kString) return text_.matches(*value) != invert_;
  int64_t number = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
  const bool in_range = error == std::errc() && end == value->data() + value->size() &&
                        number >= range_start_ && number < range_end_;
  return in_range != invert_;
}

bool HeaderMatcher::matches(const RequestView& request, Arena& arena) const {
  switch (pseudo_) {
    case Pseudo::kMethod: return holds(request.method);
    case Pseudo::kScheme: return holds(request.scheme);
    case Pseudo::kPath: return holds(request.path);
    case Pseudo::kAuthority: {
      // A rule may be written with or without the port; case and trailing dot never count.
      const bool bare = holds(request.host);
      if (bare != invert_ || request.port == 0) return bare;
      char digits[8];
      const auto end = std::to_chars(digits, digits + sizeof digits, request.port).ptr;
      return holds(arena.join(request.host, std::string_view(":"),
                              std::string_view(digits, static_cast<size_t>(end - digits))));
    }
    case Pseudo::kNone: break;
  }
  if (proxys_ && !request.believed) return holds(std::nullopt);  // as the app will see it
  return matches(*request.fields, arena);
}

bool HeaderMatcher::matches(const Fields& fields, Arena& arena) const {
  if (pseudo_ != Pseudo::kNone) return holds(std::nullopt);
  return holds(field_value(fields, name_, arena));
}

std::optional<std::string_view> field_value(const Fields& fields, std::string_view lower_name,
                                            Arena& arena) {
  std::optional<std::string_view> value;
  for (const Field f : fields) {
    if (!name_is(f.name, lower_name)) continue;
    value = value ? arena.join(*value, std::string_view(","), f.value) : f.value;
  }
  return value;
}

namespace {

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = ascii_lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// application/x-www-form-urlencoded without '+': a broken escape stays as it is.
std::string_view decode_component(std::string_view text, Arena& arena) {
  if (text.find('%') == std::string_view::npos) return text;
  char* out = arena.bytes(text.size());
  size_t n = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && hex_value(text[i + 1]) >= 0 &&
        hex_value(text[i + 2]) >= 0) {
      out[n++] = static_cast<char>(hex_value(text[i + 1]) << 4 | hex_value(text[i + 2]));
      i += 2;
    } else {
      out[n++] = text[i];
    }
  }
  return {out, n};
}

}  // namespace

Result<QueryMatcher> QueryMatcher::compile(const pb::QueryParameterMatcher& proto) {
  QueryMatcher m;
  m.name_ = proto.name();
  if (m.name_.empty()) return bad("query parameter match: empty name");
  switch (proto.query_parameter_match_specifier_case()) {
    case pb::QueryParameterMatcher::kStringMatch:
      m.present_only_ = false;
      m.text_ = MELTEMI_TRY(StringMatcher::compile(proto.string_match()));
      break;
    case pb::QueryParameterMatcher::kPresentMatch: m.present_ = proto.present_match(); break;
    case pb::QueryParameterMatcher::QUERY_PARAMETER_MATCH_SPECIFIER_NOT_SET: break;
  }
  return m;
}

bool QueryMatcher::matches(std::string_view query, Arena& arena) const {
  while (!query.empty()) {
    const size_t end = query.find('&');
    const std::string_view pair = query.substr(0, end);
    const size_t equals = pair.find('=');
    if (decode_component(pair.substr(0, equals), arena) == name_) {
      if (present_only_) return present_;
      const std::string_view raw =
          equals == std::string_view::npos ? std::string_view() : pair.substr(equals + 1);
      return text_.matches(decode_component(raw, arena));
    }
    if (end == std::string_view::npos) break;
    query.remove_prefix(end + 1);
  }
  return present_only_ && !present_;
}

}  // namespace meltemi::waypoint
