// Process log on stderr: one event per line, RFC 3339 UTC, tab separated "time level scope message", or
// JSON with {"level","time","scope","message"}. Asynchronous with a bounded queue that drops the
// oldest lines (and counts them) rather than block a data path. Must never be given secrets.
#pragma once

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "userspace/base/error.h"

namespace meltemi::log {

enum class Format { kPlain, kJson };

// Call once in main(). `levels` is "info" or "warn,agent=debug": default level, then per scope.
// Error: unknown level or syntax, naming the part.
Status init(std::string_view levels, Format format);
// Changes levels at run time, same syntax (POST /logging).
Status set_levels(std::string_view levels);
// Lines that were dropped because the queue was full.
uint64_t dropped_lines();
// Writes out what is queued; at exit.
void flush();
// What init() chose.
Format format();
// A peer's bytes as the content of a quoted value: append_escaped() of base/text.h. For values inside
// of a message that is not quoted: every line is made visible() anyway when it is written.
std::string escape(std::string_view text);
// Writes one already formatted line under `scope` (access logs format their own fields).
void write(spdlog::logger& scope, spdlog::level::level_enum level, std::string_view message);
// The same with fields that the caller rendered for format(): ` key="value"` each in plain lines,
// `,"key":"value"` in JSON, where they become members of the line's object. `message` is a constant.
void write_with_fields(spdlog::logger& scope, spdlog::level::level_enum level,
                       std::string_view message, std::string_view fields);

// A named logger. Define one static per component: `static log::Scope scope("agent");`
class Scope {
 public:
  explicit Scope(const char* name) : name_(name) {}
  spdlog::logger& get() const;

  template <typename... A>
  void debug(fmt::format_string<A...> f, A&&... a) const {
    emit(spdlog::level::debug, f, std::forward<A>(a)...);
  }
  template <typename... A>
  void info(fmt::format_string<A...> f, A&&... a) const {
    emit(spdlog::level::info, f, std::forward<A>(a)...);
  }
  template <typename... A>
  void warn(fmt::format_string<A...> f, A&&... a) const {
    emit(spdlog::level::warn, f, std::forward<A>(a)...);
  }
  template <typename... A>
  void error(fmt::format_string<A...> f, A&&... a) const {
    emit(spdlog::level::err, f, std::forward<A>(a)...);
  }

 private:
  template <typename... A>
  void emit(spdlog::level::level_enum level, fmt::format_string<A...> f, A&&... a) const {
    spdlog::logger& logger = get();
    if (logger.should_log(level)) write(logger, level, fmt::format(f, std::forward<A>(a)...));
  }
  const char* name_;
  mutable std::atomic<spdlog::logger*> logger_{nullptr};
};

}  // namespace meltemi::log
