#include "userspace/cli/sandboxes.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <filesystem>

#include "userspace/base/clock.h"
#include "userspace/base/log.h"
#include "userspace/cli/context.h"
#include "userspace/cli/processes.h"
#include "userspace/cli/table.h"
#include "userspace/sandbox/kubelet.h"
#include "userspace/sandbox/supervisor.h"
#include "userspace/sandbox/topology.h"

namespace meltemi::cli {
namespace {

constexpr const char* kBinaries[] = {"meltemid", "meltemi-agent", "meltemi-cni", "ztunnel",
                                     "waypoint"};

std::string this_program() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error);
}

int number(const std::string& text) {
  int value = -1;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

Status check_root() {
  if (::geteuid() == 0) return {};
  return fail(Reason::kPermission, Fault::kConfig,
              "a sandbox needs root: namespaces, cgroups and BPF. Run it with sudo");
}

Status check_binaries(const std::string& directory) {
  for (const char* name : kBinaries)
    if (::access((directory + "/" + name).c_str(), X_OK) < 0)
      return fail(Reason::kNotFound, Fault::kConfig,
                  fmt::format("{}/{} is not there. Build it: ./meltemi build", directory, name));
  return {};
}

std::string name_option(const std::string& name) {
  return name == sandbox::kDefaultName ? "" : " --name " + name;
}

}  // namespace

std::string bin_dir() {
  if (const char* given = std::getenv("MELTEMI_BIN_DIR"); given != nullptr && *given != '\0')
    return std::filesystem::absolute(given).lexically_normal();
  return std::filesystem::path(this_program()).parent_path();
}

int sandbox_up_command(const std::string& name, int nodes) {
  const auto up = [&]() -> Status {
    MELTEMI_TRY(check_root());
    MELTEMI_TRY(sandbox::check_sandbox_name(name));
    if (nodes < 1 || nodes > sandbox::kMaxNodes)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("--nodes {}: use 1 to {}", nodes, sandbox::kMaxNodes));
    MELTEMI_TRY(check_binaries(bin_dir()));
    const MonoTime began = MonoClock::now();
    MELTEMI_TRY(sandbox::sandbox_up({name, nodes, bin_dir()},
                                    [](const std::string& step) { complain("  {}\n", step); }));
    const auto took = std::chrono::duration<double>(MonoClock::now() - began).count();
    print("sandbox \"{}\" is up: {} node{}, {:.1f} s\n", name, nodes, nodes == 1 ? "" : "s", took);
    complain(
        "Try: meltemi get mesh; meltemi apply -f FILE; meltemi get pods -A -o wide\n"
        "End: meltemi sandbox down{}\n",
        name_option(name));
    return {};
  };
  return finish(up());
}

int sandbox_down_command(const std::string& name, bool all) {
  const auto down = [&]() -> Status {
    MELTEMI_TRY(check_root());
    std::vector<std::string> names{name};
    if (all) names = sandbox::list_sandboxes();
    for (const std::string& each : names) {
      MELTEMI_TRY(sandbox::check_sandbox_name(each));
      const sandbox::Layout layout(each);
      const bool was_there = !MELTEMI_TRY(sandbox::find_remains(layout)).empty();
      MELTEMI_TRY(sandbox::sandbox_down(layout));
      print("sandbox \"{}\" {}\n", each, was_there ? "is down" : "was not there");
    }
    return {};
  };
  return finish(down());
}

int sandbox_list_command() {
  Table table({"NAME", "STATUS", "DIRECTORY"});
  for (const std::string& name : sandbox::list_sandboxes()) {
    const sandbox::Layout layout(name);
    table.add({name, sandbox::is_running(layout) ? "Running" : "Crashed", layout.run_dir()});
  }
  if (table.empty())
    complain("No sandbox. Start one: meltemi sandbox up --nodes 2\n");
  else
    print("{}", table.text());
  return kExitOk;
}

int sandbox_status_command(const std::string& name) {
  const sandbox::Layout layout(name);
  if (const Status running = sandbox::require_running(layout); !running)
    return report(running.error());
  const Context context(name, "default");
  print("sandbox \"{}\" runs in {}\n\n", name, layout.run_dir());
  const int nodes = get_nodes(context, "", false);
  print("\n");
  const int mesh = get_mesh(context, "", false);
  const auto processes = mesh_processes(layout);
  if (processes)
    for (const MeshProcess& process : *processes)
      if (process.pid == 0) return kExitFailure;
  return nodes != kExitOk ? nodes : mesh;
}

int internal_command(const std::vector<std::string>& words) {
  Status ended;
  if (words.size() == 4 && words[0] == "kubelet") {
    ::setenv(
        "PATH",
        fmt::format("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", words[3])
            .c_str(),
        1);
    ended = sandbox::run_kubelet({words[1], number(words[2]), words[3]});
  } else if (words.size() == 5 && words[0] == "supervisor") {
    ended = sandbox::run_supervisor({.sandbox = words[1],
                                     .nodes = number(words[2]),
                                     .bin_dir = words[3],
                                     .self = this_program(),
                                     .ready_fd = number(words[4])});
  } else {
    complain("error: internal commands are the sandbox's own\n");
    return kExitUsage;
  }
  log::flush();
  return finish(ended);
}

}  // namespace meltemi::cli
