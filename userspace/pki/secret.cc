// See secret.h.
#include "userspace/pki/secret.h"

#include <openssl/crypto.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <new>

namespace meltemi::pki {
namespace {

// A P-256 key takes a few hundred bytes of it; when it is used up, making a key fails.
constexpr size_t kKeyMemory = 4u << 20, kSmallestPiece = 32;

}  // namespace

Secret::Secret(std::string_view text) : size_(text.size()) {
  if (text.empty()) return;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  mapped_ = (text.size() + page - 1) / page * page;
  void* pages = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  ::mlock(pages, mapped_);
  ::madvise(pages, mapped_, MADV_DONTDUMP);
  data_ = static_cast<char*>(pages);
  std::memcpy(data_, text.data(), text.size());
}

Secret::~Secret() {
  if (data_ == nullptr) return;
  OPENSSL_cleanse(data_, mapped_);
  ::munmap(data_, mapped_);  // unlocks as well
}

void wipe(std::string& text) {
  OPENSSL_cleanse(text.data(), text.size());
  text.clear();
}

void use_locked_memory_for_keys() {
  // A sanitizer neither guards that memory nor looks in it for pointers: what OpenSSL holds from there
  // (its random generators' ciphers) would be a leak to it.
#if !__has_feature(address_sanitizer)
  static const int ready = CRYPTO_secure_malloc_init(kKeyMemory, kSmallestPiece);
  static_cast<void>(ready);
#endif
}

}  // namespace meltemi::pki
