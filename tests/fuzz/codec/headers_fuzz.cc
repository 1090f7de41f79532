// Header values that a peer chooses: parsing must never fail oddly, and what was parsed must
// survive being written and parsed again.
#include <string>

#include "tests/fuzz/codec/input.h"
#include "userspace/codec/authority.h"
#include "userspace/codec/baggage.h"
#include "userspace/codec/forwarded.h"
#include "userspace/codec/header_list.h"
#include "userspace/codec/traceparent.h"

using namespace meltemi;
using namespace meltemi::codec;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);

  const Baggage b = parse_baggage(text);
  const std::string written = format_baggage(b);
  fuzz::require(valid_header_value(written));
  fuzz::require(parse_baggage(written) == b);

  const Forwarded f = parse_forwarded(text);
  if (f.source) {
    const Forwarded again = parse_forwarded(format_forwarded(*f.source, f.host));
    fuzz::require(again.source == f.source && again.host == f.host);
  }
  fuzz::require(valid_header_value(format_forwarded(SocketAddress{}, text)));

  if (const auto t = Traceparent::parse(text))
    fuzz::require(Traceparent::parse(t->to_string()) == t);

  if (const auto a = Authority::parse(text)) {
    fuzz::require(a->port != 0 && a->ip.has_value() == a->hostname.empty());
    fuzz::require(Authority::parse(a->to_string()) == a);
  }
  return 0;
}
