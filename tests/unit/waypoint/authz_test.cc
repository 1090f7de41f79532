#include "waypoint/route/authz.h"

#include <gtest/gtest.h>

#include "envoy/config/rbac/v3/rbac.pb.h"
#include "protos.h"

namespace meltemi::waypoint {
namespace {

using Proto = envoy::config::rbac::v3::RBAC;

Result<RbacFilter> compiled(const std::string& json) {
  const Proto proto = from_json<Proto>(json);
  return RbacFilter::compile(&proto, nullptr);
}

std::string rule(const std::string& permissions, const std::string& principals) {
  return R"({"permissions":[)" + permissions + R"(],"principals":[)" + principals + "]}";
}
std::string rbac(const std::string& action, const std::string& rules) {
  return R"({"action":")" + action + R"(","policies":{)" + rules + "}}";
}

struct Client {
  explicit Client(const char* uri, const char* ip = "10.0.0.1", uint16_t port = 80) {
    if (*uri) identity = *model::Identity::parse(uri);
    input.source_ip = *IpAddress::parse(ip);
    input.identity = identity.present() ? &identity : nullptr;
    input.destination = {*IpAddress::parse("10.1.0.1"), port};
  }
  Client(const Client&) = delete;
  bool passes(const std::string& json) {
    auto filter = compiled(json);
    EXPECT_TRUE(filter) << filter.error().detail;
    return filter && filter->check(input).allowed;
  }
  model::Identity identity;
  model::PolicyInput input;
};

const std::string kAny = R"({"any":true})";
std::string principal(const std::string& matcher) {
  return R"({"authenticated":{"principal_name":)" + matcher + "}}";
}

TEST(Rbac, AllowNothing) {
  Client c("spiffe://cluster.local/ns/a/sa/b");
  EXPECT_FALSE(c.passes(R"({"action":"ALLOW"})"));
  EXPECT_TRUE(c.passes(R"({"action":"DENY"})"));
  EXPECT_TRUE(c.passes(R"({"action":"LOG"})"));
}

TEST(Rbac, PrincipalKinds) {
  const auto allow = [](const std::string& matcher) {
    return rbac("ALLOW", R"("ns[s]-policy[p]-rule[0]":)" + rule(kAny, principal(matcher)));
  };
  Client web("spiffe://cluster.local/ns/shop/sa/web");
  Client other("spiffe://cluster.local/ns/other/sa/web");
  Client plain("");
  const auto table = [&](const std::string& matcher, bool w, bool o, bool p) {
    EXPECT_EQ(web.passes(allow(matcher)), w) << matcher;
    EXPECT_EQ(other.passes(allow(matcher)), o) << matcher;
    EXPECT_EQ(plain.passes(allow(matcher)), p) << matcher;
  };
  table(R"({"exact":"spiffe://cluster.local/ns/shop/sa/web"})", true, false, false);
  table(R"({"prefix":"spiffe://cluster.local/"})", true, true, false);
  table(R"({"prefix":"spiffe://"})", true, true, false);
  table(R"({"suffix":"/sa/web"})", true, true, false);
  table(R"({"safe_regex":{"regex":".*/ns/shop/.*"}})", true, false, false);
  table(R"({"safe_regex":{"regex":".*/ns/sh.*/.*"}})", true, false, false);
  table(R"({"safe_regex":{"regex":".*/ns/shop/sa/web$"}})", true, false, false);
  table(R"({"safe_regex":{"regex":".+"}})", true, true, false);
}

TEST(Rbac, NegationAddressesAndPorts) {
  const std::string not_web = R"({"and_ids":{"ids":[{"not_id":{"or_ids":{"ids":[)" +
                              principal(R"({"suffix":"/sa/web"})") + R"(]}}}]}})";
  const std::string deny = rbac("DENY", R"("x":)" + rule(kAny, not_web));
  EXPECT_TRUE(Client("spiffe://t/ns/a/sa/web").passes(deny));
  EXPECT_FALSE(Client("spiffe://t/ns/a/sa/cron").passes(deny));
  EXPECT_FALSE(Client("").passes(deny));

  const std::string from_net =
      rbac("ALLOW", R"("x":)" + rule(R"({"and_rules":{"rules":[{"or_rules":{"rules":[
        {"destination_port":80},{"destination_port":81}]}}]}})",
                                     R"({"direct_remote_ip":{"address_prefix":"10.0.0.0","prefix_len":24}})"));
  EXPECT_TRUE(Client("", "10.0.0.9", 80).passes(from_net));
  EXPECT_TRUE(Client("", "10.0.0.9", 81).passes(from_net));
  EXPECT_FALSE(Client("", "10.0.0.9", 82).passes(from_net));
  EXPECT_FALSE(Client("", "10.0.1.9", 80).passes(from_net));
}

TEST(Rbac, RulesOfOnePolicyAreAlternatives) {
  const std::string two =
      rbac("ALLOW", R"("ns[s]-policy[p]-rule[0]":)" + rule(kAny, principal(R"({"suffix":"/sa/a"})")) +
                        R"(,"ns[s]-policy[p]-rule[1]":)" +
                        rule(kAny, principal(R"({"suffix":"/sa/b"})")));
  EXPECT_TRUE(Client("spiffe://t/ns/x/sa/a").passes(two));
  EXPECT_TRUE(Client("spiffe://t/ns/x/sa/b").passes(two));
  Client c("spiffe://t/ns/x/sa/c");
  auto filter = compiled(two);
  const auto verdict = filter->check(c.input);
  EXPECT_FALSE(verdict.allowed);
  EXPECT_EQ(verdict.reason, Reason::kPolicyNoAllowMatch);
  EXPECT_EQ(verdict.detail(), "policy s/p");
}

TEST(Rbac, EveryFilterMustAgree) {
  std::vector<RbacFilter> filters;
  filters.push_back(*compiled(rbac("DENY", R"("d":)" + rule(kAny, principal(R"({"suffix":"/sa/bad"})")))));
  filters.push_back(*compiled(rbac("ALLOW", R"("a":)" + rule(kAny, principal(R"({"prefix":"spiffe://"})")))));
  EXPECT_TRUE(authorize(filters, Client("spiffe://t/ns/x/sa/good").input).allowed);
  EXPECT_EQ(authorize(filters, Client("spiffe://t/ns/x/sa/bad").input).reason, Reason::kPolicyDeny);
  EXPECT_EQ(authorize(filters, Client("").input).reason, Reason::kPolicyNoAllowMatch);
}

TEST(Rbac, ShadowRulesNeverDeny) {
  const Proto shadow = from_json<Proto>(rbac("DENY", R"("d":)" + rule(kAny, kAny)));
  const auto filter = RbacFilter::compile(nullptr, &shadow);
  ASSERT_TRUE(filter);
  Client c("");
  EXPECT_TRUE(filter->check(c.input).allowed);
  EXPECT_FALSE(filter->check_shadow(c.input).allowed);
}

// What the engine cannot express must be refused: ignoring it would widen or narrow access.
TEST(Rbac, RefusesWhatItCannotExpress) {
  for (const std::string& principals :
       {principal(R"({"exact":"not-a-uri"})"), principal(R"({"safe_regex":{"regex":"a|b"}})"),
        principal(R"({"contains":"x"})"), principal(R"({"exact":"spiffe://x","ignore_case":true})"),
        std::string(R"({"or_ids":{"ids":[{"any":false},)") + principal(R"({"suffix":"a"})") +
            R"(,{"direct_remote_ip":{"address_prefix":"10.0.0.0","prefix_len":8}}]}})",
        std::string(R"({"not_id":{"any":true}})"),
        std::string(R"({"and_ids":{"ids":[)") + principal(R"({"suffix":"a"})") + "," +
            principal(R"({"suffix":"b"})") + "]}}",
        std::string(R"({"direct_remote_ip":{"address_prefix":"x","prefix_len":8}})"),
        std::string(R"({"and_ids":{"ids":[{"and_ids":{"ids":[{"any":true}]}}]}})")}) {
    const auto filter = compiled(rbac("DENY", R"("named":)" + rule(kAny, principals)));
    ASSERT_FALSE(filter) << principals;
    EXPECT_TRUE(filter.error().detail.starts_with("policy named: ")) << filter.error().detail;
  }
  EXPECT_FALSE(compiled(rbac("DENY", R"("x":{"permissions":[{"any":true}]})")));
  EXPECT_FALSE(compiled(rbac("DENY", R"("x":)" + rule(R"({"destination_port":70000})", kAny))));
}

}  // namespace
}  // namespace meltemi::waypoint
