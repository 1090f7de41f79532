// A process that is out of descriptors, for as long as an object lives. For tests of what must not be
// concluded from a failed read; needs standard input. Must never be used while other threads need descriptors.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <vector>

namespace meltemi::test {

class FewDescriptors {
 public:
  // Exactly `left` more can be opened.
  explicit FewDescriptors(int left) {
    ::getrlimit(RLIMIT_NOFILE, &before_);
    // All below the highest one are taken, so that the limit alone decides.
    int top = 0;
    for (;;) {
      const int fd = ::fcntl(0, F_DUPFD_CLOEXEC, 0);
      if (fd < 0) break;
      fillers_.push_back(fd);
      if (fd > top) top = fd;
      if (!open_above(fd)) break;
    }
    rlimit few = before_;
    few.rlim_cur = static_cast<rlim_t>(top + 1 + left);
    ::setrlimit(RLIMIT_NOFILE, &few);
  }
  ~FewDescriptors() {
    ::setrlimit(RLIMIT_NOFILE, &before_);
    for (const int fd : fillers_) ::close(fd);
  }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

 private:
  // Whether a descriptor above `fd` is open: those come from libraries, and are few and low.
  static bool open_above(int fd) {
    for (int other = fd + 1; other < fd + 1024; ++other)
      if (::fcntl(other, F_GETFD) >= 0) return true;
    return false;
  }

  rlimit before_{};
  std::vector<int> fillers_;
};

}  // namespace meltemi::test
