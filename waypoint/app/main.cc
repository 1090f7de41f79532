// waypoint: the L7 proxy of a namespace or service account. This file only reads the configuration and
// waits for signals.
#include <fmt/format.h>
#include <linux/capability.h>
#include <signal.h>

#include <cstdio>

#include "userspace/base/log.h"
#include "userspace/rt/allocator.h"
#include "userspace/sys/confine.h"
#include "waypoint/app/app.h"

namespace {

using namespace meltemi;

constexpr int kBadUsage = 65;  // EX_DATAERR

int complain(const Error& error) {
  fmt::print(stderr, "waypoint: {}\n", error.to_string());
  return kBadUsage;
}

// Waits up to 100 ms; true if a signal came.
bool signalled(const sigset_t& signals, long nanoseconds) {
  const timespec patience{0, nanoseconds};
  return sigtimedwait(&signals, nullptr, &patience) > 0;
}

}  // namespace

int main(int argc, char** argv) {
  waypoint::Settings settings;
  ConfigTable table("waypoint", "Routes, secures and observes the HTTP traffic of a namespace.");
  settings.describe(table);
  bool run = true;
  if (Status s = table.parse(argc, argv, &run); !s) return complain(s.error());
  if (!run) return 0;
  // Gateways listen below port 1024.
  static constexpr int kCapabilities[] = {CAP_NET_BIND_SERVICE};
  if (Status s = sys::confine({kCapabilities, sys::kRings}); !s) return complain(s.error());
  rt::start_giving_memory_back();
  if (Status s = settings.logging.init(); !s) return complain(s.error());

  // Before any thread: all of them inherit the mask.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  int status = 0;
  {
    waypoint::App app(settings, table);
    if (Status s = app.start(); !s) {
      status = complain(s.error());
    } else {
      while (!app.quit_requested() && !signalled(signals, 100'000'000)) app.poll();
      app.shutdown([&] { return signalled(signals, 0); });  // a second signal ends the patience
    }
  }
  log::flush();
  return status;
}
