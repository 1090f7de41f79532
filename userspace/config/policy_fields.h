// Which parts of an AuthorizationPolicy rule need HTTP to be evaluated. One answer for validation,
// analysis and translation, so that what is said and what is enforced cannot differ.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "security/v1beta1/authorization_policy.pb.h"

namespace meltemi::config {

// Paths relative to the rule, e.g. "to[0].operation.methods", "when[1].key": attributes of
// requests.
std::vector<std::string> l7_fields(const ::istio::security::v1beta1::Rule& rule);
bool has_l7(const ::istio::security::v1beta1::Source& source);
bool has_l7(const ::istio::security::v1beta1::Operation& operation);
// Keys of `when` that a connection already answers: source.ip, source.namespace, source.principal,
// source.serviceAccount, source.trustDomain, destination.ip, destination.port.
bool is_l4_key(std::string_view key);
// Any key of the API, deprecated ones excluded.
bool is_known_key(std::string_view key);
bool binds_to_target(const ::istio::security::v1beta1::AuthorizationPolicy& policy);
// targetRefs, or the single targetRef of older manifests.
std::vector<const ::istio::type::v1beta1::PolicyTargetReference*> targets_of(
    const ::istio::security::v1beta1::AuthorizationPolicy& policy);

}  // namespace meltemi::config
