#include "userspace/codec/tls_record.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include <algorithm>
#include <cassert>

#include "userspace/codec/aead.h"

namespace meltemi::codec {
namespace {

// Content types (RFC 8446 B.1) and the post-handshake messages that may come (B.3).
constexpr uint8_t kChangeCipherSpec = 20;
constexpr uint8_t kAlert = 21;
constexpr uint8_t kHandshake = 22;
constexpr uint8_t kApplicationData = 23;
constexpr uint8_t kNewSessionTicket = 4;
constexpr uint8_t kKeyUpdate = 24;

// Pieces below this are copied next to their neighbours and encrypted in place with them: a call
// into the AEAD costs more than copying them.
constexpr size_t kDirectPiece = 1024;

constexpr size_t kAlertRecord = kTlsOverhead + 2;
constexpr size_t kKeyUpdateRecord = kTlsOverhead + 5;

std::unexpected<Error> record_error(std::string detail) {
  return fail(Reason::kTlsRecord, Fault::kDownstream, std::move(detail));
}

// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
bool expand_label(TlsCipher cipher, ByteView secret, const char* label, ByteSpan out) {
  static EVP_KDF* const kdf = EVP_KDF_fetch(nullptr, "TLS13-KDF", nullptr);
  if (kdf == nullptr) return false;
  EVP_KDF_CTX* ctx = EVP_KDF_CTX_new(kdf);
  if (ctx == nullptr) return false;
  int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
  char prefix[] = "tls13 ";
  char digest[] = "SHA256";
  if (cipher == TlsCipher::kAes256Gcm) std::memcpy(digest, "SHA384", sizeof digest);
  OSSL_PARAM params[] = {
      OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, const_cast<uint8_t*>(secret.data()),
                                        secret.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PREFIX, prefix, sizeof prefix - 1),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_LABEL, const_cast<char*>(label),
                                        std::strlen(label)),
      OSSL_PARAM_construct_end()};
  const bool ok = EVP_KDF_derive(ctx, out.data(), out.size(), params) == 1;
  EVP_KDF_CTX_free(ctx);
  return ok;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

TlsSecret secret_from_hex(std::string_view hex) {
  uint8_t bytes[48];
  if (hex.size() % 2 != 0 || hex.size() > 2 * sizeof bytes) return {};
  for (size_t i = 0; i < hex.size(); i += 2) {
    const int hi = hex_digit(hex[i]), lo = hex_digit(hex[i + 1]);
    if (hi < 0 || lo < 0) return {};
    bytes[i / 2] = static_cast<uint8_t>(hi << 4 | lo);
  }
  TlsSecret secret(ByteView(bytes, hex.size() / 2));
  OPENSSL_cleanse(bytes, sizeof bytes);
  return secret;
}

// One direction: its secret, the key made of it and the number of the next record.
struct Direction {
  TlsSecret secret;
  std::unique_ptr<AeadKey> key;
  std::array<uint8_t, AeadKey::kNonce> iv{};
  uint64_t sequence = 0;

  ~Direction() { OPENSSL_cleanse(iv.data(), iv.size()); }

  Status install(TlsCipher cipher, AeadBackend backend) {
    alignas(16) uint8_t bytes[32];
    const size_t size = cipher == TlsCipher::kAes128Gcm ? 16 : 32;
    if (!expand_label(cipher, secret.bytes(), "key", {bytes, size}) ||
        !expand_label(cipher, secret.bytes(), "iv", iv))
      return fail(Reason::kInternal, Fault::kInternal, "TLS13-KDF failed");
    auto made = AeadKey::create(cipher, {bytes, size}, backend);
    OPENSSL_cleanse(bytes, sizeof bytes);
    if (!made) return fail(std::move(made).error());
    key = std::move(*made);
    sequence = 0;
    return {};
  }

  // RFC 8446 section 7.2.
  Status next_generation(TlsCipher cipher, AeadBackend backend) {
    uint8_t bytes[48];
    const size_t size = secret.bytes().size();
    const bool ok = expand_label(cipher, secret.bytes(), "traffic upd", {bytes, size});
    if (ok) secret = TlsSecret(ByteView(bytes, size));
    OPENSSL_cleanse(bytes, sizeof bytes);
    if (!ok) return fail(Reason::kInternal, Fault::kInternal, "TLS13-KDF failed");
    return install(cipher, backend);
  }

  void nonce(uint8_t out[AeadKey::kNonce]) const {
    std::memcpy(out, iv.data(), 4);
    uint64_t low;
    std::memcpy(&low, iv.data() + 4, 8);
    low ^= std::byteswap(sequence);  // the number in network order, xored into the last 8 bytes
    std::memcpy(out + 4, &low, 8);
  }
};

}  // namespace

Result<size_t> record_extent(ByteView in) {
  if (!in.empty() && (in[0] < kChangeCipherSpec || in[0] > kApplicationData))
    return record_error("not a TLS record");
  if (in.size() >= 2 && in[1] != 3) return record_error("TLS record of an unknown version");
  if (in.size() < kTlsHeaderSize) return kTlsHeaderSize;
  const size_t total = kTlsHeaderSize + load_be<uint16_t>(in.data() + 3);
  if (total > kTlsMaxRecord) return record_error("TLS record above 2^14 + 256 bytes");
  return total;
}

TlsSecret::TlsSecret(ByteView bytes) : size_(static_cast<uint8_t>(bytes.size())) {
  assert(bytes.size() <= bytes_.size());
  std::memcpy(bytes_.data(), bytes.data(), bytes.size());
}
TlsSecret::TlsSecret(TlsSecret&& other) noexcept : bytes_(other.bytes_), size_(other.size_) {
  other.wipe();
}
TlsSecret& TlsSecret::operator=(TlsSecret&& other) noexcept {
  if (this != &other) {
    bytes_ = other.bytes_;
    size_ = other.size_;
    other.wipe();
  }
  return *this;
}
TlsSecret::~TlsSecret() {
  wipe();
}
void TlsSecret::wipe() {
  OPENSSL_cleanse(bytes_.data(), bytes_.size());
  size_ = 0;
}

void KeylogSecrets::take(std::string_view line) {
  constexpr std::string_view kClient = "CLIENT_TRAFFIC_SECRET_0 ";
  constexpr std::string_view kServer = "SERVER_TRAFFIC_SECRET_0 ";
  TlsSecret* secret = line.starts_with(kClient)   ? &client_
                      : line.starts_with(kServer) ? &server_
                                                  : nullptr;
  if (secret == nullptr) return;
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
  *secret = secret_from_hex(line.substr(line.rfind(' ') + 1));
}
void KeylogSecrets::wipe() {
  client_.wipe();
  server_.wipe();
}

std::string_view alert_name(uint8_t description) {
  switch (description) {
    case 0:
      return "close_notify";
    case 10:
      return "unexpected_message";
    case 20:
      return "bad_record_mac";
    case 22:
      return "record_overflow";
    case 40:
      return "handshake_failure";
    case 42:
      return "bad_certificate";
    case 43:
      return "unsupported_certificate";
    case 44:
      return "certificate_revoked";
    case 45:
      return "certificate_expired";
    case 46:
      return "certificate_unknown";
    case 47:
      return "illegal_parameter";
    case 48:
      return "unknown_ca";
    case 49:
      return "access_denied";
    case 50:
      return "decode_error";
    case 51:
      return "decrypt_error";
    case 70:
      return "protocol_version";
    case 71:
      return "insufficient_security";
    case 80:
      return "internal_error";
    case 86:
      return "inappropriate_fallback";
    case 90:
      return "user_canceled";
    case 109:
      return "missing_extension";
    case 110:
      return "unsupported_extension";
    case 112:
      return "unrecognized_name";
    case 113:
      return "bad_certificate_status_response";
    case 115:
      return "unknown_psk_identity";
    case 116:
      return "certificate_required";
    case 120:
      return "no_application_protocol";
    default:
      return "unknown";
  }
}

struct RecordLayer::State {
  TlsRole role;
  TlsCipher cipher;
  Options options;
  Direction read, write;

  // Receiving.
  bool failed = false;
  bool read_closed = false;
  bool data_seen = false;
  uint32_t empty_records = 0;
  uint32_t key_updates_in_a_row = 0;
  uint32_t tickets = 0;
  uint32_t updates_received = 0;
  // A post-handshake message that is not complete: its 4-byte header and what of its body is to
  // come.
  uint8_t message[4] = {};
  uint8_t message_have = 0;
  uint32_t message_left = 0;

  // Sending.
  bool write_closed = false;
  int alert = -1;  // description that is due
  bool key_update_due = false;
  bool key_update_requests_peer = false;
  uint32_t updates_sent = 0;

  // The run between begin() and finish().
  uint8_t* run_begin = nullptr;
  uint8_t* run_end = nullptr;  // of `out`, for the check of the contract
  uint8_t* cursor = nullptr;   // where the next byte goes
  uint8_t* header = nullptr;   // of the open record; nullptr: none is open
  uint8_t* staged = nullptr;   // [staged, cursor) is plaintext still to be encrypted in place
  size_t record_left = 0;      // plaintext that the open record still takes
  size_t run_left = 0;         // plaintext that the run still takes
  bool streaming = false;      // start() was called for the open record

  // Nothing may follow an alert, so a closed side keeps its key.
  bool rekey_due() const {
    return !write_closed && (key_update_due || write.sequence >= options.records_per_key);
  }
  Fault peer() const { return role == TlsRole::kClient ? Fault::kUpstream : Fault::kDownstream; }
  size_t control_size() const {
    size_t size = 0;
    if (rekey_due()) size += kKeyUpdateRecord;
    if (alert >= 0) size += kAlertRecord;
    return size;
  }

  std::unexpected<Error> give_up(uint8_t description, std::string detail) {
    failed = true;
    write_closed = true;
    alert = description;
    return fail(Reason::kTlsRecord, peer(), std::move(detail));
  }

  void put_header(uint8_t* at, size_t plaintext) const {
    at[0] = kApplicationData;
    at[1] = 3;
    at[2] = 3;
    store_be(at + 3, static_cast<uint16_t>(plaintext + 1 + kTlsTagSize));
  }

  // A whole small record of ours.
  void put_control(uint8_t type, ByteView content) {
    uint8_t nonce[AeadKey::kNonce];
    put_header(cursor, content.size());
    uint8_t* body = cursor + kTlsHeaderSize;
    std::memcpy(body, content.data(), content.size());
    body[content.size()] = type;
    write.nonce(nonce);
    write.key->seal(body, body, content.size() + 1, nonce, {cursor, kTlsHeaderSize},
                    body + content.size() + 1);
    ++write.sequence;
    cursor += kTlsOverhead + content.size();
  }

  void put_due_control() {
    if (rekey_due()) {
      const uint8_t update[] = {kKeyUpdate, 0, 0, 1, key_update_requests_peer};
      put_control(kHandshake, update);
      key_update_due = key_update_requests_peer = false;
      ++updates_sent;
      // The parameters were accepted when the first key was made; only lack of memory can fail
      // here.
      if (!write.next_generation(cipher, options.backend)) std::abort();
    }
    if (alert >= 0) {
      const uint8_t level = alert == kAlertCloseNotify || alert == kAlertUserCanceled ? 1 : 2;
      const uint8_t content[] = {level, static_cast<uint8_t>(alert)};
      put_control(kAlert, content);
      alert = -1;
    }
  }

  void open_record() {
    const size_t size = std::min(run_left, kTlsMaxPlaintext);
    header = cursor;
    put_header(header, size);
    cursor += kTlsHeaderSize;
    staged = cursor;
    record_left = size;
    streaming = false;
  }
  void flush_staged() {
    if (!streaming) {
      uint8_t nonce[AeadKey::kNonce];
      write.nonce(nonce);
      write.key->start(nonce, {header, kTlsHeaderSize});
      streaming = true;
    }
    if (cursor != staged) write.key->update(staged, staged, static_cast<size_t>(cursor - staged));
    staged = cursor;
  }
  void close_record() {
    *cursor++ = kApplicationData;
    if (streaming) {
      flush_staged();
      write.key->finish(cursor);
    } else {
      uint8_t nonce[AeadKey::kNonce];
      write.nonce(nonce);
      write.key->seal(staged, staged, static_cast<size_t>(cursor - staged), nonce,
                      {header, kTlsHeaderSize}, cursor);
    }
    cursor += kTlsTagSize;
    ++write.sequence;
    header = nullptr;
  }

  Result<Record> on_alert(ByteView content);
  Result<Record> on_handshake(ByteView content);
  Status on_message_header(ByteView rest);
};

RecordLayer::RecordLayer(std::unique_ptr<State> state) : state_(std::move(state)) {}
RecordLayer::RecordLayer(RecordLayer&&) noexcept = default;
RecordLayer& RecordLayer::operator=(RecordLayer&&) noexcept = default;
RecordLayer::~RecordLayer() = default;

Result<RecordLayer> RecordLayer::create(TlsRole role, TlsCipher cipher, ByteView client_secret,
                                        ByteView server_secret, Options options) {
  const size_t want = cipher == TlsCipher::kAes256Gcm ? 48 : 32;
  if (client_secret.size() != want || server_secret.size() != want)
    return fail(Reason::kInternal, Fault::kInternal, "traffic secret of the wrong size");
  auto state = std::make_unique<State>();
  state->role = role;
  state->cipher = cipher;
  state->options = options;
  const bool client = role == TlsRole::kClient;
  state->read.secret = TlsSecret(client ? server_secret : client_secret);
  state->write.secret = TlsSecret(client ? client_secret : server_secret);
  MELTEMI_TRY(state->read.install(cipher, options.backend));
  MELTEMI_TRY(state->write.install(cipher, options.backend));
  return RecordLayer(std::move(state));
}

Result<RecordLayer::Record> RecordLayer::open(ByteSpan record) {
  State& s = *state_;
  if (s.failed) return fail(Reason::kTlsRecord, s.peer(), "the TLS connection has failed");
  if (s.read_closed) return Record{Opened::kClosed, {}};
  const size_t size = record.size();
  if (size > kTlsMaxRecord) return s.give_up(kAlertRecordOverflow, "TLS record too long");
  if (size < kTlsHeaderSize || kTlsHeaderSize + load_be<uint16_t>(&record[3]) != size)
    return s.give_up(kAlertDecodeError, "TLS record whose length is not its header's");
  if (record[0] != kApplicationData)
    return s.give_up(kAlertUnexpectedMessage, "TLS record in the clear after the handshake");
  if (size < kTlsOverhead) return s.give_up(kAlertDecodeError, "TLS record without a tag");

  uint8_t nonce[AeadKey::kNonce];
  s.read.nonce(nonce);
  uint8_t* body = record.data() + kTlsHeaderSize;
  const size_t inner = size - kTlsHeaderSize - kTlsTagSize;
  if (!s.read.key->open(body, body, inner, nonce, {record.data(), kTlsHeaderSize}, body + inner))
    return s.give_up(kAlertBadRecordMac, "TLS record fails authentication");
  ++s.read.sequence;
  if (inner > kTlsMaxPlaintext + 1)
    return s.give_up(kAlertRecordOverflow, "TLS record with more than 2^14 bytes of content");

  size_t end = inner;  // the last byte that is not padding is the content type
  while (end > 0 && body[end - 1] == 0) --end;
  if (end == 0) return s.give_up(kAlertUnexpectedMessage, "TLS record without a content type");
  const uint8_t type = body[end - 1];
  const ByteSpan content(body, end - 1);
  if (type != kHandshake && (s.message_have != 0 || s.message_left != 0))
    return s.give_up(kAlertUnexpectedMessage, "TLS record inside a handshake message");

  if (type == kApplicationData) {
    if (content.empty()) {
      if (++s.empty_records > kTlsMaxEmptyRecords)
        return s.give_up(kAlertUnexpectedMessage, "too many empty TLS records");
      return Record{};
    }
    s.data_seen = true;
    s.empty_records = s.key_updates_in_a_row = 0;
    return Record{Opened::kData, content};
  }
  if (type == kAlert) return s.on_alert(content);
  if (type == kHandshake) return s.on_handshake(content);
  return s.give_up(kAlertUnexpectedMessage, "TLS record of an unknown content type");
}

Result<RecordLayer::Record> RecordLayer::State::on_alert(ByteView content) {
  if (content.size() != 2) return give_up(kAlertDecodeError, "malformed TLS alert");
  const uint8_t description = content[1];
  if (description == kAlertUserCanceled) return Record{};  // a close_notify follows
  if (description == kAlertCloseNotify) {
    read_closed = true;
    return Record{Opened::kClosed, {}};
  }
  failed = write_closed = true;  // the peer is gone: nothing is owed
  alert = -1;
  std::string detail = "the peer sent the TLS alert ";
  detail += alert_name(description);
  detail += " (" + std::to_string(description) + ")";
  return fail(data_seen ? Reason::kConnectReset : Reason::kTlsHandshake, peer(), std::move(detail));
}

// The 4-byte header of a post-handshake message is there; `rest` is what follows in this record.
Status RecordLayer::State::on_message_header(ByteView rest) {
  const uint32_t length = load_be24(message + 1);
  message_left = length;
  if (message[0] == kNewSessionTicket && role == TlsRole::kClient) {
    if (length > kTlsMaxTicketSize || ++tickets > kTlsMaxTickets)
      return give_up(kAlertUnexpectedMessage, "too many or too long TLS session tickets");
    return {};
  }
  if (message[0] == kKeyUpdate) {
    if (length != 1) return give_up(kAlertDecodeError, "malformed TLS KeyUpdate");
    // Its end must be the record's: what follows is under the next key (section 5.1).
    if (rest.size() > 1)
      return give_up(kAlertUnexpectedMessage, "bytes after a TLS KeyUpdate in its record");
    return {};
  }
  return give_up(kAlertUnexpectedMessage, "unexpected TLS handshake message");
}

Result<RecordLayer::Record> RecordLayer::State::on_handshake(ByteView in) {
  if (in.empty()) return give_up(kAlertUnexpectedMessage, "empty TLS handshake record");
  while (!in.empty()) {
    if (message_have < 4) {
      message[message_have++] = in[0];
      in = in.subspan(1);
      if (message_have < 4) continue;
      MELTEMI_TRY(on_message_header(in));
    }
    if (message[0] == kKeyUpdate && !in.empty()) {
      const uint8_t request = in[0];
      in = in.subspan(1);
      if (request > 1) return give_up(47, "malformed TLS KeyUpdate");
      if (++key_updates_in_a_row > kTlsMaxKeyUpdates)
        return give_up(kAlertUnexpectedMessage, "too many TLS KeyUpdates");
      if (request == 1 && !write_closed) key_update_due = true;
      ++updates_received;
      message_left = 0;
      MELTEMI_TRY(read.next_generation(cipher, options.backend));
    } else {
      const size_t skip = std::min<size_t>(message_left, in.size());
      message_left -= static_cast<uint32_t>(skip);
      in = in.subspan(skip);
    }
    if (message_left == 0) message_have = 0;
  }
  return Record{};
}

bool RecordLayer::read_closed() const {
  return state_->read_closed;
}

size_t RecordLayer::sealed_size(size_t plaintext) const {
  const size_t records = (plaintext + kTlsMaxPlaintext - 1) / kTlsMaxPlaintext;
  return state_->control_size() + plaintext + records * kTlsOverhead;
}

size_t RecordLayer::plaintext_room(size_t room) const {
  const size_t control = state_->control_size();
  if (room <= control) return 0;
  room -= control;
  constexpr size_t kFull = kTlsMaxPlaintext + kTlsOverhead;
  const size_t rest = room % kFull;
  return room / kFull * kTlsMaxPlaintext + (rest > kTlsOverhead ? rest - kTlsOverhead : 0);
}

void RecordLayer::begin(ByteSpan out, size_t plaintext) {
  State& s = *state_;
  assert(s.run_begin == nullptr && out.size() >= sealed_size(plaintext));
  assert(plaintext == 0 || !s.write_closed);
  s.run_begin = s.cursor = out.data();
  s.run_end = out.data() + out.size();
  s.run_left = plaintext;
  s.header = nullptr;
  if (s.control_size() != 0) s.put_due_control();
}

void RecordLayer::append(ByteView piece) {
  State& s = *state_;
  assert(piece.size() <= s.run_left);
  const uint8_t* p = piece.data();
  size_t left = piece.size();
  while (left > 0) {
    if (s.header == nullptr) s.open_record();
    const size_t n = std::min(left, s.record_left);
    if (n < kDirectPiece) {
      std::memcpy(s.cursor, p, n);
      s.cursor += n;
    } else {
      s.flush_staged();
      s.write.key->update(s.cursor, p, n);
      s.cursor += n;
      s.staged = s.cursor;
    }
    p += n;
    left -= n;
    s.run_left -= n;
    s.record_left -= n;
    if (s.record_left == 0) s.close_record();
  }
}

size_t RecordLayer::finish() {
  State& s = *state_;
  assert(s.run_left == 0 && s.header == nullptr && s.cursor <= s.run_end);
  const size_t written = static_cast<size_t>(s.cursor - s.run_begin);
  s.run_begin = s.cursor = nullptr;
  return written;
}

size_t RecordLayer::seal(ByteSpan out, std::span<const ByteView> pieces) {
  size_t total = 0;
  for (const ByteView piece : pieces) total += piece.size();
  begin(out, total);
  for (const ByteView piece : pieces) append(piece);
  return finish();
}

bool RecordLayer::wants_write() const {
  return state_->control_size() != 0;
}

void RecordLayer::close() {
  State& s = *state_;
  if (s.write_closed) return;
  s.write_closed = true;
  s.alert = kAlertCloseNotify;
}

bool RecordLayer::write_closed() const {
  return state_->write_closed;
}

void RecordLayer::update_keys(bool request_peer) {
  State& s = *state_;
  if (s.write_closed) return;
  s.key_update_due = true;
  s.key_update_requests_peer |= request_peer;
}

uint32_t RecordLayer::key_updates_sent() const {
  return state_->updates_sent;
}
uint32_t RecordLayer::key_updates_received() const {
  return state_->updates_received;
}

}  // namespace meltemi::codec
