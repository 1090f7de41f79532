// The control plane's gRPC server: delta ADS, the CA service and the node status service on one
// port, callers known by their bearer token. Serves what it is given; decides nothing about
// content, nor about who may do what: hooks do. A resource is encoded once and its bytes are shared
// by all streams; a stream that reads slowly gets the newest state later, never a queue (its
// backlog is one response).
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "meltemi/node/v1/node.pb.h"
#include "userspace/base/address.h"
#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/rt/admission.h"
#include "userspace/xds/channel.h"

namespace meltemi::xds {

inline constexpr size_t kMaxRequestBytes = 32u << 20;  // initial_resource_versions of a big mesh
inline constexpr size_t kTargetResponseBytes = 64u << 20;  // a response is cut here
inline constexpr size_t kMaxStreams = 10'000;
inline constexpr size_t kMaxNamesPerStream = 200'000;  // subscribed or initial names, all types
// A PEM request for a 16384-bit RSA key has about 9 KB; everything else in the message is short.
inline constexpr size_t kMaxCertificateRequestBytes = 32u << 10;
// 10,000 pods with uid, reason and detail of 100 bytes each.
inline constexpr size_t kMaxNodeReportBytes = 4u << 20;

// Who a token belongs to.
struct Caller {
  std::string ns, service_account;
  std::string pod_name, pod_uid, node_name;  // "" if the token says nothing
  // What rests on the token ends with it: a stream that is open then is ended.
  WallTime expires = WallTime::max();
  std::string account_uid = {};  // of the service account's object; "" if the token says nothing
};

struct ResourceUpdate {
  std::string type_url;
  std::string scope;  // "" everyone; else opaque, as scope_of() returns it
  std::string name;
  std::string version;
  std::string body;      // encoded message
  bool removed = false;  // version and body unused
  // Whoever subscribes to one of these names gets it too: what it is also called, and what it is
  // part of (address_names.h).
  std::vector<std::string> aliases = {};
};

struct CertificateCall {
  std::string csr_pem;
  std::chrono::seconds ttl{0};
  std::string impersonate;  // "" or a SPIFFE ID
};

struct Nack {
  std::string node_id, type_url, message;
};

struct ServerHooks {
  // All are called on gRPC threads, concurrently, and must not block on the network.
  std::function<Result<Caller>(std::string_view token)> authenticate;
  // Which scope's resources of `type_url` this caller gets. Error kUnsupported: the type is not for
  // this caller, who hears nothing of it while the stream and its other types live on (as with
  // istiod); any other error ends the stream.
  std::function<Result<std::string>(const Caller&, const Node&, std::string_view type_url)>
      scope_of;
  // PEM chain, root bundle last. Refusals are shown to the caller without detail.
  std::function<Result<std::vector<std::string>>(const Caller&, const CertificateCall&)> sign;
  std::function<Status(const Caller&, const meltemi::node::v1::NodeReport&)> report;
  std::function<void(const Caller&, const Nack&)> nacked;  // may be empty
};

struct ServerOptions {
  std::vector<SocketAddress> tls_listen;  // [::] is both families
  std::vector<SocketAddress> plaintext_listen;  // loopback only, else kBadConfig
  // PEM files, re-read when they change.
  std::string certificate_file, key_file;
  // The process's admission, swept by this server as long as it runs; must outlive it. nullptr: one
  // of its own, with the defaults.
  rt::Admission* door = nullptr;
  // A connection is asked to go after this long, ±10 %, so that clients spread over replicas; its
  // streams may last kAgeGrace longer. Istio's istiod has 30 minutes too.
  Duration max_connection_age = std::chrono::minutes(30);
};

struct StreamInfo {  // for /debug/syncz
  std::string node_id, peer, caller;
  struct Type {
    std::string type_url, scope;
    size_t names = 0;  // explicitly subscribed
    bool wildcard = false;
    uint64_t sent = 0, acked = 0, nacked = 0;  // responses
    bool current = false;                      // everything there is has been sent and acknowledged
    std::string last_nack;
  };
  std::vector<Type> types;
  std::map<std::string, std::string> refused;  // types that are not for it, and why
};

struct ServerStats {
  size_t streams = 0;
  uint64_t streams_opened = 0, refused = 0, responses = 0, response_bytes = 0, resources = 0,
           nacks = 0, certificates = 0, certificates_refused = 0, reports = 0;
  uint64_t ended_expired = 0;  // streams that were ended with their token
  uint64_t ended_unwelcome = 0;  // with the pod, service account or right that they rested on
  uint64_t accept_errors = 0;  // EMFILE and the like
  uint64_t overdrawn = 0;      // connections ended for bytes that no call has taken
};

class Server {
 public:
  explicit Server(ServerHooks hooks);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  Status start(const ServerOptions& options);  // Error kSystem: port in use, named
  std::vector<uint16_t> ports() const;         // in the order of options, TLS first
  void stop(std::chrono::milliseconds grace);  // idempotent

  // One batch: what it says becomes visible to every stream at once. Thread safe.
  void update(std::vector<ResourceUpdate> batch);
  // Until this is called streams are accepted but nothing is sent: a server that has not read its
  // configuration must not say that the mesh is empty.
  void set_ready();
  // Ends the streams that are not `welcome` any more, with the error as their status; whose rights are
  // others now comes back with what he may see.
  void disconnect(const std::function<Status(const Caller&, const Node&)>& welcome);
  // Ends the streams whose caller's token is past its end. The server does it by itself some times a
  // second; tests ask with a clock of their own.
  void end_expired(WallTime now);

  // "" while all ports answer what this process asks of them through the network, else what does not.
  std::string trouble(MonoTime now) const;
  std::vector<StreamInfo> streams() const;
  ServerStats stats() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace meltemi::xds
