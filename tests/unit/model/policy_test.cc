// The policy engine: the corner cases by hand, then random policies against a second evaluation
// written straight from the prose.
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/model/build.h"

namespace meltemi::model {
namespace {

using Kind = StringMatch::Kind;
using test::at;
using test::ip;
using test::make_workload;
using test::sym;

const Identity kClient = *Identity::make("cluster.local", "shop", "web");

PolicyPtr make_policy(PolicyAction action, std::vector<PolicyRule> rules, bool dry_run = false,
                      std::string_view name = "p") {
  auto p = std::make_shared<Policy>();
  p->name = sym(name);
  p->ns = sym("shop");
  p->action = action;
  p->dry_run = dry_run;
  p->rules = std::move(rules);
  p->seal();
  return p;
}
PolicyRule rule(std::vector<PolicyMatch> matches) { return {{{std::move(matches)}}}; }
PolicyMatch principal(std::string value, Kind kind = Kind::kExact) {
  PolicyMatch m;
  m.principals = {{kind, std::move(value)}};
  return m;
}
PolicyInput input(const Identity* id = &kClient) {
  return {ip("10.0.0.5"), id, at("10.0.1.7:8080")};
}

TEST(Policy, WithoutPoliciesEverythingIsAllowed) {
  EXPECT_TRUE(evaluate({}, input()).allowed);
  EXPECT_EQ(evaluate({}, input()).reason, Reason::kOk);
}

TEST(Policy, EmptyPartsMeanWhatTheFactsSay) {
  // No rules: never matches, so an ALLOW shuts everybody out.
  PolicyPtr list[] = {make_policy(PolicyAction::kAllow, {})};
  EXPECT_EQ(evaluate(list, input()).reason, Reason::kPolicyNoAllowMatch);
  list[0] = make_policy(PolicyAction::kDeny, {});
  EXPECT_TRUE(evaluate(list, input()).allowed);
  // A rule without clauses matches, and so does an empty clause.
  list[0] = make_policy(PolicyAction::kDeny, {PolicyRule{}});
  EXPECT_EQ(evaluate(list, input()).reason, Reason::kPolicyDeny);
  list[0] = make_policy(PolicyAction::kDeny, {PolicyRule{{PolicyClause{}}}});
  EXPECT_EQ(evaluate(list, input()).reason, Reason::kPolicyDeny);
  // A match with nothing set never does.
  list[0] = make_policy(PolicyAction::kDeny, {rule({PolicyMatch{}})});
  EXPECT_TRUE(evaluate(list, input()).allowed);
  list[0] = make_policy(PolicyAction::kAllow, {rule({PolicyMatch{}})});
  EXPECT_FALSE(evaluate(list, input()).allowed);
}

TEST(Policy, DenyBeatsAllowAndNamesItself) {
  const PolicyPtr list[] = {
      make_policy(PolicyAction::kAllow, {rule({principal(std::string(kClient.principal()))})}),
      make_policy(PolicyAction::kDeny, {rule({principal("x")}), rule({principal("cluster", Kind::kPrefix)})},
                  false, "no-web")};
  const auto v = evaluate(list, input());
  EXPECT_EQ(v.reason, Reason::kPolicyDeny);
  EXPECT_EQ(v.detail(), "policy shop/no-web rule 1");
}

TEST(Policy, DryRunNeverDecides) {
  const PolicyPtr list[] = {make_policy(PolicyAction::kDeny, {PolicyRule{}}, true),
                            make_policy(PolicyAction::kAllow, {}, true)};
  EXPECT_TRUE(evaluate(list, input()).allowed);
}

TEST(Policy, UnknownPolicyClosesButADenyIsStillNamed) {
  const PolicyPtr allow[] = {make_policy(PolicyAction::kAllow, {PolicyRule{}})};
  auto v = evaluate(allow, input(), sym("shop/gone"));
  EXPECT_EQ(v.reason, Reason::kPolicyUnknown);
  EXPECT_EQ(v.detail(), "policy shop/gone is not known");
  const PolicyPtr deny[] = {make_policy(PolicyAction::kDeny, {PolicyRule{}})};
  EXPECT_EQ(evaluate(deny, input(), sym("shop/gone")).reason, Reason::kPolicyDeny);
}

TEST(Policy, WhatCameFromAPeerAuthenticationIsCalledByItsName) {
  Policy policy;
  policy.ns = Symbol("shop");
  const auto said = [&](std::string_view name) {
    policy.name = Symbol(name);
    PolicyVerdict verdict;
    verdict.reason = Reason::kStrictPlaintext;
    verdict.policy = std::make_shared<Policy>(policy);
    return verdict.detail();
  };
  EXPECT_EQ(said("converted_peer_authentication_db-only"), "PeerAuthentication shop/db-only");
  EXPECT_EQ(said("istio_converted_static_strict").find("istio_converted"), std::string::npos);
}

TEST(Policy, StrictMtlsTurnsPlaintextAwayAndOnlyThat) {
  PolicyMatch no_identity;
  no_identity.not_principals = {{Kind::kPresence, ""}};
  const PolicyPtr list[] = {make_policy(PolicyAction::kDeny, {rule({no_identity})})};
  EXPECT_EQ(evaluate(list, input(nullptr)).reason, Reason::kStrictPlaintext);
  const Identity none;
  EXPECT_EQ(evaluate(list, input(&none)).reason, Reason::kStrictPlaintext);
  EXPECT_TRUE(evaluate(list, input()).allowed);
}

TEST(Policy, WithoutIdentityNegativeMatchersHoldAndPositiveOnesDoNot) {
  PolicyMatch m;
  m.not_namespaces = {{Kind::kExact, "other"}};
  PolicyPtr list[] = {make_policy(PolicyAction::kDeny, {rule({m})})};
  EXPECT_FALSE(evaluate(list, input(nullptr)).allowed);
  m = {};
  m.namespaces = {{Kind::kPrefix, ""}};
  list[0] = make_policy(PolicyAction::kAllow, {rule({m})});
  EXPECT_FALSE(evaluate(list, input(nullptr)).allowed);
  EXPECT_TRUE(evaluate(list, input()).allowed);
  m = {};
  m.not_service_accounts = {{"shop", "web"}};
  list[0] = make_policy(PolicyAction::kAllow, {rule({m})});
  EXPECT_TRUE(evaluate(list, input(nullptr)).allowed);
  EXPECT_FALSE(evaluate(list, input()).allowed);
}

TEST(Policy, ServiceAccountsIgnoreTheTrustDomain) {
  PolicyMatch m;
  m.service_accounts = {{"shop", "web"}};
  const PolicyPtr list[] = {make_policy(PolicyAction::kAllow, {rule({m})})};
  const Identity foreign = *Identity::make("other.domain", "shop", "web");
  EXPECT_TRUE(evaluate(list, input(&foreign)).allowed);
}

TEST(Policy, AnEntryThatCouldNotBeReadNeverWidensAccess) {
  PolicyMatch m;
  m.destination_ports = {8080};
  m.invalid = true;
  PolicyPtr list[] = {make_policy(PolicyAction::kAllow, {rule({m})})};
  EXPECT_FALSE(evaluate(list, input()).allowed);
  list[0] = make_policy(PolicyAction::kDeny, {rule({m})});
  EXPECT_FALSE(evaluate(list, input()).allowed);
}

TEST(Policy, AppliesByScope) {
  MeshStore store;
  auto dest = make_workload({.name = "db", .address = "10.0.1.7"});
  const auto scoped = [&](PolicyScope scope, std::string_view ns, std::string_view name) {
    auto p = std::make_shared<Policy>();
    p->name = sym(name);
    p->ns = sym(ns);
    p->scope = scope;
    p->action = PolicyAction::kDeny;
    p->rules = {PolicyRule{}};
    p->seal();
    return p;
  };
  const auto verdict = [&] { return store.snapshot()->authorize(*dest, input()); };
  store.apply({.workloads = {dest}, .policies = {scoped(PolicyScope::kNamespace, "other", "a"),
                                                 scoped(PolicyScope::kWorkloadSelector, "shop", "b")}});
  EXPECT_TRUE(verdict().allowed);
  store.apply({.policies = {scoped(PolicyScope::kNamespace, "shop", "c")}});
  EXPECT_EQ(verdict().detail(), "policy shop/c rule 0");
  store.apply({.removed_policies = {"shop/c"}});
  EXPECT_TRUE(verdict().allowed);
  store.apply({.policies = {scoped(PolicyScope::kGlobal, "istio-system", "g")}});
  EXPECT_EQ(verdict().detail(), "policy istio-system/g rule 0");
  // The same policy moves from the mesh to a namespace that is not ours.
  store.apply({.policies = {scoped(PolicyScope::kNamespace, "istio-system", "g")}});
  EXPECT_TRUE(verdict().allowed);
  dest = std::make_shared<Workload>(*dest);
  dest->authorization_policies = {sym("shop/b")};
  EXPECT_EQ(verdict().detail(), "policy shop/b rule 0");
  dest->authorization_policies = {sym("shop/never-seen")};
  EXPECT_EQ(verdict().reason, Reason::kPolicyUnknown);
}

// --- oracle ---------------------------------------------------------------------------------

bool naive_string(const StringMatch& m, const std::string& s) {
  switch (m.kind) {
    case Kind::kExact: return s == m.value;
    case Kind::kPrefix: return s.rfind(m.value, 0) == 0;
    case Kind::kSuffix:
      return s.size() >= m.value.size() && s.substr(s.size() - m.value.size()) == m.value;
    case Kind::kPresence: return s != "";
  }
  return false;
}

struct Naive {
  const PolicyInput& in;
  bool has_id() const { return in.identity != nullptr; }
  bool one(const StringMatch& m, std::string_view s) const {
    return has_id() && naive_string(m, std::string(s));
  }
  bool one(const ServiceAccountMatch& m, std::string_view) const {
    return has_id() && m.ns == in.identity->ns() && m.service_account == in.identity->service_account();
  }
  template <typename T, typename F>
  bool pair_holds(const std::vector<T>& yes, const std::vector<T>& no, F f) const {
    if (!yes.empty()) {
      bool any = false;
      for (const T& m : yes) any = any || f(m);
      if (!any) return false;
    }
    for (const T& m : no) {
      if (f(m)) return false;
    }
    return true;
  }
  bool match(const PolicyMatch& m) const {
    if (m == PolicyMatch{}) return false;
    const std::string ns(has_id() ? in.identity->ns() : ""), pr(has_id() ? in.identity->principal() : "");
    return pair_holds(m.namespaces, m.not_namespaces, [&](auto& x) { return one(x, ns); }) &&
           pair_holds(m.principals, m.not_principals, [&](auto& x) { return one(x, pr); }) &&
           pair_holds(m.service_accounts, m.not_service_accounts, [&](auto& x) { return one(x, ""); }) &&
           pair_holds(m.source_ips, m.not_source_ips, [&](auto& c) { return c.contains(in.source_ip); }) &&
           pair_holds(m.destination_ips, m.not_destination_ips,
                      [&](auto& c) { return c.contains(in.destination.ip); }) &&
           pair_holds(m.destination_ports, m.not_destination_ports,
                      [&](auto p) { return p == in.destination.port; });
  }
  bool policy(const Policy& p) const {
    for (const auto& r : p.rules) {
      bool all = true;
      for (const auto& c : r.clauses) {
        bool any = c.matches.empty();
        for (const auto& m : c.matches) any = any || match(m);
        all = all && any;
      }
      if (all) return true;
    }
    return false;
  }
  bool allowed(const std::vector<PolicyPtr>& all) const {
    bool any_allow = false, allow = false;
    for (const auto& p : all) {
      if (p->dry_run) continue;
      if (p->action == PolicyAction::kDeny && policy(*p)) return false;
      if (p->action == PolicyAction::kAllow) {
        any_allow = true;
        allow = allow || policy(*p);
      }
    }
    return !any_allow || allow;
  }
};

template <typename T, typename F>
std::vector<T> some(std::mt19937& rng, F f) {
  std::vector<T> out;
  if (rng() % 5 == 0) {
    for (size_t i = 0, n = 1 + rng() % 2; i < n; ++i) out.push_back(f());
  }
  return out;
}

PolicyMatch random_match(std::mt19937& rng) {
  const auto word = [&](std::initializer_list<const char*> words) {
    return std::string(*(words.begin() + rng() % words.size()));
  };
  const auto ns = [&] {
    return StringMatch{static_cast<Kind>(rng() % 4), word({"shop", "sh", "op", "other", ""})};
  };
  const auto pr = [&] {
    return StringMatch{static_cast<Kind>(rng() % 4),
                       word({"cluster.local/ns/shop/sa/web", "cluster.local/", "/sa/web", "x"})};
  };
  const auto sa = [&] { return ServiceAccountMatch{word({"shop", "other"}), word({"web", "db"})}; };
  const auto cidr = [&] { return *Cidr::parse(word({"10.0.0.0/24", "10.0.0.5/32", "0.0.0.0/0", "10.0.1.0/24", "fd00::/8"})); };
  const auto port = [&] { return static_cast<uint16_t>(8080 + rng() % 2); };
  PolicyMatch m;
  m.namespaces = some<StringMatch>(rng, ns);
  m.not_namespaces = some<StringMatch>(rng, ns);
  m.principals = some<StringMatch>(rng, pr);
  m.not_principals = some<StringMatch>(rng, pr);
  m.service_accounts = some<ServiceAccountMatch>(rng, sa);
  m.not_service_accounts = some<ServiceAccountMatch>(rng, sa);
  m.source_ips = some<Cidr>(rng, cidr);
  m.not_source_ips = some<Cidr>(rng, cidr);
  m.destination_ips = some<Cidr>(rng, cidr);
  m.not_destination_ips = some<Cidr>(rng, cidr);
  m.destination_ports = some<uint16_t>(rng, port);
  m.not_destination_ports = some<uint16_t>(rng, port);
  return m;
}

TEST(Policy, RandomPoliciesMatchTheProse) {
  std::mt19937 rng(3);
  const Identity ids[] = {kClient, *Identity::make("cluster.local", "other", "db"),
                          *Identity::make("foreign", "shop", "web")};
  size_t allowed = 0, denied = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::vector<PolicyPtr> policies;
    for (size_t i = 0, n = 1 + rng() % 3; i < n; ++i) {
      std::vector<PolicyRule> rules(rng() % 3);
      for (auto& r : rules) {
        r.clauses.resize(rng() % 3);
        for (auto& c : r.clauses) {
          for (size_t k = rng() % 3; k > 0; --k) c.matches.push_back(random_match(rng));
        }
      }
      policies.push_back(make_policy(rng() % 2 ? PolicyAction::kAllow : PolicyAction::kDeny,
                                     std::move(rules), rng() % 6 == 0));
    }
    PolicyInput in = input(rng() % 4 == 0 ? nullptr : &ids[rng() % 3]);
    in.destination.port = static_cast<uint16_t>(8080 + rng() % 2);
    if (rng() % 3 == 0) in.source_ip = ip("fd00::5");
    const bool want = Naive{in}.allowed(policies);
    ASSERT_EQ(evaluate(policies, in).allowed, want);
    (want ? allowed : denied) += 1;
  }
  EXPECT_GT(allowed, 1000u);
  EXPECT_GT(denied, 1000u);
}

}  // namespace
}  // namespace meltemi::model
