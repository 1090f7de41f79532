// Log lines cannot be forged by a peer's bytes, and levels follow scopes.
#include "userspace/base/log.h"

#include <gtest/gtest.h>

#include "userspace/base/log_settings.h"

namespace meltemi {
namespace {

TEST(LogEscape, ControlCharactersAndQuotesCannotBreakALine) {
  EXPECT_EQ(log::escape("a\nb\r\t\"\\\x1b[31m\x7f"), "a\\nb\\r\\t\\\"\\\\\\u001b[31m\\u007f");
  EXPECT_EQ(log::escape("grün"), "grün");
}

TEST(LogLevels, AreSetPerScopeAndRefuseNonsense) {
  static log::Scope scope("unit_scope");
  ASSERT_TRUE(log::init("warn,unit_scope=debug", log::Format::kPlain));
  EXPECT_TRUE(scope.get().should_log(spdlog::level::debug));
  ASSERT_TRUE(log::set_levels("unit_scope=error"));
  EXPECT_FALSE(scope.get().should_log(spdlog::level::warn));
  const Status bad = log::set_levels("unit_scope=loud");
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().reason, Reason::kBadConfig);
  EXPECT_FALSE(scope.get().should_log(spdlog::level::warn)) << "a refused change changes nothing";
}

TEST(LogSettings, AnUnknownFormatIsNamed) {
  log::Settings settings;
  settings.format = "xml";
  const Status status = settings.init();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().reason, Reason::kBadConfig);
  EXPECT_EQ(status.error().detail, "log-format is \"xml\": use plain or json");
}

}  // namespace
}  // namespace meltemi
