// Commands that talk to a running pod: exec, logs, run, port-forward.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/cli/context.h"

namespace meltemi::cli {

struct ExecOptions {
  std::string pod;  // "NAME", "deploy/NAME", ...
  std::string container;
  std::vector<std::string> command;
  bool stdin_open = false;  // -i
  bool tty = false;         // -t: the terminal is the caller's own
};
// Exit code of the command; 128 + signal if one ended it.
int exec_command(const Context& context, const ExecOptions& options);

struct LogsOptions {
  std::string pod;
  std::string container;
  std::string selector;
  bool follow = false;
  bool previous = false;
  std::optional<int64_t> tail;  // lines
};
int logs_command(const Context& context, const LogsOptions& options);

struct RunOptions {
  std::string name;
  std::vector<std::string> command;
  std::string image, service_account;
  std::vector<std::string> labels, environment;  // key=value
  std::string restart;                           // "" decides by `attach`
  bool stdin_open = false;                       // -i
  bool attach = false;
  bool remove = false;  // --rm
  bool quiet = false;
  Duration timeout = std::chrono::minutes(1);  // until it runs
};
int run_command(const Context& context, const RunOptions& options);

struct PortForwardOptions {
  std::string target;              // "svc/NAME", "pod/NAME", ...
  std::vector<std::string> ports;  // "LOCAL:REMOTE", "PORT", ":REMOTE"
  std::string address = "127.0.0.1";
};
// Until SIGINT or SIGTERM.
int port_forward_command(const Context& context, const PortForwardOptions& options);

// The last `lines` lines of a text; everything if it has fewer. Pure.
std::string_view tail_lines(std::string_view text, size_t lines);
// `text` with `prefix` before each line; `at_start`: whether a line begins here, and afterwards. Pure.
std::string prefix_lines(std::string_view text, std::string_view prefix, bool* at_start);
// "12123:80", "8080:http", "http". Local 0: any free port, or that of the name. nullopt if malformed.
struct PortPair {
  uint16_t local = 0;
  std::string remote;  // number or name of a port
  bool operator==(const PortPair&) const = default;
};
std::optional<PortPair> parse_ports(std::string_view text);

}  // namespace meltemi::cli
