#include "userspace/sys/own_file.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "userspace/base/fd.h"

namespace meltemi::sys {
namespace {

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadConfig, Fault::kInternal, std::move(detail));
}

Status check(const struct stat& st, size_t max_bytes) {
  if (!S_ISREG(st.st_mode)) return bad("it is no regular file");
  if (st.st_uid != ::geteuid()) {
    return bad(fmt::format("it belongs to uid {}, this process is uid {}", st.st_uid, ::geteuid()));
  }
  if ((st.st_mode & 022) != 0) {
    return bad(fmt::format("others may write it (mode {:04o}; 0600 is right)", st.st_mode & 07777));
  }
  if (static_cast<uint64_t>(st.st_size) > max_bytes) {
    return bad(fmt::format("it has {} bytes, at most {} are read", st.st_size, max_bytes));
  }
  return {};
}

}  // namespace

Result<OwnFile> read_own_file(const std::string& path, size_t max_bytes) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd) {
    if (errno == ENOENT) return fail(Reason::kNotFound, Fault::kInternal, "there is none");
    if (errno == ELOOP) return bad("it is a symbolic link");
    return fail_errno(errno, "open");
  }
  struct stat st{};
  if (::fstat(fd.get(), &st) < 0) return fail_errno(errno, "fstat");
  MELTEMI_TRY(check(st, max_bytes));
  OwnFile out{.content = {},
              .changed = WallTime(std::chrono::seconds(st.st_mtim.tv_sec) +
                                  std::chrono::nanoseconds(st.st_mtim.tv_nsec))};
  char buffer[65536];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "read");
    if (n == 0) return out;
    out.content.append(buffer, static_cast<size_t>(n));
    if (out.content.size() > max_bytes) return bad("it grows while it is read");
  }
}

Result<std::string> set_aside(const std::string& path) {
  std::string aside = path + ".refused";
  if (::rename(path.c_str(), aside.c_str()) < 0)
    return fail_errno(errno, "rename " + path + " to " + aside);
  return aside;
}

Result<std::string> keep_aside(const std::string& path) {
  std::string aside = path + ".refused";
  ::unlink(aside.c_str());
  if (::link(path.c_str(), aside.c_str()) < 0) return set_aside(path);
  return aside;
}

Result<bool> is_in_memory(const std::string& directory) {
  struct statfs fs{};
  if (::statfs(directory.c_str(), &fs) < 0) return fail_errno(errno, "statfs " + directory);
  const auto type = static_cast<unsigned long>(fs.f_type);
  return type == TMPFS_MAGIC || type == RAMFS_MAGIC;
}

}  // namespace meltemi::sys
