// ztunnel: the node's L4 proxy. This file only reads the configuration and waits for signals.
#include <fmt/format.h>
#include <linux/capability.h>
#include <signal.h>

#include <cstdio>

#include "userspace/base/log.h"
#include "userspace/rt/allocator.h"
#include "userspace/sys/confine.h"
#include "ztunnel/app.h"

namespace {

using namespace meltemi;

int complain(const Error& error) {
  fmt::print(stderr, "ztunnel: {}\n", error.to_string());
  return 65;
}

// Waits up to 100 ms; the number of the signal that came, or 0.
int wait_signal(const sigset_t& signals) {
  const timespec patience{0, 100'000'000};
  const int got = sigtimedwait(&signals, nullptr, &patience);
  return got > 0 ? got : 0;
}

}  // namespace

int main(int argc, char** argv) {
  ztunnel::Settings settings;
  ConfigTable table("ztunnel", "Captures, encrypts and authorizes the TCP traffic of a node's pods.");
  settings.describe(table);
  bool run = true;
  std::vector<std::string> words;
  if (Status s = table.parse(argc, argv, &run, &words); !s) return complain(s.error());
  if (!run) return 0;
  if (!words.empty() && words.front() != "proxy") {
    return complain({Reason::kBadConfig, Fault::kConfig, Retry::kNo,
                     fmt::format("unknown word \"{}\"; the only one is proxy", words.front())});
  }
  // Before any thread: all of them inherit the mask.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  // Entering a pod's namespace to dial (setns) needs CAP_SYS_ADMIN; marks and foreign source addresses
  // need CAP_NET_ADMIN.
  static constexpr int kCapabilities[] = {CAP_SYS_ADMIN, CAP_NET_ADMIN};
  if (Status s = sys::confine({kCapabilities, sys::kEnterNetns | sys::kRings}); !s) return complain(s.error());
  rt::start_giving_memory_back();
  if (Status s = settings.logging.init(); !s) return complain(s.error());


  int status = 0;
  {
    ztunnel::App app(settings, table);
    if (Status s = app.start(); !s) {
      status = complain(s.error());
    } else {
      while (!app.quit_requested() && wait_signal(signals) == 0) app.poll();
      // A second signal ends the patience.
      app.shutdown([&] {
        const timespec none{0, 0};
        return sigtimedwait(&signals, nullptr, &none) > 0;
      });
    }
  }
  log::flush();
  return status;
}
