// meltemi-cni: environment and stdin in, JSON on stdout, exit code (CNI spec 1.0.0). The runtime starts it as
// root of the node; all that it has to do is to call the agent's socket, so it gives up everything else
// before it reads a byte. Nothing but the answer may go to stdout.
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include <fcntl.h>
#include <unistd.h>

#include "userspace/base/clock.h"
#include "userspace/base/fd.h"
#include "userspace/base/log.h"
#include "userspace/cni/plugin.h"
#include "userspace/codec/cni.h"
#include "userspace/sys/confine.h"

namespace {

// One byte more than the limit, so that the parser sees that it was exceeded.
std::string read_stdin() {
  std::string out;
  char buffer[16384];
  while (out.size() <= meltemi::codec::cni::kMaxConfigBytes) {
    const ssize_t n = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    out.append(buffer, static_cast<size_t>(n));
  }
  return out;
}

// Best effort: a full disk must not keep a pod from starting.
void append_log(const std::string& path, const std::string& line) {
  const meltemi::UniqueFd fd(
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0640));
  if (!fd) return;
  const std::string text = meltemi::format_rfc3339(std::chrono::system_clock::now()) + "\t" +
                           meltemi::log::escape(line) + "\n";
  [[maybe_unused]] const ssize_t n = ::write(fd.get(), text.data(), text.size());
}

}  // namespace

int main() {
  if (const meltemi::Status confined = meltemi::sys::confine({}); !confined) {
    const std::string error = meltemi::codec::cni::print_failure(
        {meltemi::codec::cni::Code::kInternal, "cannot give up privileges", confined.error().detail}, "");
    std::fwrite(error.data(), 1, error.size(), stdout);
    return 1;
  }
  const auto environment = [](std::string_view name) -> std::optional<std::string> {
    const char* value = std::getenv(std::string(name).c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
  const meltemi::cni::Outcome outcome = meltemi::cni::run_plugin(environment, read_stdin());
  if (!outcome.log_file.empty()) append_log(outcome.log_file, outcome.log);
  std::fwrite(outcome.output.data(), 1, outcome.output.size(), stdout);
  return std::fflush(stdout) == 0 ? outcome.exit_code : 1;
}
