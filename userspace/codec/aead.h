// Internal to codec: one AEAD key of one direction, behind one interface for libipsec-mb and
// OpenSSL. It knows nothing of records. Nonces are the caller's duty: never the same one twice
// under a key.
#pragma once

#include <cstdint>
#include <memory>

#include "userspace/base/bytes.h"
#include "userspace/base/error.h"
#include "userspace/codec/tls_record.h"

namespace meltemi::codec {

class AeadKey {
 public:
  static constexpr size_t kNonce = 12;
  static constexpr size_t kTag = 16;

  // `key` is 16 bytes for kAes128Gcm, else 32. Fails with kUnsupported if the backend is not there.
  static Result<std::unique_ptr<AeadKey>> create(TlsCipher cipher, ByteView key,
                                                 AeadBackend backend);
  virtual ~AeadKey() = default;

  // Whole message. `dst` may equal `src`; otherwise they must not overlap.
  virtual void seal(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce,
                    ByteView aad, uint8_t* tag) = 0;
  // False when the tag does not fit, in constant time; `dst` is wiped then.
  virtual bool open(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce,
                    ByteView aad, const uint8_t* tag) = 0;

  // Sealing in pieces: start, update any number of times, finish.
  virtual void start(const uint8_t* nonce, ByteView aad) = 0;
  virtual void update(uint8_t* dst, const uint8_t* src, size_t size) = 0;
  virtual void finish(uint8_t* tag) = 0;
};

}  // namespace meltemi::codec
