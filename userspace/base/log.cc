// spdlog behind the house format. The JSON form is always parseable: every message is escaped. A
// plain line shows no control character, whoever forgot to escape what.
#include "userspace/base/log.h"

#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/log_levels.h"
#include "userspace/base/text.h"

namespace meltemi {

std::string format_rfc3339(WallTime time) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch());
  const time_t seconds = static_cast<time_t>(us.count() / 1'000'000);
  tm parts;
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     us.count() % 1'000'000);
}

namespace log {
namespace {

constexpr size_t kQueueLines = 8192;
// Between the message and the rendered fields of one payload. write() lets no message have it.
constexpr char kFieldsFollow = '\x1f';

std::atomic<Format> current_format{Format::kPlain};

class LineFormatter final : public spdlog::formatter {
 public:
  explicit LineFormatter(Format format) : format_(format) {}

  void format(const spdlog::details::log_msg& m, spdlog::memory_buf_t& out) override {
    const std::string time = format_rfc3339(m.time);
    const std::string_view name(m.logger_name.data(), m.logger_name.size());
    const std::string_view payload(m.payload.data(), m.payload.size());
    const size_t split = payload.find(kFieldsFollow);
    const std::string_view text = payload.substr(0, split);
    const std::string_view fields =
        split == std::string_view::npos ? std::string_view() : payload.substr(split + 1);
    const std::string_view level = level_name(m.level);
    if (format_ == Format::kJson)
      fmt::format_to(std::back_inserter(out),
                     "{{\"level\":\"{}\",\"time\":\"{}\",\"scope\":\"{}\",\"message\":\"{}\"{}}}\n",
                     level, time, name, escape(text), fields);
    else
      fmt::format_to(std::back_inserter(out), "{}\t{}\t{}\t{}{}\n", time, level, name,
                     visible(text, Layout::kOneLine), fields);
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<LineFormatter>(format_);
  }

 private:
  static std::string_view level_name(spdlog::level::level_enum level) {
    switch (level) {
      case spdlog::level::trace:
      case spdlog::level::debug:
        return "debug";
      case spdlog::level::warn:
        return "warn";
      case spdlog::level::err:
      case spdlog::level::critical:
        return "error";
      default:
        return "info";
    }
  }
  Format format_;
};

struct Registry {
  std::mutex mutex;
  std::shared_ptr<spdlog::sinks::sink> sink;
  std::shared_ptr<spdlog::details::thread_pool> pool;
  spdlog::level::level_enum default_level = spdlog::level::info;
  std::map<std::string, spdlog::level::level_enum, std::less<>> levels;
  std::map<std::string, std::shared_ptr<spdlog::logger>, std::less<>> loggers;
};

Registry& registry() {
  static Registry* r = [] {
    auto* made = new Registry;
    made->sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
    made->sink->set_formatter(std::make_unique<LineFormatter>(Format::kPlain));
    return made;
  }();
  return *r;
}

std::optional<spdlog::level::level_enum> parse_level(std::string_view text) {
  if (text == "debug" || text == "trace") return spdlog::level::debug;
  if (text == "info") return spdlog::level::info;
  if (text == "warn" || text == "warning") return spdlog::level::warn;
  if (text == "error") return spdlog::level::err;
  if (text == "off") return spdlog::level::off;
  return std::nullopt;
}

void apply_levels(Registry& r) {
  for (auto& [name, logger] : r.loggers) {
    const auto it = r.levels.find(name);
    logger->set_level(it == r.levels.end() ? r.default_level : it->second);
  }
}

std::string_view level_text(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::debug: return "debug";
    case spdlog::level::info: return "info";
    case spdlog::level::warn: return "warn";
    case spdlog::level::err: return "error";
    default: return "off";
  }
}

Status change_levels(std::string_view levels, bool forget) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  auto default_level = r.default_level;
  auto scopes = forget ? decltype(r.levels)() : r.levels;
  while (!levels.empty()) {
    const size_t comma = levels.find(',');
    const std::string_view part = levels.substr(0, comma);
    levels = comma == std::string_view::npos ? std::string_view() : levels.substr(comma + 1);
    const size_t equals = part.find('=');
    const auto level =
        parse_level(equals == std::string_view::npos ? part : part.substr(equals + 1));
    if (!level)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("log level \"{}\": use debug, info, warn, error or off, "
                              "optionally as scope=level",
                              part));
    if (equals == std::string_view::npos)
      default_level = *level;
    else
      scopes[std::string(part.substr(0, equals))] = *level;
  }
  r.default_level = default_level;
  r.levels = std::move(scopes);
  apply_levels(r);
  return {};
}

}  // namespace

Status set_levels(std::string_view levels) { return change_levels(levels, false); }

Status reset_levels(std::string_view levels) { return change_levels(levels, true); }

std::string current_levels() {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  std::string out(level_text(r.default_level));
  for (const auto& [name, level] : r.levels) out += fmt::format(",{}={}", name, level_text(level));
  return out;
}

Status init(std::string_view levels, Format format) {
  {
    Registry& r = registry();
    std::lock_guard lock(r.mutex);
    r.sink->set_formatter(std::make_unique<LineFormatter>(format));
    current_format.store(format, std::memory_order_relaxed);
    if (!r.pool) {
      // The writer's thread takes no signals: main() may block those it waits for only later, and one
      // that this thread got would end the process.
      sigset_t all, before;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
      r.pool = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    // Loggers made before init() were synchronous; Scope caches raw pointers, so they stay alive
    // and simply keep writing synchronously. Their level still follows.
  }
  return set_levels(levels);
}

Format format() { return current_format.load(std::memory_order_relaxed); }

uint64_t dropped_lines() {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  return r.pool ? r.pool->overrun_counter() : 0;
}

void flush() {
  Registry& r = registry();
  std::vector<std::shared_ptr<spdlog::logger>> loggers;
  {
    std::lock_guard lock(r.mutex);
    for (auto& [name, logger] : r.loggers) loggers.push_back(logger);
  }
  for (auto& logger : loggers) logger->flush();
  // The asynchronous queue is emptied by the pool's destructor; wait for it to run dry, bounded.
  for (int i = 0; i < 100; ++i) {
    std::shared_ptr<spdlog::details::thread_pool> pool;
    {
      std::lock_guard lock(r.mutex);
      pool = r.pool;
    }
    if (!pool || pool->queue_size() == 0) break;
    timespec ts{0, 1'000'000};
    nanosleep(&ts, nullptr);
  }
  r.sink->flush();
}

std::string escape(std::string_view text) {
  std::string out;
  append_escaped(out, text);
  return out;
}

void write(spdlog::logger& scope, spdlog::level::level_enum level, std::string_view message) {
  if (message.find(kFieldsFollow) != std::string_view::npos) [[unlikely]] {
    std::string clean(message);
    std::replace(clean.begin(), clean.end(), kFieldsFollow, '?');
    return write(scope, level, clean);
  }
  scope.log(level, spdlog::string_view_t(message.data(), message.size()));
}

void write_with_fields(spdlog::logger& scope, spdlog::level::level_enum level,
                       std::string_view message, std::string_view fields) {
  std::string payload;
  payload.reserve(message.size() + 1 + fields.size());
  payload.append(message).append(1, kFieldsFollow).append(fields);
  scope.log(level, spdlog::string_view_t(payload.data(), payload.size()));
}

spdlog::logger& Scope::get() const {
  if (spdlog::logger* known = logger_.load(std::memory_order_acquire)) return *known;
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  auto& slot = r.loggers[name_];
  if (!slot) {
    if (r.pool)
      slot = std::make_shared<spdlog::async_logger>(name_, r.sink, r.pool,
                                                    spdlog::async_overflow_policy::overrun_oldest);
    else
      slot = std::make_shared<spdlog::logger>(name_, r.sink);
    const auto it = r.levels.find(name_);
    slot->set_level(it == r.levels.end() ? r.default_level : it->second);
  }
  logger_.store(slot.get(), std::memory_order_release);
  return *slot;
}

}  // namespace log
}  // namespace meltemi
