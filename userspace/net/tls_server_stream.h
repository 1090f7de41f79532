// TLS for servers whose clients are not of the mesh: operators, scrapers, an API server that calls
// a webhook. An ordinary server certificate, ALPN, and if roots are given a client certificate of
// theirs; TLS 1.3 only. Tunnels of the mesh have tls_context.h, where both sides show who they are.
// Must never log key material, nor serve a byte before the handshake is done.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/net/stream.h"

struct ssl_ctx_st;
struct ssl_st;

namespace meltemi::net {

// Immutable: a renewed certificate makes a new one, connections that exist keep theirs.
class ServerTls {
 public:
  struct Material {
    std::string_view cert_chain_pem;    // leaf first, then intermediates
    std::string_view private_key_pem;   // unencrypted
    std::string_view client_roots_pem;  // "": clients need no certificate; else they must have one
    // ALPN, the best first; a client that offers others only is refused.
    std::vector<std::string> protocols;
  };
  // Errors: kBadConfig naming the part.
  static Result<std::shared_ptr<const ServerTls>> create(const Material& material);
  ~ServerTls();
  ServerTls(const ServerTls&) = delete;
  ServerTls& operator=(const ServerTls&) = delete;

 private:
  friend class TlsServerStream;
  ServerTls() = default;
  static int select_protocol(ssl_st*, const unsigned char** out, unsigned char* out_length,
                             const unsigned char* in, unsigned int in_length, void* self);
  ssl_ctx_st* ctx_ = nullptr;
  std::string protocols_;  // as ALPN has them on the wire
};

// `inner`: a new connection, of which nothing was read. libssl's state is made at the first byte,
// which `begin` is asked about: false ends the connection (too many handshakes of this source). A
// handshake that fails closes with kTlsHandshake, after the alert; a deadline for it is the owner's
// to keep.
StreamPtr make_tls_server_stream(StreamPtr inner, std::shared_ptr<const ServerTls> tls,
                                 std::function<bool()> begin);

}  // namespace meltemi::net
