// Request targets: what is taken apart, what is refused.
#include "userspace/http/target.h"

#include <gtest/gtest.h>

namespace meltemi::http {
namespace {

TEST(Target, PathAndQueryAreDecoded) {
  const auto t = parse_target("/a%20b?level=a%3Db&reset&x=1+2&x=3");
  ASSERT_TRUE(t);
  EXPECT_EQ(t->path, "/a b");
  Request request;
  request.query = t->query;
  EXPECT_EQ(*request.param("level"), "a=b");
  EXPECT_EQ(*request.param("reset"), "");
  EXPECT_EQ(*request.param("x"), "3") << "the last one counts";
  EXPECT_EQ(request.param("y"), nullptr);
}

TEST(Target, AbsoluteFormIsTaken) {
  EXPECT_EQ(parse_target("http://h:1/p?q=1")->path, "/p");
  EXPECT_EQ(parse_target("http://h")->path, "/");
  EXPECT_EQ(parse_target("http://h?q")->path, "/");
}

TEST(Target, BrokenEscapesAndOtherFormsAreRefused) {
  for (const char* bad : {"", "relative", "*", "/%zz", "/%2", "/%00", "/?a=%", "h:443"}) {
    EXPECT_FALSE(parse_target(bad)) << bad;
  }
}

}  // namespace
}  // namespace meltemi::http
