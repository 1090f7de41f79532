// See grpc_runtime.h.
#include "userspace/xds/grpc_runtime.h"

#include <fmt/format.h>
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <stdlib.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "userspace/base/log.h"
#include "userspace/sys/files.h"
#include "userspace/xds/address.h"
#include "userspace/xds/delta_client.h"

namespace meltemi::xds {
namespace {

log::Scope scope("grpc");

constexpr std::string_view kSystemRoots = "/etc/ssl/certs/ca-certificates.crt";
constexpr size_t kMaxFileBytes = 1 << 20;       // of a root bundle or a token
constexpr int kConnectTimeoutMs = 5'000;
constexpr int kKeepaliveMs = 30'000, kKeepaliveTimeoutMs = 10'000;

// gRPC's own resolver asks the DNS server for the address families that /etc/hosts does not have, and
// waits seconds for one that is away. The C library's ("native") answers from the files alone, in the
// order of nsswitch.conf. gRPC reads the variable when it starts; set before main(), when no other
// thread reads the environment. What an operator has set stays.
[[maybe_unused]] const int resolver_chosen = ::setenv("GRPC_DNS_RESOLVER", "native", 0);

void to_our_log(gpr_log_func_args* args) {
  // What matters comes back as the status of a call; most lines only help to find out why. A failed
  // assertion is gRPC's last word before it aborts the process.
  if (std::string_view(args->message).find("ssertion failed") != std::string_view::npos) {
    scope.error("{}:{}: {}", args->file, args->line, log::escape(args->message));
    log::flush();
    return;
  }
  scope.debug("{}", log::escape(args->message));
}

std::optional<std::string> read_whole(std::string_view path) {
  std::ifstream in{std::string(path), std::ios::binary};
  if (!in) return std::nullopt;
  std::string out;
  for (std::istreambuf_iterator<char> it(in), end; it != end && out.size() <= kMaxFileBytes; ++it) {
    out += *it;
  }
  return out;
}

// The token that the file holds. While it cannot be read (no descriptors) the last one that it held, as a
// call without one would be refused; who has expired is refused all the same.
Result<std::string> read_token(const std::string& path) {
  static std::mutex mutex;
  static auto* const last = new std::map<std::string, std::string>();  // by path; one or two
  auto token = sys::read_file(path, kMaxFileBytes);
  const std::lock_guard lock(mutex);
  if (token) {
    (*last)[path] = *token;
  } else if (token.error().reason == Reason::kSystem) {
    if (const auto known = last->find(path); known != last->end()) return known->second;
  } else {
    last->erase(path);
  }
  return token;
}

Result<std::string> read_root(const ChannelOptions& options) {
  if (options.root_ca.find("-----BEGIN") != std::string::npos) return options.root_ca;
  const std::string_view path =
      options.root_ca == "SYSTEM" ? kSystemRoots : std::string_view(options.root_ca);
  auto pem = read_whole(path);
  if (!pem || pem->find("-----BEGIN CERTIFICATE") == std::string::npos) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("root certificates {}: {}", path,
                            pem ? "no certificate in it" : "cannot be read"));
  }
  return std::move(*pem);
}

// The last channel takes gRPC's callback threads down with it and joins them, which must not happen
// on one of them (gRPC aborts): there, where the last reference of a call may well end, a channel is
// only put aside. A call's context holds the channel itself, not our wrapper of it, and may let go of
// it later than the wrapper: a channel is closed once nobody but the graveyard knows it.
struct Graveyard {
  std::mutex mutex;
  std::vector<std::shared_ptr<grpc::Channel>> channels;
};
Graveyard& graveyard() {
  static auto* const it = new Graveyard();  // gRPC's threads may outlive static objects
  return *it;
}

std::shared_ptr<grpc::Channel> safe_to_drop_anywhere(std::shared_ptr<grpc::Channel> channel) {
  grpc::Channel* const raw = channel.get();
  return {raw, [channel = std::move(channel)](grpc::Channel*) mutable {
            const std::lock_guard lock(graveyard().mutex);
            graveyard().channels.push_back(std::move(channel));
          }};
}

Result<std::shared_ptr<grpc::Channel>> open_channel(const ChannelOptions& options,
                                                    const std::string& root) {
  close_dropped_channels();
  const Target target = MELTEMI_TRY(parse_target(options.address));
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(static_cast<int>(kMaxMessageBytes));
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  // Own connection and no backoff of gRPC's: the callers have theirs. The minimum is also gRPC's
  // connect timeout.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (target.plaintext) {
    return safe_to_drop_anywhere(
        grpc::CreateCustomChannel(target.host_port, grpc::InsecureChannelCredentials(), args));
  }
  if (!options.server_name.empty()) args.SetSslTargetNameOverride(options.server_name);
  grpc::SslCredentialsOptions tls;
  tls.pem_root_certs = root;
  return safe_to_drop_anywhere(
      grpc::CreateCustomChannel(target.host_port, grpc::SslCredentials(tls), args));
}

Result<std::string> root_for(const ChannelOptions& options) {
  if (MELTEMI_TRY(parse_target(options.address)).plaintext) return std::string();
  return read_root(options);
}

}  // namespace

void init_grpc() {
  static const bool once = [] {
    gpr_set_log_function(to_our_log);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    // Never shut down: the end of the last channel would join the thread that waits for a name server
    // which does not answer, and who closes that channel is about to stop or to try again.
    grpc_init();
    return true;
  }();
  static_cast<void>(once);
}

void close_dropped_channels() {
  std::vector<std::shared_ptr<grpc::Channel>> ownerless;  // closed after the lock
  const std::lock_guard lock(graveyard().mutex);
  auto& channels = graveyard().channels;
  const auto last = std::ranges::partition(channels, [](const auto& c) { return c.use_count() > 1; });
  ownerless.assign(std::make_move_iterator(last.begin()), std::make_move_iterator(last.end()));
  channels.erase(last.begin(), last.end());
}

Result<std::shared_ptr<grpc::Channel>> make_channel(const ChannelOptions& options) {
  return open_channel(options, MELTEMI_TRY(root_for(options)));
}

Status add_metadata(const ChannelOptions& options, grpc::ClientContext& context) {
  context.AddMetadata("clusterid", options.cluster_id);
  for (const auto& [name, value] : options.headers) context.AddMetadata(name, value);
  if (options.token_file.empty()) return {};
  auto token = read_token(options.token_file);
  if (!token && token.error().reason == Reason::kNotFound) return {};
  if (!token) return fail(token.error());
  while (!token->empty() && std::isspace(static_cast<unsigned char>(token->back()))) {
    token->pop_back();
  }
  // gRPC aborts the process on header values that HTTP/2 cannot carry.
  const bool clean = std::ranges::all_of(*token, [](char c) { return c > ' ' && c < 127; });
  if (token->empty() || !clean) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("token file {}: {}", options.token_file,
                            token->empty() ? "is empty" : "holds characters that no token has"));
  }
  context.AddMetadata("authorization", "Bearer " + *token);
  return {};
}

Error to_error(const grpc::Status& status, std::string_view address) {
  Error out{Reason::kInternal, Fault::kUpstream, Retry::kNo,
            fmt::format("control plane {}: {} (gRPC status {})", address, status.error_message(),
                        static_cast<int>(status.error_code()))};
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      out.reason = Reason::kConnectRefused;
      out.retry = Retry::kSafe;
      break;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      out.reason = Reason::kConnectTimeout;
      out.retry = Retry::kSafe;
      break;
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      out.reason = Reason::kPermission;
      out.fault = Fault::kConfig;
      break;
    case grpc::StatusCode::INVALID_ARGUMENT: out.reason = Reason::kBadRequest; break;
    case grpc::StatusCode::UNIMPLEMENTED: out.reason = Reason::kUnsupported; break;
    case grpc::StatusCode::RESOURCE_EXHAUSTED: out.reason = Reason::kLimitExceeded; break;
    case grpc::StatusCode::CANCELLED: out.reason = Reason::kCancelled; break;
    default: break;
  }
  return out;
}

grpc::Status to_grpc(const Error& error) {
  switch (error.reason) {
    case Reason::kPermission: return {grpc::StatusCode::PERMISSION_DENIED, error.detail};
    case Reason::kBadRequest: return {grpc::StatusCode::INVALID_ARGUMENT, error.detail};
    case Reason::kNotFound: return {grpc::StatusCode::NOT_FOUND, error.detail};
    case Reason::kUnsupported: return {grpc::StatusCode::UNIMPLEMENTED, error.detail};
    case Reason::kLimitExceeded: return {grpc::StatusCode::RESOURCE_EXHAUSTED, error.detail};
    case Reason::kShutdown: return {grpc::StatusCode::UNAVAILABLE, error.detail};
    default: return {grpc::StatusCode::INTERNAL, "internal error"};
  }
}

Result<std::shared_ptr<grpc::Channel>> ChannelCache::get() {
  init_grpc();
  const std::lock_guard lock(mutex_);
  std::string root = MELTEMI_TRY(root_for(options_));
  if (channel_ == nullptr || root != root_) {
    channel_ = MELTEMI_TRY(open_channel(options_, root));
    root_ = std::move(root);
  }
  return channel_;
}

void ChannelCache::drop() {
  const std::lock_guard lock(mutex_);
  channel_ = nullptr;
}

}  // namespace meltemi::xds
