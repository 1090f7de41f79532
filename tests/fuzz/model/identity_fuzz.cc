// SPIFFE IDs: what is accepted is exactly its parts put together again.
#include <cstdlib>

#include "userspace/model/identity.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using meltemi::model::Identity;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto id = Identity::parse(text);
  if (!id) return 0;
  const auto again = Identity::make(id->trust_domain(), id->ns(), id->service_account());
  if (!again || *again != *id || id->uri() != text) std::abort();
  for (const std::string_view part : {id->trust_domain(), id->ns(), id->service_account()}) {
    if (part.empty() || part.find_first_of("/%?#@: ") != std::string_view::npos) std::abort();
    if (part.find('\0') != std::string_view::npos) std::abort();
  }
  return 0;
}
