// kubectl's selector syntax: any text is a selector or an error, and matching never fails.
#include "userspace/model/selector.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace meltemi::model;
  static const Labels labels{{"app", "web"}, {"tier", "front"}};
  const auto s = LabelSelector::parse({reinterpret_cast<const char*>(data), size});
  if (s) static_cast<void>(s->matches(labels));
  return 0;
}
