// The reason set is closed: every code has a distinct text, made for metric labels.
#include "userspace/base/error.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <set>

namespace meltemi {
namespace {

TEST(Reason, NamesAreDistinctLabelSafeAndExplained) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < kReasonCount; ++i) {
    const auto reason = static_cast<Reason>(i);
    const std::string_view name = reason_name(reason);
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"), std::string::npos);
    EXPECT_GT(reason_meaning(reason).size(), 10u) << name;
  }
}

TEST(Error, TryReturnsTheErrorOrTheValue) {
  const auto half = [](int v) -> Result<int> {
    if (v % 2) return fail(Reason::kBadRequest, Fault::kDownstream, "odd");
    return v / 2;
  };
  const auto quarter = [&](int v) -> Result<int> { return MELTEMI_TRY(half(MELTEMI_TRY(half(v)))); };
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error().to_string(), "bad_request: odd");
}

TEST(Error, ConnectErrnosHaveTheirReasons) {
  EXPECT_EQ(reason_of_connect_errno(ECONNREFUSED), Reason::kConnectRefused);
  EXPECT_EQ(reason_of_connect_errno(ETIMEDOUT), Reason::kConnectTimeout);
  EXPECT_EQ(reason_of_connect_errno(EHOSTUNREACH), Reason::kConnectUnreachable);
  EXPECT_EQ(reason_of_connect_errno(ECONNRESET), Reason::kConnectReset);
  EXPECT_EQ(reason_of_connect_errno(EIO), Reason::kSystem);
}

}  // namespace
}  // namespace meltemi
