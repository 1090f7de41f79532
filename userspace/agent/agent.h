// The agent as a whole: what main() runs, put together from its parts.
#pragma once

#include "userspace/agent/options.h"
#include "userspace/base/error.h"

namespace meltemi::agent {

// Serves until SIGTERM or SIGINT. Leaves pins, rules and listeners as they are: capture goes on without
// the agent. Errors are those of start-up.
Status run_agent(const Options& options);
// --uninstall: the node as it was before the mesh. Pods must be un-enrolled before: their routing lies
// in their namespaces, of which only enrolments.json knows.
Status uninstall_agent(const Options& options);

}  // namespace meltemi::agent
