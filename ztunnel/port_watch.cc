// See port_watch.h.
#include "ztunnel/port_watch.h"

#include <errno.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "userspace/base/log.h"
#include "userspace/rt/socket_options.h"
#include "ztunnel/pod_manager.h"

namespace meltemi::ztunnel {
namespace {

log::Scope scope("readiness");

IpAddress reachable(const IpAddress& ip) {
  const bool any = ip == IpAddress() || ip == IpAddress::v4(0);
  return any ? IpAddress::v4(0x7f000001) : ip;  // listeners of any address take both families
}

// Of a listening socket the kernel reports the queue's length as unacked. None: it does not listen.
std::optional<uint32_t> queue_of(int fd) {
  tcp_info info{};
  socklen_t length = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0 || info.tcpi_state != TCP_LISTEN)
    return std::nullopt;
  return info.tcpi_unacked;
}

}  // namespace

void PortWatch::poll(const PodManager& pods, MonoTime now) {
  if (pod_) judge(pods, now);
  if (pod_ || now < next_) return;
  next_ = now + kEvery;
  if (PodPtr pod = choose(pods)) begin(pods, std::move(pod), now);
}

// Every second turn is for those that did not answer, the one that was asked least lately first.
PodPtr PortWatch::choose(const PodManager& pods) {
  ++turn_;
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(faults_, [&](const auto& f) { return !pods.has(f.first); });
    const auto it = std::ranges::min_element(faults_, {}, [](const auto& f) { return f.second.asked; });
    if (turn_ % 2 == 0 && it != faults_.end()) {
      it->second.asked = turn_;
      return pods.find(it->first);
    }
  }
  PodPtr pod = pods.next_after(last_);
  last_ = pod ? pod->uid : std::string();
  return pod;
}

void PortWatch::begin(const PodManager& pods, PodPtr pod, MonoTime now) {
  pod_ = std::move(pod);
  began_ = now;
  const std::optional<UniqueFd> listener = pods.listener(pod_->uid, ListenerKind::kHbone);
  if (!listener) return end();  // gone in this moment, or its agent does not have any
  if (!queue_of(listener->get())) {
    fault("it does not listen", true);
    return end();
  }
  const auto at = rt::local_address(listener->get());
  if (!at) return end();
  const SocketAddress to{reachable(at->ip), at->port};
  auto fd = pod_->dial_socket(to, std::nullopt);
  if (!fd) {
    fault(fd.error().detail, true);
    return end();
  }
  fd_ = std::move(*fd);
  if (Status s = connect(to); !s) {
    fault(s.error().detail, false);
    end();
  }
}

// The port is known before anybody can accept.
Status PortWatch::connect(const SocketAddress& to) {
  sockaddr_storage storage;
  socklen_t length = SocketAddress{to.ip, 0}.to_sockaddr(storage);
  if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&storage), length) < 0) return fail_errno(errno, "bind");
  port_ = MELTEMI_TRY(rt::local_address(fd_.get())).port;
  taken_ = false;
  asked_.store(pod_.get(), std::memory_order_release);
  rt::set_reset_on_close(fd_.get());  // no TIME-WAIT every second
  length = to.to_sockaddr(storage);
  if (::connect(fd_.get(), reinterpret_cast<sockaddr*>(&storage), length) < 0 && errno != EINPROGRESS)
    return fail_errno(errno, "connect");
  return {};
}

bool PortWatch::is_question(const Pod& pod, int fd) {
  if (asked_.load(std::memory_order_acquire) != &pod) return false;
  const auto peer = rt::peer_address(fd);
  if (!peer || peer->port != port_) return false;
  const auto local = rt::local_address(fd);
  if (!local || local->ip != peer->ip) return false;
  taken_ = true;
  return true;
}

void PortWatch::judge(const PodManager& pods, MonoTime now) {
  if (taken_) {
    const std::lock_guard lock(mutex_);
    if (faults_.erase(pod_->uid))
      scope.info("port {} of pod {}/{} answers again", listener_port(ListenerKind::kHbone), pod_->ns, pod_->name);
    return end();
  }
  pollfd p{fd_.get(), POLLOUT, 0};
  const bool decided = ::poll(&p, 1, 0) > 0;
  int err = 0;
  socklen_t length = sizeof err;
  if (decided) getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &err, &length);
  if (err == 0 && now - began_ < kPatience) return;
  if (!pods.has(pod_->uid)) return end();
  if (err != 0) {
    fault(fmt::format("connect: {}", strerror(err)), false);
  } else {
    // A full queue does not answer a SYN, like a network that does not let it pass.
    const auto listener = pods.listener(pod_->uid, ListenerKind::kHbone);
    const bool waits = decided || (listener && queue_of(listener->get()).value_or(1) > 0);
    waits ? fault("nobody takes its connections", true) : fault("its network does not answer", false);
  }
  end();
}

void PortWatch::fault(std::string what, bool ours) {
  failures_.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  Fault& f = faults_[pod_->uid];
  std::string text = fmt::format("port {} of pod {}/{}: {}", listener_port(ListenerKind::kHbone), pod_->ns,
                                 pod_->name, what);
  if (f.what != text) scope.warn("{}", text);
  f = {std::move(text), ours, turn_};
}

void PortWatch::end() {
  asked_ = nullptr;
  fd_.reset();
  pod_ = nullptr;
}

std::string PortWatch::say(bool ours) const {
  const std::lock_guard lock(mutex_);
  std::string out;
  size_t more = 0;
  for (const auto& [uid, f] : faults_) {
    if (f.ours != ours) continue;
    out.empty() ? void(out = f.what) : void(++more);
  }
  if (more) out += fmt::format(" (and {} more)", more);
  return out;
}

std::string PortWatch::trouble() const { return say(true); }
std::string PortWatch::note() const { return say(false); }

}  // namespace meltemi::ztunnel
