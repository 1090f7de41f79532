#include "userspace/base/log_settings.h"

#include <fmt/format.h>

#include "userspace/base/log.h"

namespace meltemi::log {

void Settings::describe(ConfigTable& table) {
  table.text(&levels, "log-level", "LOG_LEVEL",
             "Level, and levels of scopes: info, or warn,access=info.");
  table.text(&format, "log-format", "LOG_FORMAT", "plain or json.");
}

Status Settings::init() const {
  if (format != "plain" && format != "json") {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("log-format is \"{}\": use plain or json", format));
  }
  return log::init(levels, format == "json" ? Format::kJson : Format::kPlain);
}

}  // namespace meltemi::log
