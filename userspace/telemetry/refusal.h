// How one proxy of the mesh tells another why it refused a CONNECT: a response field with a reason of
// the closed set (base/error.h), so that the client's log says what the server's does. Sent with
// refusals only; peers that do not know it pass over it (RFC 9110 section 5.1). It must never carry
// more than the reason: names of policies are not the caller's business.
#pragma once

#include <optional>
#include <string_view>

#include "userspace/base/error.h"

namespace meltemi::telemetry {

inline constexpr std::string_view kRefusalHeader = "x-meltemi-reason";

// The reason of that name; nullopt for anything else.
std::optional<Reason> refusal_of(std::string_view name);

}  // namespace meltemi::telemetry
