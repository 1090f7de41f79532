// Packets in, one handler call, packets out; see local_server.h.
#include "userspace/agent/local_server.h"

#include <sys/epoll.h>
#include <unistd.h>

#include "userspace/base/log.h"
#include "userspace/codec/local_frame.h"
#include "userspace/sys/packet.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("agent");
constexpr Duration kSendTimeout = std::chrono::seconds(1);

}  // namespace

struct LocalServer::Connection {
  uint64_t serial = 0;
  UniqueFd fd;
  codec::local::Assembler assembler;
  bool busy = false;
};

LocalServer::LocalServer(Loop& loop, Handler handler) : loop_(loop), handler_(std::move(handler)) {}

LocalServer::~LocalServer() {
  for (const auto& [serial, c] : connections_) loop_.unwatch(c->fd.get());
}

Status LocalServer::listen(const std::string& path) {
  return listener_.listen(path);
}

void LocalServer::accept(UniqueFd fd) {
  const auto peer = sys::peer_credentials(fd.get());
  if (!peer || peer->uid != ::geteuid() || connections_.size() >= kMaxLocalConnections) {
    scope.warn("refused a call of pid {}, uid {}", peer ? peer->pid : 0, peer ? peer->uid : 0);
    return;
  }
  auto c = std::make_unique<Connection>();
  c->serial = next_serial_++;
  c->fd = std::move(fd);
  Connection& connection = *c;
  connections_.emplace(connection.serial, std::move(c));
  if (!loop_.watch(connection.fd.get(), EPOLLIN,
                   [this, &connection](uint32_t) { on_readable(connection); }))
    close(connection.serial);
}

void LocalServer::close(uint64_t serial) {
  const auto found = connections_.find(serial);
  if (found == connections_.end()) return;
  loop_.unwatch(found->second->fd.get());
  connections_.erase(found);
}

void LocalServer::on_readable(Connection& c) {
  Result<sys::Packet> packet =
      sys::receive_packet(c.fd.get(), Duration::zero(), codec::local::kMaxPacket);
  if (!packet) {
    if (packet.error().reason != Reason::kNotFound) close(c.serial);
    return;
  }
  if (c.busy) return close(c.serial);  // one at a time
  Result<std::optional<std::string>> message = c.assembler.add(as_bytes(packet->bytes));
  if (!message) return close(c.serial);
  if (!*message) return;
  Result<local::v1::Request> request = codec::local::decode_request(**message);
  if (!request) {
    local::v1::Response response;
    response.set_error(request.error().detail);
    return answer(c.serial, response);
  }
  c.busy = true;
  handler_(std::move(*request), [this, serial = c.serial](const local::v1::Response& response) {
    answer(serial, response);
  });
}

void LocalServer::answer(uint64_t serial, const local::v1::Response& response) {
  const auto found = connections_.find(serial);
  if (found == connections_.end()) return;
  found->second->busy = false;
  const Result<std::vector<std::string>> packets = codec::local::encode(response);
  if (!packets) return close(serial);
  for (const std::string& packet : *packets)
    if (!sys::send_packet(found->second->fd.get(), as_bytes(packet), {}, kSendTimeout))
      return close(serial);
}

}  // namespace meltemi::agent
