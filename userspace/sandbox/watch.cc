#include "userspace/sandbox/watch.h"

#include <errno.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace meltemi::sandbox {

Result<Watch> Watch::create() {
  UniqueFd fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!fd.valid()) return fail_errno(errno, "inotify_init");
  return Watch(std::move(fd));
}

Status Watch::add(const std::string& directory) {
  constexpr uint32_t kEvents =
      IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_ONLYDIR;
  if (::inotify_add_watch(fd_.get(), directory.c_str(), kEvents) < 0)
    return fail_errno(errno, "watch " + directory);
  return {};
}

void Watch::drain() {
  char buffer[4096];
  while (::read(fd_.get(), buffer, sizeof buffer) > 0) {
  }
}

Result<UniqueFd> termination_fd() {
  sigset_t set;
  ::sigemptyset(&set);
  ::sigaddset(&set, SIGTERM);
  ::sigaddset(&set, SIGINT);
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) < 0) return fail_errno(errno, "sigprocmask");
  UniqueFd fd(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!fd.valid()) return fail_errno(errno, "signalfd");
  return fd;
}

}  // namespace meltemi::sandbox
