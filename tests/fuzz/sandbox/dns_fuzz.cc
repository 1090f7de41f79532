// Any bytes at the cluster's DNS: the answer stays in its bounds, repeats the question's id, is
// marked as an answer, and says at most what the zone holds.
#include <cstdlib>

#include "userspace/sandbox/dns.h"

namespace {

using meltemi::IpAddress;
using namespace meltemi::sandbox;

const DnsZone& zone() {
  static const DnsZone instance = [] {
    DnsZone z;
    z.names["catalog.shop.svc.cluster.local"].addresses = {*IpAddress::parse("10.96.1.1"),
                                                           *IpAddress::parse("fd54::1")};
    z.names["outside.shop.svc.cluster.local"].cname = "catalog.shop.svc.cluster.local";
    // A circle of aliases must end too.
    z.names["a"].cname = "b";
    z.names["b"].cname = "a";
    return z;
  }();
  return instance;
}

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const meltemi::ByteView query(data, size);
  for (const size_t limit : {size_t{64}, kMaxDnsUdpBytes}) {
    const std::string answer = answer_dns(query, zone(), limit);
    if (answer.empty()) {
      require(size < 12 || (data[2] & 0x80) != 0);
      continue;
    }
    require(size >= 12 && answer.size() >= 12);
    // The question is repeated whatever the limit; records are cut at it.
    require(answer.size() <= std::max(limit, size));
    require(answer[0] == static_cast<char>(data[0]) && answer[1] == static_cast<char>(data[1]));
    require((answer[2] & 0x80) != 0);
    // What was answered is an answer: sent back, it is not answered again.
    require(answer_dns(meltemi::as_bytes(answer), zone(), limit).empty());
  }
  return 0;
}
