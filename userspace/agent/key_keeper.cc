// Connections and the store of kept keys; see key_keeper.h.
#include "userspace/agent/key_keeper.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/sys/packet.h"
#include "userspace/sys/sealed_file.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("keys");
namespace wire = codec::keys;

}  // namespace

struct KeyKeeper::Connection {
  UniqueFd fd;
  uint64_t serial = 0;
  bool greeted = false;
  std::deque<std::string> queue;  // identities to send, then Complete
  bool complete = false;          // was sent
  Loop::TimerId deadline = 0;
};

KeyKeeper::KeyKeeper(Loop& loop) : loop_(loop) {}

KeyKeeper::~KeyKeeper() {
  for (const auto& [fd, c] : connections_) {
    loop_.cancel(c->deadline);
    loop_.unwatch(fd);
  }
}

Status KeyKeeper::listen(const std::string& path) {
  return listener_.listen(path);
}

void KeyKeeper::accept(UniqueFd fd) {
  const auto peer = sys::peer_credentials(fd.get());
  if (!peer || peer->uid != ::geteuid() || connections_.size() >= kMaxKeyConnections) {
    refuse(fmt::format("a connection of pid {}, uid {} ({} connections)", peer ? peer->pid : 0,
                       peer ? peer->uid : 0, connections_.size()));
    return;
  }
  auto c = std::make_unique<Connection>();
  c->serial = next_serial_++;
  c->fd = std::move(fd);
  Connection& connection = *c;
  const int key = connection.fd.get();
  connections_.emplace(key, std::move(c));
  connection.deadline =
      loop_.after(kKeyHelloTimeout, [this, &connection] { close(connection, "sent no hello"); });
  if (!loop_.watch(key, EPOLLIN, [this, &connection](uint32_t e) { on_event(connection, e); }))
    close(connection, "cannot be watched");
}

void KeyKeeper::close(Connection& c, std::string_view why) {
  scope.info("ztunnel's key connection {} closed: {}", c.serial, log::escape(why));
  loop_.cancel(c.deadline);
  loop_.unwatch(c.fd.get());
  connections_.erase(c.fd.get());
}

void KeyKeeper::refuse(std::string_view what) {
  ++refused_;
  scope.warn("refused {}", log::escape(what));
}

void KeyKeeper::on_event(Connection& c, uint32_t events) {
  if ((events & EPOLLIN) != 0) {
    Result<sys::Packet> packet =
        sys::receive_packet(c.fd.get(), Duration::zero(), wire::kMaxPacket);
    if (packet) return on_packet(c, packet->bytes, std::move(packet->fds));
    if (packet.error().reason != Reason::kNotFound) return close(c, packet.error().detail);
  }
  if ((events & (EPOLLERR | EPOLLHUP)) != 0) return close(c, "the peer closed the socket");
  if (c.greeted && !c.complete) send_queued(c);
}

void KeyKeeper::on_packet(Connection& c, const std::string& bytes, std::vector<UniqueFd> fds) {
  const auto packet = wire::decode(as_bytes(bytes), fds.size());
  if (!packet) {
    refuse(packet.error().detail);
    return close(c, packet.error().detail);
  }
  if (std::holds_alternative<wire::Hello>(*packet) && !c.greeted) {
    c.greeted = true;
    loop_.cancel(c.deadline);
    drop_expired();
    for (const auto& [identity, key] : keys_) c.queue.push_back(identity);
    scope.info("ztunnel gets {} kept certificates", c.queue.size());
    return send_queued(c);
  }
  if (!c.greeted) return close(c, "spoke before its hello");
  if (const auto* kept = std::get_if<wire::Kept>(&*packet)) return take(*kept, std::move(fds[0]));
  const auto* forgotten = std::get_if<wire::Forgotten>(&*packet);
  if (forgotten == nullptr) return close(c, "sent what only an agent says");
  // An older ztunnel drains, and what it has no use for its successor may need.
  const bool newest = std::ranges::all_of(
      connections_, [&](const auto& other) { return other.second->serial <= c.serial; });
  if (newest) keys_.erase(forgotten->identity);
}

void KeyKeeper::take(const wire::Kept& kept, UniqueFd file) {
  if (const Status sealed = sys::check_sealed(file.get(), kMaxKeptKeyBytes); !sealed)
    return refuse(fmt::format("the key of {}: {}", kept.identity, sealed.error().detail));
  drop_expired();
  const auto found = keys_.find(kept.identity);
  if (found == keys_.end() && keys_.size() >= kMaxKeptKeys)
    return refuse(fmt::format("the key of {}: {} are kept already", kept.identity, kMaxKeptKeys));
  // The longer one, whoever of two ztunnels it comes from.
  if (found == keys_.end() || found->second.not_after <= kept.not_after)
    keys_.insert_or_assign(kept.identity, Key{std::move(file), kept.not_after});
}

void KeyKeeper::send_queued(Connection& c) {
  const auto send = [&](const wire::Packet& packet, std::span<const int> fds) {
    return sys::send_packet(c.fd.get(), as_bytes(wire::encode(packet)), fds, Duration::zero());
  };
  Status sent;
  while (sent && !c.complete) {
    if (c.queue.empty()) {
      sent = send(wire::Complete{}, {});
      c.complete = sent.has_value();
      continue;
    }
    const auto key = keys_.find(c.queue.front());
    if (key != keys_.end()) {
      const int fd = key->second.file.get();
      sent = send(wire::Kept{key->first, key->second.not_after}, {&fd, 1});
    }
    if (sent) c.queue.pop_front();
  }
  if (!sent && sent.error().reason != Reason::kRequestTimeout) return close(c, sent.error().detail);
  // The socket is full: on when the peer has read.
  const uint32_t events = c.complete ? uint32_t{EPOLLIN} : uint32_t{EPOLLIN | EPOLLOUT};
  (void)loop_.watch(c.fd.get(), events, [this, &c](uint32_t e) { on_event(c, e); });
}

void KeyKeeper::drop_expired() {
  const WallTime now = std::chrono::system_clock::now();
  std::erase_if(keys_, [&](const auto& entry) { return entry.second.not_after <= now; });
}

}  // namespace meltemi::agent
