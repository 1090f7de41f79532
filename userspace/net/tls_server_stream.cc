// libssl over memory: ciphertext goes in and comes out through two BIOs. Not the record layer of
// codec/tls_record.h, which is for the data path; pages are few and small. See tls_server_stream.h.
#include "userspace/net/tls_server_stream.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <array>

#include "userspace/base/log.h"
#include "userspace/net/tls_handshake.h"

namespace meltemi::net {
namespace {

log::Scope scope("tls");

constexpr char kCiphers[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                            "TLS_CHACHA20_POLY1305_SHA256";
constexpr char kGroups[] = "X25519:P-256:P-384";
constexpr size_t kPiece = 16 * 1024;  // a record's plaintext at most
// Ciphertext handed to libssl at once, so that what it holds of a peer is bounded.
constexpr size_t kFeed = 32 * 1024;

std::string library_error() {
  char text[256] = "";
  if (const unsigned long e = ERR_get_error()) ERR_error_string_n(e, text, sizeof text);
  ERR_clear_error();
  return text;
}

std::unexpected<Error> bad(std::string detail) {
  if (std::string why = library_error(); !why.empty()) detail += ": " + why;
  return fail(Reason::kBadConfig, Fault::kConfig, std::move(detail));
}

struct FreeBio {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
};
struct FreeX509 {
  void operator()(X509* cert) const { X509_free(cert); }
};
struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};

std::unique_ptr<BIO, FreeBio> reader(std::string_view pem) {
  return std::unique_ptr<BIO, FreeBio>(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// Calls `take` with every certificate; false from it is an error too.
template <typename Take>
Status each_certificate(std::string_view pem, std::string_view what, Take&& take) {
  const auto bio = reader(pem);
  size_t count = 0;
  while (X509* read = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) {
    const std::unique_ptr<X509, FreeX509> cert(read);
    if (!take(cert.get(), count++)) return bad(std::string(what));
  }
  const unsigned long e = ERR_peek_last_error();
  const bool at_end = ERR_GET_LIB(e) == ERR_LIB_PEM && ERR_GET_REASON(e) == PEM_R_NO_START_LINE;
  if (count == 0 || !at_end) return bad(std::string(what) + ": not a PEM certificate");
  ERR_clear_error();
  return {};
}

}  // namespace

int ServerTls::select_protocol(SSL*, const unsigned char** out, unsigned char* out_length,
                               const unsigned char* in, unsigned int in_length, void* self) {
  const std::string& ours = static_cast<ServerTls*>(self)->protocols_;
  unsigned char* chosen = nullptr;
  const int rc = SSL_select_next_proto(&chosen, out_length,
                                       reinterpret_cast<const unsigned char*>(ours.data()),
                                       static_cast<unsigned>(ours.size()), in, in_length);
  *out = chosen;
  return rc == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

Result<std::shared_ptr<const ServerTls>> ServerTls::create(const Material& material) {
  std::shared_ptr<ServerTls> out(new ServerTls());
  SSL_CTX* ctx = out->ctx_ = SSL_CTX_new(TLS_server_method());
  if (!ctx) return bad("SSL_CTX_new");
  SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
  SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE |
                               SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(ctx, 0);
  SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
  if (!SSL_CTX_set_ciphersuites(ctx, kCiphers) || !SSL_CTX_set1_groups_list(ctx, kGroups))
    return bad("TLS ciphers or groups");
  MELTEMI_TRY(each_certificate(material.cert_chain_pem, "certificate chain",
                               [ctx](X509* cert, size_t index) {
                                 return index == 0 ? SSL_CTX_use_certificate(ctx, cert) == 1
                                                   : SSL_CTX_add1_chain_cert(ctx, cert) == 1;
                               }));
  const auto key_bio = reader(material.private_key_pem);
  // An encrypted key must not make us ask on a terminal.
  const std::unique_ptr<EVP_PKEY, FreeKey> key(PEM_read_bio_PrivateKey(
      key_bio.get(), nullptr, [](char*, int, int, void*) { return 0; }, nullptr));
  if (!key) return bad("private key: not an unencrypted PEM key");
  if (SSL_CTX_use_PrivateKey(ctx, key.get()) != 1 || SSL_CTX_check_private_key(ctx) != 1)
    return bad("private key does not belong to the leaf certificate");
  if (!material.client_roots_pem.empty()) {
    X509_STORE* store = SSL_CTX_get_cert_store(ctx);
    MELTEMI_TRY(each_certificate(material.client_roots_pem, "client roots",
                                 [ctx, store](X509* cert, size_t) {
                                   return X509_STORE_add_cert(store, cert) == 1 &&
                                          SSL_CTX_add_client_CA(ctx, cert) == 1;
                                 }));
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  for (const std::string& protocol : material.protocols) {
    out->protocols_ += static_cast<char>(protocol.size());
    out->protocols_ += protocol;
  }
  if (!out->protocols_.empty()) SSL_CTX_set_alpn_select_cb(ctx, select_protocol, out.get());
  return out;
}

ServerTls::~ServerTls() { SSL_CTX_free(ctx_); }

class TlsServerStream final : public ByteStream, private StreamEvents, private rt::TurnHook {
 public:
  TlsServerStream(StreamPtr inner, std::shared_ptr<const ServerTls> tls,
                  std::function<bool()> begin)
      : loop_(inner->loop()),
        inner_(std::move(inner)),
        tls_(std::move(tls)),
        begin_(std::move(begin)) {
    inner_->set_events(this);
    inner_->limit_read(kPiece);
  }
  ~TlsServerStream() override { SSL_free(ssl_); }

  rt::Loop& loop() override { return loop_; }
  bool write(const Slices& data) override;
  size_t write_room() const override { return established_ ? inner_->write_room() : 0; }
  void shutdown_write() override;
  void close() override;
  void abort(Reason reason) override { inner_->abort(reason); }
  void pause_read() override {
    paused_ = true;
    if (established_) inner_->pause_read();
  }
  void resume_read() override;
  void limit_read(size_t) override {}  // a record is small enough
  void detach() override {
    unlink();
    events_ = nullptr;
    inner_.reset();
  }

 private:
  bool start();
  bool feed();
  void read_records();
  void flush();
  void say_goodbye();
  void refuse(std::string detail);

  void on_data(const Slices& data) override;
  void on_read_end() override;
  void on_writable() override;
  void on_closed(const StreamEnd& end) override;
  void on_turn_end() override { read_records(); }

  rt::Loop& loop_;
  StreamPtr inner_;  // null: the owner has let go
  std::shared_ptr<const ServerTls> tls_;
  std::function<bool()> begin_;  // until the first byte
  SSL* ssl_ = nullptr;
  std::string pending_;      // ciphertext that libssl has not been given
  std::string early_;        // plaintext that was written before the handshake was done
  size_t handshake_bytes_ = 0;
  bool established_ = false;
  bool paused_ = true;
  bool inner_ended_ = false;    // no more ciphertext comes
  bool read_ended_ = false;     // and the user was told, or the peer said that it is done
  bool write_ended_ = false;
  bool refused_ = false;
};

bool TlsServerStream::start() {
  const auto begin = std::exchange(begin_, nullptr);
  if (begin && !begin()) return false;  // before libssl's state is made
  ssl_ = SSL_new(tls_->ctx_);
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  if (!ssl_ || !in || !out) std::abort();  // out of memory
  SSL_set_bio(ssl_, in, out);
  SSL_set_accept_state(ssl_);
  return true;
}

void TlsServerStream::on_data(const Slices& data) {
  if (refused_) return;
  if (!ssl_ && !start()) return refuse("too many handshakes");
  for (size_t i = 0; i < data.count; ++i) {
    pending_.append(static_cast<const char*>(data.pieces[i].iov_base), data.pieces[i].iov_len);
  }
  read_records();
}

// Gives libssl what it may hold; false: nothing is left for it.
bool TlsServerStream::feed() {
  if (pending_.empty() || BIO_ctrl_pending(SSL_get_rbio(ssl_)) >= kFeed) return false;
  const size_t size = std::min(pending_.size(), kFeed);
  BIO_write(SSL_get_rbio(ssl_), pending_.data(), static_cast<int>(size));
  pending_.erase(0, size);
  if (!established_) handshake_bytes_ += size;
  return true;
}

void TlsServerStream::read_records() {
  if (!ssl_) {  // it ended before it began
    if (inner_ended_ && !std::exchange(read_ended_, true) && events_) events_->on_read_end();
    return;
  }
  std::array<uint8_t, kPiece> plain;
  while (inner_ && !refused_ && !read_ended_ && !(established_ && paused_)) {
    feed();
    ERR_clear_error();
    const bool was_established = established_;
    const int rc = established_ ? SSL_read(ssl_, plain.data(), static_cast<int>(plain.size()))
                                : SSL_do_handshake(ssl_);
    const int error = rc > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl_, rc);
    flush();
    if (rc > 0 && !was_established) {
      established_ = true;
      if (!early_.empty()) {
        const std::string early = std::exchange(early_, {});
        (void)ByteStream::write(
            ByteView(reinterpret_cast<const uint8_t*>(early.data()), early.size()));
        if (events_) events_->on_writable();
      }
    } else if (rc > 0) {
      bytes_read_ += static_cast<uint64_t>(rc);
      if (events_) events_->on_data(OneSlice({plain.data(), static_cast<size_t>(rc)}));
    } else if (error == SSL_ERROR_ZERO_RETURN) {
      read_ended_ = true;
      if (events_) events_->on_read_end();
    } else if (error != SSL_ERROR_WANT_READ) {
      const long verified = SSL_get_verify_result(ssl_);
      if (verified == X509_V_OK) return refuse(library_error());
      return refuse(std::string("client certificate: ") + X509_verify_cert_error_string(verified));
    } else if (!established_ && handshake_bytes_ > kMaxHandshakeBytes) {
      return refuse("TLS handshake too long");
    } else if (pending_.empty()) {
      break;
    }
  }
  // Cut off without a goodbye: what framing HTTP has tells whether something is missing.
  if (inner_ended_ && pending_.empty() && !refused_ && !(established_ && paused_) &&
      !std::exchange(read_ended_, true) && events_) {
    events_->on_read_end();
  }
}

void TlsServerStream::resume_read() {
  paused_ = false;
  if (!inner_) return;
  inner_->resume_read();
  // Records that came before the pause, or the end behind them.
  if (ssl_ && (!pending_.empty() || inner_ended_ || BIO_ctrl_pending(SSL_get_rbio(ssl_)) > 0 ||
               SSL_has_pending(ssl_))) {
    loop_.at_turn_end(*this);
  }
}

bool TlsServerStream::write(const Slices& data) {
  if (write_ended_ || refused_) return true;
  bytes_written_ += data.bytes;
  for (size_t i = 0; i < data.count; ++i) {
    const auto* piece = static_cast<const char*>(data.pieces[i].iov_base);
    const size_t size = data.pieces[i].iov_len;
    if (!established_) {
      early_.append(piece, size);
    } else if (size > 0) {
      // Into memory: always all of it.
      (void)SSL_write(ssl_, piece, static_cast<int>(size));
    }
  }
  if (!established_) return false;
  char* bytes = nullptr;
  BIO* out = SSL_get_wbio(ssl_);
  const long size = BIO_get_mem_data(out, &bytes);
  if (size <= 0) return true;
  const bool room = inner_->write(
      ByteView(reinterpret_cast<const uint8_t*>(bytes), static_cast<size_t>(size)));
  (void)BIO_reset(out);
  return room;
}

// What libssl wants to say: its half of the handshake, alerts, key updates.
void TlsServerStream::flush() {
  char* bytes = nullptr;
  BIO* out = SSL_get_wbio(ssl_);
  const long size = BIO_get_mem_data(out, &bytes);
  if (size <= 0 || !inner_) return;
  (void)inner_->write(
      ByteView(reinterpret_cast<const uint8_t*>(bytes), static_cast<size_t>(size)));
  (void)BIO_reset(out);
}

void TlsServerStream::say_goodbye() {
  if (std::exchange(write_ended_, true) || !established_) return;
  (void)SSL_shutdown(ssl_);
  ERR_clear_error();
  flush();
}

void TlsServerStream::shutdown_write() {
  say_goodbye();
  inner_->shutdown_write();
}

void TlsServerStream::close() {
  say_goodbye();
  inner_->close();
}

void TlsServerStream::refuse(std::string detail) {
  scope.debug("a client's TLS handshake or record was refused: {}", detail);
  ERR_clear_error();
  refused_ = true;
  pending_.clear();
  inner_->close();  // after the alert that flush() wrote
}

void TlsServerStream::on_read_end() {
  inner_ended_ = true;
  read_records();
}

void TlsServerStream::on_writable() {
  if (established_ && events_) events_->on_writable();
}

void TlsServerStream::on_closed(const StreamEnd& end) {
  if (!events_) return;
  events_->on_closed(refused_ ? StreamEnd{Reason::kTlsHandshake, true, true} : end);
}

StreamPtr make_tls_server_stream(StreamPtr inner, std::shared_ptr<const ServerTls> tls,
                                 std::function<bool()> begin) {
  return StreamPtr(new TlsServerStream(std::move(inner), std::move(tls), std::move(begin)));
}

}  // namespace meltemi::net
