// Network namespaces: opening, naming, entering, and the cookie that the capture maps are keyed by.
// Must never leave the calling thread in a foreign namespace: NetnsGuard always returns, and if the
// kernel refuses to take the thread back the process aborts (a thread that talks on the wrong
// network is worse than a dead process).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "userspace/base/error.h"
#include "userspace/base/fd.h"

namespace meltemi::sys {

// What identifies a namespace while it lives (namespaces(7)): nsfs device and inode.
struct NetnsId {
  uint64_t device = 0;
  uint64_t inode = 0;
  auto operator<=>(const NetnsId&) const = default;
};

class Netns {
 public:
  Netns() = default;

  static Result<Netns> current();  // of the calling thread
  // A bind mount (/run/netns/x), /proc/PID/ns/net, ... Error kBadConfig if it is no netns.
  static Result<Netns> open(const std::string& path);
  static Result<Netns> open_pid(pid_t pid);
  // An fd received from elsewhere; its type is checked with NS_GET_NSTYPE.
  static Result<Netns> from_fd(UniqueFd fd);
  // A fresh namespace without a name: it lives as long as an fd, process or socket is in it.
  static Result<Netns> create();
  // A fresh namespace bound at /run/netns/<name>, with lo up, as `ip netns add` makes. Error if it
  // exists. Visible to `ip netns`.
  static Result<Netns> create_named(const std::string& name);
  // Unmounts and removes the name; no error if it is not there. Sockets in it may outlive the name.
  static Status remove_named(const std::string& name);
  static std::string named_path(const std::string& name);  // /run/netns/<name>

  bool valid() const { return fd_.valid(); }
  int fd() const { return fd_.get(); }
  Result<Netns> duplicate() const;
  Result<NetnsId> id() const;
  // SO_NETNS_COOKIE (Linux 5.14): never reused while the kernel runs, unlike the inode.
  Result<uint64_t> cookie() const;

  // Runs `f` on this thread inside the namespace; f returns Result<T> (or Status).
  template <typename F>
  std::invoke_result_t<F> run(F&& f) const;
  // The same for callers that know where the thread is: half of the system calls, for what is done
  // per connection. REQUIRES: the calling thread is in `home`.
  template <typename F>
  std::invoke_result_t<F> run_from(const Netns& home, F&& f) const;

 private:
  explicit Netns(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

// Puts the calling thread into a namespace until destruction. Not movable: it belongs to its scope.
class NetnsGuard {
 public:
  // Check status() before doing anything: on error the thread stayed where it was.
  explicit NetnsGuard(const Netns& target);
  // `home` must outlive the guard. REQUIRES: the calling thread is in `home`.
  NetnsGuard(const Netns& target, const Netns& home);
  ~NetnsGuard();
  NetnsGuard(const NetnsGuard&) = delete;
  NetnsGuard& operator=(const NetnsGuard&) = delete;
  const Status& status() const { return status_; }

 private:
  void enter(const Netns& target, int home);

  UniqueFd opened_;  // home, where the caller did not name it
  int home_ = -1;    // where to return to; -1: the thread has not moved
  Status status_;
};

template <typename F>
std::invoke_result_t<F> Netns::run(F&& f) const {
  NetnsGuard guard(*this);
  if (!guard.status()) return fail(guard.status().error());
  return std::forward<F>(f)();
}

template <typename F>
std::invoke_result_t<F> Netns::run_from(const Netns& home, F&& f) const {
  NetnsGuard guard(*this, home);
  if (!guard.status()) return fail(guard.status().error());
  return std::forward<F>(f)();
}

// socket(2) with SOCK_CLOEXEC inside `netns`: two setns calls, a few microseconds.
Result<UniqueFd> socket_in(const Netns& netns, int domain, int type, int protocol);
// SO_NETNS_COOKIE of the namespace that owns `socket_fd`.
Result<uint64_t> netns_cookie_of_socket(int socket_fd);

}  // namespace meltemi::sys
