// See acceptor.h.
#include "userspace/xds/acceptor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>

#include "userspace/base/log.h"
#include "userspace/rt/socket_options.h"
#include "userspace/xds/server.h"

namespace meltemi::xds {
namespace {

log::Scope scope("xds-accept");

constexpr Duration kTick = std::chrono::milliseconds(100);
constexpr uint32_t kDescriptors = 2;  // gRPC's and the watched one
// What TLS and HTTP/2 put around one message.
constexpr uint64_t kFraming = 512;
// Bytes that came and that no call has taken: gRPC 1.51 gathers a message before it looks at its length,
// so a caller could have it gather gigabytes.
constexpr uint64_t kMaxUntaken = kMaxRequestBytes + (4u << 20);
constexpr uint64_t kMaxUntakenTotal = 8 * kMaxUntaken;

bool set_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

uint64_t bytes_received(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  return ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 ? info.tcpi_bytes_received : 0;
}

}  // namespace

class Acceptor::Connection final : public rt::Retirable, private rt::Completion {
 public:
  Connection(Acceptor& owner, Port& port, UniqueFd fd, const SocketAddress& peer, rt::Lease lease)
      : owner_(owner), port_(port), fd_(std::move(fd)), peer_(peer), lease_(std::move(lease)) {
    lease_.on_give_way(rt::post_to(loop()), [this](rt::GiveWay) { end(); });
    op_ = loop().poll(fd_.get(), POLLIN, *this);
  }
  ~Connection() override {
    close();
    lease_.release();
  }

  const SocketAddress& peer() const { return peer_; }
  void call_began() {
    ++calls_;
    lease_.active();
  }
  void call_ended() {
    if (calls_ > 0 && --calls_ == 0) lease_.idle(loop().now());
  }
  void took(uint64_t bytes) { taken_ += bytes + kFraming; }
  uint64_t untaken() const {
    const uint64_t came = given_ ? bytes_received(fd_.get()) : 0;
    return came > taken_ ? came - taken_ : 0;
  }
  // Both directions at once: gRPC sees the end, closes its descriptor, and that is the end here too.
  void end() {
    port_.probe->refused(peer_);
    if (!given_) return owner_.forget(*this);
    ::shutdown(fd_.get(), SHUT_RDWR);
  }
  // Another connection has its place. That of a peer with one address here has ended; one with several
  // must not keep what nobody counts.
  void displaced() {
    if (given_) ::shutdown(fd_.get(), SHUT_RDWR);
  }

 private:
  rt::Loop& loop() const { return owner_.thread_->worker(0).loop(); }
  void close() {
    if (op_) loop().forget(std::exchange(op_, {}));
    if (fd_) loop().close(std::move(fd_));
  }
  void on_complete(int32_t res, bool /*more*/) override {
    op_ = {};
    if (!given_ && res >= 0 && (res & (POLLERR | POLLHUP)) == 0) {
      if (give()) return;
      port_.probe->refused(peer_);
    }
    owner_.forget(*this);
  }
  // The first byte has come (or a FIN, which gRPC can deal with).
  bool give() {
    if (!lease_.handshaking(loop().now())) return false;
    UniqueFd theirs(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
    if (!theirs) {
      scope.warn("connection of {} dropped: {}", peer_.to_string(),
                 fail_errno(errno, "dup").error().to_string());
      return false;
    }
    given_ = true;
    port_.give(std::move(theirs));
    op_ = loop().poll(fd_.get(), 0, *this);  // POLLHUP: both directions are shut
    return true;
  }

  Acceptor& owner_;
  Port& port_;
  UniqueFd fd_;
  const SocketAddress peer_;
  rt::Lease lease_;
  rt::OpId op_;
  bool given_ = false;
  size_t calls_ = 0;
  uint64_t taken_ = 0;
};

Acceptor::Acceptor(rt::Admission& door)
    : door_(door), class_(door.add_class({.name = "xds", .descriptors = kDescriptors})) {}

Acceptor::~Acceptor() { stop(); }

Status Acceptor::listen(const SocketAddress& address) {
  // "::" stands for both families; a kernel without IPv6 has the other one.
  const bool v4_only = ::access("/proc/net/if_inet6", F_OK) != 0 && address.ip == IpAddress();
  auto fd = rt::make_tcp_listener(
      v4_only ? SocketAddress{IpAddress::v4(0), address.port} : address, {});
  if (!fd) {
    return fail(Reason::kSystem, Fault::kConfig,
                fmt::format("cannot listen on {}: {}", address.to_string(), fd.error().detail));
  }
  addresses_.push_back(MELTEMI_TRY(rt::local_address(fd->get())));
  listening_.push_back(std::move(*fd));
  return {};
}

Status Acceptor::start(std::vector<Give> give, std::function<void()> every_tick) {
  every_tick_ = std::move(every_tick);
  for (const SocketAddress& address : addresses_) {
    answers_.push_back(std::make_unique<PortAnswers>(address, MonoClock::now()));
  }
  // epoll: with io_uring the loop would keep the sockets blocking, which are gRPC's too.
  thread_ = MELTEMI_TRY(rt::WorkerPool::start(1, "xds-accept", {.backend = rt::Backend::kEpoll}));
  thread_->run_on_all([&](rt::Worker& worker) {
    for (size_t i = 0; i < listening_.size(); ++i) {
      Port& port = *ports_.emplace_back(std::make_unique<Port>());
      port.give = std::move(give[i]);
      port.listener = std::make_unique<rt::Listener>(
          worker.loop(), std::move(listening_[i]),
          [this, &port](UniqueFd fd) { accepted(port, std::move(fd)); });
      port.probe = std::make_unique<PortProbe>(worker.loop(), *answers_[i]);
    }
    ticker_ = std::make_unique<rt::FnTimer>([this] { tick(); });
    tick();
  });
  return {};
}

void Acceptor::stop() {
  if (thread_ == nullptr || std::exchange(stopped_, true)) return;
  thread_->run_on_all([this](rt::Worker&) {
    ticker_.reset();
    ports_.clear();
    connections_.clear();
  });
  thread_->stop();  // what calls post from now on is dropped
}

void Acceptor::accepted(Port& port, UniqueFd fd) {
  rt::Loop& loop = thread_->worker(0).loop();
  const auto peer = rt::peer_address(fd.get());
  if (!peer || !set_nonblocking(fd.get())) return loop.close(std::move(fd));  // gone again
  auto lease = door_.admit(class_, {.source = peer->ip, .pod = {}}, loop.now());
  if (!lease) {
    port.probe->refused(*peer);
    return loop.close(std::move(fd));
  }
  auto connection =
      std::make_unique<Connection>(*this, port, std::move(fd), *peer, std::move(*lease));
  if (auto& place = connections_[*peer]; place != nullptr) {
    place->displaced();
    loop.retire(std::exchange(place, std::move(connection)));
  } else {
    place = std::move(connection);
  }
}

void Acceptor::forget(Connection& connection) {
  const auto it = connections_.find(connection.peer());
  if (it == connections_.end() || it->second.get() != &connection) return;
  thread_->worker(0).loop().retire(std::move(it->second));
  connections_.erase(it);
}

void Acceptor::tick() {
  rt::Loop& loop = thread_->worker(0).loop();
  loop.start(*ticker_, loop.now() + kTick);
  door_.sweep(loop.now());
  uint64_t errors = 0;
  for (const auto& port : ports_) errors += port->listener->errors();
  accept_errors_ = errors;
  end_overdrawn();
  every_tick_();
}

void Acceptor::end_overdrawn() {
  uint64_t total = 0, most = 0;
  Connection* greediest = nullptr;
  for (const auto& [peer, connection] : connections_) {
    const uint64_t bytes = connection->untaken();
    total += bytes;
    if (bytes > most) most = bytes, greediest = connection.get();
  }
  if (greediest == nullptr || (most <= kMaxUntaken && total <= kMaxUntakenTotal)) return;
  ++overdrawn_;
  scope.warn("connection of {} ended: {} bytes came that no call has taken (limit {} each, {} in all)",
             greediest->peer().to_string(), most, kMaxUntaken, kMaxUntakenTotal);
  greediest->end();
}

void Acceptor::on_loop(std::string_view peer, std::move_only_function<void(Connection&)> fn) {
  const auto address = parse_peer(peer);
  if (!address) return;
  thread_->worker(0).post([this, address = *address, fn = std::move(fn)]() mutable {
    const auto it = connections_.find(address);
    if (it != connections_.end()) fn(*it->second);
  });
}

void Acceptor::call_began(std::string_view peer) {
  on_loop(peer, [](Connection& connection) { connection.call_began(); });
}

void Acceptor::call_ended(std::string_view peer) {
  on_loop(peer, [](Connection& connection) { connection.call_ended(); });
}

void Acceptor::took(std::string_view peer, size_t bytes) {
  on_loop(peer, [bytes](Connection& connection) { connection.took(bytes); });
}

std::string Acceptor::trouble(MonoTime now) const {
  std::string out;
  for (const auto& answers : answers_) {
    const std::string text = answers->trouble(now);
    if (!text.empty()) out += (out.empty() ? "" : "; ") + text;
  }
  return out;
}

std::optional<SocketAddress> parse_peer(std::string_view peer) {
  const size_t colon = peer.find(':');
  if (colon == peer.npos) return std::nullopt;
  const std::string_view family = peer.substr(0, colon);
  if (family != "ipv4" && family != "ipv6") return std::nullopt;
  // A URI: brackets and the zone's percent sign come escaped.
  std::string text;
  for (std::string_view rest = peer.substr(colon + 1); !rest.empty();) {
    unsigned value = 0;
    const bool escaped = rest.size() >= 3 && rest[0] == '%' &&
                         std::from_chars(rest.data() + 1, rest.data() + 3, value, 16).ptr ==
                             rest.data() + 3;
    text += escaped ? static_cast<char>(value) : rest[0];
    rest.remove_prefix(escaped ? 3 : 1);
  }
  if (const size_t zone = text.find('%'); zone != text.npos) {
    text.erase(zone, text.find(']') - zone);
  }
  return SocketAddress::parse(text);
}

}  // namespace meltemi::xds
