// The option table: precedence, ranges, and errors that name the flag, the value and the fix.
#include "userspace/base/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace meltemi {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Options {
  std::string name = "none";
  bool enabled = false;
  int64_t streams = 100;
  Duration wait = std::chrono::seconds(10);
  std::vector<std::string> tags;

  ConfigTable table() {
    ConfigTable t("unit", "a table under test");
    t.text(&name, "name", "UNIT_NAME", "A name.")
        .boolean(&enabled, "enabled", "UNIT_ENABLED", "A switch.")
        .number(&streams, "max-streams", "UNIT_STREAMS", "streams", 1, 200, "A limit.")
        .duration(&wait, "wait", "UNIT_WAIT", std::chrono::milliseconds(1), std::chrono::hours(1),
                  "A time.")
        .list(&tags, "tag", "UNIT_TAGS", "Some tags.");
    return t;
  }

  Status parse(std::vector<const char*> args) {
    args.insert(args.begin(), "unit");
    bool run = false;
    return table().parse(static_cast<int>(args.size()), const_cast<char**>(args.data()), &run);
  }
};

TEST(ConfigTable, FlagBeatsEnvironmentBeatsDefault) {
  setenv("UNIT_NAME", "from-env", 1);
  setenv("UNIT_STREAMS", "7", 1);
  Options o;
  ASSERT_TRUE(o.parse({"--name=from-flag", "--enabled", "--wait", "1m30s"}));
  EXPECT_EQ(o.name, "from-flag");
  EXPECT_EQ(o.streams, 7);
  EXPECT_TRUE(o.enabled);
  EXPECT_EQ(o.wait, std::chrono::seconds(90));
  unsetenv("UNIT_NAME");
  unsetenv("UNIT_STREAMS");
}

TEST(ConfigTable, ListsRepeatOnFlagsAndSplitOnCommas) {
  setenv("UNIT_TAGS", "x,y", 1);
  Options o;
  ASSERT_TRUE(o.parse({}));
  EXPECT_THAT(o.tags, ElementsAre("x", "y"));
  ASSERT_TRUE(o.parse({"--tag", "a", "--tag=b,c"}));
  EXPECT_THAT(o.tags, ElementsAre("a", "b", "c"));
  unsetenv("UNIT_TAGS");
}

TEST(ConfigTable, ErrorsNameFlagValueAndWhatIsAccepted) {
  Options o;
  const auto text = [&](std::vector<const char*> args) {
    const Status s = o.parse(std::move(args));
    return s ? std::string("no error") : s.error().detail;
  };
  EXPECT_EQ(text({"--max-streams=201"}),
            "flag --max-streams: \"201\" is not accepted; expected a number from 1 to 200 streams");
  EXPECT_THAT(text({"--max-streams", "7x"}), HasSubstr("\"7x\""));
  EXPECT_THAT(text({"--wait=10"}), HasSubstr("a duration with a unit, such as 10s"));
  EXPECT_THAT(text({"--wait=2h"}), HasSubstr("to 1h"));
  EXPECT_THAT(text({"--enabled=yes"}), HasSubstr("true or false"));
  EXPECT_THAT(text({"--nmae=x"}), HasSubstr("unknown flag --nmae"));
  EXPECT_THAT(text({"--name"}), HasSubstr("needs a value"));
  EXPECT_THAT(text({"stray"}), HasSubstr("unexpected argument \"stray\""));
}

TEST(ConfigTable, ReferenceAndDumpShowEveryRow) {
  Options o;
  ConfigTable t = o.table();
  EXPECT_THAT(t.reference(), HasSubstr("| `--max-streams` | `UNIT_STREAMS` | `100` | streams |"));
  o.name = "a\"b";
  EXPECT_EQ(t.dump_json(),
            "{\"name\":\"a\\\"b\",\"enabled\":false,\"maxStreams\":100,\"wait\":\"10s\",\"tag\":"
            "\"\"}");
}

TEST(ParseDuration, GoSyntax) {
  using namespace std::chrono;
  EXPECT_EQ(parse_duration("250ms"), milliseconds(250));
  EXPECT_EQ(parse_duration("1h2m3.5s"), hours(1) + minutes(2) + milliseconds(3500));
  EXPECT_EQ(parse_duration("0"), Duration(0));
  for (const char* text : {"", "10", "s", "-1s", "1x", "1s2", "99999999999h"})
    EXPECT_FALSE(parse_duration(text)) << text;
  EXPECT_EQ(format_duration(hours(1) + seconds(5)), "1h5s");
  EXPECT_EQ(format_duration(Duration(0)), "0s");
}

}  // namespace
}  // namespace meltemi
