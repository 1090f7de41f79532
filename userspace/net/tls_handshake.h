// One TLS 1.3 handshake by libssl over memory, fed one record at a time so that nothing of the
// application data behind it is swallowed; then the record layer of codec takes over with the
// traffic secrets. Internal to net. Must never be kept after it has finished: it holds libssl's
// buffers.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "userspace/codec/tls_record.h"
#include "userspace/net/tls_context.h"

struct ssl_st;
struct x509_st;
struct x509_store_ctx_st;

namespace meltemi::net {

// Bytes of the peer's that a handshake may take (certificate chains included).
inline constexpr size_t kMaxHandshakeBytes = 128 * 1024;

// SHA-256 over a certificate's DER.
RootPrint print_of(const x509_st* cert);

class TlsHandshake {
 public:
  // `expected` as in PeerRule; copied.
  TlsHandshake(codec::TlsRole role, std::shared_ptr<const TlsContext> context,
               std::vector<model::Identity> expected);
  ~TlsHandshake();
  TlsHandshake(const TlsHandshake&) = delete;
  TlsHandshake& operator=(const TlsHandshake&) = delete;

  // Goes on with what is complete in `in`, which is advanced past what was used, and appends to
  // `out` what must be sent (also on failure: the alert). true: finished, see take(). Start a
  // client with empty `in`. Errors: kCertExpired, kCertNotYetValid, kPeerIdentityMismatch,
  // kPeerRevoked, kTlsHandshake.
  Result<bool> feed(ByteSpan& in, std::string& out);
  // REQUIRES: feed() returned true. Once.
  Result<codec::RecordLayer> take();
  const model::Identity& peer() const { return peer_; }
  // Of both ends, once the peer was accepted.
  const Credential& credential() const { return credential_; }
  const TlsContext& context() const { return *context_; }

  // Installs the callbacks on a context.
  static void prepare(ssl_ctx_st* ctx);

 private:
  static TlsHandshake& of(const ssl_st* ssl);
  static int on_verify(int ok, x509_store_ctx_st* store);
  static void on_keylog(const ssl_st* ssl, const char* line);
  // Whether the verified chain is one of an SVID, and its holder one who is let in. Fills mismatch_.
  bool accept_peer(x509_store_ctx_st* store);
  bool is_expected(const model::Identity& id) const;
  Error failure(int ssl_error);
  void drain(std::string& out);

  codec::TlsRole role_;
  std::shared_ptr<const TlsContext> context_;
  std::vector<model::Identity> expected_;
  ssl_st* ssl_ = nullptr;
  codec::KeylogSecrets secrets_;
  model::Identity peer_;
  Credential credential_;
  std::string mismatch_;  // why accept_peer() refused
  size_t received_ = 0;
};

}  // namespace meltemi::net
