// The TLS record layer against RFC 8448, against libssl on the other side, and against liars.
#include "userspace/codec/tls_record.h"

#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <string>
#include <vector>

namespace meltemi::codec {
namespace {

std::string from_hex(std::string_view hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); ++i) {
    if (hex[i] == ' ' || hex[i] == '\n') continue;
    out.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
    ++i;
  }
  return out;
}

ByteSpan span_of(std::string& s) {
  return {reinterpret_cast<uint8_t*>(s.data()), s.size()};
}

std::string pattern(size_t size, uint32_t seed = 1) {
  std::string out(size, '\0');
  for (char& c : out) {
    seed = seed * 1664525 + 1013904223;
    c = static_cast<char>(seed >> 24);
  }
  return out;
}

std::string seal_all(RecordLayer& layer, std::initializer_list<std::string_view> pieces) {
  std::vector<ByteView> views;
  size_t total = 0;
  for (auto p : pieces) {
    views.push_back(as_bytes(p));
    total += p.size();
  }
  std::string out(layer.sealed_size(total), '\0');
  EXPECT_EQ(layer.seal(span_of(out), views), out.size());
  return out;
}

// Everything in `wire`: the data, and the first error if any.
struct Received {
  std::string data;
  bool closed = false;
  std::optional<Error> error;
};
Received open_all(RecordLayer& layer, std::string wire) {
  Received r;
  ByteSpan in = span_of(wire);
  while (!in.empty()) {
    auto extent = record_extent(in);
    if (!extent) {
      r.error = extent.error();
      return r;
    }
    if (*extent > in.size()) break;
    auto record = layer.open(in.first(*extent));
    if (!record) {
      r.error = record.error();
      return r;
    }
    if (record->kind == RecordLayer::Opened::kData) r.data += as_text(record->data);
    if (record->kind == RecordLayer::Opened::kClosed) r.closed = true;
    in = in.subspan(*extent);
  }
  return r;
}

// --- RFC 8448 section 3 ------------------------------------------------------------------------
const std::string kClientSecret =
    from_hex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5");
const std::string kServerSecret =
    from_hex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643");
const std::string kClientRecord = from_hex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e"
    "2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4");
const std::string kServerRecord = from_hex(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59"
    "a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d");
const std::string kClientAlert = from_hex("1703030013c9872760655666b74d7ff1153efd6db6d0b0e3");

std::string rfc8448_payload() {
  std::string payload(50, '\0');
  for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i);
  return payload;
}

class Backends : public testing::TestWithParam<AeadBackend> {
 protected:
  RecordLayer make(TlsRole role, TlsCipher cipher = TlsCipher::kAes128Gcm,
                   uint64_t records_per_key = kTlsRecordsPerKey) {
    return make(role, cipher, {GetParam(), records_per_key});
  }
  RecordLayer make_openssl(TlsRole role, TlsCipher cipher) {
    return make(role, cipher, {AeadBackend::kOpenssl, kTlsRecordsPerKey});
  }

 private:
  RecordLayer make(TlsRole role, TlsCipher cipher, RecordLayer::Options options) {
    const size_t size = cipher == TlsCipher::kAes256Gcm ? 48 : 32;
    const std::string a = size == 32 ? kClientSecret : pattern(48, 7);
    const std::string b = size == 32 ? kServerSecret : pattern(48, 8);
    auto layer = RecordLayer::create(role, cipher, as_bytes(a), as_bytes(b), options);
    EXPECT_TRUE(layer.has_value());
    return std::move(*layer);
  }
};
// Every path that this CPU has, whichever kAuto would take.
std::string backend_name(const testing::TestParamInfo<AeadBackend>& info) {
  std::string name(aead_backend_name(info.param));
  std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
  return name;
}
INSTANTIATE_TEST_SUITE_P(Record, Backends,
                         testing::ValuesIn(aead_backends().begin(), aead_backends().end()),
                         backend_name);

TEST(AeadBackends, AreWhatTheCpuHas) {
  const auto usable = aead_backends();
  ASSERT_FALSE(usable.empty());
  EXPECT_EQ(usable.back(), AeadBackend::kOpenssl);
  EXPECT_EQ(aead_backend_name(), aead_backend_name(usable.front()));
  for (auto [backend, has] : {std::pair{AeadBackend::kSse, __builtin_cpu_supports("aes")},
                              {AeadBackend::kAvx2, __builtin_cpu_supports("avx2")},
                              {AeadBackend::kAvx512, __builtin_cpu_supports("avx512bw")}}) {
    EXPECT_EQ(std::ranges::find(usable, backend) != usable.end(), has != 0)
        << aead_backend_name(backend);
    if (has) continue;
    auto refused = RecordLayer::create(TlsRole::kClient, TlsCipher::kAes128Gcm,
                                       as_bytes(kClientSecret), as_bytes(kServerSecret), {backend});
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().reason, Reason::kUnsupported);
  }
}

TEST_P(Backends, Rfc8448ClientWrites) {
  auto client = make(TlsRole::kClient);
  EXPECT_EQ(seal_all(client, {rfc8448_payload()}), kClientRecord);
  client.close();
  EXPECT_EQ(seal_all(client, {}), kClientAlert);
}

TEST_P(Backends, Rfc8448ServerReadsAndWrites) {
  auto server = make(TlsRole::kServer);
  Received got = open_all(server, kClientRecord + kClientAlert);
  EXPECT_EQ(got.data, rfc8448_payload());
  EXPECT_TRUE(got.closed);
  seal_all(server, {"stands for the ticket, record number 0"});
  EXPECT_EQ(seal_all(server, {rfc8448_payload()}), kServerRecord);
}

TEST_P(Backends, PiecesDoNotMatter) {
  const std::string data = pattern(40000);
  for (TlsCipher cipher :
       {TlsCipher::kAes128Gcm, TlsCipher::kAes256Gcm, TlsCipher::kChaCha20Poly1305}) {
    auto whole = make(TlsRole::kClient, cipher);
    const std::string expected = seal_all(whole, {data});
    for (size_t step : {1u, 9u, 1023u, 1024u, 1025u, 5000u, 16384u, 16393u, 39999u}) {
      auto split = make(TlsRole::kClient, cipher);
      std::string out(split.sealed_size(data.size()), '\0');
      split.begin(span_of(out), data.size());
      for (size_t at = 0; at < data.size(); at += step)
        split.append(as_bytes(std::string_view(data).substr(at, step)));
      EXPECT_EQ(split.finish(), expected.size());
      EXPECT_EQ(out, expected) << "pieces of " << step;
    }
    auto server = make(TlsRole::kServer, cipher);
    EXPECT_EQ(open_all(server, expected).data, data);
  }
}

// OpenSSL, which we did not write, seals the same bytes and opens ours; and the other way round.
TEST_P(Backends, AgreesWithOpensslAtEverySize) {
  std::vector<size_t> sizes;
  for (size_t size = 1; size < 600; ++size) sizes.push_back(size);
  for (size_t at : {1024u, 4096u, 8192u, 16384u, 32768u})
    for (size_t size = at - 17; size <= at + 17; ++size) sizes.push_back(size);
  for (TlsCipher cipher :
       {TlsCipher::kAes128Gcm, TlsCipher::kAes256Gcm, TlsCipher::kChaCha20Poly1305}) {
    auto ours = make(TlsRole::kClient, cipher), reader = make(TlsRole::kServer, cipher);
    auto theirs = make_openssl(TlsRole::kClient, cipher);
    for (size_t size : sizes) {
      const std::string data = pattern(size, static_cast<uint32_t>(size));
      const std::string wire = seal_all(ours, {data});
      ASSERT_EQ(wire, seal_all(theirs, {data})) << size << " bytes";
      const Received got = open_all(reader, wire);
      ASSERT_FALSE(got.error.has_value()) << got.error->to_string();
      ASSERT_EQ(got.data, data);
    }
  }
}

TEST_P(Backends, SplitAtEveryByteAgreesWithOpenssl) {
  const std::string data = pattern(2600);
  for (TlsCipher cipher :
       {TlsCipher::kAes128Gcm, TlsCipher::kAes256Gcm, TlsCipher::kChaCha20Poly1305}) {
    auto ours = make(TlsRole::kClient, cipher), theirs = make_openssl(TlsRole::kClient, cipher);
    const std::string_view view(data);
    for (size_t at = 0; at <= data.size(); ++at)
      ASSERT_EQ(seal_all(ours, {view.substr(0, at), view.substr(at)}), seal_all(theirs, {data}))
          << "split at " << at;
  }
}

// Alignment and what lies around it are the caller's business: pieces and slots at any address.
TEST_P(Backends, AnyAlignment) {
  auto ours = make(TlsRole::kClient), reader = make(TlsRole::kServer);
  const std::string data = pattern(3000);
  for (size_t from = 0; from < 64; ++from) {
    std::string source(from, 'a'), slot;
    source += data;
    slot.assign(from * 7 % 64 + ours.sealed_size(data.size()) + 64, 'z');
    const ByteSpan out = span_of(slot).subspan(from * 7 % 64, ours.sealed_size(data.size()));
    const ByteView piece = as_bytes(source).subspan(from);
    ASSERT_EQ(ours.seal(out, {&piece, 1}), out.size());
    EXPECT_EQ(slot.substr(slot.size() - 64), std::string(64, 'z')) << "bytes behind the record";
    auto record = reader.open(out);
    ASSERT_TRUE(record.has_value());
    EXPECT_EQ(as_text(record->data), data);
  }
}

TEST_P(Backends, EverySizeRoundTrips) {
  auto client = make(TlsRole::kClient);
  auto server = make(TlsRole::kServer);
  for (size_t size = 1; size < 700; ++size) {
    const std::string data = pattern(size, static_cast<uint32_t>(size));
    EXPECT_EQ(open_all(server, seal_all(client, {data})).data, data);
  }
  for (size_t size : {16383u, 16384u, 16385u, 32768u, 100000u}) {
    const std::string data = pattern(size);
    EXPECT_EQ(open_all(server, seal_all(client, {"head", data, "t"})).data, "head" + data + "t");
  }
}

TEST_P(Backends, AnyFlippedBitIsRefused) {
  auto client = make(TlsRole::kClient);
  // Long enough for the widest kernels' main loops as well as for their tails.
  const std::string wire = seal_all(client, {"attack at dawn" + pattern(1100)});
  for (size_t i = 0; i < wire.size(); ++i) {
    auto server = make(TlsRole::kServer);
    std::string forged = wire;
    forged[i] = static_cast<char>(forged[i] ^ 0x10);
    auto record = server.open(span_of(forged));
    ASSERT_FALSE(record.has_value()) << "byte " << i;
    EXPECT_EQ(record.error().reason, Reason::kTlsRecord);
    EXPECT_TRUE(server.wants_write());
    EXPECT_TRUE(server.write_closed());
    EXPECT_EQ(forged.find("attack"), std::string::npos) << "plaintext of a forged record leaks";
    std::string again = wire;
    EXPECT_FALSE(server.open(span_of(again)).has_value()) << "a dead connection came back";
    // The alert tells the peer.
    auto peer = make(TlsRole::kClient);
    Received told = open_all(peer, seal_all(server, {}));
    ASSERT_TRUE(told.error.has_value());
    EXPECT_FALSE(server.wants_write());
  }
}

TEST_P(Backends, ReplayAndReorderAreRefused) {
  auto client = make(TlsRole::kClient);
  const std::string first = seal_all(client, {"one"}), second = seal_all(client, {"two"});
  auto server = make(TlsRole::kServer);
  EXPECT_TRUE(open_all(server, first + first).error.has_value());
  server = make(TlsRole::kServer);
  EXPECT_TRUE(open_all(server, second).error.has_value());
}

TEST_P(Backends, RekeysByItselfAndInStep) {
  auto client = make(TlsRole::kClient, TlsCipher::kAes128Gcm, 3);
  auto server = make(TlsRole::kServer, TlsCipher::kAes128Gcm, 3);
  for (int i = 0; i < 40; ++i) {
    const std::string data = pattern(100 + i);
    EXPECT_EQ(open_all(server, seal_all(client, {data})).data, data);
    EXPECT_EQ(open_all(client, seal_all(server, {data})).data, data);
  }
  EXPECT_GE(client.key_updates_sent(), 10u);
  EXPECT_EQ(client.key_updates_sent(), server.key_updates_received());
}

TEST_P(Backends, KeyUpdateOnRequest) {
  auto client = make(TlsRole::kClient);
  auto server = make(TlsRole::kServer);
  client.update_keys(true);
  EXPECT_TRUE(client.wants_write());
  Received got = open_all(server, seal_all(client, {"after"}));
  EXPECT_EQ(got.data, "after");
  EXPECT_TRUE(server.wants_write());
  EXPECT_EQ(open_all(client, seal_all(server, {"answer"})).data, "answer");
  EXPECT_EQ(client.key_updates_received(), 1u);
  EXPECT_FALSE(client.wants_write());
}

TEST_P(Backends, KeyUpdateFloodEnds) {
  auto client = make(TlsRole::kClient);
  auto server = make(TlsRole::kServer);
  std::optional<Error> error;
  for (uint32_t i = 0; i <= kTlsMaxKeyUpdates && !error; ++i) {
    client.update_keys(false);
    error = open_all(server, seal_all(client, {})).error;
  }
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->reason, Reason::kTlsRecord);
}

TEST_P(Backends, RoomIsTheInverseOfSize) {
  auto layer = make(TlsRole::kClient);
  for (bool control : {false, true}) {
    if (control) layer.update_keys(false);
    for (size_t room = 0; room < 70000; room += 7) {
      const size_t fits = layer.plaintext_room(room);
      if (fits > 0) EXPECT_LE(layer.sealed_size(fits), room);
      EXPECT_GT(layer.sealed_size(fits + 1), room);
    }
  }
}

TEST(RecordExtent, SaysHowManyBytesAreNeeded) {
  const std::string wire = kClientRecord;
  for (size_t n = 0; n < 5; ++n) EXPECT_EQ(record_extent(as_bytes(wire.substr(0, n))).value(), 5u);
  for (size_t n = 5; n <= wire.size(); ++n)
    EXPECT_EQ(record_extent(as_bytes(wire.substr(0, n))).value(), wire.size());
  EXPECT_FALSE(record_extent(as_bytes("GET / HTTP/1.1\r\n")).has_value());
  EXPECT_FALSE(record_extent(as_bytes(from_hex("1702"))).has_value());
  EXPECT_FALSE(record_extent(as_bytes(from_hex("1703034101"))).has_value());
  EXPECT_TRUE(record_extent(as_bytes(from_hex("1703034100"))).has_value());
}

TEST(Keylog, TakesOnlyTheTwoSecrets) {
  KeylogSecrets secrets;
  secrets.take("CLIENT_HANDSHAKE_TRAFFIC_SECRET 00 1111");
  secrets.take("CLIENT_TRAFFIC_SECRET_0 aabb 0102ff");
  EXPECT_FALSE(secrets.complete());
  secrets.take("SERVER_TRAFFIC_SECRET_0 aabb 0a\n");
  ASSERT_TRUE(secrets.complete());
  EXPECT_EQ(as_text(secrets.client().bytes()), std::string("\x01\x02\xff"));
  EXPECT_EQ(as_text(secrets.server().bytes()), "\n");
  secrets.take("SERVER_TRAFFIC_SECRET_0 aabb zz");
  EXPECT_FALSE(secrets.complete());
}

TEST(Create, RefusesSecretsOfTheWrongSize) {
  EXPECT_FALSE(RecordLayer::create(TlsRole::kClient, TlsCipher::kAes256Gcm, as_bytes(kClientSecret),
                                   as_bytes(kServerSecret)));
}

// --- records that only a liar (or a very unusual peer) makes -------------------------------------
// Seals with RFC 8448's server key by OpenSSL, so that inner type, padding and size are free.
class Crafted : public testing::Test {
 protected:
  RecordLayer client = std::move(*RecordLayer::create(
      TlsRole::kClient, TlsCipher::kAes128Gcm, as_bytes(kClientSecret), as_bytes(kServerSecret)));
  uint64_t sequence = 0;

  std::string craft(uint8_t type, std::string_view content, size_t padding = 0) {
    static const std::string key = from_hex("9f02283b6c9c07efc26bb9f2ac92e356");
    std::string iv = from_hex("cf782b88dd83549aadf1e984");
    for (int i = 0; i < 8; ++i)
      iv[11 - i] = static_cast<char>(static_cast<uint8_t>(iv[11 - i]) ^ (sequence >> (8 * i)));
    ++sequence;
    std::string inner(content);
    inner += static_cast<char>(type);
    inner.append(padding, '\0');
    std::string out = from_hex("1703030000");
    store_be(reinterpret_cast<uint8_t*>(out.data()) + 3, static_cast<uint16_t>(inner.size() + 16));
    EVP_CIPHER_CTX* ctx = EVP_CIPHER_CTX_new();
    auto bytes = [](std::string& s) { return reinterpret_cast<uint8_t*>(s.data()); };
    int n = 0;
    std::string key_copy = key, tag(16, '\0'), sealed(inner.size(), '\0');
    EVP_EncryptInit_ex2(ctx, EVP_aes_128_gcm(), bytes(key_copy), bytes(iv), nullptr);
    EVP_EncryptUpdate(ctx, nullptr, &n, bytes(out), 5);
    EVP_EncryptUpdate(ctx, bytes(sealed), &n, bytes(inner), static_cast<int>(inner.size()));
    EVP_EncryptFinal_ex(ctx, bytes(tag), &n);
    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, bytes(tag));
    EVP_CIPHER_CTX_free(ctx);
    return out + sealed + tag;
  }
  void expect_good(const std::string& wire, std::string_view data = "") {
    const Received got = open_all(client, wire);
    ASSERT_FALSE(got.error.has_value()) << got.error->to_string();
    EXPECT_EQ(got.data, data);
  }
  // The connection dies and the alert `description` is what goes out.
  void expect_alert(const std::string& wire, uint8_t description) {
    const Received got = open_all(client, wire);
    ASSERT_TRUE(got.error.has_value());
    EXPECT_EQ(got.error->reason, Reason::kTlsRecord);
    auto server = RecordLayer::create(TlsRole::kServer, TlsCipher::kAes128Gcm,
                                      as_bytes(kClientSecret), as_bytes(kServerSecret));
    const Received told = open_all(*server, seal_all(client, {}));
    ASSERT_TRUE(told.error.has_value());
    EXPECT_NE(told.error->detail.find("(" + std::to_string(description) + ")"), std::string::npos)
        << told.error->detail;
  }
};
constexpr uint8_t kHs = 22, kApp = 23;

TEST_F(Crafted, PaddingIsRemoved) {
  expect_good(craft(kApp, "data", 1) + craft(kApp, "more", 1000), "datamore");
  expect_good(craft(kApp, std::string("ends in zero\0", 13), 5),
              std::string_view("ends in zero\0", 13));
}
TEST_F(Crafted, NothingButPadding) {
  expect_alert(craft(0, "", 10), kAlertUnexpectedMessage);
}
TEST_F(Crafted, TooMuchInside) {
  expect_alert(craft(kApp, std::string(16385, 'x')), kAlertRecordOverflow);
}
TEST_F(Crafted, TooMuchPadding) {
  expect_alert(craft(kApp, "x", 16384), kAlertRecordOverflow);
}
TEST_F(Crafted, ExactlyFull) {
  expect_good(craft(kApp, std::string(16384, 'x')), std::string(16384, 'x'));
}
TEST_F(Crafted, UnknownInnerType) {
  expect_alert(craft(20, "\1"), kAlertUnexpectedMessage);
}
TEST_F(Crafted, ClearText) {
  expect_alert(from_hex("15030300020228"), kAlertUnexpectedMessage);
}
TEST_F(Crafted, EmptyRecords) {
  std::string few;
  for (uint32_t i = 0; i < kTlsMaxEmptyRecords; ++i) few += craft(kApp, "");
  expect_good(few + craft(kApp, "x"), "x");
  std::string many;
  for (uint32_t i = 0; i <= kTlsMaxEmptyRecords; ++i) many += craft(kApp, "");
  expect_alert(many, kAlertUnexpectedMessage);
}
TEST_F(Crafted, TicketsInAnyPieces) {
  const std::string ticket = from_hex("040000050102030405");
  expect_good(craft(kHs, ticket + ticket) + craft(kApp, "a"), "a");
  std::string pieces;
  for (char c : ticket) pieces += craft(kHs, std::string(1, c));
  expect_good(pieces + craft(kApp, "b"), "b");
}
TEST_F(Crafted, TooManyTickets) {
  std::string all;
  for (uint32_t i = 0; i <= kTlsMaxTickets; ++i) all += craft(kHs, from_hex("0400000101"));
  expect_alert(all, kAlertUnexpectedMessage);
}
TEST_F(Crafted, EndlessTicket) {
  expect_alert(craft(kHs, from_hex("04ffffff")), kAlertUnexpectedMessage);
}
TEST_F(Crafted, DataInsideATicket) {
  expect_alert(craft(kHs, from_hex("0400000501")) + craft(kApp, "x"), kAlertUnexpectedMessage);
}
TEST_F(Crafted, KeyUpdateInPieces) {
  expect_good(craft(kHs, from_hex("1800")) + craft(kHs, from_hex("000101")));
  EXPECT_EQ(client.key_updates_received(), 1u);
  EXPECT_TRUE(client.wants_write()) << "the peer asked for ours";
}
TEST_F(Crafted, BytesAfterAKeyUpdate) {
  expect_alert(craft(kHs, from_hex("180000010018000001")), kAlertUnexpectedMessage);
}
TEST_F(Crafted, MalformedKeyUpdate) {
  expect_alert(craft(kHs, from_hex("1800000102")), 47);
}
TEST_F(Crafted, LongKeyUpdate) {
  expect_alert(craft(kHs, from_hex("180000020000")), kAlertDecodeError);
}
TEST_F(Crafted, OtherHandshakeMessages) {
  expect_alert(craft(kHs, from_hex("0d000000")), kAlertUnexpectedMessage);
}
TEST_F(Crafted, EmptyHandshake) {
  expect_alert(craft(kHs, ""), kAlertUnexpectedMessage);
}
TEST_F(Crafted, MalformedAlert) {
  expect_alert(craft(21, "\2"), kAlertDecodeError);
}
TEST_F(Crafted, AlertAfterDataIsAReset) {
  const Received got = open_all(client, craft(kApp, "x") + craft(21, "\2\x2d"));
  ASSERT_TRUE(got.error.has_value());
  EXPECT_EQ(got.error->reason, Reason::kConnectReset);
  EXPECT_NE(got.error->detail.find("certificate_expired (45)"), std::string::npos);
}
TEST_F(Crafted, UserCanceledWaitsForItsClose) {
  const Received got =
      open_all(client, craft(21, std::string("\1\x5a", 2)) + craft(21, std::string("\1\0", 2)) +
                           craft(kApp, "ignored"));
  EXPECT_FALSE(got.error.has_value());
  EXPECT_TRUE(got.closed);
  EXPECT_EQ(got.data, "");
}

// --- libssl on the other side -------------------------------------------------------------------
struct Libssl {
  SSL_CTX* client_ctx = SSL_CTX_new(TLS_client_method());
  SSL_CTX* server_ctx = SSL_CTX_new(TLS_server_method());
  SSL* client = nullptr;
  SSL* server = nullptr;
  KeylogSecrets secrets;

  static void on_keylog(const SSL* ssl, const char* line) {
    static_cast<Libssl*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)))->secrets.take(line);
  }

  explicit Libssl(const char* suite, size_t tickets = 0) {
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* cert = X509_new();
    X509_set_version(cert, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    X509_gmtime_adj(X509_getm_notBefore(cert), -60);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    X509_set_pubkey(cert, key);
    X509_sign(cert, key, EVP_sha256());
    SSL_CTX_use_certificate(server_ctx, cert);
    SSL_CTX_use_PrivateKey(server_ctx, key);
    X509_free(cert);
    EVP_PKEY_free(key);
    for (SSL_CTX* ctx : {client_ctx, server_ctx}) {
      SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
      SSL_CTX_set_ciphersuites(ctx, suite);
    }
    SSL_CTX_set_num_tickets(server_ctx, tickets);
    SSL_CTX_set_app_data(client_ctx, this);
    SSL_CTX_set_keylog_callback(client_ctx, on_keylog);
    client = make(client_ctx);
    server = make(server_ctx);
    SSL_set_connect_state(client);
    SSL_set_accept_state(server);
  }
  ~Libssl() {
    SSL_free(client);
    SSL_free(server);
    SSL_CTX_free(client_ctx);
    SSL_CTX_free(server_ctx);
  }
  static SSL* make(SSL_CTX* ctx) {
    SSL* ssl = SSL_new(ctx);
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    return ssl;
  }
  static std::string written(SSL* ssl) {
    char* data = nullptr;
    BIO* bio = SSL_get_wbio(ssl);
    const long size = BIO_get_mem_data(bio, &data);
    std::string out(data, static_cast<size_t>(size));
    (void)BIO_reset(bio);
    return out;
  }
  static void feed(SSL* ssl, std::string_view bytes) {
    BIO_write(SSL_get_rbio(ssl), bytes.data(), static_cast<int>(bytes.size()));
  }
  static std::string read(SSL* ssl) {
    std::string out(1 << 17, '\0');
    size_t total = 0;
    for (;;) {
      const int n = SSL_read(ssl, out.data() + total, static_cast<int>(out.size() - total));
      if (n <= 0) break;
      total += static_cast<size_t>(n);
    }
    out.resize(total);
    return out;
  }
  static void write(SSL* ssl, std::string_view data) {
    ASSERT_EQ(SSL_write(ssl, data.data(), static_cast<int>(data.size())),
              static_cast<int>(data.size()));
  }

  // The whole handshake, one record at a time as net does it. Returns what was left for the
  // client's record layer: bytes that libssl's client never saw.
  std::string handshake() {
    std::string to_server, to_client;
    auto one_record = [](SSL* ssl, std::string& in) {
      auto extent = record_extent(as_bytes(in));
      ASSERT_TRUE(extent.has_value());
      ASSERT_LE(*extent, in.size());
      feed(ssl, in.substr(0, *extent));
      in.erase(0, *extent);
    };
    bool client_done = false, server_done = false;
    for (int turn = 0; turn < 40 && !(client_done && server_done); ++turn) {
      if (!client_done) client_done = SSL_do_handshake(client) == 1;
      to_server += written(client);
      while (!to_server.empty() && !server_done) {
        one_record(server, to_server);
        server_done = SSL_do_handshake(server) == 1;
      }
      to_client += written(server);
      while (!to_client.empty() && !client_done) {
        one_record(client, to_client);
        client_done = SSL_do_handshake(client) == 1;
      }
      to_server += written(client);
    }
    EXPECT_TRUE(client_done && server_done);
    EXPECT_TRUE(secrets.complete());
    EXPECT_TRUE(to_server.empty());
    return to_client;
  }
  RecordLayer take_over(TlsRole role, AeadBackend backend) {
    const auto cipher =
        static_cast<TlsCipher>(SSL_CIPHER_get_protocol_id(SSL_get_current_cipher(client)));
    auto layer = RecordLayer::create(role, cipher, secrets.client().bytes(),
                                     secrets.server().bytes(), {backend, kTlsRecordsPerKey});
    EXPECT_TRUE(layer.has_value());
    return std::move(*layer);
  }
};

class Interop : public testing::TestWithParam<std::tuple<const char*, AeadBackend>> {};
INSTANTIATE_TEST_SUITE_P(
    Record, Interop,
    testing::Combine(testing::Values("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384",
                                     "TLS_CHACHA20_POLY1305_SHA256"),
                     testing::ValuesIn(aead_backends().begin(), aead_backends().end())));

TEST_P(Interop, OurClientTalksToLibssl) {
  auto [suite, backend] = GetParam();
  Libssl ssl(suite, 2);  // two tickets: the client must take no notice
  const std::string early = ssl.handshake();
  RecordLayer ours = ssl.take_over(TlsRole::kClient, backend);
  Received got = open_all(ours, early);
  EXPECT_FALSE(got.error.has_value()) << got.error->to_string();
  for (size_t size : {1u, 100u, 5000u, 16384u, 60000u}) {
    const std::string data = pattern(size);
    Libssl::write(ssl.server, data);
    got = open_all(ours, Libssl::written(ssl.server));
    ASSERT_FALSE(got.error.has_value()) << got.error->to_string();
    EXPECT_EQ(got.data, data);
    Libssl::feed(ssl.server, seal_all(ours, {data.substr(0, size / 3), data.substr(size / 3)}));
    EXPECT_EQ(Libssl::read(ssl.server), data);
  }
}

TEST_P(Interop, OurServerTalksToLibsslWithKeyUpdates) {
  auto [suite, backend] = GetParam();
  Libssl ssl(suite);
  EXPECT_EQ(ssl.handshake(), "");
  RecordLayer ours = ssl.take_over(TlsRole::kServer, backend);
  for (int round = 0; round < 6; ++round) {
    SSL_key_update(ssl.client, round % 2 ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
    Libssl::write(ssl.client, "from libssl");
    Received got = open_all(ours, Libssl::written(ssl.client));
    ASSERT_FALSE(got.error.has_value()) << got.error->to_string();
    EXPECT_EQ(got.data, "from libssl");
    EXPECT_EQ(ours.wants_write(), round % 2 == 1);
    if (round == 3) ours.update_keys(true);
    Libssl::feed(ssl.client, seal_all(ours, {"from us"}));
    EXPECT_EQ(Libssl::read(ssl.client), "from us");
  }
  EXPECT_EQ(ours.key_updates_received(), 6u);
}

TEST_P(Interop, CloseNotifyBothWays) {
  auto [suite, backend] = GetParam();
  Libssl ssl(suite);
  ssl.handshake();
  RecordLayer ours = ssl.take_over(TlsRole::kClient, backend);
  ours.close();
  Libssl::feed(ssl.server, seal_all(ours, {}));
  char byte;
  EXPECT_LE(SSL_read(ssl.server, &byte, 1), 0);
  EXPECT_EQ(SSL_get_shutdown(ssl.server) & SSL_RECEIVED_SHUTDOWN, SSL_RECEIVED_SHUTDOWN);
  SSL_shutdown(ssl.server);
  Received got = open_all(ours, Libssl::written(ssl.server));
  EXPECT_TRUE(got.closed);
  EXPECT_TRUE(ours.read_closed());
}

TEST(Tickets, AServerRefusesThem) {
  // A server that pretends to be a client of another server: it must not take its tickets.
  Libssl ssl("TLS_AES_128_GCM_SHA256", 1);
  const std::string tickets = ssl.handshake();
  ASSERT_FALSE(tickets.empty());
  auto swapped = RecordLayer::create(TlsRole::kServer, TlsCipher::kAes128Gcm,
                                     ssl.secrets.server().bytes(), ssl.secrets.client().bytes());
  Received got = open_all(*swapped, tickets);
  ASSERT_TRUE(got.error.has_value());
  EXPECT_EQ(got.error->reason, Reason::kTlsRecord);
}

TEST(Alerts, TheirNameReachesTheError) {
  Libssl ssl("TLS_AES_128_GCM_SHA256");
  ssl.handshake();
  RecordLayer ours = ssl.take_over(TlsRole::kClient, AeadBackend::kAuto);
  // libssl answers garbage with bad_record_mac.
  std::string wire = seal_all(ours, {"x"});
  wire.back() = static_cast<char>(wire.back() ^ 1);
  Libssl::feed(ssl.server, wire);
  char byte;
  EXPECT_LE(SSL_read(ssl.server, &byte, 1), 0);
  ERR_clear_error();
  Received got = open_all(ours, Libssl::written(ssl.server));
  ASSERT_TRUE(got.error.has_value());
  EXPECT_EQ(got.error->reason, Reason::kTlsHandshake) << "no data had come";
  EXPECT_NE(got.error->detail.find("bad_record_mac (20)"), std::string::npos);
  EXPECT_FALSE(ours.wants_write());
}

}  // namespace
}  // namespace meltemi::codec
