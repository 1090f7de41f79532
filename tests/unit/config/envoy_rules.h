// Envoy's own validation rules, as its API definitions carry them (tests/data/envoy_rules.tsv), asked
// of any message of userspace/api/envoy: what an Envoy would refuse is found without one.
#pragma once

#include <google/protobuf/message.h>

#include <string>
#include <vector>

namespace meltemi::config {

// Every violation, as "message.field: rule". Looks into sub-messages and into what an Any holds; an
// Any of an unknown type is one too. Aborts if the table has a rule that is not understood here.
std::vector<std::string> envoy_violations(const google::protobuf::Message& message);

}  // namespace meltemi::config
