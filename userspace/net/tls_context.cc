// Builds the two SSL_CTX of a context: TLS 1.3 only, AES-GCM, X25519 and P-256, no tickets, peer
// certificate mandatory on both sides.
#include "userspace/net/tls_context.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <cstring>

#include "userspace/net/tls_handshake.h"
#include "userspace/pki/svid.h"

namespace meltemi::net {
namespace {

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using BioPtr = std::unique_ptr<BIO, Freer<BIO_free_all>>;
using X509Ptr = std::unique_ptr<X509, Freer<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY_free>>;

constexpr char kCiphers[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
constexpr char kGroups[] = "X25519:P-256";
constexpr unsigned char kAlpn[] = {2, 'h', '2'};

std::unexpected<Error> bad(std::string detail) {
  char text[256] = "";
  if (const unsigned long e = ERR_get_error()) ERR_error_string_n(e, text, sizeof text);
  ERR_clear_error();
  if (*text) detail += std::string(": ") + text;
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

Result<std::vector<X509Ptr>> read_certificates(const std::string& pem, const char* what) {
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  std::vector<X509Ptr> out;
  while (X509* cert = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr))
    out.emplace_back(cert);
  const unsigned long e = ERR_peek_last_error();
  const bool at_end = ERR_GET_LIB(e) == ERR_LIB_PEM && ERR_GET_REASON(e) == PEM_R_NO_START_LINE;
  if (out.empty() || !at_end) return bad(std::string(what) + ": not a PEM certificate");
  ERR_clear_error();
  return out;
}

Result<KeyPtr> read_key(const std::string& pem) {
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  // An encrypted key must not make us ask on a terminal.
  KeyPtr key(PEM_read_bio_PrivateKey(
      bio.get(), nullptr, [](char*, int, int, void*) { return 0; }, nullptr));
  if (!key) return bad("private key: not an unencrypted PEM key");
  return key;
}

int select_alpn(SSL*, const unsigned char** out, unsigned char* out_length,
                const unsigned char* in, unsigned int in_length, void*) {
  unsigned char* chosen = nullptr;
  const int rc = SSL_select_next_proto(&chosen, out_length, kAlpn, sizeof kAlpn, in, in_length);
  *out = chosen;
  return rc == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

Status configure(SSL_CTX* ctx, bool server, const std::vector<X509*>& chain, EVP_PKEY* key,
                 const std::vector<X509*>& roots) {
  SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
  SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION);
  SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE |
                               SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(ctx, 0);
  if (!SSL_CTX_set_ciphersuites(ctx, kCiphers) || !SSL_CTX_set1_groups_list(ctx, kGroups))
    return bad("TLS ciphers or groups");
  if (server) {
    SSL_CTX_set_alpn_select_cb(ctx, select_alpn, nullptr);
  } else {
    SSL_CTX_set_alpn_protos(ctx, kAlpn, sizeof kAlpn);
  }
  if (SSL_CTX_use_certificate(ctx, chain[0]) != 1) return bad("certificate chain: leaf");
  for (size_t i = 1; i < chain.size(); ++i)
    if (SSL_CTX_add1_chain_cert(ctx, chain[i]) != 1) return bad("certificate chain");
  if (SSL_CTX_use_PrivateKey(ctx, key) != 1 || SSL_CTX_check_private_key(ctx) != 1)
    return bad("private key does not belong to the leaf certificate");
  X509_STORE* store = SSL_CTX_get_cert_store(ctx);
  for (X509* root : roots) {
    if (X509_STORE_add_cert(store, root) != 1) return bad("roots");
    // A server names no acceptable CAs: clients of the mesh have one certificate anyway.
  }
  TlsHandshake::prepare(ctx);
  return {};
}

}  // namespace

RootPrint print_of(const X509* cert) {
  RootPrint out{};
  X509_digest(cert, EVP_sha256(), out.data(), nullptr);
  return out;
}

bool TlsContext::trusts(const RootPrint& root) const {
  return std::ranges::find(roots_, root) != roots_.end();
}

Result<std::shared_ptr<const TlsContext>> TlsContext::build(const std::vector<X509*>& chain,
                                                            EVP_PKEY* key,
                                                            const std::vector<X509*>& roots) {
  std::shared_ptr<TlsContext> out(new TlsContext());
  auto identity = pki::svid_identity(chain[0], pki::SvidRole::kBoth);
  if (!identity) return bad("certificate chain: " + identity.error().detail);
  out->identity_ = *identity;
  out->not_before_ = pki::not_before_of(chain[0]);
  out->not_after_ = out->chain_end_ = pki::not_after_of(chain[0]);
  for (const X509* cert : chain) {
    out->chain_end_ = std::min(out->chain_end_, pki::not_after_of(cert));
  }
  for (const X509* root : roots) out->roots_.push_back(print_of(root));
  out->client_ = SSL_CTX_new(TLS_client_method());
  out->server_ = SSL_CTX_new(TLS_server_method());
  if (!out->client_ || !out->server_) return bad("SSL_CTX_new");
  MELTEMI_TRY(configure(out->client_, false, chain, key, roots));
  MELTEMI_TRY(configure(out->server_, true, chain, key, roots));
  return out;
}

Result<std::shared_ptr<const TlsContext>> TlsContext::create(const Material& material) {
  const auto chain = MELTEMI_TRY(read_certificates(material.cert_chain_pem, "certificate chain"));
  const auto roots = MELTEMI_TRY(read_certificates(material.roots_pem, "roots"));
  const auto key = MELTEMI_TRY(read_key(material.private_key_pem));
  const auto borrow = [](const std::vector<X509Ptr>& owners) {
    std::vector<X509*> out;
    for (const X509Ptr& owner : owners) out.push_back(owner.get());
    return out;
  };
  return build(borrow(chain), key.get(), borrow(roots));
}

Result<std::shared_ptr<const TlsContext>> TlsContext::create(
    const pki::WorkloadCertificate& certificate) {
  const auto borrow = [](const std::vector<pki::Certificate>& certs) {
    std::vector<X509*> out;
    for (const pki::Certificate& cert : certs) out.push_back(cert.native());
    return out;
  };
  return build(borrow(certificate.chain), certificate.key.native(), borrow(certificate.roots));
}

TlsContext::~TlsContext() {
  SSL_CTX_free(client_);
  SSL_CTX_free(server_);
}

}  // namespace meltemi::net
