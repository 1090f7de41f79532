#include "userspace/codec/aead.h"

#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

namespace meltemi::codec {
namespace {

// The function table of libipsec-mb, chosen by CPUID once. Its direct AEAD functions keep no state
// in the manager, so that one serves every thread. nullptr where the CPU lacks AES-NI: the library
// would emulate it in C, slower than OpenSSL.
struct MbTable {
  IMB_MGR* mgr = nullptr;
  IMB_ARCH arch = IMB_ARCH_NONE;

  MbTable() {
    mgr = alloc_mb_mgr(0);
    if (mgr == nullptr) return;
    init_mb_mgr_auto(mgr, &arch);
    if (imb_get_errno(mgr) == 0 && arch >= IMB_ARCH_SSE) return;
    free_mb_mgr(mgr);
    mgr = nullptr;
  }
};

const MbTable& mb_table() {
  static const MbTable table;  // lives as long as the process
  return table;
}

bool tag_fits(const uint8_t* computed, const uint8_t* received, uint8_t* plaintext, size_t size) {
  if (CRYPTO_memcmp(computed, received, AeadKey::kTag) == 0) return true;
  OPENSSL_cleanse(plaintext, size);  // nobody may act on it by mistake
  return false;
}

// AES-GCM. The five functions are the only difference between key sizes.
class MbGcm final : public AeadKey {
 public:
  MbGcm(IMB_MGR* mgr, ByteView key) {
    if (key.size() == 16) {
      IMB_AES128_GCM_PRE(mgr, key.data(), &key_);
      enc_ = mgr->gcm128_enc;
      dec_ = mgr->gcm128_dec;
      init_ = mgr->gcm128_init;
      update_ = mgr->gcm128_enc_update;
      finalize_ = mgr->gcm128_enc_finalize;
    } else {
      IMB_AES256_GCM_PRE(mgr, key.data(), &key_);
      enc_ = mgr->gcm256_enc;
      dec_ = mgr->gcm256_dec;
      init_ = mgr->gcm256_init;
      update_ = mgr->gcm256_enc_update;
      finalize_ = mgr->gcm256_enc_finalize;
    }
  }
  ~MbGcm() override {
    OPENSSL_cleanse(&key_, sizeof key_);
    OPENSSL_cleanse(&context_, sizeof context_);
  }

  void seal(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce, ByteView aad,
            uint8_t* tag) override {
    enc_(&key_, &context_, dst, src, size, nonce, aad.data(), aad.size(), tag, kTag);
  }
  bool open(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce, ByteView aad,
            const uint8_t* tag) override {
    uint8_t computed[kTag];
    dec_(&key_, &context_, dst, src, size, nonce, aad.data(), aad.size(), computed, kTag);
    return tag_fits(computed, tag, dst, size);
  }
  void start(const uint8_t* nonce, ByteView aad) override {
    init_(&key_, &context_, nonce, aad.data(), aad.size());
  }
  void update(uint8_t* dst, const uint8_t* src, size_t size) override {
    update_(&key_, &context_, dst, src, size);
  }
  void finish(uint8_t* tag) override { finalize_(&key_, &context_, tag, kTag); }

 private:
  alignas(64) gcm_key_data key_;  // the library loads both with aligned moves
  alignas(64) gcm_context_data context_{};
  aes_gcm_enc_dec_t enc_, dec_;
  aes_gcm_init_t init_;
  aes_gcm_enc_dec_update_t update_;
  aes_gcm_enc_dec_finalize_t finalize_;
};

class MbChaCha final : public AeadKey {
 public:
  MbChaCha(IMB_MGR* mgr, ByteView key) : mgr_(mgr) { std::memcpy(key_, key.data(), sizeof key_); }
  ~MbChaCha() override {
    OPENSSL_cleanse(key_, sizeof key_);
    OPENSSL_cleanse(&context_, sizeof context_);
  }

  void seal(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce, ByteView aad,
            uint8_t* tag) override {
    start(nonce, aad);
    update(dst, src, size);
    finish(tag);
  }
  bool open(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce, ByteView aad,
            const uint8_t* tag) override {
    uint8_t computed[kTag];
    start(nonce, aad);
    IMB_CHACHA20_POLY1305_DEC_UPDATE(mgr_, key_, &context_, dst, src, size);
    IMB_CHACHA20_POLY1305_DEC_FINALIZE(mgr_, &context_, computed, kTag);
    return tag_fits(computed, tag, dst, size);
  }
  void start(const uint8_t* nonce, ByteView aad) override {
    IMB_CHACHA20_POLY1305_INIT(mgr_, key_, &context_, nonce, aad.data(), aad.size());
  }
  void update(uint8_t* dst, const uint8_t* src, size_t size) override {
    IMB_CHACHA20_POLY1305_ENC_UPDATE(mgr_, key_, &context_, dst, src, size);
  }
  void finish(uint8_t* tag) override {
    IMB_CHACHA20_POLY1305_ENC_FINALIZE(mgr_, &context_, tag, kTag);
  }

 private:
  IMB_MGR* mgr_;
  alignas(64) uint8_t key_[32];
  alignas(64) chacha20_poly1305_context_data context_{};
};

class EvpKey final : public AeadKey {
 public:
  EvpKey(const EVP_CIPHER* cipher, ByteView key)
      : seal_(EVP_CIPHER_CTX_new()), open_(EVP_CIPHER_CTX_new()) {
    EVP_EncryptInit_ex2(seal_, cipher, key.data(), nullptr, nullptr);
    EVP_DecryptInit_ex2(open_, cipher, key.data(), nullptr, nullptr);
  }
  ~EvpKey() override {
    EVP_CIPHER_CTX_free(seal_);
    EVP_CIPHER_CTX_free(open_);
  }

  void seal(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce, ByteView aad,
            uint8_t* tag) override {
    start(nonce, aad);
    update(dst, src, size);
    finish(tag);
  }
  bool open(uint8_t* dst, const uint8_t* src, size_t size, const uint8_t* nonce, ByteView aad,
            const uint8_t* tag) override {
    int n = 0;
    EVP_DecryptInit_ex2(open_, nullptr, nullptr, nonce, nullptr);
    EVP_DecryptUpdate(open_, nullptr, &n, aad.data(), static_cast<int>(aad.size()));
    EVP_DecryptUpdate(open_, dst, &n, src, static_cast<int>(size));
    EVP_CIPHER_CTX_ctrl(open_, EVP_CTRL_AEAD_SET_TAG, kTag, const_cast<uint8_t*>(tag));
    uint8_t rest[16];
    if (EVP_DecryptFinal_ex(open_, rest, &n) == 1) return true;
    OPENSSL_cleanse(dst, size);
    return false;
  }
  void start(const uint8_t* nonce, ByteView aad) override {
    int n = 0;
    EVP_EncryptInit_ex2(seal_, nullptr, nullptr, nonce, nullptr);
    EVP_EncryptUpdate(seal_, nullptr, &n, aad.data(), static_cast<int>(aad.size()));
  }
  void update(uint8_t* dst, const uint8_t* src, size_t size) override {
    int n = 0;
    EVP_EncryptUpdate(seal_, dst, &n, src, static_cast<int>(size));
  }
  void finish(uint8_t* tag) override {
    int n = 0;
    uint8_t rest[16];
    EVP_EncryptFinal_ex(seal_, rest, &n);
    EVP_CIPHER_CTX_ctrl(seal_, EVP_CTRL_AEAD_GET_TAG, kTag, tag);
  }

 private:
  EVP_CIPHER_CTX* seal_;
  EVP_CIPHER_CTX* open_;
};

const EVP_CIPHER* evp_cipher(TlsCipher cipher) {
  switch (cipher) {
    case TlsCipher::kAes128Gcm:
      return EVP_aes_128_gcm();
    case TlsCipher::kAes256Gcm:
      return EVP_aes_256_gcm();
    case TlsCipher::kChaCha20Poly1305:
      return EVP_chacha20_poly1305();
  }
  return nullptr;
}

}  // namespace

std::string_view aead_backend_name() {
  switch (mb_table().arch) {
    case IMB_ARCH_SSE:
      return "ipsec-mb sse";
    case IMB_ARCH_AVX:
      return "ipsec-mb avx";
    case IMB_ARCH_AVX2:
      return "ipsec-mb avx2";
    case IMB_ARCH_AVX512:
      return "ipsec-mb avx512";
    default:
      return "openssl";
  }
}

Result<std::unique_ptr<AeadKey>> AeadKey::create(TlsCipher cipher, ByteView key,
                                                 AeadBackend backend) {
  const size_t want = cipher == TlsCipher::kAes128Gcm ? 16 : 32;
  if (key.size() != want || evp_cipher(cipher) == nullptr)
    return fail(Reason::kInternal, Fault::kInternal, "AEAD key of the wrong size or cipher");
  IMB_MGR* mgr = mb_table().mgr;
  if (backend == AeadBackend::kIpsecMb && mgr == nullptr)
    return fail(Reason::kUnsupported, Fault::kInternal, "libipsec-mb: this CPU has no AES-NI");
  if (backend == AeadBackend::kOpenssl || mgr == nullptr)
    return std::unique_ptr<AeadKey>(new EvpKey(evp_cipher(cipher), key));
  if (cipher == TlsCipher::kChaCha20Poly1305)
    return std::unique_ptr<AeadKey>(new MbChaCha(mgr, key));
  return std::unique_ptr<AeadKey>(new MbGcm(mgr, key));
}

}  // namespace meltemi::codec
