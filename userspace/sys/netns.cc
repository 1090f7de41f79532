// Namespaces by nsfs descriptors; see netns.h. Nothing here may return with the thread elsewhere.
#include "userspace/sys/netns.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/nsfs.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstdlib>

#include "userspace/base/log.h"
#include "userspace/sys/files.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace meltemi::sys {
namespace {

const log::Scope scope("sys");
constexpr const char* kNamedDirectory = "/run/netns";

Result<UniqueFd> open_ns(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && (errno == ENOENT || errno == ENOTDIR || errno == ESRCH))
    return fail(Reason::kNotFound, Fault::kConfig, path + " does not exist");
  if (!fd) return fail_errno(errno, "open " + path);
  return fd;
}

Status loopback_up() {
  UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::snprintf(request.ifr_name, sizeof request.ifr_name, "lo");
  request.ifr_flags = IFF_UP;
  if (!fd || ::ioctl(fd.get(), SIOCSIFFLAGS, &request) < 0) return fail_errno(errno, "set lo up");
  return {};
}

// The mount point of names must be shared, as iproute2 makes it, so that unmounting a name in any
// mount namespace frees it everywhere.
Status prepare_named_directory() {
  MELTEMI_TRY(make_directories(kNamedDirectory, 0755));
  if (::mount("", kNamedDirectory, "none", MS_SHARED | MS_REC, nullptr) == 0) return {};
  if (errno != EINVAL) return fail_errno(errno, "make /run/netns shared");
  if (::mount(kNamedDirectory, kNamedDirectory, "none", MS_BIND | MS_REC, nullptr) < 0 ||
      ::mount("", kNamedDirectory, "none", MS_SHARED | MS_REC, nullptr) < 0)
    return fail_errno(errno, "bind /run/netns");
  return {};
}

}  // namespace

Result<Netns> Netns::current() {
  return Netns(MELTEMI_TRY(open_ns("/proc/thread-self/ns/net")));
}

Result<Netns> Netns::open(const std::string& path) {
  return from_fd(MELTEMI_TRY(open_ns(path)));
}

Result<Netns> Netns::open_pid(pid_t pid) {
  return open(fmt::format("/proc/{}/ns/net", pid));
}

Result<Netns> Netns::from_fd(UniqueFd fd) {
  if (::ioctl(fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET)
    return fail(Reason::kBadConfig, Fault::kConfig, "the descriptor is no network namespace");
  return Netns(std::move(fd));
}

Result<Netns> Netns::create() {
  const Netns home = MELTEMI_TRY(current());
  NetnsGuard stay(home);  // takes the thread back here at the end
  if (!stay.status()) return fail(stay.status().error());
  if (::unshare(CLONE_NEWNET) < 0) return fail_errno(errno, "unshare a network namespace");
  MELTEMI_TRY(loopback_up());
  return current();
}

Result<Netns> Netns::create_named(const std::string& name) {
  if (name.empty() || name.find('/') != std::string::npos || name[0] == '.')
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("\"{}\" cannot name a network namespace", name));
  MELTEMI_TRY(prepare_named_directory());
  const std::string path = named_path(name);
  UniqueFd file(::open(path.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0));
  if (!file) return fail_errno(errno, "create " + path);
  Result<Netns> made = create();
  if (made) {
    const std::string source = fmt::format("/proc/self/fd/{}", made->fd());
    if (::mount(source.c_str(), path.c_str(), "none", MS_BIND, nullptr) == 0) return made;
    made = fail_errno(errno, "bind " + path);
  }
  ::unlink(path.c_str());
  return made;
}

Status Netns::remove_named(const std::string& name) {
  const std::string path = named_path(name);
  if (::umount2(path.c_str(), MNT_DETACH) < 0 && errno != EINVAL && errno != ENOENT)
    return fail_errno(errno, "unmount " + path);
  if (::unlink(path.c_str()) < 0 && errno != ENOENT) return fail_errno(errno, "remove " + path);
  return {};
}

std::string Netns::named_path(const std::string& name) {
  return fmt::format("{}/{}", kNamedDirectory, name);
}

Result<Netns> Netns::duplicate() const {
  UniqueFd copy(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return fail_errno(errno, "duplicate a namespace descriptor");
  return Netns(std::move(copy));
}

Result<NetnsId> Netns::id() const {
  struct stat st{};
  if (::fstat(fd_.get(), &st) < 0) return fail_errno(errno, "stat of a network namespace");
  return NetnsId{st.st_dev, st.st_ino};
}

Result<uint64_t> Netns::cookie() const {
  const UniqueFd socket = MELTEMI_TRY(socket_in(*this, AF_INET, SOCK_DGRAM, 0));
  return netns_cookie_of_socket(socket.get());
}

NetnsGuard::NetnsGuard(const Netns& target) {
  Result<UniqueFd> home = open_ns("/proc/thread-self/ns/net");
  if (!home) {
    status_ = fail(home.error());
    return;
  }
  opened_ = std::move(*home);
  enter(target, opened_.get());
}

NetnsGuard::NetnsGuard(const Netns& target, const Netns& home) { enter(target, home.fd()); }

void NetnsGuard::enter(const Netns& target, int home) {
  if (::setns(target.fd(), CLONE_NEWNET) < 0) {
    status_ = fail_errno(errno, "enter the network namespace");
    return;
  }
  home_ = home;
}

NetnsGuard::~NetnsGuard() {
  if (home_ < 0 || ::setns(home_, CLONE_NEWNET) == 0) return;
  scope.error("cannot return to the home network namespace: errno {}; aborting", errno);
  log::flush();
  std::abort();
}

Result<UniqueFd> socket_in(const Netns& netns, int domain, int type, int protocol) {
  return netns.run([&]() -> Result<UniqueFd> {
    UniqueFd fd(::socket(domain, type | SOCK_CLOEXEC, protocol));
    if (!fd) return fail_errno(errno, "socket");
    return fd;
  });
}

Result<uint64_t> netns_cookie_of_socket(int socket_fd) {
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (::getsockopt(socket_fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) < 0)
    return fail_errno(errno, "SO_NETNS_COOKIE (needs Linux 5.14)");
  return cookie;
}

}  // namespace meltemi::sys
