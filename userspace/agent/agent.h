// The agent as a whole: what main() runs, put together from its parts.
#pragma once

#include "userspace/agent/options.h"
#include "userspace/base/error.h"

namespace meltemi::agent {

// Serves until SIGTERM or SIGINT. Leaves pins, rules and listeners as they are: capture goes on
// without the agent. Errors are those of start-up.
Status run_agent(const Options& options);
// --uninstall: the node as it was before the mesh. Un-enrols the pods that enrolments.json knows,
// at once: their captured connections end. Goes on past a pod that fails and says so in the log.
Status uninstall_agent(const Options& options);

}  // namespace meltemi::agent
