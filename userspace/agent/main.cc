// meltemi-agent: options, log, run.
#include <cstdio>

#include "userspace/agent/agent.h"
#include "userspace/base/log.h"

int main(int argc, char** argv) {
  using namespace meltemi;
  agent::Options options;
  ConfigTable table = agent::option_table(options);
  bool run = true;
  Status status = table.parse(argc, argv, &run);
  if (status && !run) return 0;
  if (status) status = options.logging.init();
  if (status)
    status = options.uninstall ? agent::uninstall_agent(options) : agent::run_agent(options);
  log::flush();
  if (status) return 0;
  std::fprintf(stderr, "meltemi-agent: %s\n", status.error().to_string().c_str());
  return 1;
}
