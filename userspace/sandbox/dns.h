// Cluster DNS (RFC 1035): answers A and AAAA for the Services of the sandbox, NXDOMAIN for
// everything else. A peer's bytes are parsed here: messages are bounded, names are checked,
// compression pointers in questions are refused. Must never forward a query: nothing of a sandbox
// leaves it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "userspace/base/address.h"
#include "userspace/base/bytes.h"
#include "userspace/config/store.h"

namespace meltemi::sandbox {

inline constexpr size_t kMaxDnsUdpBytes =
    1232;  // of an answer; longer ones get TC (RFC 6891, flag day 2020)
inline constexpr size_t kMaxDnsTcpBytes = 65535;
inline constexpr uint32_t kDnsTtlSeconds = 5;

// What the server knows; immutable, shared between threads.
struct DnsZone {
  struct Name {
    std::vector<IpAddress> addresses;
    std::string cname;  // ExternalName
  };
  // Full lower-case names without the trailing dot: "catalog.shop.svc.cluster.local".
  std::map<std::string, Name, std::less<>> names;
};
// Services of the merged view (headless ones with their ready pods), plus `fixed` names.
DnsZone build_zone(const config::ObjectStore& store,
                   const std::map<std::string, std::vector<IpAddress>>& fixed);

// The answer to one message, at most `max_bytes`; empty: nothing is to be sent (no DNS query at
// all).
std::string answer_dns(ByteView query, const DnsZone& zone, size_t max_bytes);

// A thread that serves UDP and TCP on port 53 of the cluster DNS address, in the fabric.
class DnsServer {
 public:
  // Opens its sockets in `netns_path`.
  static Result<std::unique_ptr<DnsServer>> start(const std::string& netns_path);
  ~DnsServer();
  void publish(std::shared_ptr<const DnsZone> zone);

 private:
  struct State;
  explicit DnsServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace meltemi::sandbox
