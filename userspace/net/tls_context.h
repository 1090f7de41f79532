// Credentials and trust of one side of mutual TLS 1.3 as the mesh speaks it: certificate chain, key,
// roots, and the rule for the peer's SPIFFE ID. Immutable: rotation makes a new context, tunnels
// that exist keep theirs. Must never accept a peer without a certificate, nor log key material.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/clock.h"
#include "userspace/base/error.h"
#include "userspace/model/identity.h"
#include "userspace/net/credential.h"
#include "userspace/pki/certificate.h"

struct evp_pkey_st;
struct ssl_ctx_st;
struct x509_st;

namespace meltemi::net {

class TlsContext {
 public:
  struct Material {
    std::string cert_chain_pem;   // leaf first, then intermediates
    std::string private_key_pem;  // PKCS#8 or EC, unencrypted
    std::string roots_pem;        // one or more trust anchors
  };
  // Errors: kBadConfig naming the part (chain, key, roots, key does not match, no
  // SVID by pki/svid.h).
  static Result<std::shared_ptr<const TlsContext>> create(const Material& material);
  // The same of what a CA gave; the key is shared, never written out.
  static Result<std::shared_ptr<const TlsContext>> create(const pki::WorkloadCertificate& certificate);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // SPIFFE ID of the own leaf; its trust domain is the only one from which clients are accepted.
  const model::Identity& identity() const { return identity_; }
  WallTime not_before() const { return not_before_; }
  WallTime not_after() const { return not_after_; }
  // The first notAfter of the own chain.
  WallTime chain_end() const { return chain_end_; }
  bool trusts(const RootPrint& root) const;

  // For the handshake in this folder only.
  ssl_ctx_st* client() const { return client_; }
  ssl_ctx_st* server() const { return server_; }

 private:
  TlsContext() = default;
  static Result<std::shared_ptr<const TlsContext>> build(const std::vector<x509_st*>& chain,
                                                         evp_pkey_st* key,
                                                         const std::vector<x509_st*>& roots);
  ssl_ctx_st* client_ = nullptr;
  ssl_ctx_st* server_ = nullptr;
  model::Identity identity_;
  WallTime not_before_{}, not_after_{}, chain_end_{};
  std::vector<RootPrint> roots_;
};

// Who the peer may be.
struct PeerRule {
  // Client: the peer must present one of these; empty refuses everybody. Server: leave empty, the
  // peer's trust domain must be the context's own.
  std::span<const model::Identity> expected;
};

}  // namespace meltemi::net
