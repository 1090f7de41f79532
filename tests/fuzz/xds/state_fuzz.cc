// A state file of whoever wrote it: it is refused, or what comes out goes in again unchanged.
#include <cstdlib>
#include <string>

#include "userspace/xds/last_good.h"

namespace {

const meltemi::xds::StateOwner kOwner{"ztunnel", "n", "c", "t"};

// With the length and checksum that belong to it, so that the fuzzer gets past them.
std::string with_header(std::string_view payload) {
  using namespace meltemi;
  std::string out = xds::encode_state(kOwner, {});
  const std::string owner = out.substr(24, out.size() - 24 - 4);  // without the number of types
  return owner + std::string(payload);
}

void check(std::string_view bytes) {
  using namespace meltemi;
  const auto types = xds::decode_state(bytes, kOwner);
  if (!types) return;
  const auto again = xds::decode_state(xds::encode_state(kOwner, *types), kOwner);
  if (!again || again->size() != types->size()) std::abort();
  for (const auto& [url, resources] : *types) {
    const auto it = again->find(url);
    if (it == again->end() || it->second.size() != resources.size()) std::abort();
    for (const auto& [name, r] : resources) {
      const auto other = it->second.find(name);
      if (other == it->second.end() || other->second->body != r->body) std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  check(bytes);
  check(meltemi::xds::seal_state(with_header(bytes)));
  return 0;
}
