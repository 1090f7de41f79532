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

constexpr unsigned kCertificateLookSeconds = 5;  // how often the TLS files are looked at
constexpr int kMinPingIntervalMs = 10'000;       // clients ping every 30 s

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

  std::shared_ptr<ServerCore> core;
  CallService calls;
  std::unique_ptr<grpc::Server> server;
  std::vector<int> ports;
};

Server::Server(ServerHooks hooks) : impl_(std::make_shared<Impl>(std::move(hooks))) {}

Server::~Server() { stop(std::chrono::milliseconds(0)); }

Status Server::start(const ServerOptions& options) {
  init_grpc();
  for (const SocketAddress& address : options.plaintext_listen) {
    if (!address.ip.is_loopback()) {
      return fail(Reason::kBadConfig, Fault::kConfig,
                  fmt::format("plaintext xDS on {}: only loopback addresses may be plaintext",
                              address.to_string()));
    }
  }
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(static_cast<int>(kMaxRequestBytes));
  builder.SetMaxSendMessageSize(-1);
  // With SO_REUSEPORT a second control plane on the port would go unnoticed.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  std::vector<std::pair<SocketAddress, size_t>> bound;
  impl_->ports.assign(options.tls_listen.size() + options.plaintext_listen.size(), 0);
  size_t i = 0;
  for (const SocketAddress& address : options.tls_listen) {
    builder.AddListeningPort(address.to_string(), tls_credentials(options), &impl_->ports[i++]);
  }
  for (const SocketAddress& address : options.plaintext_listen) {
    builder.AddListeningPort(address.to_string(), grpc::InsecureServerCredentials(),
                             &impl_->ports[i++]);
  }
  builder.RegisterCallbackGenericService(&impl_->calls);
  impl_->server = builder.BuildAndStart();
  if (impl_->server != nullptr) return {};
  std::string where;
  for (const auto* list : {&options.tls_listen, &options.plaintext_listen}) {
    for (const SocketAddress& address : *list) where += " " + address.to_string();
  }
  return fail(Reason::kSystem, Fault::kConfig,
              fmt::format("cannot listen on{}: is the port in use?", where));
}

std::vector<uint16_t> Server::ports() const {
  return {impl_->ports.begin(), impl_->ports.end()};
}

void Server::stop(std::chrono::milliseconds grace) {
  if (impl_->server == nullptr) return;
  impl_->core->end_all(
      {Reason::kShutdown, Fault::kInternal, Retry::kSafe, "the control plane is going away"});
  impl_->server->Shutdown(std::chrono::system_clock::now() + grace);
  impl_->server->Wait();
  impl_->server = nullptr;
}

void Server::update(std::vector<ResourceUpdate> batch) { impl_->core->update(std::move(batch)); }
void Server::set_ready() { impl_->core->set_ready(); }

void Server::disconnect(const std::function<bool(const Caller&, const Node&)>& doomed) {
  for (const auto& stream : impl_->core->streams()) {
    if (!stream->is(doomed)) continue;
    stream->end({Reason::kShutdown, Fault::kConfig, Retry::kSafe, "what the stream may see changed"});
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
  return {.streams = impl_->core->streams().size(), .streams_opened = c.streams_opened,
          .refused = c.refused, .responses = c.responses, .response_bytes = c.response_bytes,
          .resources = c.resources, .nacks = c.nacks, .certificates = c.certificates,
          .certificates_refused = c.certificates_refused, .reports = c.reports};
}

}  // namespace meltemi::xds
