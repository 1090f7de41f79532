// The TLS record layer: arbitrary bytes as records, damaged records of a real peer, and sealing in
// pieces that must come out as they went in.
#include <string>
#include <vector>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/tls_record.h"

using namespace meltemi;
using namespace meltemi::codec;

namespace {

RecordLayer make(TlsRole role, TlsCipher cipher, AeadBackend backend) {
  uint8_t a[48], b[48];
  std::memset(a, 1, sizeof a);
  std::memset(b, 2, sizeof b);
  const size_t n = cipher == TlsCipher::kAes256Gcm ? 48 : 32;
  return std::move(*RecordLayer::create(role, cipher, {a, n}, {b, n}, {backend, 5}));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  const uint8_t choice = in.byte();
  const TlsCipher cipher = static_cast<TlsCipher>(0x1301 + choice % 3);
  const AeadBackend backend = choice & 8 ? AeadBackend::kOpenssl : AeadBackend::kAuto;
  RecordLayer client = make(TlsRole::kClient, cipher, AeadBackend::kAuto);
  RecordLayer server = make(TlsRole::kServer, cipher, backend);

  if (choice & 16) {  // raw bytes as a stream of records
    std::string wire(as_text(in.rest()));
    ByteSpan left(reinterpret_cast<uint8_t*>(wire.data()), wire.size());
    while (!left.empty()) {
      const auto extent = record_extent(left);
      if (!extent || *extent > left.size()) break;
      fuzz::require(*extent >= kTlsHeaderSize && *extent <= kTlsMaxRecord);
      if (!server.open(left.first(*extent))) break;
      left = left.subspan(*extent);
    }
    return 0;
  }

  uint32_t updates = 0;
  while (!in.empty()) {
    const uint8_t step = in.byte();
    if (step % 8 == 0 && ++updates < kTlsMaxKeyUpdates) client.update_keys(step & 64);
    std::string whole;
    std::vector<std::string> pieces;
    for (int i = 0; i < step % 5; ++i) {
      const ByteView seed = in.bytes(in.byte());
      std::string piece(as_text(seed));
      for (int k = in.byte() % 9; k > 0 && piece.size() < 20000; --k) piece += piece;
      whole += piece;
      pieces.push_back(std::move(piece));
    }
    std::vector<ByteView> views;
    for (const std::string& p : pieces) views.push_back(as_bytes(p));
    std::string wire(client.sealed_size(whole.size()), '\0');
    ByteSpan out(reinterpret_cast<uint8_t*>(wire.data()), wire.size());
    fuzz::require(client.seal(out, views) == wire.size());
    const bool damage = step & 128 && !wire.empty();
    if (damage) out[in.byte() % out.size()] ^= static_cast<uint8_t>(in.byte() | 1);
    std::string got;
    while (!out.empty()) {
      const auto extent = record_extent(out);
      if (!extent || *extent > out.size()) {
        fuzz::require(damage);
        return 0;
      }
      auto record = server.open(out.first(*extent));
      if (!record) {
        fuzz::require(damage && server.wants_write() && server.write_closed());
        return 0;
      }
      got += as_text(record->data);
      out = out.subspan(*extent);
    }
    fuzz::require(!damage && got == whole);
    if (server.wants_write()) {
      std::string answer(server.sealed_size(0), '\0');
      ByteSpan bytes(reinterpret_cast<uint8_t*>(answer.data()), answer.size());
      server.seal(bytes, {});
      fuzz::require(client.open(bytes).has_value());
    }
  }
  return 0;
}
