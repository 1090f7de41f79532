// See channel.h: the parts that need no gRPC.
#include "userspace/xds/channel.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "userspace/base/address.h"
#include "userspace/xds/address.h"

namespace meltemi::xds {

Result<Target> parse_target(std::string_view address) {
  Target out;
  std::string_view rest = address;
  if (rest.starts_with("http://")) {
    out.plaintext = true;
    rest.remove_prefix(7);
  } else if (rest.starts_with("https://")) {
    rest.remove_prefix(8);
  }
  if (rest.ends_with('/')) rest.remove_suffix(1);
  const auto parts = split_host_port(rest);
  if (!parts || parts->host.empty() || parts->port == 0 || rest.find('/') != rest.npos) {
    return fail(Reason::kBadConfig, Fault::kConfig,
                fmt::format("control plane address \"{}\": expected https://HOST:PORT", address));
  }
  out.host_port = rest;
  return out;
}

Status check_address(std::string_view address) {
  MELTEMI_TRY(parse_target(address));
  return {};
}

Node make_node(std::string_view role, std::string_view ip, std::string_view pod,
               std::string_view ns, std::string_view domain) {
  Node node{.id = fmt::format("{}~{}~{}.{}~{}.svc.{}", role, ip, pod, ns, ns, domain), .metadata = {}};
  node.metadata["NAME"] = pod;
  node.metadata["NAMESPACE"] = ns;
  node.metadata["INSTANCE_IPS"] = ip;
  return node;
}

Duration backoff(unsigned failures, double random) {
  const unsigned doublings = std::min(failures > 0 ? failures - 1 : 0u, 20u);
  const auto base = std::min<Duration>(kBackoffFirst * (1ll << doublings), kBackoffMax);
  return Duration(std::llround(static_cast<double>(base.count()) * (0.5 + 0.5 * random)));
}

}  // namespace meltemi::xds
