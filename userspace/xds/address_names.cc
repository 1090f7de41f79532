// See address_names.h.
#include "userspace/xds/address_names.h"

#include <fmt/format.h>

#include "userspace/base/address.h"
#include "workload/workload.pb.h"

namespace meltemi::xds {
namespace {

void add_address(std::string_view network, const std::string& bytes, std::vector<std::string>* out) {
  const auto ip = IpAddress::from_bytes(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  if (ip) out->push_back(fmt::format("{}/{}", network, ip->to_string()));
}

}  // namespace

std::string alias_of_node(std::string_view node) { return fmt::format("~node/{}", node); }

std::vector<std::string> address_aliases(std::string_view body) {
  std::vector<std::string> out;
  istio::workload::Address address;
  if (!address.ParseFromArray(body.data(), static_cast<int>(body.size()))) return out;
  if (address.has_service()) {
    for (const auto& vip : address.service().addresses()) {
      add_address(vip.network(), vip.address(), &out);
    }
    return out;
  }
  const auto& workload = address.workload();
  for (const std::string& bytes : workload.addresses()) add_address(workload.network(), bytes, &out);
  for (const auto& [service, ports] : workload.services()) out.push_back(service);
  if (!workload.node().empty()) out.push_back(alias_of_node(workload.node()));
  return out;
}

}  // namespace meltemi::xds
