// Commands about workloads and conditions: scale, rollout restart, rollout status, wait.
#pragma once

#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/cli/context.h"

namespace meltemi::cli {

// `words`: "deployment/NAME" or "deployment NAME...".
int scale_command(const Context& context, const std::vector<std::string>& words, int replicas);
int rollout_restart_command(const Context& context, const std::vector<std::string>& words);
int rollout_status_command(const Context& context, const std::vector<std::string>& words,
                           Duration timeout);

struct WaitOptions {
  std::vector<std::string> words;
  std::string selector;
  std::string condition;  // "condition=Ready", "condition=Ready=False", "delete", "create"
  bool all = false;
  Duration timeout = std::chrono::seconds(30);
};
int wait_command(const Context& context, const WaitOptions& options);

}  // namespace meltemi::cli
