// meltemid: the control plane. Reads flags, runs the loop until SIGTERM or SIGINT.
#include <fmt/format.h>
#include <signal.h>
#include <sys/signalfd.h>

#include <cstdio>

#include "userspace/base/log.h"
#include "userspace/control/control_plane.h"
#include "userspace/rt/admission.h"
#include "userspace/rt/allocator.h"
#include "userspace/sys/confine.h"

namespace {

using namespace meltemi;

// The signals that end the process, as a descriptor; blocked before any thread is made.
UniqueFd stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return UniqueFd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

Status run(control::Settings settings) {
  // Before the log starts its thread: a thread that does not block the signals would be killed by them.
  const UniqueFd stop = stop_signals();
  rt::raise_descriptor_limit();
  MELTEMI_TRY(sys::confine({}));
  rt::start_giving_memory_back();
  MELTEMI_TRY(settings.logging.init());
  auto plane = MELTEMI_TRY(control::ControlPlane::create(std::move(settings)));
  return plane->run(stop.get());
}

}  // namespace

int main(int argc, char** argv) {
  control::Settings settings;
  bool proceed = true;
  meltemi::Status status = settings.table().parse(argc, argv, &proceed);
  if (status && proceed) status = run(std::move(settings));
  log::flush();
  if (status) return 0;
  fmt::print(stderr, "meltemid: {}\n", status.error().to_string());
  return 1;
}
