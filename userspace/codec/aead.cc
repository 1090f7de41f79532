#include "userspace/codec/aead.h"

#include <intel-ipsec-mb.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

namespace meltemi::codec {
namespace {

// A way through libipsec-mb: how it is initialised and what the CPU must have for it. CPUs without
// AES-NI have none: the library would emulate it in C, slower than OpenSSL.
struct Path {
  AeadBackend backend;
  std::string_view name;
  void (*init)(IMB_MGR*);
  uint64_t needs;
  uint64_t flags;  // features that are not to be used
};

// Best first.
constexpr Path kPaths[] = {
    {AeadBackend::kAvx512Vaes, "ipsec-mb avx512-vaes", init_mb_mgr_avx512, IMB_CPUFLAGS_AVX512_T2,
     0},
    // The library takes its kernels without VAES when any part of the newer set is missing.
    {AeadBackend::kAvx512, "ipsec-mb avx512", init_mb_mgr_avx512, IMB_CPUFLAGS_AVX512,
     IMB_FLAG_GFNI_OFF},
    {AeadBackend::kAvx2, "ipsec-mb avx2", init_mb_mgr_avx2, IMB_CPUFLAGS_AVX2, 0},
    {AeadBackend::kAvx, "ipsec-mb avx", init_mb_mgr_avx, IMB_CPUFLAGS_AVX, 0},
    {AeadBackend::kSse, "ipsec-mb sse", init_mb_mgr_sse, IMB_CPUFLAGS_SSE, 0},
};
constexpr size_t kPathCount = std::size(kPaths);

// The function tables of the paths, made when first asked for. The direct AEAD functions keep no
// state in the manager, so that one serves every thread; it lives as long as the process.
IMB_MGR* make_manager(const Path& path) {
  IMB_MGR* mgr = alloc_mb_mgr(path.flags);
  if (mgr == nullptr) return nullptr;
  path.init(mgr);
  if (imb_get_errno(mgr) == 0) return mgr;
  free_mb_mgr(mgr);
  return nullptr;
}

template <size_t kIndex>
IMB_MGR* manager_at() {
  static IMB_MGR* const mgr = make_manager(kPaths[kIndex]);
  return mgr;
}

IMB_MGR* manager_of(AeadBackend backend) {
  constexpr auto kManagers = []<size_t... kIndex>(std::index_sequence<kIndex...>) {
    return std::array<IMB_MGR* (*)(), kPathCount>{manager_at<kIndex>...};
  }(std::make_index_sequence<kPathCount>{});
  for (size_t i = 0; i < kPathCount; ++i)
    if (kPaths[i].backend == backend) return kManagers[i]();
  return nullptr;
}

uint64_t cpu_features() {
  IMB_MGR* mgr = alloc_mb_mgr(0);
  if (mgr == nullptr) return 0;
  const uint64_t features = mgr->features;
  free_mb_mgr(mgr);
  return features;
}

// Which paths the CPU has.
struct Available {
  std::array<AeadBackend, kPathCount + 1> list;
  size_t count = 0;

  Available() {
    const uint64_t features = cpu_features();
    for (const Path& path : kPaths)
      if ((features & path.needs) == path.needs) list[count++] = path.backend;
    list[count++] = AeadBackend::kOpenssl;
  }
};

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

std::span<const AeadBackend> aead_backends() {
  static const Available available;
  return {available.list.data(), available.count};
}

std::string_view aead_backend_name(AeadBackend backend) {
  if (backend == AeadBackend::kAuto) backend = aead_backends().front();
  for (const Path& path : kPaths)
    if (path.backend == backend) return path.name;
  return "openssl";
}

Result<std::unique_ptr<AeadKey>> AeadKey::create(TlsCipher cipher, ByteView key,
                                                 AeadBackend backend) {
  const size_t want = cipher == TlsCipher::kAes128Gcm ? 16 : 32;
  if (key.size() != want || evp_cipher(cipher) == nullptr)
    return fail(Reason::kInternal, Fault::kInternal, "AEAD key of the wrong size or cipher");
  const std::span<const AeadBackend> usable = aead_backends();
  const AeadBackend path = backend == AeadBackend::kAuto ? usable.front() : backend;
  if (std::ranges::find(usable, path) == usable.end())
    return fail(Reason::kUnsupported, Fault::kInternal,
                std::string(aead_backend_name(path)) + ": this CPU lacks the instructions");
  IMB_MGR* mgr = path == AeadBackend::kOpenssl ? nullptr : manager_of(path);
  if (path != AeadBackend::kOpenssl && backend != AeadBackend::kAuto && mgr == nullptr)
    return fail(Reason::kUnsupported, Fault::kInternal,
                std::string(aead_backend_name(path)) + ": the library refuses to start");
  if (mgr == nullptr) return std::unique_ptr<AeadKey>(new EvpKey(evp_cipher(cipher), key));
  if (cipher == TlsCipher::kChaCha20Poly1305)
    return std::unique_ptr<AeadKey>(new MbChaCha(mgr, key));
  return std::unique_ptr<AeadKey>(new MbGcm(mgr, key));
}

}  // namespace meltemi::codec
