#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userspace/cli/pods.h"
#include "userspace/cli/sessions.h"
#include "userspace/sandbox/container.h"
#include "userspace/sandbox/pod_worker.h"

namespace meltemi::cli {
namespace {

constexpr Duration kForever = std::chrono::hours(24 * 365);

Result<sys::Process> start(const Context& context, const ExecOptions& options) {
  const sandbox::Directory directory = context.open(sandbox::View::kMerged);
  const config::ObjectPtr pod = MELTEMI_TRY(find_pod(context, directory.store(), options.pod));
  const std::string container = MELTEMI_TRY(choose_container(*pod, options.container));
  const pid_t pid = MELTEMI_TRY(container_pid(*pod, container));
  const auto& spec = pod->as<config::kube::Pod>().spec();
  const sandbox::Layout& layout = context.layout();
  sandbox::ExecOptions exec;
  exec.argv = options.command;
  exec.netns_path =
      sys::Netns::named_path(spec.host_network() ? layout.node_netns(spec.node_name())
                                                 : layout.pod_netns(pod->meta().uid()));
  // In the pod's cgroup from its first instruction: a process outside of it would not be captured.
  exec.cgroup = sandbox::container_cgroup(layout, spec.node_name(), pod->meta().uid(), container);
  if (options.stdin_open) exec.stdin_fd = 0;
  return sandbox::exec_in_container(pid, exec);
}

}  // namespace

int exec_command(const Context& context, const ExecOptions& options) {
  if (options.command.empty()) {
    complain(
        "error: you must specify at least one command for the container: exec POD -- COMMAND\n");
    return kExitUsage;
  }
  // ^C is for the command, which shares the terminal; this process waits for how it ends.
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGQUIT, SIG_IGN);
  auto process = start(context, options);
  if (!process) return report(process.error());
  const auto status = process->wait(kForever);
  if (!status) return report(status.error());
  return WIFSIGNALED(*status) ? 128 + WTERMSIG(*status) : WEXITSTATUS(*status);
}

}  // namespace meltemi::cli
