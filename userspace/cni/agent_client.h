// One call to the agent's socket. Blocking, with a deadline; nothing is kept between calls.
#pragma once

#include <string>

#include "meltemi/local/v1/agent.pb.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"

namespace meltemi::cni {

// Errors: kConnectRefused when nobody serves `socket_path` (also: no such file), kRequestTimeout,
// and what the codec says of malformed answers. An answer with an error text is not an error here.
Result<meltemi::local::v1::Response> call_agent(const std::string& socket_path,
                                                const meltemi::local::v1::Request& request,
                                                Duration timeout);

}  // namespace meltemi::cni
