// `sandbox up|down|status|list`, and the sandbox's own processes behind `internal`.
#pragma once

#include <string>
#include <vector>

namespace meltemi::cli {

int sandbox_up_command(const std::string& name, int nodes);
int sandbox_down_command(const std::string& name, bool all);
int sandbox_status_command(const std::string& name);
int sandbox_list_command();

// argv after "internal"; not for people. Runs in the process that calls it until it is told to
// stop.
int internal_command(const std::vector<std::string>& words);

// The folder of this program, where the other binaries are; MELTEMI_BIN_DIR overrides it.
std::string bin_dir();

}  // namespace meltemi::cli
