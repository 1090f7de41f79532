// Connections, queues and deadlines of ZDS; see zds_server.h.
#include "userspace/agent/zds_server.h"

#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>

#include "userspace/base/log.h"
#include "userspace/sys/packet.h"

namespace meltemi::agent {
namespace {

const log::Scope scope("zds");
namespace zds = codec::zds;

}  // namespace

struct ZdsServer::Connection {
  UniqueFd fd;
  uint64_t serial = 0;
  pid_t pid = 0;
  bool greeted = false;  // and takes listeners
  bool refused = false;  // greeted, but takes none
  bool snapshot_sent = false;
  std::deque<Request> queue;
  std::optional<Request> under_way;
  Loop::TimerId deadline = 0;

  std::string refusal() const {
    return fmt::format(
        "ztunnel pid {} is refused: its hello lacks the capability listener_fds, so it cannot "
        "serve pods that this agent captures. Run Meltemi's ztunnel beside this agent, or "
        "istio-cni beside Istio's",
        pid);
  }
};

ZdsServer::ZdsServer(Loop& loop, Callbacks callbacks)
    : loop_(loop), callbacks_(std::move(callbacks)) {}

ZdsServer::~ZdsServer() {
  for (const auto& [fd, c] : connections_) {
    loop_.cancel(c->deadline);
    loop_.unwatch(fd);
  }
}

Status ZdsServer::listen(const std::string& path) {
  return listener_.listen(path);
}

ZdsServer::Connection* ZdsServer::newest() const {
  Connection* out = nullptr;
  for (const auto& [fd, c] : connections_)
    if (c->greeted && (out == nullptr || c->serial > out->serial)) out = c.get();
  return out;
}

bool ZdsServer::synced() const {
  const Connection* c = newest();
  return c != nullptr && c->snapshot_sent && c->queue.empty() && !c->under_way;
}

void ZdsServer::accept(UniqueFd fd) {
  const auto peer = sys::peer_credentials(fd.get());
  if (!peer || peer->uid != ::geteuid() || connections_.size() >= kMaxZdsConnections) {
    scope.warn("refused a connection of pid {}, uid {} ({} connections)", peer ? peer->pid : 0,
               peer ? peer->uid : 0, connections_.size());
    return;
  }
  auto c = std::make_unique<Connection>();
  c->serial = next_serial_++;
  c->pid = peer->pid;
  c->fd = std::move(fd);
  Connection& connection = *c;
  const int key = connection.fd.get();
  connections_.emplace(key, std::move(c));
  connection.deadline =
      loop_.after(kZdsAnswerTimeout, [this, &connection] { close(connection, "sent no hello"); });
  if (!loop_.watch(key, EPOLLIN, [this, &connection](uint32_t) { on_readable(connection); }))
    close(connection, "cannot be watched");
  else
    scope.info("ztunnel pid {} connected", peer->pid);
}

void ZdsServer::close(Connection& c, std::string_view why) {
  scope.info("ztunnel connection {} closed: {}", c.serial, log::escape(why));
  loop_.cancel(c.deadline);
  loop_.unwatch(c.fd.get());
  connections_.erase(c.fd.get());
  if (!connected()) callbacks_.connection_changed(false);
}

void ZdsServer::on_readable(Connection& c) {
  Result<sys::Packet> packet =
      sys::receive_packet(c.fd.get(), Duration::zero(), codec::zds::kMaxPacket);
  if (!packet) {
    if (packet.error().reason == Reason::kNotFound) return;
    return close(c, packet.error().detail);
  }
  loop_.cancel(c.deadline);
  if (c.refused) return close(c, "a refused ztunnel spoke");
  if (!c.greeted) return on_hello(c, packet->bytes);
  if (!c.under_way) return close(c, "spoke without being asked");
  on_ack(c, packet->bytes, std::move(packet->fds));
}

void ZdsServer::on_hello(Connection& c, const std::string& bytes) {
  const Result<zds::Hello> hello = zds::decode_hello(as_bytes(bytes));
  if (!hello) return close(c, hello.error().detail);
  if ((hello->capabilities & zds::kListenerFds) == 0) return refuse(c);
  c.greeted = true;
  if (callbacks_.peer_connected) callbacks_.peer_connected(c.pid);
  for (const std::string& uid : callbacks_.pods()) {
    const std::optional<ZdsPod> pod = callbacks_.describe(uid);
    if (!pod) continue;
    if (!pod->has_listeners()) c.queue.push_back({Request::Kind::kGetListeners, uid});
    c.queue.push_back({Request::Kind::kAdd, uid});
  }
  c.queue.push_back({Request::Kind::kSnapshotSent, {}});
  const uint64_t serial = c.serial;
  callbacks_.connection_changed(true);
  continue_with(serial);
}

void ZdsServer::refuse(Connection& c) {
  c.refused = true;
  ++refused_total_;
  std::vector<Connection*> refused;  // the oldest first: descriptors are no order
  for (const auto& [fd, other] : connections_)
    if (other->refused) refused.push_back(other.get());
  std::ranges::sort(refused, {}, &Connection::serial);
  if (refused.size() > kMaxRefusedZtunnels) close(*refused.front(), "a younger one was refused too");
  scope.error("{}", refused.back()->refusal());
  callbacks_.connection_changed(connected());
}

std::string ZdsServer::refusal() const {
  if (connected()) return {};
  const Connection* youngest = nullptr;
  for (const auto& [fd, c] : connections_)
    if (c->refused && (youngest == nullptr || c->serial > youngest->serial)) youngest = c.get();
  return youngest == nullptr ? std::string() : youngest->refusal();
}

// After a callback: it may have led to the end of the connection.
void ZdsServer::continue_with(uint64_t serial) {
  for (const auto& [fd, c] : connections_)
    if (c->serial == serial) return send_next(*c);
}

void ZdsServer::send_next(Connection& c) {
  while (!c.queue.empty() && !c.under_way) {
    Request request = std::move(c.queue.front());
    c.queue.pop_front();
    bool skipped = false;
    const Status sent = send(c, request, &skipped);
    if (!sent) return close(c, sent.error().detail);
    if (skipped) continue;
    c.under_way = std::move(request);
    c.deadline = loop_.after(kZdsAnswerTimeout, [this, &c] { close(c, "did not answer in time"); });
  }
}

Status ZdsServer::send(Connection& c, const Request& request, bool* skipped) {
  zds::Request message;
  switch (request.kind) {
    case Request::Kind::kAdd:
      return send_add(c, request.uid, skipped);
    case Request::Kind::kKeep:
      message = zds::Keep{request.uid};
      break;
    case Request::Kind::kDel:
      message = zds::Del{request.uid};
      break;
    case Request::Kind::kSnapshotSent:
      message = zds::SnapshotSent{};
      break;
    case Request::Kind::kGetListeners:
      message = zds::GetListeners{request.uid};
      break;
  }
  const std::string bytes = MELTEMI_TRY(zds::encode(message));
  return sys::send_packet(c.fd.get(), as_bytes(bytes), {}, Duration::zero());
}

// The pod as it is at this moment: it may have changed, or gone, while the request was queued.
Status ZdsServer::send_add(Connection& c, const std::string& uid, bool* skipped) {
  const std::optional<ZdsPod> pod = callbacks_.describe(uid);
  if (!pod) {
    *skipped = true;
    return {};
  }
  if (!pod->has_listeners()) {
    // Another ztunnel has them; this one keeps what it knows of the pod until they come back.
    *skipped = c.snapshot_sent;
    if (!c.snapshot_sent) return send(c, {Request::Kind::kKeep, uid}, skipped);
    return {};
  }
  const zds::Add add{uid,
                     pod->info,
                     {zds::FdKind::kNetns, zds::FdKind::kOutbound, zds::FdKind::kInbound,
                      zds::FdKind::kHbone}};
  const std::vector<int> fds{pod->netns, pod->outbound, pod->inbound, pod->hbone};
  const std::string bytes = MELTEMI_TRY(zds::encode(zds::Request(add)));
  return sys::send_packet(c.fd.get(), as_bytes(bytes), fds, Duration::zero());
}

void ZdsServer::on_ack(Connection& c, const std::string& bytes, std::vector<UniqueFd> fds) {
  const Result<zds::Ack> ack = zds::decode_ack(as_bytes(bytes), fds.size());
  if (!ack) return close(c, ack.error().detail);
  const uint64_t serial = c.serial;
  const Request request = std::move(*c.under_way);
  c.under_way.reset();
  switch (request.kind) {
    case Request::Kind::kAdd:
      if (ack->error.empty()) {
        callbacks_.added(request.uid, {});
      } else {
        scope.warn("ztunnel did not take pod {}: {}", request.uid, log::escape(ack->error));
        callbacks_.added(request.uid, fail(Reason::kSystem, Fault::kUpstream, ack->error));
        loop_.after(kZdsRetry, [this, uid = request.uid] { add(uid); });
      }
      break;
    case Request::Kind::kGetListeners: {
      Listeners listeners;
      for (size_t i = 0; i < fds.size() && i < ack->fds.size(); ++i) {
        if (ack->fds[i] == zds::FdKind::kOutbound) listeners.outbound = std::move(fds[i]);
        if (ack->fds[i] == zds::FdKind::kInbound) listeners.inbound = std::move(fds[i]);
        if (ack->fds[i] == zds::FdKind::kHbone) listeners.hbone = std::move(fds[i]);
      }
      if (listeners.outbound || listeners.inbound || listeners.hbone)
        callbacks_.returned(request.uid, std::move(listeners));
      break;
    }
    case Request::Kind::kSnapshotSent:
      c.snapshot_sent = true;
      scope.info("ztunnel connection {} has the snapshot", c.serial);
      break;
    case Request::Kind::kKeep:
    case Request::Kind::kDel:
      if (!ack->error.empty())
        scope.warn("ztunnel on pod {}: {}", request.uid, log::escape(ack->error));
      break;
  }
  continue_with(serial);
}

void ZdsServer::add(const std::string& uid) {
  Connection* c = newest();
  if (c == nullptr) return;  // the snapshot of the next one has it
  c->queue.push_back({Request::Kind::kAdd, uid});
  send_next(*c);
}

void ZdsServer::remove(const std::string& uid) {
  std::vector<int> keys;
  for (const auto& [fd, c] : connections_)
    if (c->greeted) keys.push_back(fd);
  for (const int key : keys) {
    const auto found = connections_.find(key);
    if (found == connections_.end()) continue;
    Connection& c = *found->second;
    std::erase_if(c.queue,
                  [&](const Request& r) { return r.uid == uid && r.kind != Request::Kind::kDel; });
    c.queue.push_back({Request::Kind::kDel, uid});
    send_next(c);
  }
}

}  // namespace meltemi::agent
