#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>

#include "userspace/base/address.h"
#include "userspace/cli/pods.h"
#include "userspace/cli/sessions.h"
#include "userspace/cli/targets.h"
#include "userspace/config/names.h"
#include "userspace/sandbox/services.h"
#include "userspace/sys/netns.h"

namespace meltemi::cli {
namespace {

using config::Kind;
using config::ObjectPtr;

constexpr size_t kMaxForwards = 256;  // connections at a time
constexpr size_t kBufferBytes = 64 * 1024;
constexpr int kConnectMilliseconds = 10'000;

// One direction of a connection: what was read and is not written yet.
struct Direction {
  std::string buffer;
  bool ended = false;   // the source has said its last
  bool closed = false;  // and the sink knows
};

struct Forward {
  UniqueFd local, pod;
  Direction to_pod, to_local;
  bool done() const { return to_pod.closed && to_local.closed; }
};

// Moves what can be moved; false if the connection is broken.
bool pump(int from, int to, bool readable, bool writable, Direction* d) {
  if (readable && !d->ended && d->buffer.empty()) {
    char chunk[kBufferBytes];
    const ssize_t n = ::recv(from, chunk, sizeof chunk, 0);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
    if (n == 0) d->ended = true;
    if (n > 0) d->buffer.assign(chunk, static_cast<size_t>(n));
    writable = true;  // most likely; EAGAIN tells
  }
  if (writable && !d->buffer.empty()) {
    const ssize_t n = ::send(to, d->buffer.data(), d->buffer.size(), MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
    if (n > 0) d->buffer.erase(0, static_cast<size_t>(n));
  }
  if (d->ended && d->buffer.empty() && !d->closed) {
    ::shutdown(to, SHUT_WR);
    d->closed = true;
  }
  return true;
}

struct Listener {
  UniqueFd fd;
  uint16_t local = 0;
  std::string remote;  // number or name
};

// 1 to 65535; nothing for a name.
std::optional<uint16_t> port_number(std::string_view text) {
  uint16_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0) return std::nullopt;
  return value;
}

Result<Listener> listen_on(const std::string& address, const PortPair& ports) {
  const auto ip = IpAddress::parse(address == "localhost" ? "127.0.0.1" : address);
  if (!ip)
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("--address {}: not an IP address", address));
  Listener listener{UniqueFd(::socket(ip->is_v4() ? AF_INET : AF_INET6,
                                      SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)),
                    ports.local, ports.remote};
  if (!listener.fd.valid()) return fail_errno(errno, "socket");
  const int one = 1;
  ::setsockopt(listener.fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_storage sa;
  socklen_t length = SocketAddress{*ip, ports.local}.to_sockaddr(sa);
  if (::bind(listener.fd.get(), reinterpret_cast<sockaddr*>(&sa), length) < 0 ||
      ::listen(listener.fd.get(), 64) < 0) {
    if (errno == EADDRINUSE)
      return fail(
          Reason::kSystem, Fault::kConfig,
          fmt::format(
              "unable to listen on port {0}: it is in use. Choose another local port, or let the "
              "system choose: :{1}",
              ports.local, ports.remote));
    return fail_errno(errno, fmt::format("listen on {}:{}", address, ports.local));
  }
  length = sizeof sa;
  ::getsockname(listener.fd.get(), reinterpret_cast<sockaddr*>(&sa), &length);
  if (const auto bound = SocketAddress::from_sockaddr(reinterpret_cast<sockaddr*>(&sa), length))
    listener.local = bound->port;
  return listener;
}

// As kubectl: to loopback in the pod, where most servers listen; else to the pod's own address.
Result<UniqueFd> dial_pod(const sys::Netns& netns, const std::vector<IpAddress>& own,
                          uint16_t port) {
  std::vector<IpAddress> tries{*IpAddress::parse("127.0.0.1")};
  tries.insert(tries.end(), own.begin(), own.end());
  Status last;
  for (const IpAddress& ip : tries) {
    UniqueFd fd = MELTEMI_TRY(
        sys::socket_in(netns, ip.is_v4() ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0));
    sockaddr_storage sa;
    const socklen_t length = SocketAddress{ip, port}.to_sockaddr(sa);
    int error = 0;
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&sa), length) < 0) {
      error = errno;
      if (error == EINPROGRESS) {
        pollfd p{fd.get(), POLLOUT, 0};
        socklen_t size = sizeof error;
        error = ETIMEDOUT;
        if (::poll(&p, 1, kConnectMilliseconds) > 0)
          ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
      }
    }
    if (error == 0) return fd;
    last = fail_errno(error, fmt::format("connect to {}", SocketAddress{ip, port}.to_string()));
  }
  return fail(last.error());
}

// The pod's own port for the one that was named: by number or, as in the manifest, by name. A
// Service's port leads to its target port; any other target's ports are the pod's own.
Result<uint16_t> remote_port(const config::ObjectStore& store, const Context& context,
                             const std::string& target, const config::Object& pod,
                             const std::string& port) {
  const Target parsed =
      MELTEMI_TRY(parse_target(target.find('/') == std::string::npos ? "pod/" + target : target));
  if (parsed.kind->kind != Kind::kService) {
    for (const auto& container : pod.as<config::kube::Pod>().spec().containers())
      for (const auto& candidate : container.ports())
        if (candidate.name() == port) return static_cast<uint16_t>(candidate.container_port());
    if (const auto number = port_number(port)) return *number;
    return fail(Reason::kNotFound, Fault::kConfig,
                fmt::format("Pod {} does not have a named port \"{}\"", pod.name(), port));
  }
  const ObjectPtr service = store.find(Kind::kService, context.ns(), parsed.names.at(0));
  for (const auto& candidate : service->as<config::kube::Service>().spec().ports())
    if (candidate.name() == port || std::to_string(candidate.port()) == port)
      if (const uint16_t number = sandbox::resolve_target_port(candidate, pod); number != 0)
        return number;
  return fail(Reason::kNotFound, Fault::kConfig,
              fmt::format("Service {} does not have a service port {}", parsed.names[0], port));
}

// The pod behind the target. When it goes, the next connection looks for another one.
class PodEnd {
 public:
  PodEnd(const Context& context, const std::string& target)
      : context_(context), target_(target), directory_(context.open(sandbox::View::kMerged)) {}

  // The pod's own port for the one that the user has named.
  Result<uint16_t> port(const std::string& named) {
    MELTEMI_TRY(resolve());
    return remote_port(directory_.store(), context_, target_, *pod_, named);
  }

  Result<UniqueFd> dial(const std::string& named) {
    const uint16_t port = MELTEMI_TRY(this->port(named));
    return dial_pod(netns_, sandbox::pod_ips(*pod_), port);
  }

 private:
  Status resolve() {
    directory_.refresh();
    if (pod_) {
      const auto now = directory_.store().find(Kind::kPod, pod_->ns(), pod_->name());
      if (now && now->meta().uid() == pod_->meta().uid() && !sandbox::is_terminating(*now) &&
          !sandbox::is_finished(*now))
        return {};
    }
    ObjectPtr pod = MELTEMI_TRY(find_pod(context_, directory_.store(), target_));
    if (sandbox::is_finished(*pod) || sandbox::pod_ips(*pod).empty())
      return fail(Reason::kNotFound, Fault::kConfig,
                  fmt::format("pod {} is not running", pod->name()));
    const auto& spec = pod->as<config::kube::Pod>().spec();
    const sandbox::Layout& layout = context_.layout();
    netns_ = MELTEMI_TRY(sys::Netns::open(
        sys::Netns::named_path(spec.host_network() ? layout.node_netns(spec.node_name())
                                                   : layout.pod_netns(pod->meta().uid()))));
    pod_ = std::move(pod);
    return {};
  }

  const Context& context_;
  const std::string& target_;
  sandbox::Directory directory_;
  ObjectPtr pod_;
  sys::Netns netns_;
};

class Forwarder {
 public:
  Forwarder(PodEnd* pod, std::vector<Listener> listeners)
      : pod_(*pod), listeners_(std::move(listeners)) {}

  void run(int stop_fd) {
    while (true) {
      std::vector<pollfd> polled{{stop_fd, POLLIN, 0}};
      for (const Listener& l : listeners_) polled.push_back({l.fd.get(), POLLIN, 0});
      for (const auto& f : forwards_) {
        polled.push_back(interest(f->local, f->to_pod, f->to_local));
        polled.push_back(interest(f->pod, f->to_local, f->to_pod));
      }
      if (::poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) return;
      if (polled[0].revents != 0) return;
      size_t at = 1 + listeners_.size();
      std::erase_if(forwards_, [&](const auto& f) {
        const short local = polled[at].revents, pod = polled[at + 1].revents;
        at += 2;
        return !serve(*f, local, pod);
      });
      for (size_t i = 0; i < listeners_.size(); ++i)
        if (polled[1 + i].revents != 0) accept(listeners_[i]);
    }
  }

 private:
  // Read from `fd` into `out`, write `in` to it.
  static pollfd interest(const UniqueFd& fd, const Direction& out, const Direction& in) {
    short events = 0;
    if (!out.ended && out.buffer.empty()) events |= POLLIN;
    if (!in.buffer.empty()) events |= POLLOUT;
    return {events != 0 ? fd.get() : -1, events, 0};
  }

  static bool serve(Forward& f, short local, short pod) {
    const bool failed =
        !pump(f.local.get(), f.pod.get(), local != 0, (pod & POLLOUT) != 0, &f.to_pod) ||
        !pump(f.pod.get(), f.local.get(), pod != 0, (local & POLLOUT) != 0, &f.to_local);
    return !failed && !f.done();
  }

  void accept(const Listener& listener) {
    UniqueFd local(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!local.valid() || forwards_.size() >= kMaxForwards) return;
    print("Handling connection for {}\n", listener.local);
    ::fflush(stdout);
    auto pod = pod_.dial(listener.remote);
    if (!pod) {
      complain("error: {}\n", pod.error().detail);
      return;
    }
    auto forward = std::make_unique<Forward>();
    forward->local = std::move(local);
    forward->pod = std::move(*pod);
    forwards_.push_back(std::move(forward));
  }

  PodEnd& pod_;
  std::vector<Listener> listeners_;
  std::vector<std::unique_ptr<Forward>> forwards_;
};

Status forward(const Context& context, const PortForwardOptions& options) {
  PodEnd pod(context, options.target);
  std::vector<Listener> listeners;
  std::vector<uint16_t> pod_ports;
  for (const std::string& text : options.ports) {
    const auto ports = parse_ports(text);
    if (!ports)
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("\"{}\" is not LOCAL:REMOTE, PORT or :REMOTE", text));
    pod_ports.push_back(MELTEMI_TRY(pod.port(ports->remote)));
    // A name alone is listened on at the number that it means in the pod.
    const bool named = ports->local == 0 && !text.starts_with(':');
    const uint16_t local = named ? pod_ports.back() : ports->local;
    listeners.push_back(MELTEMI_TRY(listen_on(options.address, {local, ports->remote})));
  }
  sigset_t set;
  ::sigemptyset(&set);
  for (const int s : {SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, s);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  const UniqueFd stop(::signalfd(-1, &set, SFD_CLOEXEC));
  for (size_t i = 0; i < listeners.size(); ++i)
    print("Forwarding from {}:{} -> {}\n", options.address, listeners[i].local, pod_ports[i]);
  ::fflush(stdout);
  Forwarder(&pod, std::move(listeners)).run(stop.get());
  return {};
}

}  // namespace

std::optional<PortPair> parse_ports(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view remote = colon == std::string_view::npos ? text : text.substr(colon + 1);
  const auto number = port_number(remote);
  if (!number && !config::is_port_name(remote)) return std::nullopt;
  if (colon == std::string_view::npos) return PortPair{number.value_or(0), std::string(remote)};
  if (colon == 0) return PortPair{0, std::string(remote)};
  const std::string_view local = text.substr(0, colon);
  if (local == "0") return PortPair{0, std::string(remote)};
  const auto wanted = port_number(local);
  if (!wanted) return std::nullopt;
  return PortPair{*wanted, std::string(remote)};
}

int port_forward_command(const Context& context, const PortForwardOptions& options) {
  return finish(forward(context, options));
}

}  // namespace meltemi::cli
