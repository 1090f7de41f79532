// See server.h.
#include "userspace/http/server.h"

#include <fmt/format.h>

#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

#include "userspace/base/log.h"
#include "userspace/net/tcp_stream.h"
#include "userspace/rt/listener.h"
#include "userspace/rt/socket_options.h"
#include "userspace/rt/worker.h"
#include "userspace/sys/netlink.h"

namespace meltemi::http {
namespace {

log::Scope scope("http");

constexpr Duration kSweep = std::chrono::milliseconds(250);

rt::AdmissionOptions own_admission(const ServerOptions& options) {
  rt::AdmissionOptions out;
  out.descriptors = options.connections;
  return out;
}

}  // namespace

struct Server::Impl {
  struct Port {
    UniqueFd fd;
    SocketAddress address;
    Connection::Shared shared;
    std::unique_ptr<CertificateFiles> certificate;
    std::unique_ptr<rt::Listener> listener;
  };

  Impl(rt::Admission* given, const ServerOptions& o) : options(o), admission(given) {
    if (!admission) {
      own = std::make_unique<rt::Admission>(own_admission(o));
      admission = own.get();
    }
    pages = admission->add_class({.name = "pages", .descriptors = 1, .limit = o.connections,
                                  .starts_silent = true, .probes = true});
  }

  void accept(Port& port, UniqueFd fd);
  void sweep();
  void count(std::string_view why) {
    std::lock_guard lock(mutex);
    ++cuts[std::string(why)];
  }

  ServerOptions options;
  std::unique_ptr<rt::Admission> own;
  rt::Admission* admission;
  rt::Admission::ClassId pages;
  std::list<Port> ports;
  std::unique_ptr<rt::WorkerPool> thread;
  // On the thread only.
  std::unordered_map<Connection*, std::unique_ptr<Connection>> connections;
  rt::FnTimer sweeper{[this] { sweep(); }};
  mutable std::mutex mutex;
  std::map<std::string, uint64_t> cuts;
};

Server::Server(rt::Admission* admission, const ServerOptions& options)
    : impl_(std::make_unique<Impl>(admission, options)) {}
Server::~Server() { stop(); }

Result<SocketAddress> Server::listen(const Router& router, const SocketAddress& address,
                                     std::unique_ptr<CertificateFiles> certificate) {
  auto fd = rt::make_tcp_listener(address, {});
  if (!fd) {
    return fail(fd.error().reason, Fault::kConfig,
                fmt::format("listen on {}: {}", address.to_string(), fd.error().detail));
  }
  Impl::Port& port = impl_->ports.emplace_back();
  port.address = MELTEMI_TRY(rt::local_address(fd->get()));
  port.fd = *std::move(fd);
  port.shared.limits = impl_->options.limits;
  port.shared.deadlines = impl_->options.deadlines;
  port.shared.answer = [&router](const Request& request) { return router.dispatch(request); };
  if (certificate) {
    port.certificate = std::move(certificate);
    port.shared.tls = [files = port.certificate.get()](MonoTime now) {
      return files->current(now);
    };
  }
  port.shared.cut = [impl = impl_.get()](std::string_view why) { impl->count(why); };
  return port.address;
}

Status Server::start() {
  // Probes come from the node, whichever of its addresses they have.
  if (auto own = sys::node_addresses()) {
    impl_->admission->set_own_addresses(*own);
  } else {
    scope.warn("only loopback is known as the node's own: {}", own.error().to_string());
  }
  rt::LoopOptions loop;
  // A page now and then: no ring, few and small buffers.
  loop.backend = rt::Backend::kEpoll;
  loop.recv_buffers = 1;
  loop.recv_buffer_size = 16 * 1024;
  impl_->thread = MELTEMI_TRY(rt::WorkerPool::start(1, "http", loop));
  impl_->thread->run_on_all([this](rt::Worker& w) {
    for (Impl::Port& port : impl_->ports) {
      port.listener = std::make_unique<rt::Listener>(
          w.loop(), std::move(port.fd),
          [this, &port](UniqueFd fd) { impl_->accept(port, std::move(fd)); });
    }
    if (impl_->own) w.loop().start(impl_->sweeper, w.loop().now() + kSweep);
  });
  return {};
}

void Server::stop() {
  if (!impl_->thread) return;
  impl_->thread->run_on_all([this](rt::Worker& w) {
    w.loop().stop(impl_->sweeper);
    impl_->ports.clear();
    impl_->connections.clear();
  });
  impl_->thread->stop();
  impl_->thread.reset();
}

void Server::Impl::accept(Port& port, UniqueFd fd) {
  rt::Loop& loop = *rt::Loop::current();
  auto peer = rt::peer_address(fd.get());
  if (!peer) return;  // gone already
  // Who comes from an address of this machine is as much the node's own as loopback.
  const auto local = rt::local_address(fd.get());
  const bool own_machine = local && local->ip == peer->ip;
  rt::Visitor visitor;
  visitor.source = own_machine ? *IpAddress::parse("127.0.0.1") : peer->ip;
  auto lease = admission->admit(pages, visitor, loop.now());
  if (!lease) {
    scope.debug("{}: {}", port.address.to_string(), lease.error().to_string());
    return;
  }
  auto connection = std::make_unique<Connection>(
      port.shared, net::make_tcp_stream(loop, std::move(fd)), *peer, *std::move(lease),
      [this, &loop](Connection* c) {
        const auto it = connections.find(c);
        if (it == connections.end()) return;
        loop.retire(std::move(it->second));
        connections.erase(it);
      });
  Connection& started = *connection;
  connections.emplace(&started, std::move(connection));
  started.start();
}

void Server::Impl::sweep() {
  rt::Loop& loop = *rt::Loop::current();
  admission->sweep(loop.now());
  loop.start(sweeper, loop.now() + kSweep);
}

const rt::Admission& Server::admission() const { return *impl_->admission; }

std::vector<Server::Cut> Server::cuts() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<Cut> out;
  for (const auto& [why, count] : impl_->cuts) out.push_back({why, count});
  return out;
}

uint64_t Server::certificate_failures() const {
  uint64_t out = 0;
  for (const Impl::Port& port : impl_->ports) {
    if (port.certificate) out += port.certificate->failures();
  }
  return out;
}

}  // namespace meltemi::http
