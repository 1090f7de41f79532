// The sockets of the cluster DNS: one thread, poll, a handful of short TCP connections. See dns.h.
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "userspace/base/clock.h"
#include "userspace/base/fd.h"
#include "userspace/base/log.h"
#include "userspace/sandbox/dns.h"
#include "userspace/sandbox/layout.h"
#include "userspace/sys/netns.h"

namespace meltemi::sandbox {
namespace {

const log::Scope scope("dns");

constexpr size_t kMaxTcpConnections = 64;
constexpr Duration kTcpIdle = std::chrono::seconds(10);
constexpr uint16_t kDnsPort = 53;

Result<UniqueFd> open_socket(const sys::Netns& netns, const IpAddress& ip, int type) {
  UniqueFd fd = MELTEMI_TRY(sys::socket_in(netns, ip.is_v4() ? AF_INET : AF_INET6,
                                           type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_storage address;
  const socklen_t length = SocketAddress{ip, kDnsPort}.to_sockaddr(address);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) < 0)
    return fail_errno(errno, fmt::format("cluster DNS: bind {}:53", ip.to_string()));
  if (type == SOCK_STREAM && ::listen(fd.get(), 64) < 0)
    return fail_errno(errno, "cluster DNS: listen");
  return fd;
}

struct Connection {
  UniqueFd fd;
  std::string in;
  MonoTime deadline;
};

}  // namespace

struct DnsServer::State {
  std::vector<UniqueFd> udp, tcp;
  std::vector<Connection> connections;
  UniqueFd stop;
  std::mutex mutex;
  std::shared_ptr<const DnsZone> zone = std::make_shared<DnsZone>();
  std::thread thread;

  std::shared_ptr<const DnsZone> current() {
    const std::lock_guard lock(mutex);
    return zone;
  }
  void serve();
  void answer_datagrams(int fd);
  void accept_all(int fd);
  bool answer_stream(Connection& c);  // false: close it
};

void DnsServer::State::answer_datagrams(int fd) {
  uint8_t buffer[4096];
  sockaddr_storage from;
  while (true) {
    socklen_t length = sizeof from;
    const ssize_t n =
        ::recvfrom(fd, buffer, sizeof buffer, 0, reinterpret_cast<sockaddr*>(&from), &length);
    if (n < 0) return;
    const std::string answer =
        answer_dns({buffer, static_cast<size_t>(n)}, *current(), kMaxDnsUdpBytes);
    if (!answer.empty())
      (void)::sendto(fd, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from),
                     length);
  }
}

void DnsServer::State::accept_all(int fd) {
  while (true) {
    UniqueFd c(::accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!c.valid()) return;
    if (connections.size() < kMaxTcpConnections)
      connections.push_back({std::move(c), {}, MonoClock::now() + kTcpIdle});
  }
}

bool DnsServer::State::answer_stream(Connection& c) {
  char buffer[4096];
  const ssize_t n = ::recv(c.fd.get(), buffer, sizeof buffer, 0);
  if (n <= 0) return n < 0 && errno == EAGAIN;
  c.in.append(buffer, static_cast<size_t>(n));
  while (c.in.size() >= 2) {
    const ByteView in = as_bytes(c.in);
    const size_t length = load_be<uint16_t>(in.data());
    if (in.size() < 2 + length) break;
    const std::string answer = answer_dns(in.subspan(2, length), *current(), kMaxDnsTcpBytes);
    if (answer.empty()) return false;
    std::string framed;
    framed.push_back(static_cast<char>(answer.size() >> 8));
    framed.push_back(static_cast<char>(answer.size()));
    framed += answer;
    // A peer that does not read its answer of a few hundred bytes is not waited for.
    if (::send(c.fd.get(), framed.data(), framed.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(framed.size()))
      return false;
    c.in.erase(0, 2 + length);
    c.deadline = MonoClock::now() + kTcpIdle;
  }
  return true;
}

void DnsServer::State::serve() {
  while (true) {
    std::vector<pollfd> polled{{stop.get(), POLLIN, 0}};
    for (const UniqueFd& fd : udp) polled.push_back({fd.get(), POLLIN, 0});
    for (const UniqueFd& fd : tcp) polled.push_back({fd.get(), POLLIN, 0});
    const size_t first_connection = polled.size();
    for (const Connection& c : connections) polled.push_back({c.fd.get(), POLLIN, 0});
    if (::poll(polled.data(), polled.size(), 1000) < 0 && errno != EINTR) return;
    if (polled[0].revents != 0) return;
    size_t i = 1;
    for (const UniqueFd& fd : udp)
      if (polled[i++].revents != 0) answer_datagrams(fd.get());
    // Connections before accepting: their places in `polled` must still fit.
    const MonoTime now = MonoClock::now();
    size_t place = first_connection;
    std::erase_if(connections, [&](Connection& c) {
      const bool readable = polled[place++].revents != 0;
      return readable ? !answer_stream(c) : now > c.deadline;
    });
    for (const UniqueFd& fd : tcp)
      if (polled[i++].revents != 0) accept_all(fd.get());
  }
}

Result<std::unique_ptr<DnsServer>> DnsServer::start(const std::string& netns_path) {
  const sys::Netns netns = MELTEMI_TRY(sys::Netns::open(netns_path));
  auto state = std::make_unique<State>();
  for (const IpAddress& ip : {dns_address().v4, dns_address().v6}) {
    state->udp.push_back(MELTEMI_TRY(open_socket(netns, ip, SOCK_DGRAM)));
    state->tcp.push_back(MELTEMI_TRY(open_socket(netns, ip, SOCK_STREAM)));
  }
  state->stop.reset(::eventfd(0, EFD_CLOEXEC));
  State* s = state.get();
  state->thread = std::thread([s] { s->serve(); });
  return std::unique_ptr<DnsServer>(new DnsServer(std::move(state)));
}

DnsServer::DnsServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

DnsServer::~DnsServer() {
  const uint64_t one = 1;
  if (::write(state_->stop.get(), &one, sizeof one) != sizeof one)
    scope.error("the stop event cannot be written");
  state_->thread.join();
}

void DnsServer::publish(std::shared_ptr<const DnsZone> zone) {
  const std::lock_guard lock(state_->mutex);
  state_->zone = std::move(zone);
}

}  // namespace meltemi::sandbox
