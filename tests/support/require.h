// What a test binary needs of the machine. Declare one static Require; without it the process exits
// 77 before any test runs, which ctest reports as skipped, and says what is missing.
#pragma once

#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace meltemi::test {

enum class Need { kRoot, kRootAndCgroup2 };

struct Require {
  explicit Require(Need need) {
    if (::geteuid() != 0) skip("root");
    if (need == Need::kRootAndCgroup2 && !has_cgroup2())
      skip("a mounted cgroup2 (mount -t cgroup2 none /sys/fs/cgroup/unified)");
  }

 private:
  [[noreturn]] static void skip(const char* what) {
    std::fprintf(stderr, "skipped: this test needs %s\n", what);
    std::_Exit(77);
  }
  static bool has_cgroup2() {
    std::ifstream mounts("/proc/self/mounts");
    std::string device, directory, type, rest;
    while (mounts >> device >> directory >> type && std::getline(mounts, rest))
      if (type == "cgroup2") return true;
    return false;
  }
};

}  // namespace meltemi::test
