// The option table: parsing of flags and environment, and the documents printed from it.
#include "userspace/base/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "userspace/base/log.h"

namespace meltemi {
namespace {

std::string camel_case(std::string_view flag) {
  std::string out;
  bool upper = false;
  for (const char c : flag) {
    if (c == '-') {
      upper = true;
      continue;
    }
    out += upper ? static_cast<char>(std::toupper(static_cast<unsigned char>(c))) : c;
    upper = false;
  }
  return out;
}

std::unexpected<Error> bad(std::string_view where, std::string_view value, std::string_view want) {
  return fail(Reason::kBadConfig, Fault::kConfig,
              fmt::format("{}: \"{}\" is not accepted; expected {}", where, value, want));
}

}  // namespace

std::optional<Duration> parse_duration(std::string_view text) {
  if (text.empty()) return std::nullopt;
  if (text == "0") return Duration(0);
  double total = 0;
  while (!text.empty()) {
    double value = 0;
    const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (ec != std::errc() || value < 0) return std::nullopt;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    size_t unit = 0;
    while (unit < text.size() && std::isalpha(static_cast<unsigned char>(text[unit]))) ++unit;
    const std::string_view name = text.substr(0, unit);
    text.remove_prefix(unit);
    if (name == "ns")
      total += value;
    else if (name == "us")
      total += value * 1e3;
    else if (name == "ms")
      total += value * 1e6;
    else if (name == "s")
      total += value * 1e9;
    else if (name == "m")
      total += value * 60e9;
    else if (name == "h")
      total += value * 3600e9;
    else
      return std::nullopt;
  }
  if (total > 9.2e18) return std::nullopt;
  return Duration(static_cast<int64_t>(total));
}

std::string format_duration(Duration duration) {
  int64_t ns = duration.count();
  if (ns == 0) return "0s";
  std::string out;
  const auto take = [&](int64_t unit, const char* name) {
    if (ns >= unit) {
      out += fmt::format("{}{}", ns / unit, name);
      ns %= unit;
    }
  };
  take(3600'000'000'000, "h");
  take(60'000'000'000, "m");
  take(1'000'000'000, "s");
  take(1'000'000, "ms");
  take(1'000, "us");
  take(1, "ns");
  return out;
}

ConfigTable::ConfigTable(std::string binary, std::string summary)
    : binary_(std::move(binary)), summary_(std::move(summary)) {}

ConfigTable& ConfigTable::add(Row row) {
  row.default_text = value_text(row);
  rows_.push_back(std::move(row));
  return *this;
}
ConfigTable& ConfigTable::text(std::string* target, std::string flag, std::string env,
                               std::string doc) {
  return add({Kind::kText, target, std::move(flag), std::move(env), "", std::move(doc)});
}
ConfigTable& ConfigTable::boolean(bool* target, std::string flag, std::string env,
                                  std::string doc) {
  return add({Kind::kBool, target, std::move(flag), std::move(env), "", std::move(doc)});
}
ConfigTable& ConfigTable::number(int64_t* target, std::string flag, std::string env,
                                 std::string unit, int64_t min, int64_t max, std::string doc) {
  return add({Kind::kNumber, target, std::move(flag), std::move(env), std::move(unit),
              std::move(doc), min, max});
}
ConfigTable& ConfigTable::duration(Duration* target, std::string flag, std::string env,
                                   Duration min, Duration max, std::string doc) {
  return add({Kind::kDuration, target, std::move(flag), std::move(env), "duration",
              std::move(doc), min.count(), max.count()});
}
ConfigTable& ConfigTable::list(std::vector<std::string>* target, std::string flag, std::string env,
                               std::string doc) {
  return add({Kind::kList, target, std::move(flag), std::move(env), "", std::move(doc)});
}

std::string ConfigTable::value_text(const Row& row) {
  switch (row.kind) {
    case Kind::kText:
      return *static_cast<std::string*>(row.target);
    case Kind::kBool:
      return *static_cast<bool*>(row.target) ? "true" : "false";
    case Kind::kNumber:
      return fmt::format("{}", *static_cast<int64_t*>(row.target));
    case Kind::kDuration:
      return format_duration(*static_cast<Duration*>(row.target));
    case Kind::kList:
      return fmt::format("{}",
                         fmt::join(*static_cast<std::vector<std::string>*>(row.target), ","));
  }
  return {};
}

Status ConfigTable::assign(Row& row, std::string_view value, std::string_view where, bool append) {
  switch (row.kind) {
    case Kind::kText:
      *static_cast<std::string*>(row.target) = value;
      return {};
    case Kind::kBool:
      if (value != "true" && value != "false" && value != "1" && value != "0")
        return bad(where, value, "true or false");
      *static_cast<bool*>(row.target) = value == "true" || value == "1";
      return {};
    case Kind::kNumber: {
      int64_t n = 0;
      const auto [end, ec] = std::from_chars(value.data(), value.data() + value.size(), n);
      if (ec != std::errc() || end != value.data() + value.size() || n < row.min || n > row.max)
        return bad(where, value,
                   fmt::format("a number from {} to {}{}{}", row.min, row.max,
                               row.unit.empty() ? "" : " ", row.unit));
      *static_cast<int64_t*>(row.target) = n;
      return {};
    }
    case Kind::kDuration: {
      const auto d = parse_duration(value);
      if (!d || d->count() < row.min || d->count() > row.max)
        return bad(where, value,
                   fmt::format("a duration with a unit, such as 10s or 250ms, from {} to {}",
                               format_duration(Duration(row.min)),
                               format_duration(Duration(row.max))));
      *static_cast<Duration*>(row.target) = *d;
      return {};
    }
    case Kind::kList: {
      auto& list = *static_cast<std::vector<std::string>*>(row.target);
      if (!append) list.clear();
      while (!value.empty()) {
        const size_t comma = value.find(',');
        list.emplace_back(value.substr(0, comma));
        value = comma == std::string_view::npos ? std::string_view() : value.substr(comma + 1);
      }
      return {};
    }
  }
  return {};
}

Status ConfigTable::parse(int argc, char** argv, bool* run, std::vector<std::string>* positional) {
  *run = true;
  for (Row& row : rows_) {
    if (row.env.empty()) continue;
    const char* value = std::getenv(row.env.c_str());
    if (value != nullptr) MELTEMI_TRY(assign(row, value, "environment variable " + row.env, false));
  }
  std::vector<const Row*> seen;
  bool flags = true;
  for (int i = 1; i < argc; ++i) {
    std::string_view arg = argv[i];
    if (flags && arg == "--") {
      flags = false;
      continue;
    }
    if (!flags || !arg.starts_with("--")) {
      if (positional == nullptr)
        return fail(Reason::kBadConfig, Fault::kConfig,
                    fmt::format("unexpected argument \"{}\"; see {} --help", arg, binary_));
      positional->emplace_back(arg);
      continue;
    }
    arg.remove_prefix(2);
    if (arg == "help" || arg == "version" || arg == "config-reference") {
      const std::string out = arg == "help"      ? help()
                              : arg == "version" ? fmt::format("{} {}\n", binary_, MELTEMI_VERSION)
                                                 : reference();
      std::fputs(out.c_str(), stdout);
      *run = false;
      return {};
    }
    const size_t equals = arg.find('=');
    const std::string_view name = arg.substr(0, equals);
    Row* found = nullptr;
    for (Row& row : rows_)
      if (row.flag == name) found = &row;
    if (found == nullptr)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("unknown flag --{}; see {} --help", name, binary_));
    std::string_view value;
    if (equals != std::string_view::npos)
      value = arg.substr(equals + 1);
    else if (found->kind == Kind::kBool)
      value = "true";
    else if (i + 1 < argc)
      value = argv[++i];
    else
      return fail(Reason::kBadConfig, Fault::kConfig, fmt::format("flag --{} needs a value", name));
    const bool append = std::find(seen.begin(), seen.end(), found) != seen.end();
    MELTEMI_TRY(assign(*found, value, fmt::format("flag --{}", name), append));
    seen.push_back(found);
  }
  return {};
}

std::string ConfigTable::help() const {
  std::string out = fmt::format("{}: {}\n\n", binary_, summary_);
  for (const Row& row : rows_) {
    out += fmt::format("  --{}{}{}\n      {} (default: {}{})\n", row.flag,
                       row.unit.empty() ? "" : fmt::format("=<{}>", row.unit),
                       row.env.empty() ? "" : fmt::format("  [{}]", row.env), row.doc,
                       row.default_text.empty() ? "none" : row.default_text, "");
  }
  return out;
}

std::string ConfigTable::reference() const {
  std::string out = fmt::format("### {}\n\n{}\n\n", binary_, summary_);
  out += "| flag | environment | default | unit | meaning |\n|---|---|---|---|---|\n";
  for (const Row& row : rows_)
    out += fmt::format("| `--{}` | {} | {} | {} | {} |\n", row.flag,
                       row.env.empty() ? "" : "`" + row.env + "`",
                       row.default_text.empty() ? "" : "`" + row.default_text + "`", row.unit,
                       row.doc);
  return out + "\n";
}

std::string ConfigTable::dump_json() const {
  std::string out = "{";
  for (const Row& row : rows_) {
    if (out.size() > 1) out += ',';
    const std::string value = value_text(row);
    const bool bare = row.kind == Kind::kBool || row.kind == Kind::kNumber;
    out += fmt::format("\"{}\":{}", camel_case(row.flag),
                       bare ? value : "\"" + log::escape(value) + "\"");
  }
  return out + "}";
}

}  // namespace meltemi
