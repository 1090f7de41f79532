#include "userspace/sys/sealed_file.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace meltemi::sys {
namespace {

constexpr unsigned kNoExecSeal = 0x0008;  // MFD_NOEXEC_SEAL, Linux 6.3
constexpr int kSeals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

std::unexpected<Error> bad(std::string detail) {
  return fail(Reason::kBadRequest, Fault::kDownstream, "sealed file: " + std::move(detail));
}

Result<size_t> checked_size(int fd, size_t max_bytes) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return bad("the descriptor is no memory file");
  if ((seals & kSeals) != kSeals) return bad("it can still be changed");
  struct stat st{};
  if (::fstat(fd, &st) < 0) return fail_errno(errno, "fstat");
  const auto size = static_cast<size_t>(st.st_size);
  if (size == 0 || size > max_bytes) {
    return bad(fmt::format("it has {} bytes, 1 to {} are taken", size, max_bytes));
  }
  return size;
}

}  // namespace

Result<UniqueFd> seal(const char* name, std::string_view content) {
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  UniqueFd fd(::memfd_create(name, flags | kNoExecSeal));
  if (!fd && errno == EINVAL) fd = UniqueFd(::memfd_create(name, flags));
  if (!fd) return fail_errno(errno, "memfd_create");
  while (!content.empty()) {
    const ssize_t n = ::write(fd.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "write to a memory file");
    content.remove_prefix(static_cast<size_t>(n));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) < 0) return fail_errno(errno, "seal a memory file");
  return fd;
}

Status check_sealed(int fd, size_t max_bytes) {
  MELTEMI_TRY(checked_size(fd, max_bytes));
  return {};
}

Result<std::string> read_sealed(int fd, size_t max_bytes) {
  std::string out(MELTEMI_TRY(checked_size(fd, max_bytes)), '\0');
  for (size_t at = 0; at < out.size();) {
    const ssize_t n = ::pread(fd, out.data() + at, out.size() - at, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail_errno(n < 0 ? errno : EIO, "read a sealed file");
    at += static_cast<size_t>(n);
  }
  return out;
}

}  // namespace meltemi::sys
