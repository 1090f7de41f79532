// meltemi-agent: options, log, run.
#include <linux/capability.h>

#include <cstdio>

#include "userspace/agent/agent.h"
#include "userspace/base/log.h"
#include "userspace/sys/confine.h"

int main(int argc, char** argv) {
  using namespace meltemi;
  agent::Options options;
  ConfigTable table = agent::option_table(options);
  bool run = true;
  Status status = table.parse(argc, argv, &run);
  if (status && !run) return 0;
  // Pods' namespaces are entered and looked at, programs loaded and pinned, links and rules set.
  static constexpr int kCapabilities[] = {CAP_SYS_ADMIN, CAP_NET_ADMIN,  CAP_BPF,
                                          CAP_PERFMON,   CAP_SYS_PTRACE, CAP_SYS_RESOURCE};
  if (status)
    status = sys::confine({kCapabilities, sys::kEnterNetns | sys::kLoadBpf | sys::kMount});
  if (status) status = options.logging.init();
  if (status)
    status = options.uninstall ? agent::uninstall_agent(options) : agent::run_agent(options);
  log::flush();
  if (status) return 0;
  std::fprintf(stderr, "meltemi-agent: %s\n", status.error().to_string().c_str());
  return 1;
}
