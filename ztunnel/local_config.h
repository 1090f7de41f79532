// The configuration file of a ztunnel without a control plane, in Istio's format (facts: ztunnel
// §3.6). Strict: an unknown field is an error that names it. Must never be half applied.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/error.h"
#include "userspace/model/store.h"

namespace meltemi::ztunnel {

inline constexpr size_t kMaxLocalConfig = 64 << 20;  // bytes

// Errors: kBadConfig with object, field and line; `origin` (a path) heads the message.
Result<model::Batch> parse_local_config(std::string_view yaml, std::string_view origin);
Result<model::Batch> read_local_config(const std::string& path);

}  // namespace meltemi::ztunnel
