// See tls_handshake.h.
#include "userspace/net/tls_handshake.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "userspace/pki/svid.h"

namespace meltemi::net {
namespace {

int ssl_index() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
  return index;
}

Reason reason_of_verify(long code) {
  switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return Reason::kCertExpired;
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return Reason::kCertNotYetValid;
    case X509_V_ERR_CERT_REVOKED:
      return Reason::kPeerRevoked;
    case X509_V_ERR_APPLICATION_VERIFICATION:
      return Reason::kPeerIdentityMismatch;
    default:
      return Reason::kTlsHandshake;
  }
}

}  // namespace

void TlsHandshake::prepare(ssl_ctx_st* ctx) {
  SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
  SSL_CTX_set_keylog_callback(ctx, on_keylog);
}

TlsHandshake::TlsHandshake(codec::TlsRole role, std::shared_ptr<const TlsContext> context,
                           std::vector<model::Identity> expected)
    : role_(role), context_(std::move(context)), expected_(std::move(expected)) {
  const bool client = role == codec::TlsRole::kClient;
  ssl_ = SSL_new(client ? context_->client() : context_->server());
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  if (!ssl_ || !in || !out) std::abort();  // out of memory
  SSL_set_bio(ssl_, in, out);
  SSL_set_ex_data(ssl_, ssl_index(), this);
  client ? SSL_set_connect_state(ssl_) : SSL_set_accept_state(ssl_);
}

TlsHandshake::~TlsHandshake() { SSL_free(ssl_); }

TlsHandshake& TlsHandshake::of(const ssl_st* ssl) {
  return *static_cast<TlsHandshake*>(SSL_get_ex_data(ssl, ssl_index()));
}

void TlsHandshake::on_keylog(const ssl_st* ssl, const char* line) { of(ssl).secrets_.take(line); }

int TlsHandshake::on_verify(int ok, x509_store_ctx_st* store) {
  if (!ok || X509_STORE_CTX_get_error_depth(store) != 0) return ok;
  auto* ssl = static_cast<SSL*>(
      X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  if (of(ssl).accept_peer(store)) return 1;
  X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
  return 0;
}

bool TlsHandshake::is_expected(const model::Identity& id) const {
  if (role_ == codec::TlsRole::kServer) {
    return id.trust_domain() == context_->identity().trust_domain();
  }
  return std::ranges::find(expected_, id) != expected_.end();
}

bool TlsHandshake::accept_peer(x509_store_ctx_st* store) {
  const bool server = role_ == codec::TlsRole::kServer;
  const STACK_OF(X509)* chain = X509_STORE_CTX_get0_chain(store);
  auto id = pki::svid_identity(sk_X509_value(chain, 0),
                               server ? pki::SvidRole::kClient : pki::SvidRole::kServer);
  Status fit = id ? Status() : Status(fail(id.error()));
  for (int i = 1; fit && i + 1 < sk_X509_num(chain); ++i) {
    fit = pki::check_svid_signer(sk_X509_value(chain, i));
  }
  if (!fit) {
    mismatch_ = "the peer's " + fit.error().detail;
    return false;
  }
  if (is_expected(*id)) {
    peer_ = *id;
    credential_.end = context_->chain_end();
    for (int i = 0; i < sk_X509_num(chain); ++i) {
      credential_.end = std::min(credential_.end, pki::not_after_of(sk_X509_value(chain, i)));
    }
    credential_.root = print_of(sk_X509_value(chain, sk_X509_num(chain) - 1));
    return true;
  }
  mismatch_ = "the peer is " + std::string(id->uri());
  if (server) {
    mismatch_ += ", the trust domain here is ";
    mismatch_ += context_->identity().trust_domain();
    return false;
  }
  mismatch_ += ", expected ";
  for (size_t i = 0; i < expected_.size(); ++i)
    mismatch_ += (i ? " or " : "") + std::string(expected_[i].uri());
  return false;
}

void TlsHandshake::drain(std::string& out) {
  BIO* bio = SSL_get_wbio(ssl_);
  const size_t n = BIO_ctrl_pending(bio);
  if (n == 0) return;
  const size_t at = out.size();
  out.resize(at + n);
  const int got = BIO_read(bio, out.data() + at, static_cast<int>(n));
  out.resize(at + static_cast<size_t>(std::max(got, 0)));
}

Error TlsHandshake::failure(int ssl_error) {
  const Fault peer = role_ == codec::TlsRole::kClient ? Fault::kUpstream : Fault::kDownstream;
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const long verify = SSL_get_verify_result(ssl_);
  if (ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED && verify != X509_V_OK) {
    const Reason reason = reason_of_verify(verify);
    std::string detail = reason == Reason::kPeerIdentityMismatch
                             ? mismatch_
                             : std::string("peer certificate: ") +
                                   X509_verify_cert_error_string(verify);
    return {reason, peer, Retry::kNo, std::move(detail)};
  }
  const char* text = code ? ERR_reason_error_string(code) : nullptr;
  return {Reason::kTlsHandshake, peer, Retry::kNo,
          text ? text : "libssl error " + std::to_string(ssl_error)};
}

Result<bool> TlsHandshake::feed(ByteSpan& in, std::string& out) {
  for (bool first = true;; first = false) {
    if (!in.empty() || !first || role_ == codec::TlsRole::kServer) {
      const size_t extent = MELTEMI_TRY(codec::record_extent(in));
      if (extent > in.size()) return false;
      received_ += extent;
      if (received_ > kMaxHandshakeBytes)
        return fail(Reason::kLimitExceeded, Fault::kDownstream, "TLS handshake too long");
      BIO_write(SSL_get_rbio(ssl_), in.data(), static_cast<int>(extent));
      in = in.subspan(extent);
    }
    ERR_clear_error();
    const int rc = SSL_do_handshake(ssl_);
    drain(out);
    if (rc == 1) return true;
    const int error = SSL_get_error(ssl_, rc);
    if (error != SSL_ERROR_WANT_READ) return fail(failure(error));
  }
}

Result<codec::RecordLayer> TlsHandshake::take() {
  const auto cipher =
      static_cast<codec::TlsCipher>(SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(ssl_)));
  if (!secrets_.complete())
    return fail(Reason::kInternal, Fault::kInternal, "libssl gave no traffic secrets");
  auto layer = codec::RecordLayer::create(role_, cipher, secrets_.client().bytes(),
                                          secrets_.server().bytes());
  secrets_.wipe();
  return layer;
}

}  // namespace meltemi::net
