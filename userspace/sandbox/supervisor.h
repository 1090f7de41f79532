// The process behind a sandbox: builds it, keeps the mesh's processes running, and plays
// Kubernetes' controllers, scheduler, kube-proxy and DNS over the config directory. One thread
// beside the DNS server's. If it dies the sandbox is dead: the next `down` clears it away, the next
// `up` does so too and begins anew with all that users had applied.
#pragma once

#include <functional>
#include <string>

#include "userspace/base/error.h"
#include "userspace/sandbox/layout.h"

namespace meltemi::sandbox {

struct SupervisorOptions {
  std::string sandbox;
  int nodes = 1;
  std::string bin_dir;
  std::string self;   // this program
  int ready_fd = -1;  // lines of progress; "ready" or "error: ..." is the last
};

// Runs until SIGTERM or SIGINT, then returns at once: `down` removes what is there.
Status run_supervisor(const SupervisorOptions& options);

// --- what the command line calls ----------------------------------------------------------------

struct UpOptions {
  std::string sandbox;
  int nodes = 1;
  std::string bin_dir;
};
// Starts a supervisor in the background and waits until its mesh is ready, telling `progress` each
// step. What a crashed sandbox of that name left is cleared first, but for the users' manifests,
// which are applied again. Error if one is running.
Status sandbox_up(const UpOptions& options,
                  const std::function<void(const std::string&)>& progress);
// Stops the supervisor and removes everything. No error if there is nothing.
Status sandbox_down(const Layout& layout);
// Whether a supervisor holds the sandbox's lock.
bool is_running(const Layout& layout);
// kNotFound, with the command that brings it up, unless it runs.
Status require_running(const Layout& layout);

}  // namespace meltemi::sandbox
