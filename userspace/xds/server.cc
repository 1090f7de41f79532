// See server.h: the gRPC server and its ports.
#include "userspace/xds/server.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_credentials_options.h>

#include "userspace/xds/call_service.h"
#include "userspace/xds/delta_stream.h"
#include "userspace/xds/grpc_runtime.h"
#include "userspace/xds/server_core.h"

namespace meltemi::xds {
namespace {

using std::chrono::seconds;

constexpr unsigned kCertificateLookSeconds = 5;  // how often the TLS files are looked at
constexpr Duration kMinPingInterval = seconds(10);  // clients ping every 30 s
// A node that lost its power gives its descriptors back after a minute.
constexpr Duration kKeepalive = seconds(30), kKeepaliveTimeout = seconds(20);
constexpr Duration kAgeGrace = seconds(10);
constexpr int kMaxHeaderBytes = 32 << 10;     // a token has 1 to 4 KB
constexpr int kMaxCallsPerConnection = 256;  // a ztunnel asks for all certificates of its node at once

std::shared_ptr<grpc::ServerCredentials> tls_credentials(const ServerOptions& options) {
  using namespace grpc::experimental;
  TlsServerCredentialsOptions tls(std::make_shared<FileWatcherCertificateProvider>(
      options.key_file, options.certificate_file, kCertificateLookSeconds));
  tls.watch_identity_key_cert_pairs();
  tls.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  return TlsServerCredentials(tls);
}

}  // namespace

struct Server::Impl {
  explicit Impl(ServerHooks hooks)
      : core(std::make_shared<ServerCore>(std::move(hooks))), calls(core) {}

  std::unique_ptr<rt::Admission> own_door;  // outlives the connections
  std::shared_ptr<ServerCore> core;
  CallService calls;
  std::unique_ptr<grpc::Server> server;
};

Server::Server(ServerHooks hooks) : impl_(std::make_shared<Impl>(std::move(hooks))) {}

Server::~Server() { stop(std::chrono::milliseconds(0)); }

namespace {

Status check(const ServerOptions& options) {
  for (const SocketAddress& address : options.plaintext_listen) {
    if (address.ip.is_loopback()) continue;
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("plaintext xDS on {}: only loopback addresses may be plaintext",
                            address.to_string()));
  }
  return {};
}

int milliseconds(Duration d) {
  return static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(d).count());
}

void set_limits(const ServerOptions& options, Duration handshake, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxRequestBytes));
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxHeaderBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsPerConnection);
  // A window that grew with the line's speed would be memory that a caller without a token may fill.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, milliseconds(handshake));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                             milliseconds(options.max_connection_age));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, milliseconds(kAgeGrace));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, milliseconds(kKeepalive));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, milliseconds(kKeepaliveTimeout));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             milliseconds(kMinPingInterval));
}

// Gives descriptors to gRPC, which serves them with `credentials`.
Acceptor::Give giver(grpc::ServerBuilder& builder,
                     std::shared_ptr<grpc::ServerCredentials> credentials) {
  std::shared_ptr<grpc::experimental::ExternalConnectionAcceptor> to =
      builder.experimental().AddExternalConnectionAcceptor(
          grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
          std::move(credentials));
  return [to](UniqueFd fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
    connection.fd = fd.release();
    to->HandleNewConnection(&connection);
  };
}

}  // namespace

Status Server::start(const ServerOptions& options) {
  init_grpc();
  MELTEMI_TRY(check(options));
  rt::Admission* door = options.door;
  if (door == nullptr) {
    impl_->own_door = std::make_unique<rt::Admission>(rt::AdmissionOptions());
    door = impl_->own_door.get();
  }
  auto& acceptor = impl_->core->acceptor = std::make_unique<Acceptor>(*door);
  for (const SocketAddress& address : options.tls_listen) MELTEMI_TRY(acceptor->listen(address));
  for (const SocketAddress& address : options.plaintext_listen) {
    MELTEMI_TRY(acceptor->listen(address));
  }
  grpc::ServerBuilder builder;
  set_limits(options, door->options().handshake, builder);
  std::vector<Acceptor::Give> give;
  for (size_t i = 0; i < options.tls_listen.size(); ++i) {
    give.push_back(giver(builder, tls_credentials(options)));
  }
  for (size_t i = 0; i < options.plaintext_listen.size(); ++i) {
    give.push_back(giver(builder, grpc::InsecureServerCredentials()));
  }
  builder.RegisterCallbackGenericService(&impl_->calls);
  impl_->server = builder.BuildAndStart();
  if (impl_->server == nullptr) {
    return fail(Reason::kSystem, Fault::kInternal, "gRPC does not start; its log says why");
  }
  return acceptor->start(std::move(give), [core = impl_->core.get()] {
    core->end_expired(std::chrono::system_clock::now());
  });
}

std::vector<uint16_t> Server::ports() const {
  std::vector<uint16_t> out;
  if (impl_->core->acceptor == nullptr) return out;
  for (const SocketAddress& address : impl_->core->acceptor->addresses()) out.push_back(address.port);
  return out;
}

std::string Server::trouble(MonoTime now) const {
  return impl_->core->acceptor == nullptr ? "not started" : impl_->core->acceptor->trouble(now);
}

void Server::stop(std::chrono::milliseconds grace) {
  if (impl_->server == nullptr) return;
  impl_->core->end_all({grpc::StatusCode::UNAVAILABLE, "the control plane is going away"});
  impl_->core->acceptor->stop();
  impl_->server->Shutdown(std::chrono::system_clock::now() + grace);
  impl_->server->Wait();
  impl_->server = nullptr;
}

void Server::update(std::vector<ResourceUpdate> batch) { impl_->core->update(std::move(batch)); }
void Server::set_ready() { impl_->core->set_ready(); }

void Server::disconnect(const std::function<Status(const Caller&, const Node&)>& welcome) {
  for (const auto& stream : impl_->core->streams()) {
    const Status may_stay = stream->ask(welcome);
    if (may_stay || !stream->end(to_grpc(may_stay.error()))) continue;
    ++impl_->core->counters.ended_unwelcome;
  }
}

void Server::end_expired(WallTime now) { impl_->core->end_expired(now); }

std::vector<StreamInfo> Server::streams() const {
  std::vector<StreamInfo> out;
  for (const auto& stream : impl_->core->streams()) out.push_back(stream->info());
  return out;
}

ServerStats Server::stats() const {
  const ServerCounters& c = impl_->core->counters;
  ServerStats out{.streams = impl_->core->streams().size(), .streams_opened = c.streams_opened,
                  .refused = c.refused, .responses = c.responses,
                  .response_bytes = c.response_bytes, .resources = c.resources, .nacks = c.nacks,
                  .certificates = c.certificates, .certificates_refused = c.certificates_refused,
                  .reports = c.reports, .ended_expired = c.ended_expired,
                  .ended_unwelcome = c.ended_unwelcome};
  if (impl_->core->acceptor == nullptr) return out;
  out.accept_errors = impl_->core->acceptor->accept_errors();
  out.overdrawn = impl_->core->acceptor->overdrawn();
  return out;
}

}  // namespace meltemi::xds
