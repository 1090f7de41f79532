// The text of a kept certificate, of whoever wrote it: nothing that does not verify comes out, and no error
// tells of a key.
#include <cstdlib>

#include "userspace/base/bytes.h"
#include "userspace/pki/kept_certificate.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace meltemi;
  const auto kept = pki::from_kept_text(as_text({data, size}), WallTime());
  if (kept) {
    if ((*kept)->chain.empty() || (*kept)->roots.empty()) std::abort();
  } else if (kept.error().detail.find("PRIVATE KEY") != std::string::npos) {
    std::abort();
  }
  return 0;
}
