// What is said of a policy and what is done with it, side by side: every action with every kind of
// attribute, at a ztunnel, decided by the engine that ztunnel asks.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "tests/unit/config/fixture.h"
#include "userspace/model/identity.h"
#include "userspace/model/policy.h"
#include "userspace/xds/workload_convert.h"

namespace meltemi::config {
namespace {

using testing::HasSubstr;

struct Row {
  const char* action;
  const char* rule;
  bool friend_allowed;    // namespace "web", port 80
  bool stranger_allowed;  // namespace "evil", port 80
  const char* said;       // part of the condition's message
};

constexpr Row kRows[] = {
    {"ALLOW", "from: [{source: {namespaces: [web]}}]", true, false, "attached to ztunnel"},
    {"ALLOW", "to: [{operation: {methods: [GET]}}]", false, false, "more restrictive than requested"},
    {"ALLOW", "from: [{source: {namespaces: [web]}}], to: [{operation: {paths: [/a]}}]", false, false,
     "Rules with them are omitted"},
    {"ALLOW", "when: [{key: \"request.headers[x]\", values: [y]}]", false, false,
     "Rules with them are omitted"},
    {"DENY", "from: [{source: {namespaces: [evil]}}]", true, false, "attached to ztunnel"},
    {"DENY", "to: [{operation: {methods: [GET]}}]", false, false,
     "rules[0] denies every connection"},
    {"DENY", "to: [{operation: {hosts: [a]}}]", false, false, "rules[0] denies every connection"},
    {"DENY", "to: [{operation: {notPaths: [/a]}}]", false, false,
     "rules[0] denies every connection"},
    {"DENY", "from: [{source: {requestPrincipals: [\"*\"]}}]", false, false,
     "rules[0] denies every connection"},
    {"DENY", "from: [{source: {notRequestPrincipals: [\"*\"]}}]", false, false,
     "rules[0] denies every connection"},
    {"DENY", "from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]", false, false,
     "rules[0] denies every connection"},
    {"DENY", "when: [{key: \"request.auth.claims[a]\", values: [b]}]", false, false,
     "rules[0] denies every connection"},
    {"DENY", "from: [{source: {namespaces: [evil]}}], to: [{operation: {methods: [GET]}}]", true, false,
     "They are ignored, so the policy is more restrictive than requested"},
    {"DENY", "from: [{source: {namespaces: [evil]}}, {source: {remoteIpBlocks: [10.0.0.0/8]}}]", false,
     false, "rules[0] denies every connection"},
    {"DENY", "to: [{operation: {methods: [GET], ports: [\"81\"]}}]", true, true,
     "They are ignored, so the policy is more restrictive than requested"},
    {"DENY", "from: [{source: {trustDomains: [\"*.corp\"]}}]", false, false, ""},
};

bool allowed(const model::PolicyPtr& policy, std::string_view ns) {
  const auto identity =
      model::Identity::parse(fmt::format("spiffe://cluster.local/ns/{}/sa/a", ns));
  EXPECT_TRUE(identity);
  model::PolicyInput input;
  input.source_ip = *IpAddress::parse("10.1.2.3");
  input.identity = &*identity;
  input.destination = *SocketAddress::parse("10.244.0.5:80");
  const model::PolicyPtr policies[] = {policy};
  return model::evaluate(policies, input).allowed;
}

TEST(Enforcement, WhatIsSaidOfAPolicyIsWhatHappens) {
  for (const Row& row : kRows) {
    const std::string yaml = fmt::format(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, "
        "namespace: shop}}\nspec: {{action: {}, selector: {{matchLabels: {{app: catalog}}}}, rules: "
        "[{{{}}}]}}\n",
        row.action, row.rule);
    Mesh mesh;
    mesh.put("p.yaml", yaml);
    const ResourcePtr resource =
        mesh.translator().find(ResourceType::kAuthorization, kEveryone, "shop/p");
    ASSERT_TRUE(resource) << row.rule;
    auto policy = xds::decode_policy(resource->body);
    ASSERT_TRUE(policy) << row.rule;
    EXPECT_EQ(allowed(*policy, "web"), row.friend_allowed) << row.action << " " << row.rule;
    EXPECT_EQ(allowed(*policy, "evil"), row.stranger_allowed) << row.action << " " << row.rule;
    const auto conditions = mesh.translator().conditions({Kind::kAuthorizationPolicy, "shop", "p"});
    ASSERT_EQ(conditions.size(), 1u);
    EXPECT_THAT(conditions[0].message, HasSubstr(row.said)) << row.action << " " << row.rule;
    // At apply: istioctl's words, where and only where they are true.
    std::string told;
    for (const Problem& problem : read_and_validate(yaml, "p.yaml").problems) {
      told += problem.message + "\n";
    }
    const bool all = std::string_view(row.said).find("denies every") != std::string_view::npos;
    EXPECT_EQ(told.find("will deny all traffic to TCP ports") != std::string::npos, all)
        << row.action << " " << row.rule << "\n" << told;
  }
}

}  // namespace
}  // namespace meltemi::config
