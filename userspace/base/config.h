// Configuration of a binary: one table, each row a flag, an environment variable, a default, a unit
// and a sentence. The reference documentation is printed from the same table (--help,
// --config-reference). Precedence: flag, then environment, then default. Nothing else in a binary
// may read the environment.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi {

class ConfigTable {
 public:
  // `binary` and `summary` head the help text.
  ConfigTable(std::string binary, std::string summary);

  // Each row binds a variable that must outlive the table and already holds the default.
  // `flag` without dashes ("xds-address"), `env` may be empty, `doc` is one sentence.
  ConfigTable& text(std::string* target, std::string flag, std::string env, std::string doc);
  ConfigTable& boolean(bool* target, std::string flag, std::string env, std::string doc);
  // Inclusive range; `unit` as in "bytes", "streams", "" for none.
  ConfigTable& number(int64_t* target, std::string flag, std::string env, std::string unit,
                      int64_t min, int64_t max, std::string doc);
  // Accepts Go durations: "10s", "1h30m", "250ms". A bare number is an error that says so.
  ConfigTable& duration(Duration* target, std::string flag, std::string env, Duration min,
                        Duration max, std::string doc);
  // Repeatable flag; environment form is comma separated.
  ConfigTable& list(std::vector<std::string>* target, std::string flag, std::string env,
                    std::string doc);

  // Reads environment and argv. Errors (kBadConfig) name the flag or variable, the value and what
  // is accepted. Returns false in `run` when --help, --version or --config-reference was printed
  // and the process should exit 0. Positional arguments land in `positional` if not null.
  Status parse(int argc, char** argv, bool* run, std::vector<std::string>* positional = nullptr);

  // Markdown table of all rows.
  std::string reference() const;
  // Current values as JSON object with camelCase keys (for /config_dump).
  std::string dump_json() const;

 private:
  enum class Kind { kText, kBool, kNumber, kDuration, kList };
  struct Row {
    Kind kind;
    void* target;
    std::string flag, env, unit, doc;
    int64_t min = 0, max = 0;
    std::string default_text;
  };
  ConfigTable& add(Row row);
  static std::string value_text(const Row& row);
  static Status assign(Row& row, std::string_view value, std::string_view where, bool append);
  std::string help() const;

  std::string binary_, summary_;
  std::vector<Row> rows_;
};

// Go duration syntax ("1h2m3.5s", "250ms", "-1s" refused). nullopt if malformed.
std::optional<Duration> parse_duration(std::string_view text);
std::string format_duration(Duration duration);  // shortest Go form, e.g. "10s", "1m30s"

}  // namespace meltemi
