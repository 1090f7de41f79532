// System call filters (seccomp, mode 2) as classic BPF programs: made beforehand, installed between clone
// and exec or by a process on itself. x86-64 only, as the build: numbers of another ABI end the process.
// Must never let through what is not understood: a call that is newer than the lists is refused.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <span>
#include <vector>

namespace meltemi::sys {

class SeccompFilter {
 public:
  // Only these calls; others fail with EPERM. clone makes threads only, clone3 fails with ENOSYS, so that
  // libc falls back to clone, whose flags a filter can see; setns, if it is among them, enters network
  // namespaces only.
  static SeccompFilter only(std::span<const int> calls);
  // All but these, which fail with EPERM; as a second filter, narrows the first.
  static SeccompFilter without(std::span<const int> calls);
  // What containerd's default profile leaves to a container without extra capabilities: everything but
  // what reaches beyond it (mounts, namespaces, modules, keyrings, BPF, io_uring, other machines' clocks).
  // Refused calls fail with EPERM, those newer than this list with ENOSYS.
  static SeccompFilter container();

  // For the calling thread (and those it makes), or all threads of the process. Needs no_new_privs or
  // CAP_SYS_ADMIN. Async-signal-safe. 0 or an errno; EBUSY: a thread has other filters.
  int install(bool all_threads = false) const;

 private:
  void put(uint16_t code, uint32_t k, uint8_t when_true = 0, uint8_t when_false = 0);
  void load(size_t offset);
  void when(uint16_t test, uint32_t value, uint32_t verdict);
  void unless(uint16_t test, uint32_t value, uint32_t verdict);
  void begin();
  void any_of(std::span<const int> calls, uint32_t verdict);
  void clone_without(uint32_t forbidden, uint32_t required);
  void argument_is_not(int call, std::span<const uint32_t> values);
  void argument_is(int call, size_t argument, std::span<const uint32_t> values);

  std::vector<sock_filter> code_;
};

}  // namespace meltemi::sys
