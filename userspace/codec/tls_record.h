// The TLS 1.3 record layer (RFC 8446 section 5) that takes over a connection once libssl has
// finished its handshake: seals and opens application data, follows and makes key updates, reads
// alerts.
//
// Sans-io: bytes in, bytes out. It must never negotiate, verify a certificate, hold a record's
// bytes beyond a call, or print a secret. Not thread-safe; one object a connection.
//
// How to take over from libssl (net does this):
//   1. Hand libssl exactly one record at a time: cut the received bytes with record_extent(), so
//   that
//      it never reads past the handshake. A server sets SSL_CTX_set_num_tickets(ctx, 0).
//   2. Collect the secrets in the keylog callback: KeylogSecrets::take(line).
//   3. When SSL_do_handshake() returned 1 and its output is sent: RecordLayer::create(). Everything
//      received and not yet handed to libssl belongs to the RecordLayer; both directions start at
//      record number 0 with the application traffic secrets number 0.
//
// Sending, one pass, no staging copy of large pieces:
//   size_t need = layer.sealed_size(plaintext);        // control records that are due included
//   layer.begin(ByteSpan(slot, need), plaintext);
//   layer.append(frame_header); layer.append(payload);  // any number of pieces, `plaintext` in
//   total size_t written = layer.finish();
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"

namespace meltemi::codec {

// RFC 8446 B.4. The values are the cipher suites' numbers on the wire (SSL_CIPHER_get_protocol_id).
enum class TlsCipher : uint16_t {
  kAes128Gcm = 0x1301,
  kAes256Gcm = 0x1302,
  kChaCha20Poly1305 = 0x1303,
};

enum class TlsRole : uint8_t { kClient, kServer };

inline constexpr size_t kTlsHeaderSize = 5;
inline constexpr size_t kTlsTagSize = 16;
// Header, inner content type and tag: what one record adds to its plaintext.
inline constexpr size_t kTlsOverhead = kTlsHeaderSize + 1 + kTlsTagSize;
inline constexpr size_t kTlsMaxPlaintext = 16384;
// The largest record on the wire that a peer may send, header included (section 5.2).
inline constexpr size_t kTlsMaxRecord = kTlsHeaderSize + kTlsMaxPlaintext + 256;

// Limits of what a peer may make us do. Hitting one ends the connection with an alert.
inline constexpr uint32_t kTlsMaxEmptyRecords = 32;   // consecutive records without content
inline constexpr uint32_t kTlsMaxKeyUpdates = 32;     // consecutive KeyUpdates without data
inline constexpr uint32_t kTlsMaxTickets = 16;        // NewSessionTickets in a connection's life
inline constexpr uint32_t kTlsMaxTicketSize = 65536;  // bytes of one NewSessionTicket
// Records under one key before this side updates its own (AES-GCM: section 5.5 allows 2^24.5).
inline constexpr uint64_t kTlsRecordsPerKey = uint64_t{1} << 24;

// How many bytes must be there before the first record of `in` can be used: 5 while its header is
// incomplete, else the record's whole length. The record is complete when the result is
// <= in.size(). Fails (kTlsRecord, fault of the peer) on a content type that TLS 1.3 does not know,
// a version that is not 3.x, or a length above kTlsMaxRecord.
Result<size_t> record_extent(ByteView in);

// A secret of at most 48 bytes. Wiped when it dies; never printed.
class TlsSecret {
 public:
  TlsSecret() = default;
  explicit TlsSecret(ByteView bytes);  // REQUIRES: bytes.size() <= 48
  TlsSecret(const TlsSecret&) = delete;
  TlsSecret& operator=(const TlsSecret&) = delete;
  TlsSecret(TlsSecret&& other) noexcept;
  TlsSecret& operator=(TlsSecret&& other) noexcept;
  ~TlsSecret();

  bool empty() const { return size_ == 0; }
  ByteView bytes() const { return {bytes_.data(), size_}; }
  void wipe();

 private:
  std::array<uint8_t, 48> bytes_{};
  uint8_t size_ = 0;
};

// Gathers the two application traffic secrets from the lines of SSL_CTX_set_keylog_callback
// ("CLIENT_TRAFFIC_SECRET_0 <random> <secret>"). Other lines are ignored.
class KeylogSecrets {
 public:
  void take(std::string_view line);
  bool complete() const { return !client_.empty() && !server_.empty(); }
  const TlsSecret& client() const { return client_; }
  const TlsSecret& server() const { return server_; }
  void wipe();

 private:
  TlsSecret client_;
  TlsSecret server_;
};

// "certificate_expired" for 45 and so on (section 6); "unknown" for others. Static storage.
std::string_view alert_name(uint8_t description);
inline constexpr uint8_t kAlertCloseNotify = 0;
inline constexpr uint8_t kAlertUnexpectedMessage = 10;
inline constexpr uint8_t kAlertBadRecordMac = 20;
inline constexpr uint8_t kAlertRecordOverflow = 22;
inline constexpr uint8_t kAlertDecodeError = 50;
inline constexpr uint8_t kAlertInternalError = 80;
inline constexpr uint8_t kAlertUserCanceled = 90;

// Which code does the AEAD: OpenSSL, or libipsec-mb with one set of CPU instructions. Every choice
// gives the same bytes. Programs use kAuto, the best of aead_backends(); tests name each.
enum class AeadBackend : uint8_t {
  kAuto,
  kOpenssl,
  kSse,         // AES-NI and PCLMULQDQ
  kAvx,
  kAvx2,
  kAvx512,      // without VAES, as on the first CPUs with AVX-512
  kAvx512Vaes,
};
// What this CPU can run, best first; kOpenssl is always the last. Found out once by CPUID.
std::span<const AeadBackend> aead_backends();
// "ipsec-mb avx512-vaes", "openssl"; for kAuto the name of what it stands for. Static storage.
std::string_view aead_backend_name(AeadBackend backend = AeadBackend::kAuto);

class RecordLayer {
 public:
  struct Options {
    AeadBackend backend = AeadBackend::kAuto;
    uint64_t records_per_key = kTlsRecordsPerKey;  // >= 1; tests lower it
  };

  // `client_secret` and `server_secret` are the application traffic secrets number 0 (32 bytes, 48
  // for kAes256Gcm); copied. Fails (kInternal) when a length does not fit the cipher, and
  // (kUnsupported) when the backend asked for is not available.
  static Result<RecordLayer> create(TlsRole role, TlsCipher cipher, ByteView client_secret,
                                    ByteView server_secret, Options options);
  static Result<RecordLayer> create(TlsRole role, TlsCipher cipher, ByteView client_secret,
                                    ByteView server_secret) {
    return create(role, cipher, client_secret, server_secret, Options());
  }
  RecordLayer(RecordLayer&&) noexcept;
  RecordLayer& operator=(RecordLayer&&) noexcept;
  ~RecordLayer();

  // --- receiving ---
  enum class Opened : uint8_t {
    kData,     // `data` is application data, at least one byte
    kControl,  // nothing for the caller: key update, ticket, empty record; maybe wants_write()
    kClosed,   // the peer's close_notify: no more data will come. Sending is still possible.
  };
  struct Record {
    Opened kind = Opened::kControl;
    ByteSpan data;  // kData only: points into the argument of open()
  };
  // Opens exactly one complete record, in place. On failure the connection is dead: the fatal alert
  // to send is queued (wants_write()), every later call fails as well.
  // Errors: kTlsRecord for malformed or forged records; kTlsHandshake when the peer's fatal alert
  // comes before any data (it refused our certificate: the alert's name is in the detail);
  // kConnectReset for a later fatal alert.
  Result<Record> open(ByteSpan record);
  bool read_closed() const;  // close_notify seen

  // --- sending ---
  // Bytes that begin(.., plaintext) .. finish() will write: records that are due (alerts, key
  // updates) plus `plaintext` bytes in records of up to 16384. Changes when open(), close() or
  // finish() ran, so ask right before begin().
  size_t sealed_size(size_t plaintext) const;
  // The most plaintext whose sealed_size() is <= `room`.
  size_t plaintext_room(size_t room) const;
  // Starts writing into `out`, which must not overlap any piece and must stay put until finish().
  // REQUIRES: out.size() >= sealed_size(plaintext); no begin() pending; !write_closed() unless
  // plaintext is 0.
  void begin(ByteSpan out, size_t plaintext);
  // The next bytes of the plaintext. REQUIRES: all pieces together are exactly `plaintext` bytes.
  void append(ByteView piece);
  // Returns the bytes written, which is what sealed_size() said.
  size_t finish();
  // begin, append each, finish. Returns the bytes written.
  size_t seal(ByteSpan out, std::span<const ByteView> pieces);

  // Records of our own are due (alert, key update, close_notify): seal(out, {}) writes them, and so
  // does the next sealing of data.
  bool wants_write() const;
  // Queues close_notify: nothing can be sealed after it. Idempotent.
  void close();
  bool write_closed() const;  // close() was called or the connection failed
  // Queues a KeyUpdate of our sending key; with `request_peer` the peer must update its own too.
  void update_keys(bool request_peer);

  // Numbers for tests and metrics.
  uint32_t key_updates_sent() const;
  uint32_t key_updates_received() const;

 private:
  struct State;
  explicit RecordLayer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace meltemi::codec
