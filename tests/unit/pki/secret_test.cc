// Where private keys lie: not in a core dump, not in swap, and nowhere once they are let go.
#include "userspace/pki/secret.h"

#include <gmock/gmock.h>
#include <openssl/crypto.h>

#include <fstream>
#include <sstream>

#include "userspace/pki/key.h"

namespace meltemi::pki {
namespace {

using ::testing::HasSubstr;

// The kernel's flags of the mapping that `address` is in.
std::string flags_of(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  const auto at = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) inside = from <= at && at < to;
    if (inside && line.starts_with("VmFlags:")) return line + " ";
  }
  return {};
}

TEST(Secret, LiesInLockedMemoryThatIsNotDumped) {
  const auto pem = PrivateKey::generate()->to_pem();
  EXPECT_THAT(std::string(pem.view()), HasSubstr("PRIVATE KEY"));
  const std::string flags = flags_of(pem.view().data());
  EXPECT_THAT(flags, HasSubstr(" dd ")) << "left out of core dumps";
#if !__has_feature(address_sanitizer)  // it makes mlock do nothing
  EXPECT_THAT(flags, HasSubstr(" lo ")) << "locked; needs RLIMIT_MEMLOCK of some pages";
#endif
}

#if !__has_feature(address_sanitizer)  // it watches keys in the heap, see use_locked_memory_for_keys()
TEST(Secret, ANumberOfAKeyLiesInOpensslsLockedMemoryAndLeavesIt) {
  const auto before = [] {
    const auto key = PrivateKey::generate();
    return CRYPTO_secure_used();
  }();
  EXPECT_GT(before, 0u);
  EXPECT_LT(CRYPTO_secure_used(), before) << "the key is gone";
}
#endif

TEST(Secret, MovesWithoutLeavingACopy) {
  Secret first("a secret");
  const char* place = first.view().data();
  Secret second(std::move(first));
  EXPECT_EQ(second.view(), "a secret");
  EXPECT_EQ(second.view().data(), place);
  EXPECT_TRUE(first.empty());
  std::string read = "another secret";
  const char* bytes = read.data();
  wipe(read);
  EXPECT_TRUE(read.empty());
  EXPECT_EQ(bytes[0], 0);
}

}  // namespace
}  // namespace meltemi::pki
