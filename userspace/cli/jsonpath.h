// kubectl's JSONPath templates (`-o jsonpath=...`): fields, indices, wildcards, "..", equality
// filters, string literals and range/end. Pure. Must never print less than was asked without an error: what
// is not understood is refused by name; only a field that is not there is empty, as with kubectl.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/config/value.h"

namespace meltemi::cli {

// "{.items[*].metadata.name}", "{range .items[*]}{.metadata.name}{\"\\n\"}{end}". Several results of
// one expression are separated by spaces. Maps and lists are shown as JSON in one line.
Result<std::string> evaluate_jsonpath(std::string_view text, const config::Value& root);

}  // namespace meltemi::cli
