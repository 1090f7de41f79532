// The CNI plugin (spec 1.0.0): asks the agent to enrol the pod and blocks until the kernel has
// everything, or the deadline. Chained: what the plugins before it did passes through untouched. A
// pod never starts half-enrolled, and DEL never fails for want of an agent.
#pragma once

#include <string>
#include <string_view>

#include "userspace/base/clock.h"
#include "userspace/codec/cni.h"

namespace meltemi::cni {

inline constexpr Duration kAddDeadline = std::chrono::seconds(20);  // told to the agent
inline constexpr Duration kCallTimeout = std::chrono::seconds(5);   // DEL and CHECK
inline constexpr Duration kAnswerMargin = std::chrono::seconds(5);  // beyond a deadline told

struct Outcome {
  int exit_code = 0;
  std::string output;  // for stdout: result or error, JSON
  std::string log;     // one line for logFile
  std::string log_file;
};

// The whole plugin but for process I/O.
Outcome run_plugin(const codec::cni::GetEnv& environment, std::string_view stdin_text);

}  // namespace meltemi::cni
