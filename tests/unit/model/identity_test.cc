// SPIFFE parsing is exact: whatever is not spiffe://TD/ns/NS/sa/SA is refused.
#include <gtest/gtest.h>

#include "userspace/model/identity.h"

namespace meltemi::model {
namespace {

TEST(Identity, PartsOfAGoodOne) {
  const auto id = Identity::parse("spiffe://cluster.local/ns/shop/sa/catalog-v1.x");
  ASSERT_TRUE(id.has_value());
  EXPECT_EQ(id->trust_domain(), "cluster.local");
  EXPECT_EQ(id->ns(), "shop");
  EXPECT_EQ(id->service_account(), "catalog-v1.x");
  EXPECT_EQ(id->principal(), "cluster.local/ns/shop/sa/catalog-v1.x");
  EXPECT_EQ(id->uri(), "spiffe://cluster.local/ns/shop/sa/catalog-v1.x");
  EXPECT_EQ(*id, *Identity::make("cluster.local", "shop", "catalog-v1.x"));
  EXPECT_NE(*id, *Identity::make("cluster.local", "shop", "catalog"));
}

TEST(Identity, NoneIsNotPresentAndHasEmptyParts) {
  const Identity none;
  EXPECT_FALSE(none.present());
  EXPECT_EQ(none.ns(), "");
  EXPECT_EQ(none.principal(), "");
  EXPECT_EQ(none.service_account(), "");
}

TEST(Identity, RefusesEveryOtherForm) {
  const std::string cases[] = {
      "", "spiffe://", "spiffe://td", "spiffe://td/ns/a", "spiffe://td/ns/a/sa", "spiffe://td/ns/a/sa/",
      "spiffe://td/ns//sa/b", "spiffe:///ns/a/sa/b", "spiffe://td/ns/a/sa/b/", "spiffe://td/ns/a/sa/b/c",
      "spiffe://td/sa/a/ns/b", "SPIFFE://td/ns/a/sa/b", "spiffe://TD/ns/a/sa/b", "https://td/ns/a/sa/b",
      "spiffe://td:80/ns/a/sa/b", "spiffe://u@td/ns/a/sa/b", "spiffe://td/ns/a/sa/b?x", "spiffe://td/ns/a/sa/b#x",
      "spiffe://td/ns/a%2f/sa/b", "spiffe://td/ns/a/sa/*", "spiffe://td/ns/../sa/b", " spiffe://td/ns/a/sa/b",
      "spiffe://td/ns/a/sa/b ", std::string("spiffe://td/ns/a/sa/b\0x", 23), "spiffe://td//ns/a/sa/b",
      "spiffe://td/ns/a/sa/" + std::string(2048, 'x')};
  for (const std::string& text : cases) {
    const auto id = Identity::parse(text);
    EXPECT_FALSE(id.has_value()) << text;
    if (!id) {
      EXPECT_EQ(id.error().reason, Reason::kBadRequest);
    }
  }
}

}  // namespace
}  // namespace meltemi::model
