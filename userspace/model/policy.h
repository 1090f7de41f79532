// The L4 authorization engine, used by ztunnel for its pods and by waypoints for targetRefs.
//
// Semantics (facts: Istio's ztunnel, with its fail-open holes closed): rules OR; clauses of a rule
// AND; matches of a clause OR; inside a match all kinds that are set AND, values of a kind OR, and the
// not_ twin must hold too. A policy without rules never matches; a rule without clauses and a clause
// without matches always do; a match with nothing set never does. Order: DENY, then unknown policies
// (closed), then ALLOW: none applies -> allowed, else one must match. dry_run never decides.
//
// Policies are compiled once and evaluated without allocation. Must never read a header or any
// identity that was not verified.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/error.h"
#include "userspace/model/identity.h"
#include "userspace/model/types.h"

namespace meltemi::model {

struct StringMatch {
  enum class Kind : uint8_t { kExact, kPrefix, kSuffix, kPresence };
  Kind kind = Kind::kExact;
  std::string value;  // unused for kPresence (which means: not empty)
  bool matches(std::string_view text) const;
  bool operator==(const StringMatch&) const = default;
};

struct ServiceAccountMatch {
  std::string ns, service_account;
  bool operator==(const ServiceAccountMatch&) const = default;
};

struct PolicyMatch {
  std::vector<StringMatch> namespaces, not_namespaces;
  std::vector<StringMatch> principals, not_principals;  // without "spiffe://"
  std::vector<ServiceAccountMatch> service_accounts, not_service_accounts;
  std::vector<Cidr> source_ips, not_source_ips;
  std::vector<Cidr> destination_ips, not_destination_ips;
  std::vector<uint16_t> destination_ports, not_destination_ports;
  // Set by whoever converted the match and met a value that it could not understand. Such a match
  // is never satisfied in ALLOW and always in DENY: a broken entry must not widen access.
  bool invalid = false;
  bool empty() const;
  bool operator==(const PolicyMatch&) const = default;
};

struct PolicyClause {
  std::vector<PolicyMatch> matches;
  bool operator==(const PolicyClause&) const = default;
};
struct PolicyRule {
  std::vector<PolicyClause> clauses;
  bool operator==(const PolicyRule&) const = default;
};

enum class PolicyScope : uint8_t { kGlobal, kNamespace, kWorkloadSelector };
enum class PolicyAction : uint8_t { kAllow, kDeny };

struct Policy {
  Symbol key;  // namespace/name; set by seal()
  Symbol name, ns;
  PolicyScope scope = PolicyScope::kWorkloadSelector;
  PolicyAction action = PolicyAction::kAllow;
  bool dry_run = false;
  std::vector<PolicyRule> rules;

  void seal();  // sorts ports, derives `key`; call once, before sharing
  bool operator==(const Policy&) const = default;
};
using PolicyPtr = std::shared_ptr<const Policy>;

// What a connection or request shows. Views must live for the call.
struct PolicyInput {
  IpAddress source_ip;         // of the TCP peer
  const Identity* identity = nullptr;  // verified, or null for plaintext
  SocketAddress destination;   // what the app will see
};

struct PolicyVerdict {
  bool allowed = true;
  Reason reason = Reason::kOk;  // kPolicyDeny, kPolicyNoAllowMatch, kPolicyUnknown, kStrictPlaintext
  PolicyPtr policy;             // the one that decided; null if none did
  int rule = -1;                // index of its rule that matched
  Symbol unknown;               // kPolicyUnknown: the name that could not be found
  // "policy shop/deny-all rule 0", for logs; empty if nothing decided.
  std::string detail() const;
};

// Index of the first rule that matches, or -1.
int first_matching_rule(const Policy& policy, const PolicyInput& input);

// The evaluation in phases, for callers whose policies are not in one list: all deny_phase() first,
// then unknown(), then all allow_phase(). `input` must outlive it.
class PolicyEvaluation {
 public:
  explicit PolicyEvaluation(const PolicyInput& input) : input_(input) {}
  void deny_phase(const PolicyPtr& policy);
  void unknown(const Symbol& name);  // a policy that should apply and cannot be found: closed
  void allow_phase(const PolicyPtr& policy);
  PolicyVerdict verdict() &&;

 private:
  void decide(bool allowed, Reason reason, const PolicyPtr& policy, int rule);
  const PolicyInput& input_;
  bool decided_ = false;
  PolicyPtr closest_allow_;  // an ALLOW that applied and did not match
  PolicyVerdict verdict_;
};

// Decides among `policies` (all that apply, any order). `unknown` names a policy that should apply
// and is not known; it closes.
PolicyVerdict evaluate(std::span<const PolicyPtr> policies, const PolicyInput& input,
                       const Symbol& unknown = Symbol());

}  // namespace meltemi::model
