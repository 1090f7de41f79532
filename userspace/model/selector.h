// Kubernetes label selectors, evaluated over a label map. Pure.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "userspace/base/error.h"

namespace meltemi::model {

using Labels = std::map<std::string, std::string, std::less<>>;

struct LabelRequirement {
  enum class Operator : uint8_t { kIn, kNotIn, kExists, kDoesNotExist };
  std::string key;
  Operator op = Operator::kExists;
  std::vector<std::string> values;  // kIn and kNotIn only
};

// All of match_labels and of match_expressions must hold. An empty selector matches everything.
struct LabelSelector {
  Labels match_labels;
  std::vector<LabelRequirement> match_expressions;

  bool matches(const Labels& labels) const;
  bool empty() const { return match_labels.empty() && match_expressions.empty(); }
  // The kubectl form: "a=b,c!=d,e,!f,g in (x,y),h notin (z)". Error: kBadConfig with the part.
  static Result<LabelSelector> parse(std::string_view text);
};

}  // namespace meltemi::model
