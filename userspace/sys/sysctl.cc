// Sysctls are files; see sysctl.h.
#include "userspace/sys/sysctl.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>

#include "userspace/base/fd.h"

namespace meltemi::sys {
namespace {

Result<UniqueFd> open_key(std::string_view key, int flags) {
  const std::string path = fmt::format("/proc/sys/{}", key);
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
  if (fd) return fd;
  if (errno == ENOENT)
    return fail(Reason::kNotFound, Fault::kConfig, fmt::format("the kernel has no sysctl {}", key));
  return fail_errno(errno, "open " + path);
}

}  // namespace

Result<std::string> read_sysctl(std::string_view key) {
  const UniqueFd fd = MELTEMI_TRY(open_key(key, O_RDONLY));
  char buffer[4096];
  const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
  if (n < 0) return fail_errno(errno, fmt::format("read sysctl {}", key));
  std::string value(buffer, static_cast<size_t>(n));
  while (!value.empty() && value.back() == '\n') value.pop_back();
  return value;
}

Status write_sysctl(std::string_view key, std::string_view value) {
  const UniqueFd fd = MELTEMI_TRY(open_key(key, O_WRONLY));
  if (::write(fd.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size()))
    return fail_errno(errno, fmt::format("write sysctl {}={}", key, value));
  return {};
}

}  // namespace meltemi::sys
