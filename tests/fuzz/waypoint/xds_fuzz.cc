// Bytes of a control plane as resources of each type: refused or compiled, and a snapshot of what was
// accepted can be built.
#include "waypoint/xds/store.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace meltemi::waypoint;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data + 1), size - 1);
  ConfigStore store;
  const auto type = static_cast<XdsType>(data[0] % 4);
  if (store.put(type, "resource", body)) (void)store.build();
  (void)store.missing();
  (void)store.dump_json();
  return 0;
}
