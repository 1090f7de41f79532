#include "userspace/sandbox/memory_file.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace meltemi::sandbox {

Result<UniqueFd> memory_file(std::string_view content) {
  UniqueFd file(::memfd_create("meltemi", MFD_CLOEXEC));
  if (!file.valid()) return fail_errno(errno, "memfd_create");
  while (!content.empty()) {
    const ssize_t n = ::write(file.get(), content.data(), content.size());
    if (n < 0) return fail_errno(errno, "write to a memfd");
    content.remove_prefix(static_cast<size_t>(n));
  }
  if (::lseek(file.get(), 0, SEEK_SET) < 0) return fail_errno(errno, "seek in a memfd");
  return file;
}

Result<std::string> memory_file_content(const UniqueFd& file) {
  struct stat st{};
  if (::fstat(file.get(), &st) < 0) return fail_errno(errno, "stat of a memfd");
  std::string out(std::min(static_cast<size_t>(st.st_size), kMaxMemoryFileBytes), '\0');
  size_t at = 0;
  while (at < out.size()) {
    const ssize_t n = ::pread(file.get(), out.data() + at, out.size() - at, static_cast<off_t>(at));
    if (n <= 0) break;
    at += static_cast<size_t>(n);
  }
  out.resize(at);
  return out;
}

}  // namespace meltemi::sandbox
